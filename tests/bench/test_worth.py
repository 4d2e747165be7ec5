"""Timings of an experiment's rows: every distinct layer once, by its tag, and never a wrong one."""

from pathlib import Path

import pytest
import torch

from bench.contenders import Defined, check
from bench.rows import read_rows
from bench.worth import held, layers_of, main, measure, settings_of
from cramming import plan
from cramming.errors import UserError
from fff.feedforward import settings_from
from fff.testing import inputs

CPU = torch.device("cpu")
SMALL = "model.hidden_size=16"
KINDS = (
    {"kind": "dense", "width": 12},
    {"kind": "dense", "width": 12, "activation": "gated_gelu"},
    {"kind": "path", "trees": 2, "depth": 3},
    {"kind": "path", "trees": 1, "depth": 2, "shared": 4},
    {"kind": "leaf", "depth": 2, "leaf_width": 3},
    {"kind": "leaf", "depth": 0, "leaf_width": 3},
    {"kind": "leaf", "depth": 2, "leaf_width": 3, "master_width": 2},
    {"kind": "moe", "experts": 4, "expert_width": 4, "top": 1},
    {"kind": "peer", "keys": 4, "heads": 2, "top": 2},
)


def test_every_layer_but_none_is_timed_under_its_tag(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, threads, tags = tmp_path / "layers.json", torch.get_num_threads(), ["dense16", "1x8", "64x2"]
    options = ["--tokens", "1,5", "--seconds", "0", "--threads", str(threads), "--out", str(out)]
    main([SMALL, *options, "--rows", ",".join(["none", *tags])])
    rows = {(row.tokens, row.shape): row for row in read_rows(out)}
    assert list(rows) == [(tokens, tag) for tokens in (1, 5) for tag in tags]
    for row in rows.values():
        assert (row.width, row.dtype, row.mode, row.inputs) == (16, "float32", "inference", "iid")
        assert row.relative_error is not None
        assert row.relative_error < 1e-5
    assert rows[5, "1x8"].provider in ("cpu", "gather", "masked")
    assert rows[5, "dense16"].provider is None
    assert rows[5, "dense16"].flops_per_token == 2 * 2 * 16 * 16
    printed = capsys.readouterr().out
    for tag in tags:
        assert printed.count(f"checked    {tag} ") == printed.count(f"timed      {tag} ") == 2


def test_the_layers_are_those_of_the_rows() -> None:
    runs = [planned.root for planned in plan.planned("micro", [], [0], ["data.files=[a.txt]"])]
    size, found = settings_of("micro", [], [])
    assert size == runs[0].model.hidden_size
    assert found == {run.ffn.tag: run.ffn.settings.in_inference for run in runs if run.ffn.kind != "fixed"}
    assert list(layers_of(size, found, CPU)) == [tag for tag in found if tag != "none"]


def test_layers_of_one_tag_are_one_layer_or_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "rows").mkdir()
    monkeypatch.setattr(plan, "CONFIGS", tmp_path)
    rows = "a: ffn.depth=3\nb: ffn.depth=3 hardening=straight_through\nc: ffn.depth=3 ffn.activation=relu\n"
    rows += "d: ffn.depth=3 ffn.rebalance_rate=0.01\ne: ffn.depth=3 ffn.trees=null ffn.neurons=15\n"
    (tmp_path / "rows/micro.yaml").write_text(rows)
    size, found = settings_of("micro", ["a", "b"], [SMALL])
    assert (size, list(found)) == (16, ["1x3"])
    settings_of("micro", ["a", "d", "e"], [SMALL])  # differ in training alone
    with pytest.raises(UserError, match="row c: another row's layer is called 1x3 too and is not the same"):
        settings_of("micro", [], [SMALL])


@pytest.mark.parametrize("specification", KINDS, ids=lambda values: settings_from(values).tag)
def test_each_kind_is_held_to_its_definition(specification: dict) -> None:
    settings = settings_from(specification)
    ((tag, layer),) = layers_of(16, {settings.tag: settings}, CPU).items()
    x = inputs("iid", 64, 16)[0]
    assert held(layer, x, tag) < 1e-5
    forward = layer.forward
    layer.forward = lambda x: 1.001 * forward(x)  # type: ignore[method-assign]
    with pytest.raises(AssertionError, match=f"{tag.replace('+', '.')}: error"):
        held(layer, x, tag)


def test_a_wrong_layer_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(layer: Defined, x: torch.Tensor, tag: str) -> float:
        if tag == "1x3":
            with torch.no_grad():
                layer.w_out[0, 0] += 1.0  # type: ignore[union-attr, index, operator]
            frozen = layer.forward
            layer.forward = lambda x: frozen(x) * 0.9  # type: ignore[method-assign]
        return check(layer, x, tag)

    monkeypatch.setattr("bench.worth.check", wrong)
    monkeypatch.setattr("bench.worth.interleaved", lambda *_: pytest.fail("timed"))
    found = {s.tag: s for s in map(settings_from, ({"kind": "dense", "width": 4}, KINDS[2] | {"trees": 1}))}
    with pytest.raises(AssertionError, match="1x3: error"):
        measure(16, found, 8, CPU, seconds=0.0)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--experiment", "quickstart"], "which has no rows"),
        (["--rows", "dense5"], "--rows names dense5"),
        (["--tokens", "0"], "--tokens"),
        (["--seconds", "nan"], "--seconds"),
        (["--threads", "none"], "--threads"),
        (["model.hiden_size=3"], "model.hidden_size"),
    ],
)
def test_a_mistake_is_one_line(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(arguments)
    assert left.value.code == 2
    told = capsys.readouterr()
    assert (told.out, told.err.count("\n")) == ("", 1)
    assert words in told.err
