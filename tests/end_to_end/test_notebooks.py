"""The notebooks, run from their first cell to the last on what is there, and stored without what they show."""

import io
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cramming.files import write_json
from cramming.model.config import FFNConfig
from cramming.model.resolved import resolved
from cramming.record import SCHEMA_VERSION
from cramming.report.tables import write_tables
from tests.helpers.notebooks import FOLDER, cells, run

PAPER = FOLDER.parent / "results/paper.yaml"
NAMES = ("fff_walkthrough", "regions", "results")
OF_A_MACHINE = r"(?<![\w.])(/(home|root|Users|work|tmp|mnt|opt)/|~/|[A-Z]:\\)"


def pretraining(folder: Path, ffn: FFNConfig, seed: int, loss: float, status: str = "finished") -> None:
    """The record of a run that never was, with a loss curve of two points."""
    name = f"micro-{ffn.tag}-s{seed}-{status}"
    record = {
        "schema_version": SCHEMA_VERSION,
        "kind": "pretrain",
        "name": name,
        "status": status,
        "seed": seed,
        "experiment": "micro",
        "ffn": ffn.tag,
        "group": f"g{ffn.tag}",
        "data_fingerprint": "abcdef0123",
        "config": {
            "model": {"layers": 4, "hidden_size": 128},
            "train": {"budget_tokens": 12_000_000},
            "hardening": {"form": "hard"},
        },
        "metrics": {"valid_loss": loss} if status == "finished" else {},
        "samples": {},
        "curve": [{"tokens": tokens, "valid_loss": loss + 1e6 / tokens} for tokens in (1_000_000, 12_000_000)],
        "resolved": {"ffn": resolved(ffn, 4)},
    }
    write_json(folder / "results/runs" / f"{name}.json", record)


def test_every_notebook_is_run_here() -> None:
    assert sorted(path.stem for path in FOLDER.glob("*.ipynb")) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_no_output_and_no_place_of_a_machine_is_stored(name: str) -> None:
    path = FOLDER / f"{name}.ipynb"
    assert cells(path, "code")
    for cell in cells(path, "code"):
        assert cell["outputs"] == []
        assert cell["execution_count"] is None
    assert all(cell["metadata"] == {} for cell in cells(path))
    assert not re.search(OF_A_MACHINE, path.read_text("utf-8"))
    metadata = json.loads(path.read_text("utf-8"))["metadata"]
    assert metadata["language_info"] == {"name": "python"}  # no version of whoever saved it last


@pytest.mark.parametrize("name", NAMES)
def test_prose_leads_through_every_notebook(name: str) -> None:
    kinds = [cell["cell_type"] for cell in cells(FOLDER / f"{name}.ipynb")]
    assert kinds[0] == "markdown"
    assert ["code"] * 3 not in [kinds[place : place + 3] for place in range(len(kinds))]


@pytest.mark.parametrize("name", NAMES)
def test_places_and_commands_that_a_notebook_names_are_there(name: str) -> None:
    text = "\n".join("".join(cell["source"]) for cell in cells(FOLDER / f"{name}.ipynb"))
    named = re.findall(r"`((?:fff|cramming|configs|scripts|bench|tests|results|docs)/[\w/.]+)`", text)
    assert all((FOLDER.parent / place).exists() for place in named)
    assert all((FOLDER / other).exists() for other in re.findall(r"`(\w+\.ipynb)`", text))
    targets = (FOLDER.parent / "Makefile").read_text()
    assert all(f"\n{target}:" in targets for target in re.findall(r"`make (\w+)", text))


def test_the_walkthrough_agrees_with_its_paper_and_draws_four_layers() -> None:
    ran = run("fff_walkthrough")
    assert "path [0, 2, 5] output tensor([1., 2.])" in ran.text
    right = dict(re.findall(r"^(\w+ +\w+) +([\d.]+)% right", ran.text, flags=re.MULTILINE))
    assert len(right) == 4
    assert all(float(share) > 80 for share in right.values())  # of three arms: they learnt something
    assert len(ran.figures) == 2
    assert all(colours(figure) > 50 for figure in ran.figures)


def colours(png: bytes) -> int:
    """Different colours of a picture; few where nothing is drawn."""
    return len(np.unique(np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).reshape(-1, 3), axis=0))


def test_the_edit_reaches_its_region_and_then_its_neighbours() -> None:
    ran = run("regions")
    changed, inside = re.findall(r"output changed: (\d+), tokens in the region: (\d+)", ran.text)[0]
    assert changed == inside
    held, tokens = map(int, re.findall(r"holds (\d+) of (\d+) tokens", ran.text)[0])
    outputs = [int(count) for count in re.findall(r"\d+(?=[,}])", ran.text.rsplit("output changed:", 1)[1])]
    assert outputs[0] == held < min(outputs[1:])
    assert max(outputs) <= tokens


def test_results_are_read_from_the_checkout() -> None:
    files = sorted((FOLDER.parent / "results/runs").glob("*.json"))
    for folder in (FOLDER, FOLDER.parent):
        ran = run("results", folder)
        assert f"{len(files)} records in all" in ran.text
    assert any(page.startswith("# Effective width") for page in ran.shown)


def test_results_without_records_say_so(tmp_path: Path) -> None:
    ran = run("results", tmp_path)
    assert "0 records in all" in ran.text
    assert "No layer is priced" in ran.text
    assert "There are no tables yet" in ran.text
    assert any("No finished pretraining runs yet." in page for page in ran.shown)
    assert list(tmp_path.iterdir()) == []


def test_results_price_a_tree_where_records_allow(tmp_path: Path) -> None:
    for seed in range(3):
        for width, loss in {0: 5.0, 4: 4.8, 16: 4.6, 64: 4.4}.items():
            ffn = FFNConfig(kind="dense", width=width) if width else FFNConfig(kind="none")
            pretraining(tmp_path, ffn, seed, loss + 0.01 * seed)
        pretraining(tmp_path, FFNConfig(kind="path", trees=1, depth=7), seed, 4.6 + 0.01 * seed)
    pretraining(tmp_path, FFNConfig(kind="path", trees=1, depth=7), 3, 0.0, status="diverged")
    ran = run("results", tmp_path)
    assert "1x7 uses 8 of 255 neurons\n    worth 16.0 (16.0 to 16.0); against its neurons used: above" in ran.text
    assert "1 pretrain   diverged" in ran.text
    assert sum("<img" in shown for shown in ran.shown) == 2  # the figure and the curves
    shutil.copy(PAPER, tmp_path / "results")
    write_tables(tmp_path / "results")
    assert "results/tables says what the records say." in run("results", tmp_path).text
    (tmp_path / "results/tables/pretraining.md").write_text("of yesterday")
    assert "`make tables` would change pretraining.md" in run("results", tmp_path).text
