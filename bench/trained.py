"""Timings of a trained model's own FFF layers on the inputs that they see. Not of random ones (layer.py)."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.layer import ROTATING, compare, floors, show
from bench.options import Setting
from bench.rows import SpeedRow
from cramming.errors import UserError
from cramming.machine import peaks
from cramming.model.saved import load_tokenizer, load_weights, open_pretrained
from cramming.regions.text import read_text, tokenise
from fff.layers.path import PathFFF
from fff.regions import recorded_inputs


def run_trained(checkpoint: Path, text_file: Path, settings: list[Setting], threads: list[int]) -> list[SpeedRow]:
    """Rows of a checkpoint's PathFFF layers on their inputs, stretches of a text, by threads.

    Raises:
        UserError: the checkpoint or the text is missing or damaged, the text is too short, or no layer is a PathFFF.
    """
    largest = max(setting.tokens for setting in settings)
    layers, recorded = record(checkpoint, text_file, largest * ROTATING)
    rows: list[SpeedRow] = []
    for count in threads:
        torch.set_num_threads(count)
        peak = peaks()
        print(f"\nlayers of {checkpoint} on {text_file.name}, {count} threads; ratios as above", flush=True)
        for name, layer in layers.items():
            for setting in settings:
                setting = replace(setting, trees=layer.trees, depth=layer.depth, inputs=name)
                wide = [recorded[name][i * largest :][: setting.tokens].clone() for i in range(ROTATING)]
                leaves = layer.path(wide[0])[0][..., -1]
                used = sum(tree.unique().numel() for tree in leaves.unbind(1))
                known = {**floors(setting, peak, layer.d_in), "leaves_used": used, "checkpoint": checkpoint.name}
                found = compare(layer, wide, setting, known)
                rows += found
                show(setting, found)
                print(f"  these tokens use {used:,} of {layer.trees * 2**layer.depth:,} leaves", flush=True)
    return rows


def record(checkpoint: Path, text_file: Path, tokens: int) -> tuple[dict[str, PathFFF], dict[str, Tensor]]:
    """A checkpoint's PathFFF layers, in float32, and their inputs (tokens, d_in) from the beginning of a text."""
    from transformers import AutoModel

    pretrained = open_pretrained(checkpoint)
    model: Any = load_weights(AutoModel, pretrained)
    layers = {name: layer for name, layer in model.eval().named_modules() if isinstance(layer, PathFFF)}
    if not layers:
        raise UserError(f"{pretrained.folder} has no PathFFF layer; give a checkpoint pretrained with ffn=path.")
    text, whole = read_text(text_file, tokens)
    probe = tokenise(text_file, text, whole, load_tokenizer(pretrained), tokens)
    if len(probe.ids) < tokens:
        raise UserError(f"{text_file} has {len(probe.ids)} tokens; give a text of {tokens}, or less --tokens.")
    windows = torch.from_numpy(probe.ids).split(pretrained.max_length)
    with torch.inference_mode(), recorded_inputs(model) as inputs:
        for window in windows:
            model(input_ids=window[None])
        return layers, {name: torch.cat([x.flatten(0, -2) for x in inputs[name]]) for name in layers}
