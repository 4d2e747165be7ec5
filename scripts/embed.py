"""Embed each line of a text, score an encoder on STS-B, time it, or make a sentence-transformers folder of it."""

import signal

import cramming  # noqa: F401 (before torch: how its threads wait)

signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C while libraries load ends without a traceback

import argparse

import torch

from cramming.checks import number
from cramming.door import door, path_argument
from cramming.errors import UserError
from cramming.files import refuse_existing
from cramming.sentences.embed import FORMATS, write_embeddings
from cramming.sentences.export import write_sentence_model
from cramming.sentences.load import load_encoder
from cramming.sentences.speed import sentences_per_s
from cramming.sentences.stsb import read_pairs, stsb
from cramming.sentences.texts import read_lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=path_argument, help="a model folder, or a run's folder")
    parser.add_argument("text", type=path_argument, nargs="?", help="UTF-8, one text a line")
    parser.add_argument("--out", type=path_argument, help="folder to write the vectors of TEXT to; must not exist")
    parser.add_argument("--format", choices=FORMATS, default="npy", help="of the vectors (default npy)")
    parser.add_argument("--stsb", type=path_argument, metavar="GLUE", help="score on STS-B in this folder of GLUE")
    parser.add_argument("--against", type=path_argument, metavar="MODEL", help="texts/s of both models on TEXT")
    parser.add_argument("--sentence-transformers", type=path_argument, metavar="FOLDER", help="folder to make")
    parser.add_argument("--batch", type=int, default=32, help="texts of a forward pass (default 32)")
    parser.add_argument("--max-length", type=int, help="tokens of a text (default: what the model takes)")
    parser.add_argument("--int8", action="store_true", help="linears and trees in int8, of both models")
    parser.add_argument("--fast", action="store_true", help="what is fastest on this processor, of both models")
    parser.add_argument("--threads", type=int, help="of the CPU (default: torch's choice)")
    with door():
        run(parser.parse_args())


def run(asked: argparse.Namespace) -> None:
    """Check everything before anything is loaded, then do what is asked."""
    for key in ("batch", "threads"):
        number(f"--{key}", getattr(asked, key), least=1)
    if asked.text is None and (asked.out or asked.against):
        raise UserError("--out and --against embed a text; name it after the model.")
    if not (asked.out or asked.against or asked.stsb or asked.sentence_transformers):
        raise UserError("nothing is asked for; give TEXT --out FOLDER, or --stsb, --against, --sentence-transformers.")
    for folder in filter(None, (asked.out, asked.sentence_transformers)):
        refuse_existing(folder)
    lines = read_lines(asked.text) if asked.text else None
    pairs = read_pairs(asked.stsb) if asked.stsb else None
    if asked.threads:
        torch.set_num_threads(asked.threads)
    encoder = load_encoder(asked.model, asked.max_length, asked.int8, asked.fast)
    other = load_encoder(asked.against, asked.max_length, asked.int8, asked.fast) if asked.against else None
    form = ", in int8" if asked.int8 else ", made fast" if asked.fast else ""
    print(f"model      {asked.model}, {encoder.max_length} tokens of a text{form}")
    if asked.sentence_transformers:
        write_sentence_model(encoder, asked.sentence_transformers)
        print(f"written    {asked.sentence_transformers}; its README.md says how sentence-transformers loads it")
    if asked.out and lines:
        found = write_embeddings(encoder, asked.text, lines, asked.out, asked.format, asked.batch)
        print(f"written    {asked.out / found['file']}, {found['rows']:,} x {found['width']} float32")
    if pairs:
        scores = stsb(encoder, pairs, asked.batch)
        print(f"STS-B dev  {', '.join(f'{name} {value:.4f}' for name, value in scores.items())}, by cosine")
    if other and lines:
        speeds = sentences_per_s({"model": encoder, "other": other}, lines.texts, asked.batch)
        print(
            f"texts/s    {speeds['model']:.1f}; {asked.against}: {speeds['other']:.1f}; "
            f"{speeds['model'] / speeds['other']:.2f} times as many"
        )


if __name__ == "__main__":
    main()
