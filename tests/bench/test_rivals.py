"""The rivals in the layer bench: named by their tags, timed beside dense layers, and never when they are wrong."""

import pytest
import torch

from bench.layer import measure
from bench.memory import memory_shapes
from bench.options import Setting, shapes
from bench.rivals import NAME, Rival, check_rival, definition
from cramming.errors import UserError
from fff.testing import inputs

CPU = torch.device("cpu")
TAGS = ("moe8x4top2", "peer8x8h2top3")


def rival(tag: str, dtype: torch.dtype = torch.float32) -> Rival:
    torch.manual_seed(0)
    (shape,) = shapes(tag)
    assert str(shape) == tag
    layer = shape.rival.build(64, 64, dtype=dtype)  # type: ignore[union-attr]
    assert isinstance(layer, Rival)
    return layer


@pytest.mark.parametrize("mode", ["inference", "training"])
@pytest.mark.parametrize("tag", TAGS)
def test_a_rival_is_timed_beside_dense_layers_of_as_many_neurons(tag: str, mode: str) -> None:
    (shape,) = shapes(tag)
    rows = measure(Setting(0, 0, 4, torch.float32, mode, seconds=0.0, rival=shape.rival), CPU)
    neurons = {"moe8x4top2": 32, "peer8x8h2top3": 64}[tag]
    assert [row.name for row in rows if row.provider] == [NAME]
    assert {row.shape for row in rows} == {tag}
    assert {row.opponent for row in rows} <= {f"dense {neurons} float32", "dense 64 float32"}
    assert rows[0].relative_error is not None
    assert rows[0].relative_error < 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tag", TAGS)
def test_a_wrong_rival_is_refused(tag: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = rival(tag, dtype), inputs("iid", 600, 64)[0].to(dtype)
    assert check_rival(layer, x) < (1e-5 if dtype == torch.float32 else 3e-2)
    forward = layer.forward
    layer.forward = lambda x: 1.1 * forward(x)  # type: ignore[method-assign]
    with pytest.raises(AssertionError, match=f"{tag}: error"):
        check_rival(layer, x)
    layer.forward = forward  # type: ignore[method-assign]
    monkeypatch.setattr("bench.rivals.definition", lambda layer, x: definition(layer, -x))
    with pytest.raises(AssertionError, match=f"{tag}: other units than defined"):
        check_rival(layer, x)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("moe8x4top4", "'moe8x4top4': `top` is 4; set it from 1 to 3"),
        ("peer8x9h2top3", "'peer8x9h2top3'; give trees x depth"),
        ("moe8x4", "or a rival's tag, e.g. moe32x32top1"),
    ],
)
def test_impossible_rivals_are_named(text: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        shapes(text)
    with pytest.raises(UserError, match="moe8x4top2; memory is measured of trees"):
        memory_shapes("1x3,moe8x4top2")
