"""A tiny saved model with its tokenizer and a tiny official GLUE folder, for the tests of the GLUE room. Not a test."""

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from cramming.model import CrammedConfig, CrammedForMaskedLM

SPECIAL = ["<pad>", "<s>", "</s>", "<unk>", "<cls>", "<sep>", "<mask>"]
WORDS = ["good", "bad", "film", "the", "a", "plot", "is", "was", "very", "quite", "one", "two", "three", "four", "."]


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Whole words only; pairs as "<cls> A <sep> B <sep>", single texts as "A <sep>"."""
    vocabulary = {token: number for number, token in enumerate(SPECIAL + WORDS)}
    raw = Tokenizer(WordPiece(vocabulary, unk_token="<unk>"))
    raw.normalizer, raw.pre_tokenizer = BertNormalizer(), Whitespace()
    raw.post_processor = TemplateProcessing(
        single="$A <sep>", pair="<cls> $A <sep> $B <sep>", special_tokens=[("<cls>", 4), ("<sep>", 5)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        pad_token="<pad>",
        unk_token="<unk>",
        cls_token="<cls>",
        sep_token="<sep>",
        mask_token="<mask>",
    )


def tiny_run(folder: Path, layers: int = 1) -> Path:
    """A run's folder as pretraining leaves it: model/ and record.json; random weights from a fixed seed."""
    torch.manual_seed(0)
    tokenizer = tiny_tokenizer()
    config = CrammedConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=layers,
        num_attention_heads=2,
        max_position_embeddings=32,
        ffn={"kind": "path", "trees": 1, "depth": 2},
        classifier_size=32,
        initializer_range=0.15,  # so small a model does not leave the plateau from 0.02 in a few steps
    )
    CrammedForMaskedLM(config).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    record = {
        "name": folder.name,
        "experiment": "tiny",
        "ffn": "1x2",
        "group": "abc123",
        "data_fingerprint": "tokens",
        "config": {
            "model": {"layers": layers, "hidden_size": 32},
            "train": {"budget_steps": 0},
            "data": {"files": ["x"]},
        },
    }
    (folder / "record.json").write_text(json.dumps(record))
    return folder


def sentiment_rows(count: int, seed: int) -> list[str]:
    """SST-2 rows whose label is whether the sentence says good or bad."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for _ in range(count):
        label, a, b = torch.randint(0, 2, (3,), generator=generator).tolist()
        words = [["the", "a"][a], ["film", "plot"][b], "is", ["bad", "good"][label]]
        rows.append(f"{' '.join(words)}\t{label}")
    return rows


def write_sst2(folder: Path, train: int = 96, dev: int = 32) -> None:
    """The official layout of SST-2 with made-up sentences."""
    home = folder / "SST-2"
    home.mkdir(parents=True)
    for name, count, seed in (("train", train, 1), ("dev", dev, 2)):
        (home / f"{name}.tsv").write_text("\n".join(["sentence\tlabel", *sentiment_rows(count, seed)]) + "\n")
