"""The authors' weights (UltraFastBERT on the hub) -> our model. Not a way back."""

import re
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from cramming.errors import UserError
from cramming.files import new_folder, refuse_existing
from cramming.model.configuration import CrammedConfig
from cramming.model.modeling import CrammedForMaskedLM
from cramming.model.saved import first_line, save_model
from fff.topology import depth_of

HEAD_SIZE = 64  # of every published model
LAYER = re.compile(r"encoder\.layers\.(\d{1,6})\.")
NORM_FACTOR = "attn.self_attention.norm_factor"  # a constant, 1 / sqrt(head size)
RENAMED = {
    "encoder.embedding.word_embedding.weight": "model.embedding.words.weight",
    "encoder.embedding.pos_embedding.scale_factor": "model.embedding.position_scale",
    "encoder.embedding.norm.weight": "model.embedding.norm.weight",
    "encoder.embedding.norm.bias": "model.embedding.norm.bias",
    "encoder.final_norm.weight": "model.final_norm.weight",
    "encoder.final_norm.bias": "model.final_norm.bias",
    "decoder.weight": "decoder.weight",
}
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


def convert(
    state: dict[str, Tensor], *, trees: int = 1, heads: int | None = None, seq_len: int = 128
) -> CrammedForMaskedLM:
    """Build our model from the authors' state dict.

    Their query_key_value rows are interleaved per head (heads, 3, head size); ours are all queries, keys, values. With
    several trees, node i of tree k is their row k * M + i.

    Args:
        state: names and shapes as published, e.g. encoder.layers.0.ffn.linear_in.weight (T * M, H).
        trees: T; the node count alone does not tell it.
        heads: attention heads; None takes width / 64 as in the published models.

    Raises:
        UserError: a tensor is missing, left over or of another shape, or the shapes fit no T x D.
    """
    vocab_size, width = _matrix(state, "encoder.embedding.word_embedding.weight")
    rows, _ = _matrix(state, "encoder.layers.0.ffn.linear_in.weight")
    depth = _depth(rows, trees)
    heads = _heads(state, width, heads)
    bias = "encoder.layers.0.ffn.linear_in.bias" in state
    layers = _check(state, vocab_size, width, rows, bias)
    config = CrammedConfig(
        vocab_size=vocab_size,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=seq_len,
        ffn={"kind": "path", "trees": trees, "depth": depth, "bias": bias, "activation": "gelu"},
    )
    model = CrammedForMaskedLM(config)
    target = {ours: state[theirs] for theirs, ours in RENAMED.items()}
    if not torch.equal(target["decoder.weight"], target["model.embedding.words.weight"]):
        raise UserError("decoder.weight differs from the word embedding; the published models tie them.")
    for number in range(layers):
        target |= _layer(state, number, trees, heads)
    model.load_state_dict(target)
    return model.eval()


def convert_folder(source: Path, out: Path, *, trees: int = 1, heads: int | None = None) -> CrammedForMaskedLM:
    """Convert a downloaded checkpoint folder and save it, with its tokenizer files, as transformers reads it.

    Args:
        out: a folder that does not exist yet, or is empty; complete or absent afterwards.

    Raises:
        UserError: `out` exists, or the checkpoint is missing, damaged or of another architecture.
    """
    refuse_existing(out)
    try:
        model = convert(_read(source), trees=trees, heads=heads)
    except UserError as error:
        text = str(error)
        raise UserError(text if str(source) in text else f"{source}: {text[0].lower()}{text[1:]}") from error
    with new_folder(out) as beside:
        save_model(model, beside)
        for name in TOKENIZER_FILES:
            if (source / name).exists():
                shutil.copy(source / name, beside / name)
    return model


def _read(source: Path) -> dict[str, Tensor]:
    path = next((source / name for name in WEIGHT_FILES if (source / name).exists()), None)
    if path is None:
        raise UserError(f"{source} has neither {' nor '.join(WEIGHT_FILES)}; give the downloaded folder.")
    with open(path, "rb"):  # what the system refuses is no damage
        pass
    try:
        if path.suffix == ".safetensors":
            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # a damaged file raises anything
        raise UserError(f"{path}: the weights are damaged ({first_line(error)}); download them again.") from error
    if not isinstance(state, dict) or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()):
        raise UserError(f"{path} is no table of tensors by name; give the folder as it was downloaded.")
    return state


def _check(state: dict[str, Tensor], vocab_size: int, width: int, rows: int, bias: bool) -> int:
    """Compare every name and shape with the architecture's; returns the number of layers."""
    shapes: dict[str, tuple[int, ...]] = {
        **dict.fromkeys(RENAMED, (width,)),
        **dict.fromkeys(("encoder.embedding.word_embedding.weight", "decoder.weight"), (vocab_size, width)),
        "encoder.embedding.pos_embedding.scale_factor": (1,),
    }
    parts: dict[str, tuple[int, ...]] = {
        "attn.self_attention.query_key_value.weight": (3 * width, width),
        "attn.dense.weight": (width, width),
        "ffn.linear_in.weight": (rows, width),
        "ffn.linear_out.weight": (width, rows),
        **{f"{norm}.{part}": (width,) for norm in ("norm1", "norm2") for part in ("weight", "bias")},
        **({"ffn.linear_in.bias": (rows,)} if bias else {}),
    }
    layers = len({match[1] for name in state if (match := LAYER.match(name))})
    shapes |= {f"encoder.layers.{number}.{part}": shape for number in range(layers) for part, shape in parts.items()}
    factors = {f"encoder.layers.{number}.{NORM_FACTOR}" for number in range(layers)}
    for name, shape in shapes.items():
        found = tuple(_take(state, name).shape)
        if found != shape:
            raise UserError(f"{name} has the shape {found}, not {shape}; is the checkpoint an UltraFastBERT one?")
    if left := sorted(set(state) - set(shapes) - factors):
        raise UserError(f"The checkpoint has a tensor that is not of this architecture: {left[0]}.")
    return layers


def _matrix(state: dict[str, Tensor], name: str) -> tuple[int, int]:
    shape = tuple(_take(state, name).shape)
    if len(shape) != 2 or 0 in shape:
        raise UserError(f"{name} has the shape {shape}; it should be a matrix.")
    return shape


def _heads(state: dict[str, Tensor], width: int, heads: int | None) -> int:
    """The attention heads; the checkpoint's own scale of the scores, where it has one, must agree."""
    found = max(1, width // HEAD_SIZE) if heads is None else heads
    if found < 1 or width % found:
        raise UserError(f"{found} attention heads do not divide the width of {width}; give the right --heads.")
    factor = state.get(f"encoder.layers.0.{NORM_FACTOR}")
    if factor is not None and factor.numel() == 1 and 0 < factor.item() <= 1:
        told = round(width * factor.item() ** 2)  # the scale is 1 / sqrt(width / heads)
        if told != found:
            raise UserError(f"The checkpoint's attention is scaled for {told} heads, not {found}; give --heads={told}.")
    return found


def _take(state: dict[str, Tensor], name: str) -> Tensor:
    if name not in state:
        raise UserError(f"The checkpoint lacks {name}; is it an UltraFastBERT one?")
    return state[name]


def _depth(rows: int, trees: int) -> int:
    try:
        if trees < 1 or rows % trees:
            raise ValueError(f"{rows} rows are no multiple of {trees}")
        return depth_of(rows // trees)
    except ValueError as error:
        raise UserError(
            f"trees={trees} does not fit the {rows} nodes of a layer ({error}); give the right --trees."
        ) from None


def _layer(state: dict[str, Tensor], number: int, trees: int, heads: int) -> dict[str, Tensor]:
    theirs, ours = f"encoder.layers.{number}.", f"model.blocks.{number}."
    qkv = state[theirs + "attn.self_attention.query_key_value.weight"]
    width = qkv.shape[1]
    split = qkv.view(heads, 3, width // heads, width).transpose(0, 1).reshape(3 * width, width)
    linear_in, linear_out = (state[f"{theirs}ffn.linear_{side}.weight"] for side in ("in", "out"))
    tensors = {
        ours + "attention.qkv.weight": split,
        ours + "attention.out.weight": state[theirs + "attn.dense.weight"],
        ours + "ffn.w_in": linear_in.view(trees, -1, width),
        ours + "ffn.w_out": linear_out.t().reshape(trees, -1, width),
    }
    if (bias := state.get(theirs + "ffn.linear_in.bias")) is not None:
        tensors[ours + "ffn.b_in"] = bias.view(trees, -1)
    for norm, name in (("norm1", "attention_norm"), ("norm2", "ffn_norm")):
        for part in ("weight", "bias"):
            tensors[f"{ours}{name}.{part}"] = state[f"{theirs}{norm}.{part}"]
    return tensors
