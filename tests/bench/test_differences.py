"""What an optimised model gives otherwise: flips counted where tokens stand at one node, and forms told apart."""

from pathlib import Path

import pytest
import torch

from bench.differences import flips, main, run
from cramming.errors import UserError
from tests.helpers.data import make_documents
from tests.helpers.saved import save_model

# Two tokens of a tree of depth 2: left, left and right, left.
NODES = torch.tensor([[[0, 1, 3]], [[0, 2, 5]]])


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("\n\n".join(make_documents(40)))
    return path


def test_a_decision_counts_where_both_stand_at_its_node() -> None:
    assert flips({"a": NODES}, {"a": NODES}) == ((0.0, 0.0), 0.0)
    first = torch.tensor([[[0, 2, 5]], [[0, 2, 5]]])  # turned at the root: then no longer the same node
    assert flips({"a": NODES}, {"a": first}) == ((0.5, 0.0), 0.5)
    last = torch.tensor([[[0, 1, 4]], [[0, 2, 6]]])
    assert flips({"a": NODES}, {"a": last}) == ((0.0, 1.0), 1.0)
    assert flips({"a": NODES, "b": NODES}, {"a": last, "b": NODES}) == ((0.0, 0.5), 0.5)
    assert flips({}, {})[0] == ()


def test_every_form_of_a_checkpoint_is_beside_float32(tmp_path: Path, text: Path) -> None:
    page = run(save_model(tmp_path / "model"), text, 640, 0)
    first = [line.strip("| ").split(" | ") for line in page.split("Decisions")[0].splitlines() if " | " in line]
    rows = {cells[0]: cells for cells in first[2:]}
    assert "640 tokens of text.txt, in windows of 32" in page
    for form in (
        "int8 linears",
        "bfloat16 trees",
        "int8 trees",
        "int8 linears, int8 trees",
        "bfloat16 throughout",
        "bfloat16, int8 trees",
    ):
        assert form in rows
    losses = {form: float(cells[1]) for form, cells in rows.items()}
    assert losses["int8 trees"] == pytest.approx(losses["float32"], rel=0.02)
    assert losses["bfloat16, int8 trees"] == pytest.approx(losses["float32"], rel=0.02)
    assert page.count("level 5") == 1
    assert "level 6" not in page


def test_a_dense_model_has_no_decisions(tmp_path: Path, text: Path) -> None:
    page = run(save_model(tmp_path / "dense", kind="dense", width=64, activation="gelu"), text, 320, 0)
    assert "int8 linears" in page
    assert "int8 trees" not in page
    assert "level" not in page


def test_the_command_writes_its_page_and_refuses_in_one_line(tmp_path: Path, text: Path) -> None:
    model, out = save_model(tmp_path / "model"), tmp_path / "page.md"
    main(["--checkpoint", str(model), "--text", str(text), "--tokens", "64", "--out", str(out)])
    assert "int8 linears, int8 trees" in out.read_text()
    (tmp_path / "short.txt").write_text("a word")
    with pytest.raises(UserError, match="give a text of 32 or more"):
        run(model, tmp_path / "short.txt", 64, 0)
