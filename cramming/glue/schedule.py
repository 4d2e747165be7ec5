"""The learning rate of finetuning: linear warm-up, then cosine to 0. Pretraining's schedules are in `train`."""

import math


def total_steps(examples: int, batch: int, epochs: int) -> int:
    """Updates of one run; a short last batch counts as one."""
    return -(-examples // batch) * epochs


def warmup_steps(steps: dict[str, int], fraction: float, mode: str) -> list[int]:
    """Warm-up steps of each task of a run, given their total steps by name.

    `per_task` takes the share of the task's own steps. `legacy` is the leak in UltraFastBERT's public code: the first
    task's count serves every task, so that a short task after a long one may never leave its warm-up. The first is
    the authors': theirs run in the order of their names, whatever the order here.
    """
    own = {name: int(fraction * total) for name, total in steps.items()}
    return list(own.values()) if mode == "per_task" else [own[min(own)]] * len(own)


def lr_factor(step: int, total: int, warmup: int) -> float:
    """Factor of the peak learning rate for update `step` (from 0) of `total`."""
    if step < warmup:
        return step / warmup
    return 0.5 * (1.0 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))
