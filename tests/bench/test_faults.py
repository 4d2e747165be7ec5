"""Three workers of which one is killed, and started again: the others go on, and it comes back. Slow."""

from pathlib import Path

import pytest

from bench import faults
from tests.helpers.tiny import write_text

pytest.importorskip("torchft", reason="needs the optional torchft")


@pytest.mark.slow
def test_workers_that_are_killed_come_back_and_nobody_waits_longer_than_is_stated(tmp_path: Path) -> None:
    write_text(tmp_path / "text.txt", documents=2000)
    data = [f"data.files=[{tmp_path / 'text.txt'}]", "data.valid_share=0.1", "data.vocab_size=80", "data.name=faults"]
    small = [*data, "train.budget_steps=1200", "ffn.depth=5", "train.validations=4", "model.layers=1"]
    found = faults.run(tmp_path / "killed", 0, 2, small)
    assert len(found["kills"]) == 2, "each was seen in a meeting again before the next"
    assert all(event["back_at_step"] > event["after_step"] for event in found["kills"])
    assert found["exit_statuses"] == [0, 0, 0]
    assert found["longest_without_a_meeting_s"] < faults.BOUND_S
    assert found["weights_alike"]
    assert found["losses_alike"]
    assert found["all_finite"]
    calm = faults.run(tmp_path / "calm", 0, 0, small)
    assert faults.outside(found["curve"], [calm["curve"]]) < 0.5, "nats; a lost round is a little less training"
