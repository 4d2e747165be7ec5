"""What an optimised model gives otherwise than its float32 one, on text: `python -m bench.differences`. Not its speed.

A checkpoint of this project reads the beginning of a text in windows of its longest input: the loss of masked tokens
(the same for all forms), the cosine of each window's mean embedding with the float model's, and its trees' decisions.
At each level a decision is flipped where a token that is at the same node goes another way. `in the model` a layer has
the inputs that the optimised layers below it gave, `alone` those of the float model: what the trees' own rounding does.
"""

import argparse
import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cramming.checks import number
from cramming.door import door, path_argument
from cramming.errors import UserError
from cramming.files import check_writable, write_atomic
from cramming.model.saved import Pretrained, load_tokenizer, load_weights, open_pretrained
from cramming.objectives.masked import MASK_TOKEN, VALIDATION_SEED, MaskedTokens
from cramming.regions.text import read_text, tokenise
from cramming.report.markup import MISSING, markdown_table
from fff.decisions import went_right
from fff.layers.base import Trees
from fff.optimise import optimise_for_cpu
from fff.regions import recorded_inputs

MASK_RATE = 0.25  # the recipe's
SEQUENCES = 32  # of a pass
# Name -> linears and trees of `optimise_for_cpu`.
FORMS = {
    "int8 linears": ("int8", "keep"),
    "bfloat16 trees": ("keep", "bfloat16"),
    "int8 trees": ("keep", "int8"),
    "int8 linears, bfloat16 trees": ("int8", "bfloat16"),
    "int8 linears, int8 trees": ("int8", "int8"),
    "bfloat16 throughout": ("bfloat16", "bfloat16"),
    "bfloat16, int8 trees": ("bfloat16", "int8"),
}
HEADER = ("form", "MLM loss", "more than float32", "cosine: mean", "least", "leaves changed", "leaves changed, alone")
Routes = dict[str, Tensor]  # of each layer of trees, nodes (N, T, L)


@dataclass(frozen=True)
class Seen:
    """What a form of the model gave: loss in nats per masked token, embeddings (windows, H), routes, and inputs."""

    loss: float
    embeddings: Tensor
    routes: Routes
    inputs: dict[str, Tensor]


@dataclass(frozen=True)
class Difference:
    """A form beside float32.

    Attributes:
        cosines: (windows,) of mean embeddings.
        flipped, flipped_alone: per level, the share of decisions of tokens at the same node that go another way;
            `alone` on the float model's inputs. Empty without trees.
        leaves, leaves_alone: share of tokens and trees that end in another leaf; NaN without trees.
    """

    form: str
    loss: float
    more: float
    cosines: Tensor
    flipped: tuple[float, ...]
    flipped_alone: tuple[float, ...]
    leaves: float
    leaves_alone: float


def windows_of(pretrained: Pretrained, text_file: Path, tokens: int) -> tuple[np.ndarray, MaskedTokens]:
    """Windows (n, S) int64 of the text's beginning, and the objective that masks them.

    Raises:
        UserError: the text is missing, damaged or shorter than a window.
    """
    tokenizer, length = load_tokenizer(pretrained), pretrained.max_length
    text, whole = read_text(text_file, tokens)
    ids = tokenise(text_file, text, whole, tokenizer, tokens).ids
    if len(ids) < length:
        raise UserError(f"{text_file} has {len(ids)} tokens; give a text of {length} or more.")
    mask: Any = tokenizer.convert_tokens_to_ids(MASK_TOKEN)
    objective = MaskedTokens(VALIDATION_SEED, MASK_RATE, len(tokenizer), mask)
    return ids[: len(ids) // length * length].reshape(-1, length), objective


@torch.no_grad()
def seen(model: Any, windows: np.ndarray, objective: MaskedTokens, *, keep: bool = False) -> Seen:
    """What a masked language model gives on windows; with `keep` also the inputs of its trees."""
    layers = trees_of(model)
    sums, embeddings = torch.zeros(3, dtype=torch.float64), []
    routes: dict[str, list[Tensor]] = {name: [] for name in layers}
    inputs: dict[str, list[Tensor]] = {name: [] for name in layers}
    for start in range(0, len(windows), SEQUENCES):
        part = windows[start : start + SEQUENCES]
        sums += objective.sums(model, objective.batch(part, np.arange(start, start + len(part))))
        ids = torch.from_numpy(part)
        if not layers:
            embeddings.append(model.model(input_ids=ids).last_hidden_state.float().mean(1))
            continue
        with recorded_inputs(model) as given:
            embeddings.append(model.model(input_ids=ids).last_hidden_state.float().mean(1))
        for name, found in given.items():
            x = found[0].flatten(0, -2)
            routes[plain(name)].append(layers[plain(name)].path(x)[0])
            inputs[plain(name)] += [x] if keep else []
    return Seen(
        objective.figures(sums.tolist())["loss"],
        torch.cat(embeddings),
        {name: torch.cat(each) for name, each in routes.items()},
        {name: torch.cat(each) for name, each in inputs.items() if each},
    )


def trees_of(model: nn.Module) -> dict[str, Trees]:
    """The layers that choose paths, by the names that the float model has for them."""
    return {plain(name): layer for name, layer in model.named_modules() if isinstance(layer, Trees)}


def plain(name: str) -> str:
    """A layer's name without that of the layer inside `InBfloat16`."""
    return name.removesuffix(".layer")


def flips(before: Routes, after: Routes) -> tuple[tuple[float, ...], float]:
    """Share of flipped decisions per level over all layers, and of leaves that are others."""
    deepest = max((each.shape[-1] - 1 for each in before.values()), default=0)
    turned, met, left, ends = torch.zeros(deepest), torch.zeros(deepest), 0, 0
    for name, nodes in before.items():
        there = after[name]
        same = (nodes == there)[..., :-1]
        other = same & (went_right(nodes) != went_right(there))
        levels = same.shape[-1]
        turned[:levels] += other.flatten(0, -2).sum(0)
        met[:levels] += same.flatten(0, -2).sum(0)
        left += int((nodes[..., -1] != there[..., -1]).sum())
        ends += nodes[..., -1].numel()
    return tuple((turned / met).tolist()), left / ends if ends else float("nan")


def differences(model: nn.Module, windows: np.ndarray, objective: MaskedTokens, *, least: int) -> list[Difference]:
    """Each form that differs from float32, beside it; the model stays as it is."""
    base = seen(model, windows, objective, keep=True)
    found = [Difference("float32", base.loss, 0.0, torch.ones(len(windows)), (), (), float("nan"), float("nan"))]
    for form, (linears, trees) in FORMS.items():
        if trees != "keep" and not base.routes:
            continue
        other = copy.deepcopy(model)
        try:
            optimise_for_cpu(other, linears=linears, trees=trees, least=least)
        except ValueError:
            continue  # it has no such layer
        after = seen(other, windows, objective)
        layers = trees_of(other)
        with torch.no_grad():
            alone = {name: layers[name].path(fit(layers[name], x))[0] for name, x in base.inputs.items()}
        cosines = nn.functional.cosine_similarity(base.embeddings, after.embeddings)
        flipped, leaves = flips(base.routes, after.routes)
        flipped_alone, leaves_alone = flips(base.routes, alone)
        more = after.loss - base.loss
        found.append(Difference(form, after.loss, more, cosines, flipped, flipped_alone, leaves, leaves_alone))
    return found


def fit(layer: Trees, x: Tensor) -> Tensor:
    """Inputs in the type that the layer takes."""
    weight = next(layer.parameters(), None)
    return x if weight is None else x.to(weight.dtype)


def table(found: Sequence[Difference]) -> str:
    """Both tables as Markdown."""
    rows = [
        [
            each.form,
            f"{each.loss:.4f}",
            MISSING if each.form == "float32" else f"{each.more:+.5f}",
            f"{each.cosines.mean():.6f}",
            f"{each.cosines.min():.6f}",
            share(each.leaves),
            share(each.leaves_alone),
        ]
        for each in found
    ]
    levels = max((len(each.flipped) for each in found), default=0)
    head = ("form", "inputs", *(f"level {level}" for level in range(levels)))
    flipped = [
        [each.form, words, *map(share, values)]
        for each in found
        for words, values in (("in the model", each.flipped), ("alone", each.flipped_alone))
        if values
    ]
    text = markdown_table(HEADER, rows)
    return f"{text}\n\nDecisions flipped by level:\n\n{markdown_table(head, flipped)}\n" if flipped else f"{text}\n"


def share(value: float) -> str:
    """A share in percent."""
    return MISSING if value != value else f"{100 * value:.2f} %"


def run(checkpoint: Path, text_file: Path, tokens: int, least: int) -> str:
    """The page of one checkpoint and text."""
    from transformers import AutoModelForMaskedLM

    pretrained = open_pretrained(checkpoint)
    windows, objective = windows_of(pretrained, text_file, tokens)
    model = load_weights(AutoModelForMaskedLM, pretrained).eval()
    found = differences(model, windows, objective, least=least)
    title = f"`{pretrained.run}` on {windows.size:,} tokens of {text_file.name}, in windows of {windows.shape[1]}"
    return f"{title}:\n\n{table(found)}"


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="bench.differences", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", type=path_argument, required=True, help="a run's folder, or the model in it")
    parser.add_argument("--text", type=path_argument, required=True, help="UTF-8 text")
    parser.add_argument("--tokens", type=int, default=65536, help="of the text's beginning (default 65536)")
    parser.add_argument("--least", type=int, default=0, help="weights of a linear that is changed (default 0: all are)")
    parser.add_argument("--out", type=path_argument, help="Markdown file to write")
    options = parser.parse_args(arguments)
    with door():
        number("--tokens", options.tokens, least=1)
        number("--least", options.least, least=0)
        if options.out:
            check_writable(options.out.parent, "--out", options.out.name)
        page = run(options.checkpoint, options.text, options.tokens, options.least)
        print(page)
        if options.out:
            write_atomic(options.out, page)


if __name__ == "__main__":
    main()
