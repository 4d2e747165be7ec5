"""Bytes of an exchange of rows against one of all weights, by depth and by tokens between meetings. Nothing is timed.

`python -m bench.exchange --data FOLDER --record FILE` trains workers of a small model beside one another in this
process, each on its own sequences (of a prepared folder, or made up with Zipf's frequencies), for a first round and a
second; counted are the rows that differ at the end of the second. Bytes follow from that as `Peers` sends them.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.rows import stamp
from cramming.data.loader import Sequences
from cramming.data.shards import open_prepared
from cramming.door import door, path_argument
from cramming.files import write_json
from cramming.model import CrammedConfig, CrammedForMaskedLM
from cramming.objectives.masked import MaskedTokens
from cramming.parallel.greeting import CARD, DIGEST
from cramming.parallel.rows import Table, differing, tables
from fff.feedforward import settings_from

SEQ_LEN, MICROBATCH, VOCABULARY = 64, 8, 2048
DEPTHS, TOKENS, WORKERS = (7, 9, 11, 13), (512, 4096, 32768), (2, 4)


class ZipfTokens:
    """Sequences whose tokens have Zipf's frequencies, as a prepared folder's `train`."""

    def __len__(self) -> int:
        return 1 << 20

    def take(self, indices: np.ndarray) -> np.ndarray:
        """(n, SEQ_LEN) int64."""
        draw = np.random.default_rng(int(indices.sum()))
        weight = 1.0 / np.arange(1, VOCABULARY - 6)
        return 7 + draw.choice(len(weight), (len(indices), SEQ_LEN), p=weight / weight.sum())


def sent(weights: int, workers: int, digests: int = 0) -> int:
    """Bytes that each worker sends at a meeting, as `Outer.exchange` does.

    Args:
        weights: float32 numbers whose mean is taken; digests: rows that are compared.
    """
    part = -(-weights // workers) * 4
    return (workers - 1) * (CARD + digests * DIGEST + 2 * part + workers)


def different(found: list[Table], copies: Sequence[dict[str, torch.Tensor]]) -> list[int]:
    """Of each table the rows that differ between any two copies of a model's weights."""
    return [int(differing([table.digests(copy) for copy in copies]).sum()) for table in found]


def cell(sequences: Sequences, depth: int, workers: int, tokens: int) -> dict[str, Any]:
    """What one meeting sends after as many tokens of each worker."""
    torch.manual_seed(0)
    settings = settings_from({"kind": "path", "trees": 1, "depth": depth}, "ffn").specification()
    sizes: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 64,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
    }
    config = CrammedConfig(ffn=settings, positions="rotary", rotary_base=100.0, init_std=0.06, **sizes)
    models = [CrammedForMaskedLM(config) for _ in range(workers)]
    for model in models[1:]:
        model.load_state_dict(models[0].state_dict())
    optimisers = [torch.optim.AdamW(model.parameters(), 2e-3, (0.9, 0.98), 1e-12, 0.01) for model in models]
    objective, steps, position = MaskedTokens(0, 0.25, VOCABULARY, 6), tokens // (SEQ_LEN * MICROBATCH), 0
    for _ in range(2):
        mean(models)
        for _ in range(steps):
            for model, optimiser in zip(models, optimisers, strict=True):
                positions = np.arange(position, position + MICROBATCH)
                position += MICROBATCH
                optimiser.zero_grad()
                loss, _ = objective.losses(model, objective.batch(sequences.take(positions), positions))
                loss.backward()
                optimiser.step()
    copies = [{name: p.detach() for name, p in model.named_parameters()} for model in models]
    found = [table for table in tables(models[0]) if table.rows]
    counts, everything = different(found, copies), sum(p.numel() for p in copies[0].values())
    rows, of_rows = sum(table.rows for table in found), [sum(v.shape[1] for v in t.views(copies[0])) for t in found]
    moving = sum(count * width for count, width in zip(counts, of_rows, strict=True))
    layers = sum(table.rows * width for table, width in zip(found, of_rows, strict=True))
    dense, by_rows = sent(everything, workers), sent(everything - layers + moving, workers, rows)
    return {
        "depth": depth,
        "workers": workers,
        "tokens_of_each": steps * SEQ_LEN * MICROBATCH,
        "rows": rows,
        "rows_that_differ": sum(counts),
        "dense_bytes": dense,
        "rows_bytes": by_rows,
        "layers_alone_dense_bytes": sent(layers, workers),
        "layers_alone_rows_bytes": sent(moving, workers, rows),
    }


@torch.no_grad()
def mean(models: Sequence[torch.nn.Module]) -> None:
    """All go on with the mean of their weights."""
    for each in zip(*(model.parameters() for model in models), strict=True):
        together = torch.stack([p.double() for p in each]).mean(0).float()
        for p in each:
            p.copy_(together)


def table_of(cells: Sequence[dict[str, Any]]) -> list[str]:
    """Rows in Markdown."""
    lines = [
        "| tree | workers | tokens of each between meetings | rows that differ | MB sent, all weights | by rows | "
        "of the layers alone |",
        "|---|---|---|---|---|---|---|",
    ]
    for each in cells:
        share = each["rows_that_differ"] / each["rows"]
        layers = each["layers_alone_rows_bytes"] / each["layers_alone_dense_bytes"]
        lines.append(
            f"| 1x{each['depth']} | {each['workers']} | {each['tokens_of_each']:,} | {share:.1%} | "
            f"{each['dense_bytes'] / 1e6:.2f} | {each['rows_bytes'] / 1e6:.2f} | {layers:.0%} |"
        )
    return lines


def main() -> None:
    """Run as a command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=path_argument, help="a prepared folder (default: made-up tokens)")
    parser.add_argument("--record", type=path_argument, help="file for the figures (JSON)")
    parser.add_argument("--depths", type=int, nargs="+", default=DEPTHS)
    parser.add_argument("--tokens", type=int, nargs="+", default=TOKENS)
    parser.add_argument("--workers", type=int, nargs="+", default=WORKERS)
    arguments = parser.parse_args()
    with door():
        torch.set_num_threads(1)
        data: Path | None = arguments.data
        prepared = open_prepared(data) if data else None
        sequences = prepared.train if prepared else ZipfTokens()
        cells = []
        for depth in arguments.depths:
            for workers in arguments.workers:
                cells += [cell(sequences, depth, workers, tokens) for tokens in arguments.tokens]
                print("\n".join(table_of(cells)[-len(arguments.tokens) :]), flush=True)
        text = f"prepared, fingerprint {prepared.fingerprint}" if prepared else "made up, Zipf's frequencies"
        if arguments.record:
            write_json(arguments.record, {"tokens": text, "stamp": stamp(torch.device("cpu"), 1), "cells": cells})
            print(json.dumps({"tokens": text}))


if __name__ == "__main__":
    main()
