"""Workers that come and go by a lighthouse: refused, killed, new, astray. Not the training around it."""

import os
import signal
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from cramming.parallel.elastic import Members
from cramming.parallel.greeting import BEGINS, TRAINED
from cramming.parallel.outer import Outer
from cramming.parallel.peers import Peers
from tests.helpers.elastic import lighthouse
from tests.helpers.several import Ended, free_port, several

pytest.importorskip("torchft", reason="needs the optional torchft")


class Worker:
    """A worker with two weights, which start at 0, and whose training adds its number."""

    def __init__(self, address: str, number: int, **facts: Any) -> None:
        self.number, model = number, nn.Linear(2, 1, bias=False)
        nn.init.zeros_(model.weight)
        self.outer = Outer(model, Peers(), lr=1.0, momentum=0.0, facts=facts)
        self.part = BEGINS
        self.members = Members(address, number, minutes=1, give=self.give, take=self.take)

    def give(self) -> dict[str, Any]:
        return {"weight": self.outer.before["weight"], "past": self.outer.past}

    def take(self, state: dict[str, Any]) -> None:
        self.outer.model.weight.data.copy_(state["weight"])  # type: ignore[union-attr,operator]
        self.outer.before, self.outer.past = {"weight": state["weight"].clone()}, state["past"]

    def train(self, by: float | None = None) -> None:
        self.outer.model.weight.data += self.number if by is None else by  # type: ignore[operator]

    def meet(self) -> list[float]:
        """The weights that this worker goes on with."""
        if meeting := self.members.meet(self.outer.exchange, self.part):
            self.outer.settle(meeting, self.number)
        self.part = TRAINED
        return self.outer.model.weight.flatten().tolist()  # type: ignore[union-attr,operator,return-value]


def together(work: Callable[..., Any], folder: Path, *arguments: Any) -> list[Ended]:
    """The work of three workers; meetings are called for two."""
    with lighthouse(2) as address:
        return several(work, folder, address, lambda rank: rank, *arguments, size=3)


def all_there(folder: Path, number: int) -> None:
    """Wait until the lighthouse knows all three."""
    (folder / f"there-{number}").touch()
    while len(list(folder.glob("there-*"))) < 3:
        time.sleep(0.01)


def rounds(address: str, number: int, folder: Path, by: float | None, facts: dict[str, Any]) -> Any:
    """Two rounds: what they come to, and what was warned of."""
    worker = Worker(address, number, **facts)
    all_there(folder, number)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        worker.meet()
        worker.train(by)
        worker.meet()
        worker.train()
        return [worker.meet(), [str(each.message) for each in told if each.category is UserWarning]]


def test_workers_come_to_the_mean(tmp_path: Path) -> None:
    ended = together(rounds, tmp_path, tmp_path, None, {})
    assert [each.value for each in ended] == [[[2.0, 2.0], []]] * 3, [each.printed for each in ended]


def others_went_on(ended: list[Ended], why: str) -> None:
    """Number 1 left with that error, and the others, who name it, came to their mean."""
    assert [each.status for each in ended] == [0, 2, 0], [each.printed for each in ended]
    assert why in ended[1].printed
    for other in (ended[0], ended[2]):
        weights, (told,) = other.value
        assert weights == [2.0, 2.0]
        assert why in told


def test_one_that_sends_no_number_is_refused_and_named_and_the_others_go_on(tmp_path: Path) -> None:
    ended = together(rounds, tmp_path, tmp_path, lambda rank: float("nan") if rank == 1 else None, {})
    others_went_on(ended, "The weights of worker 1 hold what is no finite number")


def test_one_of_another_configuration_is_refused_and_named_and_the_others_go_on(tmp_path: Path) -> None:
    ended = together(rounds, tmp_path, tmp_path, None, lambda rank: {"train.lr": 0.1 if rank == 1 else 0.2})
    others_went_on(ended, "train.lr is 0.1 in worker 1 and 0.2 in worker 0")


def killed(address: str, number: int, folder: Path) -> Any:
    """Number 1 dies when it has told what it has, and before it has heard all that the others have."""
    worker = Worker(address, number)
    all_there(folder, number)
    worker.meet()
    worker.train()
    if number == 1:
        mean = Peers.swap

        def die(self: Peers, own: torch.Tensor) -> torch.Tensor:
            mean(self, own)
            os.kill(os.getpid(), signal.SIGKILL)
            raise AssertionError

        Peers.swap = die  # type: ignore[method-assign]
    start = time.monotonic()
    return [worker.meet(), time.monotonic() - start, worker.outer.past]


def test_nothing_is_used_of_an_exchange_that_broke_off(tmp_path: Path) -> None:
    ended = together(killed, tmp_path, tmp_path)
    assert ended[1].status == -signal.SIGKILL
    (one, seconds, past), (other, _, same) = ended[0].value, ended[2].value
    assert one == other == [1.0, 1.0]
    assert past == same
    assert seconds < 10, "a second to be thought dead, two to be waited for"


def late(address: str, number: int, flags: Path) -> Any:
    """Number 2 comes when the others have met twice; its own work of then does not count, and later work does."""
    if number == 2:
        while not (flags / "come").exists():
            time.sleep(0.05)
        worker = Worker(address, number)
        worker.train(100.0)
        first = worker.meet()
        worker.train()
        return [first, worker.meet()]
    worker = Worker(address, number)
    worker.meet()
    worker.train(3.0)
    worker.meet()
    (flags / "come").touch()
    while not (flags / "asked").exists():
        time.sleep(0.05)
    worker.train()
    found = worker.meet()
    worker.train()
    return [found, worker.meet()]


def test_a_newcomer_takes_over_what_the_others_have_and_has_no_vote_at_first(tmp_path: Path) -> None:
    def asked() -> None:  # when the newcomer has had time to ask for a meeting; it may also come to the next one
        while not (tmp_path / "come").exists():
            time.sleep(0.05)
        time.sleep(1.0)
        (tmp_path / "asked").touch()

    threading.Thread(target=asked, daemon=True).start()
    ended = together(late, tmp_path, tmp_path)
    assert [each.status for each in ended] == [0, 0, 0], [each.printed for each in ended]
    assert [each.value for each in ended] == [[[3.5, 3.5], [4.5, 4.5]]] * 3


def astray(address: str, number: int, folder: Path) -> Any:
    worker = Worker(address, number)
    all_there(folder, number)
    worker.meet()
    if number == 2:
        worker.outer.past = b"another meeting."
        worker.train(100.0)
    worker.train()
    return worker.meet()


def test_one_that_comes_from_another_meeting_takes_over_what_the_others_have(tmp_path: Path) -> None:
    ended = together(astray, tmp_path, tmp_path)
    assert [each.value for each in ended] == [[0.5, 0.5]] * 3, [each.printed for each in ended]


def test_a_lighthouse_that_cannot_be_reached_is_named(tmp_path: Path) -> None:
    address, start = f"http://localhost:{free_port()}", time.monotonic()
    (ended,) = several(rounds, tmp_path, address, 0, tmp_path, None, {}, size=1)
    assert (ended.status, ended.value) == (2, None)
    assert f"train.lighthouse is {address}, which cannot be reached within 10 s" in ended.printed
    assert time.monotonic() - start < 30
