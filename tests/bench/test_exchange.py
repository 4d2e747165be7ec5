"""Bytes of an exchange as they are reckoned are those that are sent. Not who differs in what."""

from datetime import timedelta
from pathlib import Path

import pytest
import torch
from torch import nn

from bench.exchange import ZipfTokens, cell, sent, table_of
from cramming.files import read_json
from cramming.parallel.launch import launched
from cramming.parallel.outer import Outer
from cramming.parallel.peers import Peers
from cramming.record import read_record
from fff.layers.path import PathFFF
from tests.helpers.several import several

ROOT = Path(__file__).parents[2]


def exchanged(by_rows: bool, moved: int) -> tuple[int, int]:
    """Bytes that a worker sent, and how many weights there are: a tree of 7 rows, some of differ, and 6 others."""
    launch = launched(cpu=True, patience=timedelta(seconds=20))
    torch.manual_seed(0)
    tree = PathFFF(3, 3, depth=2)
    model = nn.ModuleList([tree, nn.Linear(2, 3, bias=False)])
    with torch.no_grad():
        tree.w_in[0, :moved] += launch.rank
    outer = Outer(model, Peers.of_launch(), lr=1.0, momentum=0.0, by_rows=by_rows)
    outer.meet()
    return outer.sent, sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("workers", [2, 3])
def test_bytes_are_those_that_are_sent(tmp_path: Path, workers: int) -> None:
    for ended in several(exchanged, tmp_path / "rows", True, 2, size=workers):
        found, _ = ended.value
        assert found == sent(2 * 7 + 6, workers, digests=7), "two rows of 3 + 1 + 3 numbers"
    for ended in several(exchanged, tmp_path / "dense", False, 2, size=workers):
        found, everything = ended.value
        assert found == sent(everything, workers)


def test_more_tokens_between_meetings_make_more_rows_differ() -> None:
    few, many = (cell(ZipfTokens(), 9, 2, tokens) for tokens in (512, 4096))
    assert 0 < few["rows_that_differ"] < many["rows_that_differ"] <= many["rows"] == 4 * 1023
    assert few["rows_bytes"] < many["rows_bytes"]
    assert few["dense_bytes"] == many["dense_bytes"]


def test_the_page_has_the_figures_that_were_recorded() -> None:
    page = (ROOT / "docs" / "scale.md").read_text()
    found: dict[tuple[str, int], list[tuple[float, float]]] = {}
    for path in sorted((ROOT / "results" / "workers" / "runs").glob("*.json")):
        record = read_record(path)
        if record["machine"]["processes"] == 1 or "start" in record:
            continue  # first models, and what begins with them (test_dealt.py)
        key = (record["config"]["train"]["sync"], record["machine"]["processes"])
        metrics = record["metrics"]
        found.setdefault(key, []).append((metrics["valid_loss"], metrics["exchange_bytes_per_token"]))
    assert len(found) == 4
    for (sync, workers), seeds in found.items():
        losses = ", ".join(f"{loss:.3f}" for loss, _ in seeds)
        bytes_of = ", ".join(dict.fromkeys(f"{each:,.0f}" for _, each in seeds))
        assert f"| {workers} | {sync.replace('_', ' ')} | {losses} | {bytes_of} " in page
    cells = read_json(ROOT / "results" / "workers" / "exchange.json")["cells"]
    for line in table_of(cells):
        assert line in page
