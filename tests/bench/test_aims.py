"""The aims' table: every aim finds its row in a report, and what is missed is marked."""

from typing import Any

from bench import aims as bench_aims
from bench.aims import AIMS, MEMORY_TOKENS, table
from bench.model import Scale
from cramming.machine import this_device


def report(faster: float) -> dict[str, Any]:
    """As the benchmark writes it, of what the aims' own settings ask for; all ratios the same."""
    machine = {"machine": {"threads": 1}}
    layers = [
        {**setting.title, "provider": name, "median_s": seconds, "times_faster_than_dense": faster}
        for setting in bench_aims.settings(0.0)
        for name, seconds in (("cpu", 1.0), ("gather", 2.0), ("masked", faster))
        if name in setting.providers
    ]
    scale = bench_aims.models(Scale(this_device()))
    models = [
        {"work": work, "ffn": "1x11", "dtype": dtype, "batch": batch, "share_of_bound": 0.98, **ratio}
        for work, batch, dtype in (
            *[("inference", batch, str(dtype)[6:]) for batch in scale.batches for dtype in scale.dtypes],
            ("pretraining step", scale.microbatch, scale.precision),
        )
        for ratio in ({"times_faster_than_dense": faster},)
    ]
    memory = [{"shape": "1x11", "tokens": MEMORY_TOKENS, "provider": "cpu", "mb": 129.8}]
    return {"layers": [{**machine, "rows": layers}], "models": [{**machine, "rows": models}], "memory": memory}


def test_every_aim_finds_its_row() -> None:
    assert [aim.what for aim in AIMS if aim.value(report(200.0), 1) is None] == []
    assert all(aim.value(report(200.0), 2) is None for aim in AIMS if aim.unit == "x")


def test_what_is_missed_is_bold() -> None:
    lines = table(report(150.0), [1]).splitlines()
    cells = {line.split(" | ")[0][2:]: line.split(" | ")[2].strip(" |") for line in lines[2:]}
    assert cells["1x11, 1 token, float32"] == "**150x**"
    assert cells["1x11, 1 token, bfloat16"] == "150x"
    assert cells["the same, against masked"] == "**150x**"
    assert cells["encoder, 1 x 128, float32, share of the bound"] == "98 %"
    assert cells["1x11, memory of a training step, 16384 tokens"] == "130 MB"
