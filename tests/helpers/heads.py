"""Every class of the crammed model with every kind of layer, its inputs and its labels. Not a test."""

import torch
from torch import Tensor
from transformers import PreTrainedModel

from cramming.model import (
    CrammedConfig,
    CrammedForCausalLM,
    CrammedForMaskedLM,
    CrammedForMultipleChoice,
    CrammedForQuestionAnswering,
    CrammedForSequenceClassification,
    CrammedForTokenClassification,
    CrammedModel,
)
from tests.helpers.model import config

KINDS_OF_LAYER = {
    "dense": {"kind": "dense", "width": 48, "activation": "gelu"},
    "gated": {"kind": "dense", "width": 48, "activation": "gated_gelu"},
    "fixed": {"kind": "fixed", "trees": 2, "depth": 3, "path": "random"},
    "token": {"kind": "fixed", "trees": 2, "depth": 3, "path": "token"},
    "leaf": {"kind": "leaf", "depth": 3, "leaf_width": 4, "master_width": 4},
    "gated leaf": {"kind": "leaf", "depth": 3, "leaf_width": 4, "master_width": 4, "gated": True},
    "moe": {"kind": "moe", "experts": 4, "expert_width": 8, "top": 2},
    "none": {"kind": "none"},
    "path": {"kind": "path", "trees": 2, "depth": 3},
    "shared": {"kind": "path", "trees": 2, "depth": 3, "shared": 8},
    "peer": {"kind": "peer", "keys": 4, "heads": 2, "top": 2},
}
CLASSES = {
    "encoder": CrammedModel,
    "masked": CrammedForMaskedLM,
    "causal": CrammedForCausalLM,
    "sequence": CrammedForSequenceClassification,
    "token": CrammedForTokenClassification,
    "question": CrammedForQuestionAnswering,
    "choice": CrammedForMultipleChoice,
}
HEADS = {name: found for name, found in CLASSES.items() if name != "encoder"}
WORDS = ("masked", "causal")  # heads that predict words


def sized(name: str, layer: str | dict = "path", **changes) -> CrammedConfig:
    """The configuration of a small model of a class."""
    return config(layer, causal=name == "causal", **changes)


def make(name: str, layer: str = "path", **changes) -> PreTrainedModel:
    """The model in evaluation mode, of a seed; weights wide enough that layers matter."""
    torch.manual_seed(0)
    settings = {"initializer_range": 0.3, "num_labels": 3, "classifier_size": 24, "classifier_dropout": 0.0}
    return CLASSES[name](sized(name, KINDS_OF_LAYER[layer], **settings | changes)).eval()


def inputs(name: str) -> dict[str, Tensor]:
    """input_ids (3, 16), or (3, 2, 16) of choices, and their attention mask, where one row is padded."""
    generator = torch.Generator().manual_seed(0)
    shape = (3, 2, 16) if name == "choice" else (3, 16)
    ids = torch.randint(7, 80, shape, generator=generator)
    mask = torch.ones_like(ids)
    mask[1, ..., 11:] = 0
    return {"input_ids": ids, "attention_mask": mask}


def labels(name: str) -> dict[str, Tensor]:
    """What the class's loss is of; nothing for the encoder."""
    ids, generator = inputs("masked")["input_ids"], torch.Generator().manual_seed(1)
    chosen = torch.rand(ids.shape, generator=generator) < 0.3
    return {
        "encoder": {},
        "masked": {"labels": ids.masked_fill(~chosen, -100)},
        "causal": {"labels": ids.masked_fill(inputs("causal")["attention_mask"] == 0, -100)},
        "sequence": {"labels": torch.tensor([0, 2, 1])},
        "token": {"labels": (ids % 3).masked_fill(~chosen, -100)},
        "question": {"start_positions": torch.tensor([1, 2, 99]), "end_positions": torch.tensor([3, 2, 99])},
        "choice": {"labels": torch.tensor([0, 1, 1])},
    }[name]


def scores(output) -> Tensor:
    """The output's own tensor: logits, those of start and end together, or the last hidden state."""
    if "start_logits" in output:
        return torch.stack([output.start_logits, output.end_logits], -1)
    return output.logits if "logits" in output else output.last_hidden_state
