"""Foreign models' feedforward blocks: all are found, none falsely, and what replaces them takes their place alone."""

import warnings
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from fff import LeafFFF, PathFFF
from fff.layers.dense import DenseFF
from fff.surgery import Block, find_feedforward, replace_feedforward
from fff.surgery.replace import OutputBias, Replaced
from tests.helpers.foreign import MODELS, foreign, inputs_of, output_of

TREE = {"kind": "path", "depth": 3, "trees": 2}
each_model = pytest.mark.parametrize("name", MODELS)


class InForward(nn.Module):
    """A layer with its activation written in its forward: whole, or among more."""

    def __init__(self, residual: bool, dropout: float = 0.0) -> None:
        super().__init__()
        self.up, self.down, self.residual, self.p = nn.Linear(16, 24), nn.Linear(24, 16), residual, dropout

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.down(functional.silu(self.up(x)))
        y = functional.dropout(y, self.p, self.training) if self.p else y
        return x + y if self.residual else y


class Wanting(nn.Module):
    """A layer that cannot be called on one tensor, because it wants to know a table of positions."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.act, self.down = nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 16)

    def forward(self, x: torch.Tensor, table: dict[str, torch.Tensor]) -> torch.Tensor:
        return x + self.down(self.act(self.up(x + table["rows"])))


class WithTable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = Wanting()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x, {"rows": torch.ones(16)})


@each_model
def test_every_block_is_found_and_none_falsely(name: str) -> None:
    model = foreign(name)
    found = find_feedforward(model)
    assert [block.path for block in found.blocks] == MODELS[name].blocks
    assert found.left == ()
    assert {(block.d_in, block.neurons, block.d_out) for block in found.blocks} == {(32, 48, 32)}


def copied(layer: DenseFF, block: Block, weights: dict[str, torch.Tensor], model: nn.Module) -> None:
    """Give a dense layer the weights of the block that it replaced."""
    rows = [weights[f"{name}.weight"] for name in block.ins]
    out = weights[f"{block.out}.weight"]
    if out.shape[0] != 32 or out.shape == (48, 32):  # Conv1D: transposed
        rows, out = [row.t() for row in rows], out.t()
    if block.gated:
        gate, value = rows if len(rows) == 2 else rows[0].chunk(2)
        rows = [value, gate]  # DenseFF's order
    layer.dense_in.weight.copy_(torch.cat(rows))
    layer.dense_out.weight.copy_(out)


@each_model
@torch.no_grad()
def test_a_dense_layer_with_the_blocks_weights_gives_the_same_outputs(name: str) -> None:
    model = foreign(name)
    for block in find_feedforward(model).blocks:
        for each in block.ins:
            bias = model.get_submodule(each).bias
            if bias is not None:
                bias.zero_()  # DenseFF has none; that of the output stays
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    before = output_of(name, model)
    for block in find_feedforward(model).blocks:
        width = 2 * block.neurons if block.gated else block.neurons
        activation = "gated_gelu" if block.gated else "gelu"
        report = replace_feedforward(
            model,
            {"kind": "dense", "width": width, "activation": activation},
            lambda each, path=block.path: each.path == path,
        )
        assert report.replaced == (block,)
        (layer,) = (
            each for key, each in model.named_modules() if isinstance(each, DenseFF) and key.startswith(block.path)
        )
        assert not torch.allclose(output_of(name, model), before, atol=1e-4)
        copied(layer, block, weights, model)
        torch.testing.assert_close(output_of(name, model), before, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="No feedforward block was found"):
        replace_feedforward(model, TREE)  # nothing in a layer of this library's is one


@each_model
def test_gradients_reach_the_new_layers(name: str) -> None:
    model = foreign(name)
    report = replace_feedforward(model, TREE)
    layers = [module for module in model.modules() if isinstance(module, PathFFF)]
    assert len(layers) == len(report.replaced) == len(MODELS[name].blocks)
    model.train()
    output_of(name, model).square().sum().backward()
    for layer in layers:
        for parameter in (layer.w_in, layer.b_in, layer.w_out):
            assert parameter is not None
            assert parameter.grad is not None
            assert parameter.grad.abs().sum() > 0
    for module in model.modules():
        if isinstance(module, Replaced | OutputBias) and module.bias is not None:
            assert module.bias.grad is not None
            assert module.bias.grad.abs().sum() > 0


@pytest.mark.parametrize("name", ["bert", "opt", "gpt2", "torch", "modernbert", "llama"])
def test_the_bias_of_the_output_stays_and_begins_at_the_dense_one(name: str) -> None:
    model = foreign(name)
    (block, *_) = find_feedforward(model).blocks
    bias = model.get_submodule(block.out).bias.detach().clone()
    replace_feedforward(model, {"kind": "none"})
    place = model.get_submodule(block.path if block.whole else block.out)
    assert torch.equal(place.bias, bias)
    x = torch.randn(2, 3, 32)
    if block.whole:
        assert torch.equal(place.eval()(x), bias.expand(2, 3, -1))


def test_dropouts_of_the_output_stay_and_those_of_hidden_neurons_go() -> None:
    for name in ("gpt2", "distilbert", "sequential"):
        model = foreign(name)
        block = find_feedforward(model).blocks[0]
        (kept,) = (model.get_submodule(path) for path in block.outer)
        replace_feedforward(model, TREE)
        assert list(model.get_submodule(block.path).dropout) == [kept]
    model = foreign("torch")
    outer = model.layers[0].dropout2
    replace_feedforward(model, TREE)
    assert isinstance(model.layers[0].dropout, nn.Identity)
    assert model.layers[0].dropout2 is outer
    assert isinstance(model.layers[0].dropout1, nn.Dropout)  # attention's


@pytest.mark.parametrize("one", [None, [1]])
def test_torchs_fused_inference_does_not_pass_the_new_layers_by(one: list[int] | None) -> None:
    model, (x,) = foreign("torch"), inputs_of("torch")[0]
    replace_feedforward(model, TREE, one)
    padding = torch.zeros(2, 7, dtype=torch.bool)
    padding[1, 4:] = True
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        expected = model(x, src_key_padding_mask=padding)
        for module in (model, model.layers[0], model.layers[1]):
            module.requires_grad_(False)
        with torch.inference_mode():
            y = model(x, src_key_padding_mask=padding)
    torch.testing.assert_close(y[~padding], expected[~padding])
    (layer, *_) = (module for module in model.modules() if isinstance(module, PathFFF))
    with torch.no_grad():
        layer.w_out.mul_(3)
        assert not torch.allclose(model(x, src_key_padding_mask=padding)[~padding], expected[~padding], atol=1e-3)


def test_a_layer_that_stands_in_several_places_is_replaced_in_all() -> None:
    shared = nn.Sequential(nn.Linear(16, 24), nn.GELU(), nn.Linear(24, 16))
    model = nn.ModuleDict({"a": shared, "b": shared, "c": nn.ModuleList([shared])})
    replace_feedforward(model, TREE)
    assert isinstance(model["a"], Replaced)
    assert model["a"] is model["b"] is model["c"][0]


def test_finding_leaves_the_model_and_the_random_state_as_they_were() -> None:
    for name in ("bert", "torch", "gpt2"):
        model = foreign(name).train()
        next(iter(model.children())).eval()
        modes, weights = [m.training for m in model.modules()], {k: v.clone() for k, v in model.state_dict().items()}
        text, state = repr(model), torch.get_rng_state()
        find_feedforward(model)
        assert torch.equal(torch.get_rng_state(), state)
        assert [m.training for m in model.modules()] == modes
        assert repr(model) == text
        assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_new_layer_takes_the_mode_device_and_dtype_of_the_block() -> None:
    model = foreign("bert").to(torch.bfloat16).train()
    replace_feedforward(model, {"kind": "leaf", "depth": 2, "leaf_width": 4})
    layers = [module for module in model.modules() if isinstance(module, LeafFFF)]
    assert len(layers) == 2
    assert all(layer.training and layer.w_in.dtype == torch.bfloat16 for layer in layers)


@pytest.mark.parametrize(
    "layer",
    [
        {"kind": "leaf", "depth": 2, "leaf_width": 4, "master_width": 3},
        {"kind": "path", "depth": 2, "trees": 2, "shared": 4},
        {"kind": "moe", "experts": 4, "expert_width": 8, "top": 2},
        {"kind": "peer", "keys": 4, "top": 2, "heads": 1},
        {"kind": "dense", "width": 8, "activation": "gated_gelu"},
        {"kind": "none"},
    ],
    ids=lambda layer: layer["kind"],
)
@pytest.mark.parametrize("name", ["bert", "llama"])
def test_every_kind_that_reads_vectors_takes_a_blocks_place(name: str, layer: dict[str, Any]) -> None:
    model = foreign(name)
    shape = output_of(name, model).shape
    assert len(replace_feedforward(model, layer).replaced) == 2
    assert output_of(name, model).shape == shape
    assert output_of(name, model).isfinite().all()


def test_where_chooses_by_glob_number_or_predicate() -> None:
    paths = MODELS["t5"].blocks
    for where, expected in (
        ("decoder.*", paths[2:]),
        ([0, -1], [paths[0], paths[3]]),
        (range(1, 3), paths[1:3]),
        (lambda block: ".1." in block.path[:16], [paths[1], paths[3]]),
        (None, paths),
    ):
        report = replace_feedforward(foreign("t5"), TREE, where)
        assert [block.path for block in report.replaced] == expected
        assert {each.path for each in report.left} == set(paths) - set(expected)
        assert all("not asked for" in each.reason for each in report.left)


def test_the_report_says_what_was_replaced_by_what_and_what_was_left() -> None:
    text = str(replace_feedforward(foreign("llama"), TREE, [0]))
    assert text.splitlines() == [
        "model.layers.0.mlp: 32 -> 48 gated -> 32 (48 neurons) is now 2x3, 30 neurons trained, 8 used; "
        "its gate went with it",
        "left model.layers.1.mlp: it was not asked for",
    ]


def test_experts_in_one_tensor_are_left_with_the_reason() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.MixtralConfig(
        vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, num_local_experts=3,
    )  # fmt: skip
    found = find_feedforward(transformers.MixtralForCausalLM(config))
    assert not found.blocks
    assert [each.path for each in found.left] == [f"model.layers.{n}.mlp.experts" for n in (0, 1)]
    assert "experts in one three-dimensional tensor" in found.left[0].reason
    assert not find_feedforward(nn.Sequential(PathFFF(8, 8, 2, 2), LeafFFF(8, 8, 2, 3))).left


def test_gated_leaves_keep_a_gate() -> None:
    gated = {"kind": "leaf", "depth": 2, "leaf_width": 4, "activation": "silu", "gated": True}
    text = str(replace_feedforward(foreign("llama"), gated, keep_gates=True))
    assert "gated-leaf4x2, 16 neurons trained, 4 used\n" in text
    assert "gate went" not in text
    with pytest.raises(ValueError, match=r"kind leaf \(leaf4x2\) takes none; .*kind leaf with gated=True"):
        replace_feedforward(foreign("llama"), gated | {"gated": False}, keep_gates=True)


def test_an_activation_written_in_a_forward_is_known_where_the_module_is_all_block() -> None:
    model = nn.ModuleList([InForward(residual=False), InForward(residual=True), InForward(False, dropout=0.5)])
    found = find_feedforward(model)
    assert [block.path for block in found.blocks] == ["0"]
    assert {each.path: each.reason.split(",")[0] for each in found.left} == {
        "1": "its activation is written in its forward",
        "2": "a dropout is written in its forward",
    }


def test_a_sample_shows_what_a_module_is_given_that_cannot_be_called_alone() -> None:
    model, x = WithTable().eval(), torch.randn(2, 5, 16)
    assert [each.path for each in find_feedforward(model).left] == ["layer"]
    with pytest.raises(ValueError, match=r"layer: it cannot be called alone \(\w+Error: .*give `sample`"):
        replace_feedforward(model, TREE)
    for sample in (x, (x,), {"x": x}):
        assert [block.path for block in find_feedforward(model, sample).blocks] == ["layer"]
    replace_feedforward(model, {"kind": "none"}, sample=x)
    assert torch.equal(model(x), x + model.layer.down.bias)


class NoNeurons(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(16, 24), nn.Linear(24, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(self.up(x))


class Sorted(NoNeurons):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(self.up(x).sort(-1).values)


@pytest.mark.parametrize(
    ("model", "layer", "options", "message"),
    [
        (lambda: nn.ModuleList([nn.Linear(16, 16)]), TREE, {}, "^No feedforward block was found"),
        (lambda: nn.ModuleList([NoNeurons()]), TREE, {}, "0: nothing stands between its linears"),
        (lambda: nn.ModuleList([Sorted()]), TREE, {}, "0: what its linear out is given is no known activation"),
        (lambda: nn.Sequential(nn.Linear(8, 9), nn.GELU(), nn.Linear(9, 8)), TREE, {}, "put it into a module"),
        (lambda: foreign("bert").to("meta"), TREE, {}, "bert.encoder.layer.0: .*meta device; load them first"),
        (lambda: foreign("bert"), TREE, {"where": [2]}, "where has 2; choose numbers below 2, .*layer.0, .*layer.1"),
        (lambda: foreign("bert"), TREE, {"where": [True]}, "where has True"),
        (lambda: foreign("bert"), TREE, {"where": "*.9"}, r"where='\*.9' chooses none.*bert.encoder.layer.0"),
        (
            lambda: nn.ModuleList([InForward(False), InForward(True)]),
            TREE,
            {"where": "*"},
            "asks for 1: its activation is written in its forward.*make it an attribute.*choose among 0",
        ),
        (lambda: foreign("llama"), TREE, {"keep_gates": True}, "model.layers.0.mlp.*has a gate.*keep_gates=False"),
        (
            lambda: foreign("bert"),
            {"kind": "fixed", "depth": 2, "trees": 1, "path": "token"},
            {},
            "^bert.encoder.layer.0: kind fixed .*reads the tokens' ids.*take a kind that reads vectors",
        ),
        (lambda: foreign("bert"), {"kind": "tree"}, {}, "layer.kind is 'tree'; choose one of"),
        (lambda: foreign("bert"), {"kind": "path", "depht": 3}, {}, "did you mean"),
    ],
)
def test_bad_input_is_refused_by_name_and_leaves_the_model_as_it_was(
    model: Any, layer: dict[str, Any], options: dict[str, Any], message: str
) -> None:
    made = model()
    text = repr(made)
    with pytest.raises(ValueError, match=message):
        replace_feedforward(made, layer, **options)
    assert repr(made) == text
    assert getattr(getattr(made, "config", None), "fff", None) is None
