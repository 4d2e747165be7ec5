"""Microbatches of sequences from any position of a run, shared by several processes. Not what a batch is."""

import queue
import threading
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Generic, Protocol, Self, TypeVar

import numpy as np

from cramming.data.masking import hash_uniform

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


class Pinnable(Protocol):
    """A microbatch, as an objective makes it."""

    def pinned(self) -> Self: ...  # noqa: D102


class Sequences(Protocol):
    """Numbered token sequences, as `cramming.data.shards.TokenShards` holds them."""

    def __len__(self) -> int: ...

    def take(self, indices: np.ndarray, /) -> np.ndarray:
        """(n, S) int64 of the sequences numbered `indices` (n,)."""
        ...


Batch = TypeVar("Batch", bound=Pinnable)


class MicrobatchLoader(Generic[Batch]):
    """Endless microbatches of one process, made ahead by a thread; as a context it stops the thread at its end.

    Microbatch number j of process r holds run positions start + (j * processes + r) * microbatch and the next
    microbatch - 1 ones: together the processes read what one process would.

    Args:
        make: makes a microbatch from token sequences (m, S) int64 and their run positions (m,).
        own: the sequences are this process's alone, and it reads all of them, one after another in the order; a start
            is then where all processes have read as much.
    """

    def __init__(
        self,
        shards: Sequences,
        order: SequenceOrder,
        make: Callable[[np.ndarray, np.ndarray], Batch],
        *,
        start: int,
        microbatch: int,
        process: int = 0,
        processes: int = 1,
        own: bool = False,
        pin: bool = False,
    ) -> None:
        self.shards, self.order, self.make, self.own, self.pin = shards, order, make, own, pin
        self.microbatch, self.stride = microbatch, microbatch * processes
        self.offset = process * microbatch
        self.first = start + self.offset
        self._begin()

    def _begin(self) -> None:
        self._ready: queue.Queue[Batch | BaseException] = queue.Queue(maxsize=4)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._fill, daemon=True)

    def move(self, start: int) -> None:
        """Go on with the microbatches from another start."""
        started = self._thread.ident is not None
        self.close()
        self.first = start + self.offset
        self._begin()
        if started:
            self._thread.start()

    def __iter__(self) -> Iterator[Batch]:
        self._thread.start()
        while True:
            item = self._ready.get()
            if isinstance(item, BaseException):
                raise item
            yield item

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop the thread, and wait for it: one that is inside torch when Python ends would abort the process."""
        self._closed.set()
        if self._thread.is_alive():
            self._thread.join()

    def _fill(self) -> None:
        position = self.first
        try:
            while not self._closed.is_set():
                self._put(self.made(position))
                position += self.stride
        except BaseException as error:  # handed to the training loop, which raises it
            self._put(error)

    def made(self, position: int) -> Batch:
        """The microbatch that begins at a run position, made here and now."""
        positions = np.arange(position, position + self.microbatch, dtype=np.int64)
        places = positions // self.stride * self.microbatch + positions % self.microbatch if self.own else positions
        batch = self.make(self.shards.take(self.order.indices(places)), positions)
        return batch.pinned() if self.pin else batch

    def _put(self, item: Batch | BaseException) -> None:
        while not self._closed.is_set():
            try:
                return self._ready.put(item, timeout=0.2)
            except queue.Full:
                continue
