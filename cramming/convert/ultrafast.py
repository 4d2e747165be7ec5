"""The authors' weights (UltraFastBERT on the hub) -> our model. Not a way back."""

import pickle
import re
import shutil
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from cramming.errors import UserError
from cramming.files import commit_folder
from cramming.model.configuration import CrammedConfig
from cramming.model.modeling import CrammedForMaskedLM
from fff.topology import depth_of

HEAD_SIZE = 64  # of every published model
LAYER = re.compile(r"encoder\.layers\.(\d+)\.")
RENAMED = {
    "encoder.embedding.word_embedding.weight": "model.embedding.words.weight",
    "encoder.embedding.pos_embedding.scale_factor": "model.embedding.position_scale",
    "encoder.embedding.norm.weight": "model.embedding.norm.weight",
    "encoder.embedding.norm.bias": "model.embedding.norm.bias",
    "encoder.final_norm.weight": "model.final_norm.weight",
    "encoder.final_norm.bias": "model.final_norm.bias",
    "decoder.weight": "decoder.weight",
}
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
        UserError: a tensor is missing or left over, or the shapes fit no T x D.
    """
    words = _take(state, "encoder.embedding.word_embedding.weight")
    vocab_size, width = words.shape
    layers = 1 + max((int(m[1]) for name in state if (m := LAYER.match(name))), default=-1)
    rows = _take(state, "encoder.layers.0.ffn.linear_in.weight").shape[0]
    depth = _depth(rows, trees)
    config = CrammedConfig(
        vocab_size=vocab_size,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads or max(1, width // HEAD_SIZE),
        max_position_embeddings=seq_len,
        ffn={
            "kind": "path",
            "trees": trees,
            "depth": depth,
            "bias": "encoder.layers.0.ffn.linear_in.bias" in state,
            "activation": "gelu",
        },
    )
    model = CrammedForMaskedLM(config)
    target = {ours: _take(state, theirs) for theirs, ours in RENAMED.items()}
    if not torch.equal(target["decoder.weight"], words):
        raise UserError("decoder.weight differs from the word embedding; the published models tie them.")
    for number in range(layers):
        target |= _layer(state, number, trees, config.num_attention_heads)
    used = set(RENAMED) | {name for name in state if LAYER.match(name)}
    if left := sorted(set(state) - used):
        raise UserError(f"The checkpoint has a tensor that is not of this architecture: {left[0]}.")
    missing, unexpected = model.load_state_dict(target, strict=False)
    if missing or unexpected:
        raise UserError(f"The checkpoint does not fit: missing {missing}, unexpected {unexpected}.")
    return model.eval()


def convert_folder(source: Path, out: Path, *, trees: int = 1, heads: int | None = None) -> CrammedForMaskedLM:
    """Convert a downloaded checkpoint folder and save it, with its tokenizer files, as transformers reads it."""
    state = _read(source)
    try:
        model = convert(state, trees=trees, heads=heads)
    except (ValueError, RuntimeError) as error:  # of views and of load_state_dict
        raise UserError(f"{source}: the shapes fit no such model ({error}); give the right --heads.") from error
    beside = out.with_name(f".{out.name}")
    shutil.rmtree(beside, ignore_errors=True)
    model.save_pretrained(beside)
    for name in TOKENIZER_FILES:
        if (source / name).exists():
            shutil.copy(source / name, beside / name)
    commit_folder(beside, out)
    return model


def _read(source: Path) -> dict[str, Tensor]:
    try:
        if (source / "model.safetensors").exists():
            return load_file(source / "model.safetensors")
        if (source / "pytorch_model.bin").exists():
            return torch.load(source / "pytorch_model.bin", map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, EOFError, OSError, RuntimeError) as error:
        raise UserError(f"{source}: the weights are damaged ({error}); download them again.") from error
    raise UserError(f"{source} has neither model.safetensors nor pytorch_model.bin; give the downloaded folder.")


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
    qkv = _take(state, theirs + "attn.self_attention.query_key_value.weight")
    width = qkv.shape[1]
    split = qkv.view(heads, 3, width // heads, width).transpose(0, 1).reshape(3 * width, width)
    linear_in, linear_out = (_take(state, f"{theirs}ffn.linear_{side}.weight") for side in ("in", "out"))
    tensors = {
        ours + "attention.qkv.weight": split,
        ours + "attention.out.weight": _take(state, theirs + "attn.dense.weight"),
        ours + "ffn.w_in": linear_in.view(trees, -1, width),
        ours + "ffn.w_out": linear_out.t().reshape(trees, -1, width),
    }
    if (bias := state.get(theirs + "ffn.linear_in.bias")) is not None:
        tensors[ours + "ffn.b_in"] = bias.view(trees, -1)
    for norm, name in (("norm1", "attention_norm"), ("norm2", "ffn_norm")):
        for part in ("weight", "bias"):
            tensors[f"{ours}{name}.{part}"] = _take(state, f"{theirs}{norm}.{part}")
    return tensors
