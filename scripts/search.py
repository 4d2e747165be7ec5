"""Search local text files by meaning: they are embedded once, then each query, or line of the terminal, is answered."""

import signal

import cramming  # noqa: F401 (before torch: how its threads wait)

signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C while libraries load ends without a traceback

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from cramming.checks import number
from cramming.door import door, path_argument
from cramming.errors import UserError
from cramming.sentences.load import load_encoder
from cramming.sentences.search import build_index
from cramming.sentences.texts import text_files


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=path_argument, help="a model folder, or a run's folder")
    parser.add_argument("texts", type=path_argument, nargs="+", help="files or folders of .txt, .jsonl, .parquet")
    parser.add_argument("--query", action="append", default=[], help="may be given several times (default: ask)")
    parser.add_argument("--top", type=int, default=5, help="passages for each query (default 5)")
    parser.add_argument("--index", type=path_argument, default=Path("outputs/search"), help="(default outputs/search)")
    parser.add_argument("--batch", type=int, default=32, help="texts of a forward pass (default 32)")
    parser.add_argument("--max-length", type=int, help="tokens of a text (default: what the model takes)")
    parser.add_argument("--int8", action="store_true", help="linears and trees in int8")
    parser.add_argument("--fast", action="store_true", help="what is fastest on this processor")
    parser.add_argument("--threads", type=int, help="of the CPU (default: torch's choice)")
    with door():
        run(parser.parse_args())


def run(asked: argparse.Namespace) -> None:
    """Index what is new, then answer."""
    for key in ("top", "batch", "threads"):
        number(f"--{key}", getattr(asked, key), least=1)
    if not all(query.strip() for query in asked.query):
        raise UserError("--query is empty; say what you look for.")
    files = text_files(asked.texts)
    if asked.threads:
        torch.set_num_threads(asked.threads)
    encoder = load_encoder(asked.model, asked.max_length, asked.int8, asked.fast)
    index, new = build_index(encoder, files, asked.index, asked.batch)
    print(f"index      {len(index.texts):,} passages of {len(files)} files, {new} of them new, in {asked.index}")
    for query in asked.query or asking():
        print(f"\n{query}")
        for hit in index.search(encoder.encode([query]), asked.top)[0]:
            print(f"  {hit.score:.3f}  {hit.file}, passage {hit.number}\n         {hit.text}")


def asking() -> Iterator[str]:
    """Lines of the terminal, or of what is piped in, until they end; empty ones are no query."""
    if sys.stdin.isatty():
        print("next       type a query a line; Ctrl-D ends")
    for line in sys.stdin:
        if line.strip():
            yield line.strip()


if __name__ == "__main__":
    main()
