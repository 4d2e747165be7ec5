"""What a run will cost, told before it begins."""

import re
from pathlib import Path

import pytest

from cramming.model.flops import ModelFlops
from cramming.train.budget import batch_at
from cramming.train.config import TrainConfig
from cramming.train.cost import Cost, cost_of, told
from cramming.train.pretrain import pretrain
from tests.helpers.tiny import tiny_root

FLOPS = ModelFlops(path=2e9, dense=5e9)


def test_a_budget_comes_to_tokens_or_hours() -> None:
    assert cost_of(TrainConfig(budget_tokens=12_000), 64) == Cost(12_000.0, None)
    assert cost_of(TrainConfig(budget_hours=24.0), 128) == Cost(None, 24.0)


@pytest.mark.parametrize("ramp", [0.0, 0.6, 1.0])
def test_steps_come_to_the_tokens_of_their_batches(ramp: float) -> None:
    config = TrainConfig(budget_steps=1000, microbatch=8, batch=256, batch_ramp=ramp)
    read = sum(batch_at(config, step / 1000, 2) for step in range(1000)) * 32
    assert cost_of(config, 32, processes=2).tokens == pytest.approx(read, rel=0.01)


def test_hours_and_tokens_follow_where_the_peak_is_known() -> None:
    line = told(Cost(3.6e9, None), FLOPS, 1e15, "H100")
    assert line == (
        "about 3,600,000,000 tokens, 7.2e+18 FLOPs; 2,000 MFLOPs a token on its path (5,000 through all neurons); "
        "at least 2 hours at the peak of H100, 1,000 TFLOP/s"
    )
    line = told(Cost(None, 24.0), ModelFlops(2e9, 2e9), 1e15, "H100")
    assert line == "24 hours; 2,000 MFLOPs a token; at most 43,200,000,000 tokens at the peak of H100, 1,000 TFLOP/s"


@pytest.mark.parametrize(("cost", "what"), [(Cost(1e6, None), "hours"), (Cost(None, 1.0), "tokens")])
def test_what_cannot_be_known_is_said(cost: Cost, what: str) -> None:
    line = told(cost, FLOPS, None, "a Processor")
    assert line.endswith(f"; {what} are not known before it runs, as the peak of a Processor is not")


def test_a_run_tells_its_cost_before_its_first_step(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    printed: list[str] = []
    monkeypatch.setattr("cramming.train.run.warm_up", lambda parts: printed.append(capsys.readouterr().out))
    pretrain(tiny_root(tmp_path, budget_steps=None, budget_tokens=1000, checkpoints=1, validations=1))
    (line,) = re.findall(r"^cost .*", printed[0], re.MULTILINE)
    assert line.startswith("cost       about 1,000 tokens, ")
    assert " MFLOPs a token on its path (" in line
