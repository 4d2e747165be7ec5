"""From a checkpoint and a text to what its regions hold: each token's leaves, each node's margins. Not the page."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm
from transformers import AutoModel

from cramming.errors import UserError
from cramming.model import CrammedModel
from cramming.model.saved import Pretrained, load_tokenizer, load_weights, open_pretrained
from cramming.regions.text import Probe, read_text, tokenise
from fff.layers.base import Routed
from fff.regions import editable, recorded_inputs, routed_layers
from fff.topology import first_node
from fff.usage import QUANTILES

SEQUENCES = 16  # per forward pass
# Of leaf numbers in the page before base64: so much loads in well under 2 s.
PAGE_BYTES = 8_000_000


@dataclass(frozen=True)
class LayerRegions:
    """One FFF layer on N tokens.

    A layer whose units no tree chooses is shown as trees all the same: its units, numbered, are their leaves, and a
    token that uses K units of a group has a leaf in K trees.

    Attributes:
        name: the module's name in the encoder.
        depth: D, decisions on a path; levels over which units are numbered.
        leaves: (T, N) uint8, uint16 or uint32, whichever holds 2^D - 1.
        margins: (T, 2^D - 1, 5) float32: quantiles 5, 25, 50, 75, 95 % of |score| at each deciding node, over the
            tokens that visit it; NaN where none does, and where no tree chose.
        editable: whether `fff.regions.edit_leaf` takes this kind of layer.
    """

    name: str
    depth: int
    leaves: np.ndarray
    margins: np.ndarray
    editable: bool


@dataclass(frozen=True)
class Regions:
    """What the page shows.

    Attributes:
        run: name of the checkpoint's run.
        probe: the text.
        vocabulary: token string -> for each id in probe.ids.
        layers: in the model's order.
        seq_len: tokens that the model read together.
    """

    run: str
    probe: Probe
    vocabulary: dict[int, str]
    layers: list[LayerRegions]
    seq_len: int


def measure(checkpoint: Path, text_file: Path, tokens: int) -> Regions:
    """Run a checkpoint's encoder over the beginning of a text and keep where every token goes; a bar shows how far.

    Args:
        checkpoint: a model folder of this project, or the run's folder around it.
        text_file: UTF-8 text. It is read in windows of the model's longest input, with no token masked.
        tokens: how many at most; fewer where the page would grow too large (many layers and trees).

    Raises:
        UserError: the checkpoint or the text is missing, damaged or of another kind, or no layer is an FFF.
    """
    if tokens < 1:
        raise UserError(f"--tokens is {tokens}; give 1 or more.")
    tokens = min(tokens, PAGE_BYTES)  # a layer takes one byte a token at least
    text, whole = read_text(text_file, tokens)
    pretrained = open_pretrained(checkpoint)
    tokenizer = load_tokenizer(pretrained)
    model = load_encoder(pretrained)
    layers = routed_layers(model)
    if not layers:
        kind = getattr(model.config, "ffn", {}).get("kind", "none")
        raise UserError(
            f"{pretrained.folder} has no FFF layers (ffn.kind is {kind!r}), so it has no regions; give a checkpoint "
            "pretrained with ffn=path, e.g. `make pretrain DEPTH=7`."
        )
    if any(layer.reads_tokens for layer in layers.values()):
        raise UserError(
            f"{pretrained.folder}: its paths follow from the tokens' ids (ffn={model.config.ffn['kind']}), so each "
            "token has one region wherever it stands; give a checkpoint of another kind of layer."
        )
    per_token = sum(layer.groups * leaf_type(depth_for(layer.units)).itemsize for layer in layers.values())
    probe = tokenise(text_file, text, whole, tokenizer, max(1, min(tokens, PAGE_BYTES // per_token)))
    measured = run_over(model, layers, probe.ids, pretrained.max_length)
    used = np.unique(probe.ids).tolist()
    names = dict(zip(used, tokenizer.convert_ids_to_tokens(used), strict=True))
    return Regions(pretrained.run, probe, names, measured, pretrained.max_length)


def load_encoder(pretrained: Pretrained) -> CrammedModel:
    """The checkpoint's encoder in float32, in evaluation mode, on the GPU where there is one.

    Raises:
        UserError: weights are damaged or do not fit config.json.
    """
    model: Any = load_weights(AutoModel, pretrained)
    return model.eval().to("cuda" if torch.cuda.is_available() else "cpu")


@torch.inference_mode()
def run_over(model: CrammedModel, layers: dict[str, Routed], ids: np.ndarray, seq_len: int) -> list[LayerRegions]:
    """Each layer's leaves and margins for the tokens `ids` (N,), in windows of `seq_len` tokens."""
    leaves: dict[str, list[np.ndarray]] = {name: [] for name in layers}
    scores: dict[str, list[np.ndarray]] = {name: [] for name in layers}
    with recorded_inputs(model) as inputs, progress(len(ids)) as bar:
        for batch in windows(ids, seq_len):
            model(input_ids=torch.from_numpy(batch).to(model.device))
            for name, layer in layers.items():
                route = layer.route(inputs[name].pop().flatten(0, -2))
                units = route.units.flatten(1).T.cpu().numpy()
                leaves[name].append(units.astype(leaf_type(depth_for(layer.units))))
                if route.nodes is not None:
                    scores[name].append(route.scores.abs().float().transpose(0, 1).cpu().numpy())
            bar.update(batch.size)
    return [
        layer_regions(name, layer, np.concatenate(leaves.pop(name), 1), scores.pop(name))
        for name, layer in layers.items()
    ]


def layer_regions(name: str, layer: Routed, leaves: np.ndarray, scores: list[np.ndarray]) -> LayerRegions:
    """A layer's leaves (T, N), with the margins that follow from scores (T, n, D) in parts, if there are any."""
    depth = depth_for(layer.units)
    if scores:
        margins = np.stack([*map(node_margins, leaves, np.concatenate(scores, 1))])
    else:
        margins = np.full((len(leaves), first_node(depth), len(QUANTILES)), np.nan, np.float32)
    return LayerRegions(name, depth, leaves, margins, editable(layer))


def depth_for(units: int) -> int:
    """Levels of the smallest tree with so many leaves."""
    return (units - 1).bit_length()


def windows(ids: np.ndarray, seq_len: int) -> Iterator[np.ndarray]:
    """Batches (at most 16, seq_len) of consecutive tokens; what remains comes last, as one shorter sequence."""
    full = len(ids) // seq_len * seq_len
    step = SEQUENCES * seq_len
    for start in range(0, full, step):
        yield ids[start : min(start + step, full)].reshape(-1, seq_len)
    if full < len(ids):
        yield ids[full:][None]


def node_margins(leaves: np.ndarray, margins: np.ndarray) -> np.ndarray:
    """Quantiles (2^D - 1, 5) float32 of the margins (N, D) at each deciding node; NaN at nodes that no token visits.

    Between two margins, the quantile is interpolated linearly.
    """
    count, depth = margins.shape
    result = np.full((first_node(depth), len(QUANTILES)), np.nan, np.float32)
    for level in range(depth):
        node = first_node(level) + (leaves.astype(np.int64) >> (depth - level))
        order = np.lexsort((margins[:, level], node))
        ranked = margins[order, level]
        visited, starts = np.unique(node[order], return_index=True)
        sizes = np.diff(np.append(starts, count))
        at = starts[:, None] + (sizes[:, None] - 1) * np.array(QUANTILES)
        low = np.floor(at).astype(np.int64)
        high = np.ceil(at).astype(np.int64)
        result[visited] = ranked[low] + (at - low) * (ranked[high] - ranked[low])
    return result


def leaf_type(depth: int) -> np.dtype:
    """The smallest little-endian type for leaf numbers up to 2^depth - 1."""
    return np.dtype("<u1" if depth <= 8 else "<u2" if depth <= 16 else "<u4")


@contextlib.contextmanager
def progress(total: int) -> Iterator[tqdm]:
    """A bar of tokens, which leaves nothing behind."""
    with tqdm(total=total, desc="reading the text", unit=" tokens", unit_scale=True, leave=False) as bar:
        yield bar
