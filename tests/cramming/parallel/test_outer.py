"""Workers that do not fit together, or send what is no number: refused and named. Not the training around it."""

from datetime import timedelta
from pathlib import Path

import pytest
import torch
from torch import nn

from cramming.parallel.greeting import BEGINS, DIGEST, FRESH, TRAINED, Astray, Refused, greet
from cramming.parallel.launch import launched
from cramming.parallel.outer import Outer
from cramming.parallel.peers import Peers
from tests.helpers.several import Ended, several


def model_of(width: int = 3) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(2, width)


def meet(width: int, value: float | None, facts: dict[str, str]) -> list[float]:
    """Of a worker with a model of that width, all of whose weights became one value (None: went up by its rank)."""
    with (launch := launched(cpu=True, patience=timedelta(seconds=20))).together():
        outer = Outer(model_of(width), Peers.of_launch(), lr=1.0, momentum=0.0, facts=facts)
        with torch.no_grad():
            for each in outer.model.parameters():
                each.copy_(each + launch.rank if value is None else torch.full_like(each, value))
        outer.meet()
        return outer.model.bias.tolist()  # type: ignore[union-attr,return-value]


def refused(ended: list[Ended], *words: str) -> None:
    """All left with exit status 2, and the main process alone said why in one line."""
    assert [each.status for each in ended] == [2] * len(ended), [each.printed for each in ended]
    assert all(word in ended[0].printed for word in words), ended[0].printed
    assert len(ended[0].printed.strip().splitlines()) == 1
    assert all(not each.printed.strip() for each in ended[1:])


def test_workers_that_fit_come_to_the_mean(tmp_path: Path) -> None:
    ended = several(meet, tmp_path, 3, None, {"train.lr": "1"}, size=3)
    want = (model_of().bias + 1).tolist()
    assert [each.value for each in ended] == [pytest.approx(want)] * 3


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_worker_that_sends_no_number_is_refused_and_named(tmp_path: Path, value: float) -> None:
    ended = several(meet, tmp_path, 3, lambda rank: value if rank == 1 else None, {}, size=3)
    refused(ended, "worker 1 ", "no finite number")


def test_a_worker_of_another_shape_is_refused_and_named(tmp_path: Path) -> None:
    ended = several(meet, tmp_path, lambda rank: 4 if rank == 1 else 3, None, {})
    refused(ended, "shape of bias is [4] in worker 1 and [3] in worker 0")


def test_a_worker_of_another_configuration_is_refused_and_named(tmp_path: Path) -> None:
    ended = several(meet, tmp_path, 3, None, lambda rank: {"train.lr": "1" if rank < 2 else "a longer one"}, size=3)
    refused(ended, "train.lr is 'a longer one' in worker 2 and '1' in worker 0")


def greeted(facts: dict[str, str], past: bytes, part: int) -> object:
    launched(cpu=True, patience=timedelta(seconds=20))
    try:
        return greet(Peers.of_launch(), facts, past, part)
    except (Refused, Astray) as error:
        return vars(error)


def of(*values: object) -> object:
    return lambda rank: values[rank]


def test_who_comes_from_another_meeting_is_named_to_all(tmp_path: Path) -> None:
    pasts = of(bytes(DIGEST), b"another meeting.", bytes(DIGEST))
    assert [each.value for each in several(greeted, tmp_path, {}, pasts, TRAINED, size=3)] == [{"workers": [1]}] * 3


def test_a_fresh_worker_has_no_vote_and_is_none_that_others_are_measured_by(tmp_path: Path) -> None:
    facts = of({"seed": "1"}, {"seed": "0"}, {"seed": "0"})
    ended = several(greeted, tmp_path / "other", facts, bytes(DIGEST), of(FRESH, TRAINED, TRAINED), size=3)
    assert [list(each.value["why"]) for each in ended] == [[0]] * 3
    ended = several(greeted, tmp_path / "same", {}, bytes(DIGEST), of(FRESH, TRAINED, TRAINED), size=3)
    assert [each.value for each in ended] == [[False, True, True]] * 3


def test_who_begins_where_others_have_trained_has_to_take_over_first(tmp_path: Path) -> None:
    ended = several(greeted, tmp_path / "some", {}, bytes(DIGEST), of(BEGINS, TRAINED, BEGINS), size=3)
    assert [each.value for each in ended] == [{"workers": [0, 2]}] * 3
    ended = several(greeted, tmp_path / "all", {}, bytes(DIGEST), of(FRESH, BEGINS, BEGINS), size=3)
    assert [each.value for each in ended] == [[False, False, False]] * 3, "nobody has"
