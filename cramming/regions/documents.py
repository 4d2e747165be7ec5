"""Documents sorted by the subtree that a first model leads their tokens into, one share for each worker. Not training.

Layers disagree: a node of one says nothing of a node of another. One tree of one layer decides, and what that comes to
in all trees is told. Shares are equal in tokens, whatever a root sends to the right: documents are ranked by the part
of their tokens that goes right, and cut where half of all tokens are; each half again by its own subtree.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from cramming.data.dealt import blocks, check_documents, deal
from cramming.data.shards import PreparedData, open_prepared
from cramming.errors import UserError
from cramming.files import refuse_existing
from cramming.model import CrammedModel
from cramming.model.saved import Pretrained, load_tokenizer, open_pretrained
from cramming.regions.measure import load_encoder
from fff.layers.base import Trees
from fff.regions import recorded_inputs, routed_layers

SEQUENCES = 256  # per forward pass


@dataclass(frozen=True)
class Visits:
    """counts (trees of all layers, documents, 2^levels) int32: tokens by the node of that level; names of the trees."""

    names: list[str]
    counts: np.ndarray
    levels: int

    def at(self, tree: int, level: int) -> np.ndarray:
        """(documents, 2^level) int64 of one tree."""
        counts = self.counts[tree].astype(np.int64)
        return counts.reshape(len(counts), 2**level, -1).sum(-1)


def sort_documents(
    data_folder: Path, checkpoint: Path, out: Path, *, workers: int, levels: int, tree: str | None
) -> dict[str, Any]:
    """Write the shares (see `cramming.data.dealt`); returns what dealt.json says of how.

    Args:
        workers: a power of two; each gets a subtree of the level with so many nodes.
        levels: down to which it is told how documents part.
        tree: name of the deciding one, LAYER/TREE; None: that in which the shares differ most.

    Raises:
        UserError: data, checkpoint or numbers do not fit, or `out` exists.
    """
    level = (workers - 1).bit_length()
    if workers < 2 or workers != 2**level:
        raise UserError(f"--workers is {workers}; give a power of two, from 2 on: each gets one subtree.")
    if levels < level:
        raise UserError(f"--levels is {levels}, and {workers} workers part at level {level}; give that or more.")
    refuse_existing(out)
    data, pretrained = open_prepared(data_folder), open_pretrained(checkpoint)
    check_documents(data)
    model = load_encoder(pretrained)
    layers = layers_of(model, pretrained, data, levels)
    if tree is not None and tree not in (names := names_of(layers)):
        raise UserError(f"--tree is {tree}; the model has {', '.join(names)}.")
    visits = visits_of(model, layers, data, levels)
    found = [(name, shares(visits.at(number, level))) for number, name in enumerate(visits.names)]
    parts = {name: apart(visits.at(number, level), to) for number, (name, to) in enumerate(found)}
    chosen = tree or max(parts, key=lambda name: parts[name])
    to = dict(found)[chosen]
    facts = {"by": pretrained.run, "weights_sha256": pretrained.weights_sha256, "tree": chosen}
    told = figures(visits, to)
    deal(data, to, workers, out, facts, told)
    return {**facts, "figures": told}


def layers_of(model: CrammedModel, pretrained: Pretrained, data: PreparedData, levels: int) -> dict[str, Trees]:
    """The model's layers of trees by name (UserError: none, or shallower ones, or the model reads other tokens)."""
    layers = {name: layer for name, layer in routed_layers(model).items() if isinstance(layer, Trees)}
    if not layers or any(layer.reads_tokens or layer.depth < levels for layer in layers.values()):
        raise UserError(
            f"{pretrained.folder} has no trees of depth {levels} or more that read what a token means; give a model "
            "pretrained with ffn=path or leaf, or fewer --levels."
        )
    if load_tokenizer(pretrained).get_vocab() != data.tokenizer().get_vocab() or pretrained.max_length < data.seq_len:
        raise UserError(f"{pretrained.folder} cannot read {data.folder}: other tokens, or longer sequences.")
    return layers


def names_of(layers: dict[str, Trees]) -> list[str]:
    """The trees' names, LAYER/TREE."""
    return [f"{name}/{tree}" for name, layer in layers.items() for tree in range(layer.trees)]


@torch.inference_mode()
def visits_of(model: CrammedModel, layers: dict[str, Trees], data: PreparedData, levels: int) -> Visits:
    """Where the model leads every training token, no token masked; a bar shows how far."""
    names = names_of(layers)
    documents = int(data.unigram_counts()[data.token_id("<sep>")]) + 1
    counts = np.zeros((len(names), documents, 2**levels), np.int32)
    with recorded_inputs(model) as inputs, tqdm(total=len(data.train), desc="read", unit=" sequences") as bar:
        for ids, numbers in blocks(data):
            for first in range(0, len(ids), SEQUENCES):
                part = slice(first, first + SEQUENCES)
                model(input_ids=torch.from_numpy(ids[part]).to(model.device))
                nodes = [subtrees(layer, inputs[name].pop(), levels) for name, layer in layers.items()]
                for tree, each in enumerate(np.concatenate(nodes)):
                    np.add.at(counts[tree], (numbers[part].ravel(), each), 1)
                bar.update(len(ids[part]))
    last = documents if counts[0, -1].any() else documents - 1  # the last document may end with its <sep>
    return Visits(names, counts[:, :last], levels)


def subtrees(layer: Trees, x: torch.Tensor, levels: int) -> np.ndarray:
    """(trees, N) int64: the node of the level, from the left, on each token's path."""
    units = layer.route(x.flatten(0, -2)).units.squeeze(-1)
    return (units >> (layer.depth - levels)).T.cpu().numpy()


def shares(counts: np.ndarray) -> np.ndarray:
    """(documents,) int64, the worker of each, from counts (documents, workers) of their tokens in each subtree."""
    to, tokens = np.zeros(len(counts), np.int64), counts.sum(1)

    def halve(documents: np.ndarray, first: int, nodes: int) -> None:
        if nodes == 1:
            to[documents] = first
            return
        below, half = counts[documents, first : first + nodes], nodes // 2
        right = below[:, half:].sum(1) / np.maximum(1, below.sum(1))
        ranked = documents[np.argsort(right, kind="stable")]
        run = np.cumsum(tokens[ranked])
        cut = int(np.abs(2 * run - run[-1]).argmin()) + 1 if len(run) else 0
        halve(ranked[:cut], first, half)
        halve(ranked[cut:], first + half, half)

    halve(np.arange(len(counts)), 0, counts.shape[1])
    return to


def apart(counts: np.ndarray, to: np.ndarray) -> float:
    """How far the workers' tokens part over the nodes: total variation, 0 alike to 1 disjoint, mean over all pairs."""
    workers = int(to.max()) + 1
    sums = np.stack([counts[to == worker].sum(0) for worker in range(workers)])
    spread = sums / np.maximum(1, sums.sum(1, keepdims=True))
    pairs = [(i, j) for i in range(workers) for j in range(i)]
    return float(np.mean([np.abs(spread[i] - spread[j]).sum() / 2 for i, j in pairs])) if pairs else 0.0


def figures(visits: Visits, to: np.ndarray) -> dict[str, Any]:
    """What the shares come to, for dealt.json: documents and tokens of each worker, and by tree and level

    - `document`: the share of a document's tokens in the node that has most of them, mean over tokens;
    - `all`: the same if all text were one document: what a document that is like all others has;
    - `apart`: how far the workers' tokens part over the nodes (`apart`), and by_chance: of documents dealt at random.
    """
    tokens, chance = visits.at(0, 0)[:, 0], np.random.default_rng(0).permutation(to)
    by_tree = {}
    for number, name in enumerate(visits.names):
        by_tree[name] = [
            {
                "level": level,
                "document": float(counts.max(1).sum() / counts.sum()),
                "all": float(counts.sum(0).max() / counts.sum()),
                "apart": apart(counts, to),
                "by_chance": apart(counts, chance),
            }
            for level in range(1, visits.levels + 1)
            for counts in [visits.at(number, level)]
        ]
    workers = range(int(to.max()) + 1)
    return {
        "documents": [int((to == worker).sum()) for worker in workers],
        "tokens": [int(tokens[to == worker].sum()) for worker in workers],
        "trees": by_tree,
    }
