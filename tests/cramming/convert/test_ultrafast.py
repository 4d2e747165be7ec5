"""The authors' names and shapes against the formulas of their architecture, written out anew."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.nn.functional import gelu, layer_norm

from cramming.convert.ultrafast import convert, convert_folder
from cramming.errors import UserError
from tests.helpers.commands import inline
from tests.helpers.ultrafast import HEADS, LAYERS, H, S, V, synthetic


def formulas(state: dict[str, torch.Tensor], tokens: torch.Tensor, trees: int, depth: int) -> torch.Tensor:
    """Their forward pass in float64, one token and one tree at a time."""
    w = {k: v.double() for k, v in state.items()}

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return layer_norm(x, (H,), w[name + ".weight"], w[name + ".bias"], 1e-12)

    position = torch.zeros(tokens.shape[1], H, dtype=torch.float64)
    for p in range(tokens.shape[1]):
        for j in range(0, H, 2):
            angle = p * math.exp(-j * math.log(10000.0) / H)
            position[p, j], position[p, j + 1] = math.sin(angle), math.cos(angle)
    x = (
        w["encoder.embedding.word_embedding.weight"][tokens]
        + w["encoder.embedding.pos_embedding.scale_factor"] * position
    )
    x = norm(x, "encoder.embedding.norm")
    for i in range(LAYERS):
        p = f"encoder.layers.{i}."
        qkv = (norm(x, p + "norm1") @ w[p + "attn.self_attention.query_key_value.weight"].T).view(
            *x.shape[:2], HEADS, 3, -1
        )
        q, k, v = (qkv[..., j, :].transpose(1, 2) for j in range(3))
        mixed = ((q @ k.mT) * w[p + "attn.self_attention.norm_factor"]).softmax(-1) @ v
        x = x + mixed.transpose(1, 2).reshape(x.shape) @ w[p + "attn.dense.weight"].T
        y = norm(x, p + "norm2")
        out = torch.zeros_like(x)
        nodes = 2 ** (depth + 1) - 1
        for b in range(x.shape[0]):
            for s in range(x.shape[1]):
                for tree in range(trees):
                    node = 0
                    for _ in range(depth + 1):
                        row = tree * nodes + node
                        score = w[p + "ffn.linear_in.weight"][row] @ y[b, s] + w[p + "ffn.linear_in.bias"][row]
                        out[b, s] += gelu(score) * w[p + "ffn.linear_out.weight"][:, row]
                        node = 2 * node + (2 if score > 0 else 1)
        x = x + out
    return norm(x, "encoder.final_norm") @ w["decoder.weight"].T


@pytest.mark.parametrize(("trees", "depth"), [(1, 3), (3, 2), (5, 0)])
def test_converted_model_computes_the_authors_formulas(trees: int, depth: int) -> None:
    state = synthetic(trees, depth)
    model = convert(state, trees=trees, heads=HEADS, seq_len=S).double()
    tokens = torch.randint(0, V, (2, S))
    expected = formulas(state, tokens, trees, depth)
    # float32 tables (sinusoids) enter a float64 model: agreement is theirs.
    torch.testing.assert_close(model(input_ids=tokens).logits, expected, atol=2e-5, rtol=1e-5)


def test_folder_round_trip(tmp_path: Path) -> None:
    from transformers import AutoModelForMaskedLM

    (tmp_path / "theirs").mkdir()
    torch.save(synthetic(1, 2), tmp_path / "theirs" / "pytorch_model.bin")
    model = convert_folder(tmp_path / "theirs", tmp_path / "ours", heads=HEADS)
    again = AutoModelForMaskedLM.from_pretrained(tmp_path / "ours").eval()
    tokens = torch.randint(0, V, (2, S))
    torch.testing.assert_close(again(input_ids=tokens).logits, model(input_ids=tokens).logits, rtol=0, atol=0)


def test_misfits_are_named() -> None:
    state = synthetic(1, 2)
    with pytest.raises(UserError, match="--trees"):
        convert(state, trees=2, heads=HEADS)
    broken = {k: v for k, v in state.items() if k != "encoder.layers.1.attn.dense.weight"}
    with pytest.raises(UserError, match=r"encoder\.layers\.1\.attn\.dense\.weight"):
        convert(broken, heads=HEADS)
    with pytest.raises(UserError, match=r"pooler\.weight"):
        convert(state | {"pooler.weight": torch.zeros(1)}, heads=HEADS)
    with pytest.raises(UserError, match="--trees"):
        convert(state, trees=0, heads=HEADS)


def test_bad_folders_are_named(tmp_path: Path) -> None:
    weights = tmp_path / "theirs" / "pytorch_model.bin"
    weights.parent.mkdir()
    with pytest.raises(UserError, match=r"neither model\.safetensors nor"):
        convert_folder(weights.parent, tmp_path / "ours")
    torch.save(synthetic(1, 2), weights)
    with pytest.raises(UserError, match="--heads"):
        convert_folder(weights.parent, tmp_path / "ours", heads=HEADS + 1)
    for content in (b"", weights.read_bytes()[:-200]):
        weights.write_bytes(content)
        with pytest.raises(UserError, match="the weights are damaged"):
            convert_folder(weights.parent, tmp_path / "ours", heads=HEADS)
    assert not (tmp_path / "ours").exists()


def test_nothing_that_exists_is_written_over(tmp_path: Path) -> None:
    theirs = tmp_path / "parent" / "theirs"
    theirs.mkdir(parents=True)
    torch.save(synthetic(1, 2), theirs / "pytorch_model.bin")
    (tmp_path / "parent" / "work").write_text("years")
    for name in (".venv", ".venv.old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "kept").touch()
    before = {path: path.stat().st_mtime_ns for path in sorted(tmp_path.rglob("*"))}
    for out in (theirs, theirs.parent, theirs / ".." / "theirs", tmp_path, theirs.parent / "work"):
        with pytest.raises(UserError, match="exists, and nothing is written over it"):
            convert_folder(theirs, out, heads=HEADS)
    assert {path: path.stat().st_mtime_ns for path in sorted(tmp_path.rglob("*"))} == before
    convert_folder(theirs, tmp_path / "venv", heads=HEADS)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".venv", ".venv.old", "parent", "venv"]
    assert all((tmp_path / name / "kept").exists() for name in (".venv", ".venv.old"))


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("attn.self_attention.query_key_value.weight", lambda t: t.T),
        ("ffn.linear_in.weight", lambda t: t.T),
        ("ffn.linear_out.weight", lambda t: t.T),
        ("ffn.linear_in.bias", lambda t: t[None]),
        ("norm2.bias", lambda t: t[:1]),
    ],
)
@pytest.mark.parametrize("layer", range(LAYERS))
def test_another_shape_is_named_and_never_reshaped(layer: int, name: str, change: Callable) -> None:
    whole = f"encoder.layers.{layer}.{name}"
    state = synthetic(1, 2)
    with pytest.raises(UserError, match=rf"{whole} has the shape|nodes of a layer"):
        convert(state | {whole: change(state[whole]).contiguous()}, heads=HEADS)


@pytest.mark.parametrize(
    "name", ["encoder.layers.1.ffn.gate.weight", "encoder.layers.0.attn.dense.bias", "encoder.layers.0.norm3.weight"]
)
def test_an_unknown_tensor_below_a_layer_is_named(name: str) -> None:
    with pytest.raises(UserError, match=rf"not of this architecture: {name}"):
        convert(synthetic(1, 2) | {name: torch.zeros(3)}, heads=HEADS)


def test_a_bias_in_some_layers_alone_is_named() -> None:
    state = synthetic(1, 2)
    del state["encoder.layers.0.ffn.linear_in.bias"]
    with pytest.raises(UserError, match=r"not of this architecture: encoder\.layers\.1\.ffn\.linear_in\.bias"):
        convert(state, heads=HEADS)


@pytest.mark.parametrize("heads", [2, 0, -1, 10**30, None])
def test_heads_that_are_not_the_checkpoints_are_refused(heads: int | None) -> None:
    with pytest.raises(UserError, match="--heads"):
        convert(synthetic(1, 2), heads=heads)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (lambda: [1, 2], "no table of tensors"),
        (lambda: {"model": synthetic(1, 2)}, "no table of tensors"),
        (lambda: {"encoder.layers.999999999999.x": torch.zeros(1)}, "lacks encoder.embedding.word_embedding.weight"),
        (lambda: synthetic(1, 2) | {"encoder.layers.999999.x": torch.zeros(1)}, "lacks encoder.layers.2"),
        (lambda: synthetic(1, 2) | {"encoder.embedding.word_embedding.weight": torch.zeros(3)}, "should be a matrix"),
    ],
)
def test_foreign_content_is_named(tmp_path: Path, content: Callable, words: str) -> None:
    (tmp_path / "theirs").mkdir()
    torch.save(content(), tmp_path / "theirs" / "pytorch_model.bin")
    with pytest.raises(UserError, match=words):
        convert_folder(tmp_path / "theirs", tmp_path / "new" / "ours", heads=HEADS)
    assert not (tmp_path / "new").exists()


def test_what_the_command_line_cannot_do_is_one_line(tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    torch.save(synthetic(1, 2), theirs / "pytorch_model.bin")
    (tmp_path / "file").touch()
    bad = [["/proc/ours"], [str(tmp_path / "file" / "ours")], [str(tmp_path / ("x" * 300))], [str(theirs)]]
    for arguments in [*bad, [str(tmp_path / "a"), f"--trees={10**30}"], [str(tmp_path / "a"), "--heads=0"]]:
        done = inline("convert", str(theirs), "--heads=4", *arguments)
        assert done.returncode == 2
        assert done.stderr.startswith("error: ")
        assert done.stderr.count("\n") == 1, done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "theirs"]
