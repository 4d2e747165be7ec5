"""Workers that come and go: who takes part in a meeting, by torchft (optional), whose one door this is. No exchange.

A lighthouse says who is there. A worker that falls silent is left out of the next meeting, one that comes or was away
takes over what another one has and listens to one meeting, and an exchange that breaks off is made again by those that
are left: nothing of it has been used. What torchft's own DiLoCo does instead, and why it is not used: docs/scale.md.
"""

import logging
import os
import socket
import time
import warnings
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import torch.distributed as dist

from cramming.errors import UserError, one_line
from cramming.parallel.greeting import FRESH, TRAINED, Astray, Refused
from cramming.parallel.launch import is_lost
from cramming.parallel.peers import Peers

Found = TypeVar("Found")

CONNECT = timedelta(seconds=10)  # to the lighthouse
ANSWER_S = 30.0  # for one message of an exchange, and for what a newcomer takes over; FFF_ANSWER_S in the environment


class Members:
    """This worker among those that a lighthouse knows.

    Args:
        lighthouse: its address, http://HOST:PORT.
        worker: this one's number; no two that live have the same.
        minutes: for which the others of a meeting are waited for, until the slowest has done its part.
        give: what a newcomer takes over, as tensors and plain values; called at meetings.
        take: takes it over.

    Attributes:
        count: meetings so far, by which the lighthouse tells who is behind.

    Raises:
        UserError: torchft is not installed, or the lighthouse cannot be reached within CONNECT.
    """

    def __init__(
        self,
        lighthouse: str,
        worker: int,
        *,
        minutes: float,
        give: Callable[[], dict[str, Any]],
        take: Callable[[dict[str, Any]], None],
    ) -> None:
        self.lighthouse, self.worker, self.patience, self._take = lighthouse, worker, timedelta(minutes=minutes), take
        self.fresh = False
        manager, gloo = _torchft()
        here, answer = socket.gethostname(), timedelta(seconds=float(os.environ.get("FFF_ANSWER_S", ANSWER_S)))
        self._store = dist.TCPStore(here, 0, is_master=True, wait_for_workers=False)
        self._group = gloo(timeout=answer)
        try:
            self._manager = manager(
                pg=self._group,
                load_state_dict=self._heal,
                state_dict=give,
                min_replica_size=1,
                use_async_quorum=False,
                timeout=answer,
                quorum_timeout=self.patience,
                connect_timeout=CONNECT,
                rank=0,
                world_size=1,
                store_addr=here,
                store_port=self._store.port,
                lighthouse_addr=lighthouse,
                replica_id=f"worker{worker}",
                init_sync=False,
            )
        except (RuntimeError, TimeoutError) as error:
            raise UserError(
                f"train.lighthouse is {lighthouse}, which cannot be reached within {CONNECT.seconds} s; start it first "
                "(torchft_lighthouse --min_replicas 1), and see whether the network lets this machine."
            ) from error

    @property
    def count(self) -> int:
        """Meetings so far."""
        return self._manager.current_step()

    @count.setter
    def count(self, meetings: int) -> None:
        self._manager.load_state_dict({"step": meetings, "batches_committed": 0})

    def _heal(self, state: dict[str, Any]) -> None:
        self._take(state)
        self.fresh = True

    def meet(self, exchange: Callable[[Peers, int], Found], part: int = TRAINED) -> Found:
        """The exchange's result, made with those that are there; made again with those that are left if it breaks off.

        Args:
            exchange: called with them, and with what this worker comes with; changes nothing of what it has.
            part: with what it comes (see `greet`), unless it is to take over another one's state first.

        Raises:
            UserError: the others refuse this worker, or nobody is there within `patience`.
        """
        until = time.monotonic() + self.patience.total_seconds()
        while True:
            self.fresh = False
            found, error = None, self._assemble()
            if error is None:
                try:
                    found = exchange(self._peers(), FRESH if self.fresh else part)
                except (Refused, Astray, RuntimeError) as broken:
                    error = broken
                    self._judge(broken)
                    self._manager.report_error(broken)
            if self._manager.should_commit():
                return found  # type: ignore[return-value]
            if time.monotonic() > until:
                raise UserError(
                    f"Worker {self.worker} has found nobody to meet for {self.patience}; see what the others and the "
                    f"lighthouse at {self.lighthouse} say. The same command goes on from the last checkpoint."
                ) from error

    def _assemble(self) -> Exception | None:
        """Wait for the lighthouse to say who takes part, and for what a newcomer takes over."""
        try:
            self._manager.start_quorum()
        except (RuntimeError, TimeoutError) as error:
            raise UserError(
                f"The lighthouse at {self.lighthouse} has not called a meeting within {self.patience} "
                f"({one_line(error, 120)}); see whether it runs, and whether as many workers as its "
                "--min_replicas do. The same command goes on from the last checkpoint."
            ) from error
        return self._manager.errored()

    def _peers(self) -> Peers:
        ids = self._group._global_ranks or [self.worker]
        group = self._group.parent
        peers = Peers(group, group.rank(), group.size(), ids)
        peers.label = str(self._manager._quorum_id).encode()
        return peers

    def _judge(self, error: Exception) -> None:
        """What becomes of this worker after an exchange that broke off; returns where it is to be made again."""
        if isinstance(error, Refused):
            if own := error.why.get(self.worker):
                raise UserError(own) from error
            warnings.warn(f"left out: {error}", stacklevel=3)
        elif isinstance(error, Astray):
            if self.worker in error.workers:
                self.count = 0  # behind all others, so that it takes over what they have
        elif not is_lost(error):
            raise error

    def close(self) -> None:
        """Leave; the others go on."""
        self._manager.shutdown(wait=False)


def _torchft() -> tuple[Any, Any]:
    """Its Manager and its process group."""
    os.environ.setdefault("RUST_LOG", "error")
    try:
        from torchft.manager import Manager
        from torchft.process_group import ProcessGroupGloo
    except ImportError as error:
        raise UserError(
            f"train.lighthouse needs torchft ({error}); pip install 'fff-cramming[torchft]', or start all workers "
            "together with torchrun and leave train.lighthouse=null."
        ) from error
    logging.getLogger("torchft").setLevel(logging.CRITICAL)  # what it would tell of, this room tells, or mends
    return Manager, ProcessGroupGloo
