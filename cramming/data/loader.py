"""Microbatches of masked sequences from any position of a run, shared by several processes. Not shards or masks."""

import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from cramming.data.masking import hash_uniform, mask_tokens
from cramming.data.shards import TokenShards

ROUNDS = 4  # of the Feistel network; 4 give a pseudorandom permutation (Luby and Rackoff 1988)


class SequenceOrder:
    """Which sequence stands at position p of a run: epoch after epoch, each shuffled anew, without a table.

    A Feistel network permutes [0, 4^k) by a keyed hash; numbers beyond the corpus are walked on until they fall inside.
    So a position is found in O(1) memory, whatever the corpus size, and the loader's state is one integer.
    """

    def __init__(self, sequences: int, seed: int, *, shuffled: bool) -> None:
        self.sequences, self.seed, self.shuffled = sequences, seed, shuffled
        self.half_bits = max(1, -(-max(1, sequences - 1).bit_length() // 2))

    def indices(self, positions: np.ndarray) -> np.ndarray:
        """Sequence numbers (n,) int64 at run positions (n,) int64."""
        epochs, within = np.divmod(positions, self.sequences)
        if not self.shuffled:
            return within
        found = self._permute(within, epochs)
        while (outside := found >= self.sequences).any():
            found[outside] = self._permute(found[outside], epochs[outside])
        return found

    def _permute(self, numbers: np.ndarray, epochs: np.ndarray) -> np.ndarray:
        bits = self.half_bits
        left, right = numbers >> bits, numbers & ((1 << bits) - 1)
        for round_ in range(ROUNDS):
            keyed = (epochs << (bits + 2)) + (right << 2) + round_
            mixed = (hash_uniform(self.seed, 3, keyed) * (1 << bits)).astype(np.int64)
            left, right = right, left ^ mixed
        return (left << bits) | right


@dataclass(frozen=True)
class Microbatch:
    """Model inputs of one microbatch: input_ids (m, S), masked_positions (m, K), labels (m, K), all int64."""

    input_ids: torch.Tensor
    masked_positions: torch.Tensor
    labels: torch.Tensor

    def to(self, device: torch.device) -> "Microbatch":
        """Move to a device; asynchronous from pinned memory."""
        moved = (t.to(device, non_blocking=True) for t in (self.input_ids, self.masked_positions, self.labels))
        return Microbatch(*moved)


@dataclass(frozen=True)
class Masker:
    """The settings of `mask_tokens` that stay the same over a run."""

    seed: int
    rate: float
    vocab_size: int
    mask_id: int

    def __call__(self, sequences: np.ndarray, positions: np.ndarray, *, pin: bool = False) -> Microbatch:
        """Mask sequences (m, S) at run positions (m,)."""
        arrays = mask_tokens(
            sequences, positions, seed=self.seed, rate=self.rate, vocab_size=self.vocab_size, mask_id=self.mask_id
        )
        tensors = [torch.from_numpy(a) for a in arrays]
        return Microbatch(*(t.pin_memory() if pin else t for t in tensors))


class MicrobatchLoader:
    """Endless microbatches of one process, made ahead by a thread.

    Microbatch number j of process r holds run positions start + (j * processes + r) * microbatch and the next
    microbatch - 1 ones: together the processes read what one process would.
    """

    def __init__(
        self,
        shards: TokenShards,
        order: SequenceOrder,
        masker: Masker,
        *,
        start: int,
        microbatch: int,
        process: int = 0,
        processes: int = 1,
        pin: bool = False,
    ) -> None:
        self.shards, self.order, self.masker, self.pin = shards, order, masker, pin
        self.microbatch, self.stride = microbatch, microbatch * processes
        self.first = start + process * microbatch
        self._ready: queue.Queue[Microbatch | BaseException] = queue.Queue(maxsize=4)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._fill, daemon=True)

    def __iter__(self) -> Iterator[Microbatch]:
        self._thread.start()
        while True:
            item = self._ready.get()
            if isinstance(item, BaseException):
                raise item
            yield item

    def close(self) -> None:
        """Stop the thread, and wait for it: one that is inside torch when Python ends would abort the process."""
        self._closed.set()
        if self._thread.is_alive():
            self._thread.join()

    def _fill(self) -> None:
        position = self.first
        try:
            while not self._closed.is_set():
                self._put(self._make(position))
                position += self.stride
        except BaseException as error:  # handed to the training loop, which raises it
            self._put(error)

    def _make(self, position: int) -> Microbatch:
        positions = np.arange(position, position + self.microbatch, dtype=np.int64)
        return self.masker(self.shards.take(self.order.indices(positions)), positions, pin=self.pin)

    def _put(self, item: Microbatch | BaseException) -> None:
        while not self._closed.is_set():
            try:
                return self._ready.put(item, timeout=0.2)
            except queue.Full:
                continue
