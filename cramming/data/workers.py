"""Worker processes with results in order and a bounded queue. Not for the work they do."""

import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any, TypeVar

from cramming.errors import Passing, UserError

Item = TypeVar("Item")
Result = TypeVar("Result")


def worker_count(workers: int) -> int:
    """`workers`, or the cores this process may use when it is 0."""
    if workers:
        return workers
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def no_setup() -> None:
    """For workers without a state."""


@contextmanager
def worker_pool(
    workers: int, setup: Callable[..., None] = no_setup, arguments: tuple[Any, ...] = ()
) -> Iterator[Executor]:
    """A pool whose processes ran `setup(*arguments)`; with one worker the calls run in this process.

    UserError when a worker dies. Workers end with this process, even when it is killed.
    """
    if workers == 1:
        setup(*arguments)
        yield Inline()
        return
    # Forking is quick and does not import the caller's script again; macOS cannot fork safely.
    context = multiprocessing.get_context("fork" if sys.platform.startswith("linux") else "spawn")
    with without_tokenizer_threads():
        pool = started_pool(workers, context, (setup, arguments))
        try:
            yield pool
        except BrokenProcessPool:
            raise Passing("A worker process died (killed, or out of memory); set data.workers=1.") from None
        finally:
            pool.shutdown(cancel_futures=True)


def started_pool(workers: int, context: Any, arguments: tuple[Any, ...]) -> ProcessPoolExecutor:
    """A pool with its processes started; UserError where the system refuses the processes or what they share."""
    # Held back until each worker leaves Ctrl-C to this process.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        pool = ProcessPoolExecutor(workers, context, start_worker, arguments)
        pool.submit(no_setup)  # the first call starts them all, where they are forked
    except (OSError, MemoryError) as error:
        what = getattr(error, "strerror", None) or type(error).__name__
        raise UserError(
            f"data.workers: {workers} worker processes cannot be started ({what}; a full /dev/shm, or a limit of "
            "processes or memory); set data.workers=1, which needs none."
        ) from None
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return pool


class Inline(Executor):
    """An executor that runs each call at once, in this process."""

    def submit(self, fn: Callable[..., Result], /, *args: Any, **kwargs: Any) -> Future[Result]:
        """Run the call; its exception is raised here."""
        future: Future[Result] = Future()
        future.set_result(fn(*args, **kwargs))
        return future


def start_worker(setup: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    """Prepare a new worker: the parent handles Ctrl-C, and a worker whose parent is gone leaves."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=leave_with_parent, daemon=True).start()
    setup(*arguments)


def leave_with_parent() -> None:
    """Wait for the end of the parent, then end this process."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


@contextmanager
def without_tokenizer_threads() -> Iterator[None]:
    """Keep the tokenizers library from warning about forks; its threads are not used while workers run."""
    key = "TOKENIZERS_PARALLELISM"
    before = os.environ.get(key)
    os.environ[key] = "false"
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(key, None)
        else:
            os.environ[key] = before


def in_order(
    pool: Executor, function: Callable[[Item], Result], items: Iterable[Item], window: int
) -> Iterator[Result]:
    """Results of `function` over `items` in their order, with at most `window` items under way (bounded memory)."""
    pending: deque[Future[Result]] = deque()
    for item in items:
        pending.append(pool.submit(function, item))
        if len(pending) >= window:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()
