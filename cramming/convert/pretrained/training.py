"""Training of a converted model: each block alone, then all of it end to end. Resumable; not what it begins at.

The error of a block is taken behind its norm: of the block's raw output a few outlier dimensions would be most. End to
end the same error is summed over all blocks, with the student's own residuals, and the text's embedding is compared.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from cramming.convert.pretrained.compute import computing, device_of
from cramming.convert.pretrained.config import DistillConfig
from cramming.convert.pretrained.dense import Dense
from cramming.convert.pretrained.recording import Recording, pooled
from cramming.convert.pretrained.student import Piece
from cramming.convert.pretrained.teacher import last_hidden
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
    with tqdm(range(steps), desc=f"block {number}", unit="update", leave=False) as bar:
        for step in bar:
            x, y, base = recording.taken(number, dense, next(batches))
            with torch.no_grad():
                wanted = behind(base, y)
            with computing(config.compute, x.device):
                found = piece(x)
            loss = share_lost(behind(base, found.float()), wanted)
            update(loss, optimiser, config.block_lr * rate(step, steps), f"{dense.block.path}, update {step}")
            if step % 20 == 0:
                bar.set_postfix_str(f"error {loss.item():.4f}")
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


def update(loss: Tensor, optimiser: torch.optim.Optimizer, lr: float, where: str) -> None:
    """One step; Diverged where the loss is no number."""
    if not bool(loss.isfinite()):
        raise Diverged(f"{where}: the error is no number any more; lower distill.block_lr or distill.whole_lr.")
    optimiser.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_([p for group in optimiser.param_groups for p in group["params"]], 1.0)
    for group in optimiser.param_groups:
        group["lr"] = lr * group.get("factor", 1.0)
    optimiser.step()


@dataclass
class Whole:
    """Training end to end: a student, its teacher's facts, and where its checkpoint is. seconds: that it took."""

    student: Any
    teacher: Any
    denses: Sequence[Dense]
    recording: Recording
    config: DistillConfig
    checkpoint: Path
    causal: bool
    seconds: float = 0.0

    @property
    def steps(self) -> int:
        """Updates of recorded batches."""
        mean = self.recording.tokens / len(self.recording.batches)
        return round(self.config.whole_tokens / mean)

    def run(self, stop: Callable[[int], bool] = lambda step: False) -> float:
        """Train, or go on from the checkpoint; the last error. `stop` ends it early, as an interruption would."""
        optimiser = torch.optim.Adam(self._groups(), lr=self.config.whole_lr)
        first = self._resume(optimiser)
        trained(self.student)
        last, before, began = 0.0, self.seconds, time.perf_counter()
        with tqdm(range(self.steps), initial=first, desc="end to end", unit="update", leave=False) as bar:
            for step in range(first, self.steps):
                loss = self._loss(self._order(step))
                update(loss, optimiser, self.config.whole_lr * rate(step, self.steps), f"update {step}")
                last = loss.item()
                bar.update()
                bar.set_postfix_str(f"error {last:.4f}")
                self.seconds = before + time.perf_counter() - began
                if (step + 1) % self.config.checkpoint_steps == 0 or stop(step + 1):
                    self._save(optimiser, step + 1)
                if stop(step + 1):
                    return last
        self.student.eval()
        return last

    def _groups(self) -> list[dict[str, Any]]:
        """Everything but the embeddings, which few tokens of this text reach."""
        kept = {id(p) for p in self.student.get_input_embeddings().parameters()}
        head = self.student.get_output_embeddings() if hasattr(self.student, "get_output_embeddings") else None
        kept |= {id(p) for p in head.parameters()} if head is not None else set()
        return [{"params": [p for p in self.student.parameters() if id(p) not in kept]}]

    def _order(self, step: int) -> int:
        """The batch of an update: passes over all in orders of the seed's."""
        turn, place = divmod(step, len(self.recording.batches))
        generator = torch.Generator().manual_seed(self.config.seed + 7919 * (turn + 1))
        return int(torch.randperm(len(self.recording.batches), generator=generator)[place])

    def _loss(self, number: int) -> Tensor:
        recording, device = self.recording, device_of(self.student)
        batch = recording.batches[number].to(device)
        rows = slice(recording.starts[number], recording.starts[number + 1])
        there = batch.mask.bool()
        given: dict[int, Tensor] = {}
        hooks = []
        for place, dense in enumerate(self.denses):
            if dense.norm:
                norm = self.student.get_submodule(dense.norm)
                hooks.append(norm.register_forward_hook(lambda m, args, y, place=place: given.__setitem__(place, y)))
        try:
            with computing(self.config.compute, device):
                hidden = last_hidden(self.student, batch)
        finally:
            for hook in hooks:
                hook.remove()
        losses = []
        for place, found in given.items():
            dense = self.denses[place]
            with torch.no_grad():
                _, y, base = recording.taken(place, dense, rows)
                wanted = Behind(self.teacher, dense)(base, y)
            losses.append(share_lost(found[there].float(), wanted))
        loss = torch.stack(losses).mean() if losses else hidden.new_zeros(())
        if not self.causal and self.config.cosine_weight:
            mine = pooled(hidden.float(), batch.mask)
            cosine = nn.functional.cosine_similarity(mine, recording.embeddings[number].to(device)).mean()
            loss = loss + self.config.cosine_weight * (1 - cosine)
        return loss

    def _save(self, optimiser: torch.optim.Optimizer, step: int) -> None:
        beside = self.checkpoint.with_suffix(".tmp")
        state = {"step": step, "model": self.student.state_dict(), "optimiser": optimiser.state_dict()}
        torch.save(state | {"seconds": self.seconds}, beside)
        beside.replace(self.checkpoint)

    def _resume(self, optimiser: torch.optim.Optimizer) -> int:
        if not self.checkpoint.exists():
            return 0
        found = torch.load(self.checkpoint, map_location=device_of(self.student), weights_only=True)
        self.student.load_state_dict(found["model"])
        optimiser.load_state_dict(found["optimiser"])
        self.seconds = found["seconds"]
        return int(found["step"])
