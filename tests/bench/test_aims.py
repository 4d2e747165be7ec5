"""The aims' table: every aim finds its row in a report, and what is missed is marked."""

from typing import Any

from bench import aims as bench_aims
from bench.aims import AIMS, MEMORY_TOKENS, table
from bench.encoder import Scale
from bench.options import name_of
from bench.rows import SpeedRow, stamp
from cramming.machine import CPU


def report(faster: float) -> list[SpeedRow]:
    """As the benchmark finds it, of what the aims' own settings ask for; all ratios the same."""
    same: dict[str, Any] = {"n": 1, **stamp(CPU, 1), "opponent": "dense", "ratio": faster}
    rows = [
        SpeedRow(what="layer", name=name, **setting.title, width=768, median=seconds, **same)
        for setting in bench_aims.settings(0.0)
        for name, seconds in (("cpu", 1.0), ("gather", 2.0), ("masked", faster))
        if name in setting.providers
    ]
    scale = bench_aims.models(Scale(CPU))
    for what, batch, dtype in (
        *[("encoder", batch, dtype) for batch in scale.batches for dtype in scale.dtypes],
        ("pretraining step", scale.microbatch, scale.training_dtype),
    ):
        shape = {"name": "1x11", "shape": "1x11", "tokens": batch * 128, "sequences": batch, "dtype": name_of(dtype)}
        share = {"second": "none", "ratio_second": 0.98, "mode": "inference", "median": 1.0}
        rows.append(SpeedRow(what=what, **scale.title, **shape, **share, **same))
    for what, tokens in (("layer", 128), ("layer", 16384), ("encoder", 128), ("encoder", 4096)):
        for name, dtype, width, seconds in (
            *((f"{shape} int8", "int8", 768, 1.0) for shape in ("1x11", "32x6")),
            ("dense 4096 int8 torch", "int8", 768, faster),
            ("dense 4096 int8 openvino", "int8", 768, faster / 2),
            ("dense 4096 float32", "float32", 768, 2 * faster),
            ("dense 1536 of 384 int8", "int8", 384, 1e-3),
            ("dense 16 int8", "int8", 768, 1e-3),
        ):
            form: dict[str, Any] = {"name": name, "dtype": dtype, "library": "torch 2.13.0", "mode": "inference"}
            form |= {"what": what, "tokens": tokens, "width": width, "shape": "1x11", "median": seconds}
            rows.append(SpeedRow(**form, **same))
    memory = {"name": "cpu", "shape": "1x11", "width": 768, "tokens": MEMORY_TOKENS, "dtype": "float32"}
    rows.append(SpeedRow(what="training memory", mode="training", unit="MB", median=129.8, **memory, **same))
    return rows


def test_every_aim_finds_its_row() -> None:
    assert [aim.what for aim in AIMS if aim.value(report(200.0), 1) is None] == []
    assert all(aim.value(report(200.0), 2) is None for aim in AIMS if aim.unit == "x")


def test_what_is_missed_is_bold() -> None:
    lines = table(report(150.0), [1]).splitlines()
    cells = {line.split(" | ")[0][2:]: line.split(" | ")[2].strip(" |") for line in lines[2:]}
    assert cells["1x11, 1 token, float32"] == "**150x**"
    assert cells["1x11, 1 token, bfloat16"] == "150x"
    assert cells["the same, against masked"] == "**150x**"
    assert cells["1x11 int8, 128 tokens, against dense int8"] == "75x", "the strongest of as many neurons"
    assert cells["1x11 int8, 16384 tokens, against dense float32"] == "300x"
    assert cells["encoder, 1 x 128, float32, share of the bound"] == "98 %"
    assert cells["1x11, memory of a training step, 16384 tokens"] == "130 MB"
