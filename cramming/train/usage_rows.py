"""What a row of the history says of the leaves. Not when it is taken (usage.py), nor the figures (fff.usage)."""

import torch
from torch import Tensor

from fff.usage import QUANTILES, Usage, usage_entropy

TREES_SHOWN = 8  # with more trees than this a row has their mean alone


def summary(usages: list[Usage], earlier: list[Tensor]) -> dict[str, float]:
    """The few figures to watch, means over layers and trees; dead leaves are summed over them."""

    def mean(values: list[Tensor]) -> float:
        return float(torch.stack([value.double().mean() for value in values]).mean())

    row = {
        "fff/usage_entropy": mean([u.entropy for u in usages]),
        "fff/usage_entropy_relative": mean([u.relative_entropy for u in usages]),
        "fff/dead_leaves": float(sum(int(u.dead.sum()) for u in usages)),
        "fff/fullest_leaf": mean([u.fullest for u in usages]),
        "fff/margin_median": mean([u.margins[:, QUANTILES.index(0.5)] for u in usages]),
    }
    if usages[0].depth:
        row |= {
            "fff/imbalance": mean([u.imbalance for u in usages]),
            "fff/decision_entropy": mean([u.decision_entropy for u in usages]),
            "fff/decided": mean([u.decided for u in usages]),
        }
    if earlier:
        row["fff/churn"] = mean([u.churn(e) for u, e in zip(usages, earlier, strict=True)])
    return row


def running(counts: list[Tensor]) -> dict[str, float]:
    """Usage over the training tokens counted since the last mark."""
    entropy = torch.stack([usage_entropy(count).mean() for count in counts]).mean()
    return {
        "fff/running_usage_entropy": float(entropy),
        "fff/running_dead_leaves": float(sum(int((count == 0).sum()) for count in counts)),
        "fff/running_tokens": float(counts[0][0].sum()),
    }


def layer_row(prefix: str, usage: Usage, earlier: Tensor | None) -> dict[str, float]:
    """One layer's figures per level (means over trees) and, where there are few trees, per tree."""
    row: dict[str, float] = {}
    per_tree = {
        "usage_entropy": usage.entropy,
        "usage_entropy_relative": usage.relative_entropy,
        "dead_leaves": usage.dead.double(),
        "fullest_leaf": usage.fullest,
    }
    per_tree |= {f"margin_q{round(100 * q):02d}": usage.margins[:, i] for i, q in enumerate(QUANTILES)}
    if earlier is not None:
        per_tree["churn"] = usage.churn(earlier)
    for name, values in per_tree.items():
        row[f"{prefix}/{name}"] = float(values.mean())
        if 1 < len(values) <= TREES_SHOWN:
            row |= {f"{prefix}/tree_{tree}/{name}": float(value) for tree, value in enumerate(values)}
    per_level = {"imbalance": usage.imbalance, "decision_entropy": usage.decision_entropy, "decided": usage.decided}
    for name, matrix in per_level.items():
        row |= {f"{prefix}/level_{level:02d}/{name}": float(value) for level, value in enumerate(matrix.mean(0))}
    return row
