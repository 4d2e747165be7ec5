"""Folders of tiny sentence encoders with a tokenizer: ours, a foreign one, one with replaced layers. Not a test."""

from pathlib import Path

import torch
import transformers

from fff.surgery import replace_feedforward, save
from tests.helpers.glue import tiny_run, tiny_tokenizer
from tests.helpers.saved import save_model

TREE = {"kind": "path", "depth": 3, "trees": 2}
TEXTS = ["the film is good", "a bad plot", "good", "the plot was very very bad and the film was quite good ."]


def bert(folder: Path, layer: dict | None = None, head: bool = False) -> Path:
    torch.manual_seed(0)
    tokenizer = tiny_tokenizer()
    tokenizer.save_pretrained(folder)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    config = transformers.BertConfig(vocab_size=len(tokenizer), max_position_embeddings=32, **sizes)
    model = (transformers.BertForMaskedLM if head else transformers.BertModel)(config).eval()
    if layer is None:
        model.save_pretrained(folder)
    else:
        replace_feedforward(model, layer)
        save(model, folder)
    return folder


FOLDERS = {
    "ours": lambda folder: save_model(folder / "model"),
    "run": lambda folder: tiny_run(folder / "run"),
    "foreign": lambda folder: bert(folder / "bert"),
    "replaced": lambda folder: bert(folder / "replaced", TREE),
    "replaced under a head": lambda folder: bert(folder / "headed", TREE, head=True),
}
