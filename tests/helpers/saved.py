"""A saved, untrained model with its tokenizer. Not a test."""

from pathlib import Path
from typing import Any

import torch

from cramming.data.tokenizer import save_tokenizer, train_tokenizer
from cramming.model import CrammedConfig, CrammedForMaskedLM
from tests.helpers.data import make_documents


def save_model(folder: Path, vocab_size: int = 200, **ffn: Any) -> Path:
    """An untrained model of two layers with a tokenizer made for `make_documents`."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 32}
    if "kind" not in ffn:
        ffn = {"kind": "path", "trees": 2, "depth": 6} | ffn
    config = CrammedConfig(vocab_size=vocab_size, initializer_range=0.3, ffn=ffn, **sizes)
    CrammedForMaskedLM(config).save_pretrained(folder)
    save_tokenizer(train_tokenizer(make_documents(200), vocab_size), folder, 32)
    return folder
