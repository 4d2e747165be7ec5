"""The benches' command lines: what cannot be timed or written is one line, before anything is timed."""

import runpy
import sys
from pathlib import Path

import pytest
import torch

from bench import export, layer, memory, paper, store
from bench.options import Setting, parser, settings
from bench.rows import read_rows

ROOT = Path(__file__).resolve().parents[2]
MAINS = {
    "layer": layer.main,
    "memory": memory.main,
    "paper": paper.main,
    "export": export.main,
    "store": store.main,
}


def script(*arguments: str) -> None:
    """Run scripts/bench.py here."""
    before = sys.argv
    sys.argv = ["bench.py", *arguments]
    try:
        runpy.run_path(str(ROOT / "scripts" / "bench.py"), run_name="__main__")
    finally:
        sys.argv = before


@pytest.fixture(autouse=True)
def nothing_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    def timed(*_: object) -> None:
        raise AssertionError("work began")

    for name in ("bench.layer.run_layers", "bench.memory.run_memory", "bench.paper.measure", "bench.model.run_models"):
        monkeypatch.setattr(name, timed)
    monkeypatch.setattr("bench.trained.run_trained", timed)


@pytest.mark.parametrize(
    ("command", "options", "words"),
    [
        ("layer", "--threads 0", "--threads is 0"),
        ("layer", "--threads -2", "--threads is -2"),
        ("layer", "--threads 1,,x", "--threads names 'x'"),
        ("layer", "--threads ,", "--threads is empty"),
        ("layer", "--threads 99999999", "--threads is 99999999"),
        ("layer", "--shapes 1y11", "--shapes names '1y11'"),
        ("layer", "--shapes 0x3", "--shapes names '0x3'"),
        ("layer", "--shapes 1x", "--shapes names '1x'"),
        ("layer", "--shapes 1x99", "--shapes names '1x99'"),
        ("layer", "--shapes leaf0x3", "--shapes names 'leaf0x3'"),
        ("layer", "--tokens -1", "--tokens is -1"),
        ("layer", "--tokens 0", "--tokens is 0"),
        ("layer", "--tokens 1.5", "--tokens names '1.5'"),
        ("layer", "--tokens=", "--tokens is empty"),
        ("layer", "--dtypes int8", "--dtypes is 'int8'"),
        ("layer", "--dtypes=", "--dtypes is empty"),
        ("layer", "--modes sleep", "--modes is 'sleep'"),
        ("layer", "--modes=", "--modes is empty"),
        ("layer", "--inputs none", "--inputs is 'none'"),
        ("layer", "--seconds nan", "--seconds is nan"),
        ("layer", "--seconds inf", "--seconds is inf"),
        ("layer", "--seconds -1", "--seconds is -1"),
        ("layer", "--out /dev/null/x/y.json", "Not a directory"),
        ("layer", "--out FOLDER", "a folder; name a file"),
        ("layer", "--out FOREIGN", "would write over"),
        ("layer", f"--out FOLDER/{'n' * 250}.json", "File name too long"),
        ("memory", "--tokens 0", "--tokens is 0"),
        ("memory", "--shapes leaf8x3", "trees x depth alone"),
        ("memory", "--shapes=", "--shapes is empty"),
        ("memory", "--out FOLDER", "a folder"),
        ("paper", "--depth -1", "--depth is -1"),
        ("paper", "--depth 21", "--depth is 21"),
        ("paper", "--tokens 0", "--tokens is 0"),
        ("paper", "--threads 0", "--threads is 0"),
        ("paper", "--seconds nan", "--seconds is nan"),
        ("paper", "--out FOREIGN", "would write over"),
        ("script", "--threads 0", "--threads is 0"),
        ("script", "--memory -1", "--memory is -1"),
        ("script", "--batches 0", "--batches is 0"),
        ("script", "--batches x", "--batches names 'x'"),
        ("script", "--microbatch 0", "--microbatch is 0"),
        ("script", "--layers 0", "--layers is 0"),
        ("script", "--turns -3", "--turns is -3"),
        ("script", "--ffns dense", "--ffns is 'dense'"),
        ("script", "--ffns=", "--ffns is empty"),
        ("script", "--model-dtypes float", "--model-dtypes is 'float'"),
        ("script", "--text x.txt", "--checkpoint and --text go together"),
        ("script", "--out FOREIGN", "would write over"),
        ("export", "--shapes moe4x4top1", "--shapes names moe4x4top1; exports are timed of trees alone"),
        ("export", "--tokens 0", "--tokens is 0"),
        ("export", "--threads 0", "--threads is 0"),
        ("export", "--seconds nan", "--seconds is nan"),
        ("export", "--out FOLDER", "a folder; name a file"),
        ("store", "FOLDER/rows --depth 25", "--depth is 25"),
        ("store", "FOLDER/rows --tokens 5", "--tokens is 5"),
        ("store", "FOLDER/rows --memory 1", "--memory is 1"),
        ("store", "FOLDER/rows --threads 0", "--threads is 0"),
        ("store", "FOLDER/rows --depth 3", "--memory 64 is enough for the 0 MB of --depth 3"),
        ("store", "FOLDER/rows --out FOLDER", "a folder; name a file"),
        ("store", "FOLDER", "is no store: w_in.safetensors is missing"),
    ],
)
def test_what_cannot_be_done_is_one_line_before_any_work(
    command: str, options: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    foreign = tmp_path / "foreign.json"
    foreign.write_text("{}")
    options = options.replace("FOLDER", str(tmp_path)).replace("FOREIGN", str(foreign))
    with pytest.raises(SystemExit) as left:
        script(*options.split()) if command == "script" else MAINS[command](options.split())
    assert left.value.code == 2
    told = capsys.readouterr().err
    assert words in told
    assert told.startswith("error: ")
    assert told.count("\n") == 1
    assert foreign.read_text() == "{}"
    assert list(tmp_path.iterdir()) == [foreign]


def test_a_report_of_before_may_be_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.layer.run_layers", lambda *_: [])
    for _ in range(2):
        layer.main(["--shapes", "1x3", "--out", str(tmp_path / "a.json")])
    assert read_rows(tmp_path / "a.json") == []


def test_shapes_are_of_both_layers() -> None:
    chosen = parser("x", None).parse_args(
        ["--shapes", "2x3,leaf8x5", "--tokens", "7", "--modes", "inference", "--seconds", "1"]
    )
    path, leaf = settings(chosen)
    assert path == Setting(2, 3, 7, torch.float32, "inference", seconds=1.0)
    assert leaf == Setting(1, 5, 7, torch.float32, "inference", seconds=1.0, leaf_width=8)
    assert [each.title["shape"] for each in (path, leaf)] == ["2x3", "leaf8x5"]
