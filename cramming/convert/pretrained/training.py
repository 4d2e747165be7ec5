"""Training of a converted model's blocks, each alone, and what all training here shares. Not end to end (whole.py).

The error of a block is taken behind its norm: of the block's raw output a few outlier dimensions would be most.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from tqdm import tqdm

from cramming.convert.pretrained.compute import computing
from cramming.convert.pretrained.config import DistillConfig
from cramming.convert.pretrained.dense import Dense
from cramming.convert.pretrained.recording import Recording
from cramming.convert.pretrained.student import Piece
from cramming.errors import Diverged
from fff.layers.base import Feedforward

RUN = 256  # tokens that are read together from the disk
WARM = 0.05  # share of the updates in which the rate rises


def rate(step: int, steps: int) -> float:
    """Share of the learning rate: up, then down to 0 in a line."""
    warm = max(1, int(steps * WARM))
    return min((step + 1) / warm, (steps - step) / max(1, steps - warm))


class Behind:
    """What stands behind a block: the teacher's norm of residual + y, or y alone."""

    def __init__(self, teacher: nn.Module, dense: Dense) -> None:
        self.norm = teacher.get_submodule(dense.norm) if dense.norm else None

    def __call__(self, residual: Tensor, y: Tensor) -> Tensor:
        """(N, K) of both."""
        return y if self.norm is None else self.norm(residual + y)


def share_lost(found: Tensor, wanted: Tensor) -> Tensor:
    """Mean square error (N, K) as a share of the variance: 1 - R^2 over all columns together."""
    return (found - wanted).square().sum() / (wanted - wanted.mean(0)).square().sum().clamp_min(1e-20)


def trained(module: nn.Module) -> None:
    """Let layers of trees compute as in training, hard; all else stays in evaluation, without dropout."""
    for each in module.modules():
        if isinstance(each, Feedforward):
            each.train()


def train_block(
    piece: Piece, dense: Dense, behind: Behind, recording: Recording, number: int, config: DistillConfig
) -> None:
    """Adam on one block's error behind its norm, over recorded tokens in an order of the seed's."""
    steps = int(config.block_tokens) // config.block_batch
    if not steps or not (parameters := list(piece.parameters())) or piece.target.kind == "none":
        return
    optimiser = torch.optim.Adam(parameters, lr=config.block_lr)
    trained(piece)
    batches = runs(recording.fitted, config.block_batch, config.seed + 1000 * number)
    errors = Errors(f"{dense.block.path}, ")
    with tqdm(range(steps), desc=f"block {number}", unit="update", leave=False) as bar:
        for step in bar:
            x, y, base = recording.taken(number, dense, next(batches))
            with torch.no_grad():
                wanted = behind(base, y)
            with computing(config.compute, x.device):
                found = piece(x)
            loss = share_lost(behind(base, found.float()), wanted)
            update(loss, optimiser, config.block_lr * rate(step, steps))
            errors.note(step, loss)
            if step % 20 == 1:
                bar.set_postfix_str(f"error {errors.known:.4f}", refresh=False)
    errors.last()
    piece.eval()


def runs(tokens: int, batch: int, seed: int) -> Iterator[Tensor]:
    """Numbers of tokens, a batch at a time, without end: runs of neighbours in a shuffled order."""
    generator = torch.Generator().manual_seed(seed)
    size = min(RUN, batch)
    firsts = torch.arange(0, max(1, tokens - size + 1), size)
    while True:
        for chosen in firsts[torch.randperm(len(firsts), generator=generator)].split(max(1, batch // size)):
            yield (chosen[:, None] + torch.arange(min(size, tokens))).flatten()


@torch.no_grad()
def block_error(piece: Piece, dense: Dense, behind: Behind, recording: Recording, number: int) -> float:
    """`share_lost` of a block behind its norm, on tokens that it was not fitted to."""
    x, y, base = recording.taken(number, dense, slice(recording.fitted, recording.tokens))
    return float(share_lost(behind(base, piece(x)), behind(base, y)))


class Errors:
    """Losses of updates, read one update late: to wait for each would leave a GPU idle while the next is prepared.

    Attributes:
        known: the last that was read; NaN before the second.
    """

    def __init__(self, where: str = "") -> None:
        self.where, self.known = where, float("nan")
        self._pending: tuple[int, Tensor] | None = None

    def note(self, step: int, loss: Tensor) -> None:
        """Keep a loss, and read the one before; Diverged where that is no number."""
        before, self._pending = self._pending, (step, loss.detach())
        self._read(before)

    def last(self) -> float:
        """The last one; Diverged where it is no number, so before anything is kept that came of it."""
        self._read(self._pending)
        self._pending = None
        return self.known

    def _read(self, noted: tuple[int, Tensor] | None) -> None:
        if noted is None:
            return
        self.known = noted[1].item()
        if not math.isfinite(self.known):
            raise Diverged(
                f"{self.where}update {noted[0]}: the error is no number any more; lower distill.block_lr or "
                "distill.whole_lr."
            )


def update(loss: Tensor, optimiser: torch.optim.Optimizer, lr: float) -> None:
    """One step."""
    optimiser.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_([p for group in optimiser.param_groups for p in group["params"]], 1.0)
    for group in optimiser.param_groups:
        group["lr"] = lr * group.get("factor", 1.0)
    optimiser.step()
