"""Training of a converted model end to end, all blocks together. Resumable; not of the blocks alone (training.py).

The blocks' errors behind their norms are summed with the student's own residuals, and the text's embedding is compared,
or a decoder's next words.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from cramming.convert.pretrained.compute import computing, device_of
from cramming.convert.pretrained.config import DistillConfig
from cramming.convert.pretrained.dense import Dense
from cramming.convert.pretrained.recording import Recording, pooled
from cramming.convert.pretrained.teacher import last_hidden
from cramming.convert.pretrained.training import Behind, Errors, rate, share_lost, trained, update
from cramming.convert.pretrained.words import Words


@lru_cache(maxsize=1)
def _shuffled(count: int, seed: int) -> list[int]:
    """Numbers below the count in an order of the seed's."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()


@dataclass
class Whole:
    """Training end to end: a student, its teacher's facts, and where its checkpoint is. seconds: that it took.

    words: whether a decoder's next words are compared, for which the recording then has the last hidden states.
    """

    student: Any
    teacher: Any
    denses: Sequence[Dense]
    recording: Recording
    config: DistillConfig
    checkpoint: Path
    causal: bool
    words: bool
    seconds: float = 0.0
    _given: dict[int, Tensor] = field(default_factory=dict)

    @property
    def steps(self) -> int:
        """Updates of recorded batches."""
        mean = self.recording.tokens / len(self.recording.batches)
        return round(self.config.whole_tokens / mean)

    def run(self, stop: Callable[[int], bool] = lambda step: False) -> float:
        """Train, or go on from the checkpoint; the last error. `stop` ends it early, as an interruption would."""
        parameters = self._parameters()
        optimiser = torch.optim.Adam([{"params": parameters}], lr=self.config.whole_lr)
        first = self._resume(optimiser)
        trained(self.student)
        errors, before, began = Errors(), self.seconds, time.perf_counter()
        bar = tqdm(range(self.steps), initial=first, desc="end to end", unit="update", leave=False)
        with bar, self._listening():
            for step in range(first, self.steps):
                loss = self._loss(self._order(step))
                update(loss, optimiser, self.config.whole_lr * rate(step, self.steps))
                errors.note(step, loss)
                bar.set_postfix_str(f"error {errors.known:.4f}", refresh=False)
                bar.update()
                self.seconds = before + time.perf_counter() - began
                if (step + 1) % self.config.checkpoint_steps == 0 or stop(step + 1):
                    errors.last()
                    self._save(optimiser, step + 1)
                if stop(step + 1):
                    return errors.known
        last = errors.last() if self.steps > first else 0.0
        self.seconds = before + time.perf_counter() - began
        self.student.eval()
        return last

    def _parameters(self) -> list[nn.Parameter]:
        """Everything but the embeddings, which few tokens of this text reach, and a head: no gradients for them."""
        head = self.student.get_output_embeddings() if hasattr(self.student, "get_output_embeddings") else None
        for module in (self.student.get_input_embeddings(), head):
            if module is not None:
                module.requires_grad_(False)
        return [p for p in self.student.parameters() if p.requires_grad]

    def _order(self, step: int) -> int:
        """The batch of an update: passes over all in orders of the seed's."""
        turn, place = divmod(step, len(self.recording.batches))
        return _shuffled(len(self.recording.batches), self.config.seed + 7919 * (turn + 1))[place]

    @contextmanager
    def _listening(self) -> Iterator[None]:
        """Inside, what the norms behind the blocks give comes to lie in `_given`."""
        hooks = []
        for place, dense in enumerate(self.denses):
            if dense.norm:
                norm = self.student.get_submodule(dense.norm)
                keep = lambda m, args, y, place=place: self._given.__setitem__(place, y)  # noqa: E731
                hooks.append(norm.register_forward_hook(keep))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _loss(self, number: int) -> Tensor:
        recording, device, config = self.recording, device_of(self.student), self.config
        batch, rows = recording.batches[number], recording.span(number)
        there = batch.mask.flatten().nonzero().flatten().to(device)  # found here: a GPU would be waited for
        batch = batch.to(device)
        self._given.clear()
        with computing(config.compute, device):
            hidden = last_hidden(self.student, batch)
        losses = []
        for place, found in self._given.items():
            dense = self.denses[place]
            with torch.no_grad():
                y, base = recording.behind(place, dense, rows)
                wanted = Behind(self.teacher, dense)(base, y)
            losses.append(share_lost(found.flatten(0, 1).index_select(0, there).float(), wanted))
        loss = torch.stack(losses).mean() if losses else hidden.new_zeros(())
        if self.words:
            mine = hidden.flatten(0, 1).index_select(0, there)
            with computing(config.compute, device):
                divergence = Words(self.student, self.teacher).divergence(mine, recording.last(rows, device))
            loss = loss + config.word_weight * divergence
        elif not self.causal and config.cosine_weight:
            mine = pooled(hidden.float(), batch.mask)
            cosine = nn.functional.cosine_similarity(mine, recording.embeddings[number].to(device)).mean()
            loss = loss + config.cosine_weight * (1 - cosine)
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
