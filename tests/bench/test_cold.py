"""Cold calls: copies larger than the cache, in turn; rows; the command line."""

from pathlib import Path

import pytest
import torch
from torch import nn

from bench import cold
from bench.cases import Case
from bench.rows import read_rows
from fff.kernels import PROVIDERS


def test_copies_have_memory_of_their_own_and_exceed_what_is_wanted() -> None:
    layer = nn.Linear(8, 8)
    turns = cold.copies(Case(nn.Module.__call__, layer, [torch.zeros(1, 8)]), 1000)
    assert cold.size_of(layer) == 288
    assert len(turns.modules) == 4
    assert len({module.weight.data_ptr() for module in turns.modules}) == 4
    assert len(cold.copies(Case(nn.Module.__call__, layer, []), 0).modules) == 2
    assert len(cold.copies(Case(nn.Module.__call__, layer, []), 1e9).modules) == cold.MOST_COPIES


def test_calls_go_in_turn_and_each_copys_first_does_not_count() -> None:
    called = []

    def turns(name: str, modules: int, inputs: int) -> cold.Turns:
        xs = [torch.tensor(float(i)) for i in range(inputs)]
        made = [nn.Module() for _ in range(modules)]
        return cold.Turns(lambda module, x: called.append((name, made.index(module), int(x))), made, xs)

    times = cold.in_turn({"a": turns("a", 2, 3), "b": turns("b", 3, 4)}, 0)
    assert called == [(name, turn % n, turn % m) for turn in range(9) for name, n, m in (("a", 2, 3), ("b", 3, 4))]
    assert [len(found) for found in times.values()] == [6, 6]


@pytest.mark.skipif(PROVIDERS["cpu"].available(torch.device("cpu"), torch.float32) is not None, reason="needs the C++")
def test_rows_say_warm_and_cold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(cold, "last_level_cache", lambda: 1 << 20)
    out = tmp_path / "cold.json"
    options = ["--shapes", "1x3", "--tokens", "2", "--dtypes", "bfloat16", "--seconds", "0", "--threads", "1"]
    cold.main([*options, "--out", str(out)])
    rows = {row.name: row for row in read_rows(out)}
    assert list(rows) == ["cpu", "int8", "dense 64 float32", "dense 64 bfloat16"]
    best = min(row.cold for name, row in rows.items() if name.startswith("dense"))
    for row in rows.values():
        assert (row.what, row.tokens, row.mode) == ("cold calls", 2, "inference")
        assert row.ratio_cold == pytest.approx(best / row.cold)
        assert row.ratio == pytest.approx(rows[row.opponent].median / row.median)
    assert "cold" in capsys.readouterr().out


@pytest.mark.parametrize("wrong", [["--modes", "training"], ["--shapes", "moe4x4top1"]])
def test_what_is_not_timed_is_named(wrong: list[str], capsys) -> None:
    with pytest.raises(SystemExit):
        cold.main(wrong)
    assert "trees in inference" in capsys.readouterr().err


def test_the_largest_cache_is_this_machines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cold, "CACHE", tmp_path)
    assert cold.last_level_cache() == cold.UNKNOWN_CACHE
    for index, size in enumerate(("48K", "2M", "odd")):
        (tmp_path / f"index{index}").mkdir()
        (tmp_path / f"index{index}" / "size").write_text(f"{size}\n")
    assert cold.last_level_cache() == 2 << 20
