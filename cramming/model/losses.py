"""The losses of the heads, each a mean over labels or this part's share of a larger batch's mean. Not the heads."""

import torch
from torch import Tensor, nn

IGNORED = -100  # label of a position without a prediction, as everywhere in transformers
PROBLEMS = ("regression", "single_label_classification", "multi_label_classification")


def cross_entropy(logits: Tensor, labels: Tensor, items: Tensor | int | None = None) -> Tensor:
    """Cross-entropy (nats) of logits (N, V) in float32, labels (N,) int64 with -100 where there is none.

    Args:
        items: labels of the whole batch: the sum is divided by it, instead of by the labels here.
    """
    reduction = "mean" if items is None else "sum"
    loss = nn.functional.cross_entropy(logits.float(), labels, ignore_index=IGNORED, reduction=reduction)
    return loss if items is None else _share(loss, items)


def span_loss(starts: Tensor, ends: Tensor, first: Tensor, last: Tensor) -> Tensor:
    """Mean of two cross-entropies (nats) of logits (B, S): the places first and last (B,) int64 of a span.

    A place outside 0 to S - 1, where a text was cut, is no label; without any label the loss is 0.
    """
    losses = []
    for logits, places in ((starts, first), (ends, last)):
        inside = (places >= 0) & (places < logits.shape[1])
        total = cross_entropy(logits, places.masked_fill(~inside, IGNORED), inside.sum().clamp(min=1))
        losses.append(total)
    return torch.stack(losses).mean()


def problem_of(labels_of_model: int, labels: Tensor) -> str:
    """What labels ask for where the configuration does not say, as BERT decides it."""
    if labels_of_model == 1:
        return "regression"
    return "multi_label_classification" if labels.is_floating_point() else "single_label_classification"


def classification_loss(problem: str, logits: Tensor, labels: Tensor, items: Tensor | int | None = None) -> Tensor:
    """The loss of logits (B, classes) for one of PROBLEMS; `items` as `cross_entropy`.

    Raises:
        ValueError: an unknown problem, or labels of another shape than it needs.
    """
    if problem not in PROBLEMS:
        raise ValueError(f"config.problem_type is {problem!r}; it is one of {', '.join(PROBLEMS)}.")
    if problem == "single_label_classification":
        if labels.numel() != logits.shape[0] or labels.is_floating_point():
            raise ValueError(f"{problem} needs (B,) whole numbers as labels, got {labels.dtype} {tuple(labels.shape)}.")
        return cross_entropy(logits, labels.view(-1), items)
    if labels.numel() != logits.numel():
        raise ValueError(f"{problem} needs labels {tuple(logits.shape)}, got {tuple(labels.shape)}.")
    loss = nn.functional.mse_loss if problem == "regression" else nn.functional.binary_cross_entropy_with_logits
    wide, wanted = logits.float(), labels.view(logits.shape).float()
    return loss(wide, wanted) if items is None else _share(loss(wide, wanted, reduction="sum"), items)


def _share(total: Tensor, items: Tensor | int) -> Tensor:
    return total / (items.to(total.device) if torch.is_tensor(items) else items)
