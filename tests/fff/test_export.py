"""Exports: layers of every kind, and models with them, compute as before for any batch and length; refusals."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from fff import LeafFFF, PathFFF, export
from fff.feedforward import KINDS
from fff.kernels import INT8, LEAF, PATH
from fff.kernels.int8_linear import unusable
from fff.layers.quantised import QuantisedPath, quantise_trees
from fff.optimise import optimise_for_cpu
from tests.helpers.exported import (
    D_IN,
    SPECIFICATIONS,
    Together,
    WithPath,
    clear_of_decisions,
    held,
    layer_of,
)
from tests.helpers.model import config
from tests.helpers.process import in_a_new_process

SIZES = ((2, 3), (1, 1), (5, 11))
Run = Callable[..., list[Tensor]]


def run_onnx(path: Path) -> Run:
    """What onnxruntime makes of a file, by the order of its inputs."""
    runtime = pytest.importorskip("onnxruntime", reason="optional extra onnx")
    runtime.set_default_logger_severity(3)
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]
    return lambda *given: [
        torch.from_numpy(result)
        for result in session.run(None, {name: x.numpy() for name, x in zip(names, given, strict=True)})
    ]


@pytest.fixture
def onnx_there() -> None:
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name, reason="optional extra onnx")


def test_every_kind_is_among_the_examples() -> None:
    assert {specification["kind"] for specification in SPECIFICATIONS.values()} == set(KINDS)


def parts(found: list[Tensor], together: Together) -> list[tuple[list[Tensor], nn.Module]]:
    """Each layer with its own results."""
    result, place = [], 0
    for each in together.layers:
        count = 3 if isinstance(each.layer, PathFFF | LeafFFF | QuantisedPath) else 1
        result.append((found[place : place + count], each.layer))
        place += count
    assert place == len(found)
    return result


@pytest.fixture(scope="module")
def every_kind() -> tuple[Together, ExportedProgram]:
    together = Together(list(SPECIFICATIONS))
    return together, export.program(together, torch.randn(2, 3, D_IN))


def test_every_kind_as_a_program_for_any_batch_and_length(every_kind: tuple[Together, ExportedProgram]) -> None:
    together, written = every_kind
    run = written.module()
    for size in SIZES:
        x = torch.randn(*size, D_IN)
        for found, layer in parts(run(x), together):
            held(found, layer, x)


def test_a_program_has_operators_of_torchs_own_alone(every_kind: tuple[Together, ExportedProgram]) -> None:
    called = [str(node.target) for node in every_kind[1].graph.nodes if node.op == "call_function"]
    assert called
    assert not [name for name in called if "fff" in name]


def test_a_program_is_loaded_where_there_is_no_fff(tmp_path: Path) -> None:
    model, x = MODELS["path"](), ids(3, 6)
    torch.export.save(export.program(model, ids(2, 5)), tmp_path / "model.pt2")
    torch.save(x, tmp_path / "given.pt")
    code = f"""
import sys
sys.modules.update(fff=None, cramming=None, transformers=None)
import torch
given = torch.load({str(tmp_path / "given.pt")!r})
torch.save(torch.export.load({str(tmp_path / "model.pt2")!r}).module()(*given), {str(tmp_path / "found.pt")!r})
"""
    in_a_new_process(code)
    found, (expected, clear) = torch.load(tmp_path / "found.pt"), clear_of_decisions(model, *x)
    assert clear.any()
    torch.testing.assert_close(found[clear], expected[clear], rtol=1e-3, atol=1e-4)


def test_a_program_visits_the_path_alone() -> None:
    written = export.program(PathFFF(64, 64, 10).eval(), torch.randn(8, 64)).module()
    with torch.utils.flop_counter.FlopCounterMode(display=False) as counter, torch.no_grad():
        written(torch.randn(8, 64))
    # Products of four dense levels, 15 of 2047 nodes; the rows below are gathered.
    assert 0 < counter.get_total_flops() <= 2 * 8 * 15 * (64 + 64)


def test_a_program_takes_the_weights_of_no_more_leaves_than_tokens() -> None:
    written = export.program(LeafFFF(64, 64, 6, 4).eval(), torch.randn(8, 64)).module()
    with torch.utils.flop_counter.FlopCounterMode(display=False) as counter, torch.no_grad():
        written(torch.randn(1, 64))
    # One block of 16 rows by one of 64 leaves, and four dense levels of decisions.
    assert 0 < counter.get_total_flops() <= 2 * 16 * 4 * (64 + 64) + 2 * 15 * 64


@pytest.mark.parametrize("name", SPECIFICATIONS)
@pytest.mark.usefixtures("onnx_there")
def test_every_kind_in_onnxruntime_for_any_batch_and_length(name: str, tmp_path: Path) -> None:
    layer = layer_of(name)
    export.onnx(WithPath(layer).eval(), torch.randn(2, 3, D_IN), tmp_path / "layer.onnx")
    run = run_onnx(tmp_path / "layer.onnx")
    for size in (*SIZES, (3, 170)):
        x = torch.randn(*size, D_IN)
        held(run(x), layer, x)
    assert [each.name for each in tmp_path.iterdir()] == ["layer.onnx"]


def ids(batch: int, length: int) -> tuple[Tensor, Tensor]:
    """Ids and a mask with padding at the end of the first sequence."""
    mask = torch.ones(batch, length, dtype=torch.int64)
    mask[0, (length + 1) // 2 :] = 0
    return torch.randint(7, 80, (batch, length)), mask


class Logits(nn.Module):
    """The first output of a model, from ids and mask."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model.eval()
        self.eval()

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        return self.model(input_ids=ids, attention_mask=mask)[0]


def crammed(ffn: str | dict) -> Logits:
    from cramming.model import CrammedForMaskedLM

    torch.manual_seed(0)
    return Logits(CrammedForMaskedLM(config(ffn, initializer_range=0.3)))


def foreign() -> Logits:
    """transformers' own BERT with trees in it."""
    from transformers import BertConfig, BertModel

    from fff.surgery import replace_feedforward

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    model = BertModel(BertConfig(vocab_size=80, max_position_embeddings=16, **sizes))
    replace_feedforward(model, {"kind": "path", "depth": 5, "trees": 2})
    return Logits(model)


MODELS: dict[str, Callable[[], Logits]] = {
    "path": lambda: crammed({"kind": "path", "trees": 2, "depth": 5}),
    "leaf": lambda: crammed({"kind": "leaf", "depth": 3, "leaf_width": 4}),
    "token": lambda: crammed({"kind": "fixed", "depth": 3, "trees": 1, "path": "token"}),
    "bert": foreign,
}


def model_held(run: Run, model: Logits) -> None:
    for size in ((2, 4), (3, 16), (1, 7)):
        given = ids(*size)
        trees = [part for part in model.modules() if isinstance(part, PathFFF | LeafFFF)]
        expected, clear = clear_of_decisions(model, *given) if trees else (model(*given), torch.ones(size[0]) > 0)
        assert clear.float().mean() > 0.5 or size[0] == 1
        (found,) = run(*given)
        seen = given[1].bool() & clear[:, None]
        torch.testing.assert_close(found[seen], expected[seen], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", MODELS)
def test_a_model_as_a_program(name: str) -> None:
    model = MODELS[name]()
    written = export.program(model, ids(2, 5)).module()
    with torch.no_grad():
        model_held(lambda *given: [written(*given)], model)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.usefixtures("onnx_there")
def test_a_model_in_onnxruntime(name: str, tmp_path: Path) -> None:
    model = MODELS[name]()
    export.onnx(model, ids(2, 5), tmp_path / "model.onnx")
    with torch.no_grad():
        model_held(run_onnx(tmp_path / "model.onnx"), model)


@pytest.mark.slow
def test_every_kind_and_a_model_by_aotinductor(tmp_path: Path) -> None:
    together = Together(list(SPECIFICATIONS))
    export.package(together, torch.randn(2, 3, D_IN), tmp_path / "layers.pt2")
    run = torch._inductor.aoti_load_package(str(tmp_path / "layers.pt2"))
    for size in SIZES:
        x = torch.randn(*size, D_IN)
        for found, layer in parts(list(run(x)), together):
            held(found, layer, x)
    for name in ("path", "bert"):
        model = MODELS[name]()
        export.package(model, ids(2, 5), tmp_path / f"{name}.pt2")
        loaded = torch._inductor.aoti_load_package(str(tmp_path / f"{name}.pt2"))
        with torch.no_grad():
            model_held(lambda *given, loaded=loaded: [loaded(*given)], model)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["bert.pt2", "layers.pt2", "path.pt2"]


def test_an_int8_model_as_a_program() -> None:
    model = MODELS["path"]()
    quantise_trees(model)
    written = export.program(model, ids(2, 5)).module()
    given = ids(3, 12)
    with torch.no_grad():
        expected = model(*given)
        found = written(*given)
    # The tree's decisions are whole numbers' and exact; a norm before it may round a token to other whole numbers.
    same = torch.isclose(found, expected, rtol=1e-3, atol=1e-3).all(-1)
    assert same[given[1].bool()].float().mean() > 0.9


def test_providers_are_afterwards_as_before() -> None:
    model = nn.Sequential(PathFFF(8, 8, 3, provider="gather"), LeafFFF(8, 8, 2, 2), PathFFF(8, 8, 2)).eval()
    x = torch.randn(4, 8)
    model(x)
    export.program(model, x)
    with pytest.raises(RuntimeError, match=r"cannot be exported by torch\.export"):
        export.program(nn.Sequential(model, Steps()).eval(), x)
    assert [layer.provider for layer in model] == ["gather", "auto", "auto"]
    model(x)
    assert model[0].computed_by == {"gather"}


class Steps(nn.Module):
    """What depends on values: no graph for all of them."""

    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


class Operator(nn.Module):
    """A call of our own operator."""

    def forward(self, x: Tensor) -> Tensor:
        w = torch.ones(1, 1, x.shape[1])
        return torch.ops.fff.gather_forward(x, w, None, w, "gelu", None, None)[0]


def test_what_cannot_be_exported_is_told_in_one_line(tmp_path: Path) -> None:
    x, target = torch.randn(4, 8), tmp_path / "layer.pt2"
    layer = PathFFF(8, 8, 3).eval()
    wrong: list[tuple[type[Exception], str, Callable[[], object]]] = [
        (ValueError, "layer.bin does not end in .pt2", lambda: export.package(layer, x, tmp_path / "layer.bin")),
        (ValueError, "layer.pt2 does not end in .onnx", lambda: export.onnx(layer, x, target)),
        (ValueError, "PathFFF is in training mode, .*call eval", lambda: export.package(layer.train(), x, target)),
        (
            ValueError,
            r"tensor \(1, 8\), whose dimension 0 is to stay open",
            lambda: export.program(layer.eval(), x[:1]),
        ),
        (RuntimeError, "Steps cannot be exported by torch.export: ", lambda: export.package(Steps().eval(), x, target)),
        (
            RuntimeError,
            "Operator cannot be exported: it calls fff.gather_forward.default, an operator of this package",
            lambda: export.package(Operator().eval(), x, target),
        ),
    ]
    for kind, message, call in wrong:
        with pytest.raises(kind, match=message) as raised:
            call()
        assert "\n" not in str(raised.value)
        layer.eval()
    assert list(tmp_path.iterdir()) == []


def test_packed_weights_are_named_and_int8_trees_beside_float_linears_written() -> None:
    if reason := unusable():
        pytest.skip(reason)
    model, x = nn.Sequential(nn.Linear(128, 128), PathFFF(128, 128, 3)).eval(), torch.randn(4, 128)
    optimised = copy.deepcopy(model)
    optimise_for_cpu(optimised, linears="int8")
    with pytest.raises(RuntimeError, match=r"Sequential cannot be exported: 0 is an Int8Linear, .*linears='keep'"):
        export.program(optimised, x)
    optimise_for_cpu(model, linears="keep")
    torch.testing.assert_close(export.program(model, x).module()(x[:3]), model(x[:3]))


@pytest.mark.usefixtures("onnx_there")
def test_large_weights_lie_beside_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "ONE_FILE", 0)
    layer, x = PathFFF(64, 64, 6).eval(), torch.randn(5, 64)
    export.onnx(layer, x[:2], tmp_path / "layer.onnx")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["layer.onnx", "layer.onnx.data"]
    (found,) = run_onnx(tmp_path / "layer.onnx")(x)
    torch.testing.assert_close(found, layer(x), rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("onnx_there")
def test_what_onnx_has_no_operator_for_is_told(tmp_path: Path) -> None:
    class Roots(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.linalg.eigvals(x @ x.t()).real

    with pytest.raises(RuntimeError, match=r"Roots cannot be exported by ONNX: .*eig") as raised:
        export.onnx(Roots().eval(), torch.randn(4, 8), tmp_path / "layer.onnx")
    assert "\n" not in str(raised.value)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    with pytest.raises(ImportError, match=r"onnx writes ONNX, and is missing .*pip install 'fff-cramming\[onnx\]'"):
        export.onnx(PathFFF(8, 8, 3).eval(), torch.randn(4, 8), tmp_path / "layer.onnx")


def test_a_failed_compilation_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, package_path: str, **__: object) -> None:
        Path(package_path).write_text("half")
        raise ValueError("no compiler\nand much more")

    monkeypatch.setattr(torch._inductor, "aoti_compile_and_package", fail)
    with pytest.raises(RuntimeError, match=r"PathFFF cannot be exported by AOTInductor: ValueError: no compiler$"):
        export.package(PathFFF(8, 8, 3).eval(), torch.randn(4, 8), tmp_path / "layer.pt2")
    assert list(tmp_path.iterdir()) == []


def test_auto_takes_the_exporters_provider_nowhere() -> None:
    for operation in (PATH, LEAF, INT8):
        assert operation.providers["aten"].rank is None
        assert not operation.providers["aten"].timed
        assert operation.providers["aten"].execution == "conditional"
