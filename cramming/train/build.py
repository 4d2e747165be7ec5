"""The model that a pretraining configuration names, and whether it can be. Not its training (run.py)."""

import torch
from accelerate.utils import set_seed
from torch import nn

from cramming.data.shards import PreparedData
from cramming.errors import UserError
from cramming.model import CrammedConfig, CrammedForMaskedLM
from cramming.train.hardening import FORMS
from cramming.train.root import PretrainRoot
from fff.hardening import set_hardening


def build_model(root: PretrainRoot, data: PreparedData) -> CrammedForMaskedLM:
    """A freshly initialised model that fits the data; its weights follow from the seed."""
    set_seed(root.seed)
    model = root.model
    config = CrammedConfig(
        vocab_size=data.vocab_size,
        max_position_embeddings=data.seq_len,
        ffn=root.ffn.specification(),
        **model.encoder(),
        sparse_prediction=model.sparse_prediction,
    )
    try:
        return CrammedForMaskedLM(config)
    except (ValueError, RuntimeError) as error:
        raise UserError(f"ffn: {error}") from error


def check_layer(root: PretrainRoot) -> None:
    """Refuse what the feedforward layer cannot be, or a form of training that it cannot take; needs no memory.

    Raises:
        UserError: naming the group of keys.
    """
    try:
        with torch.device("meta"):
            layer = root.ffn.settings.build(root.model.hidden_size, root.model.hidden_size)
    except (ValueError, RuntimeError) as error:
        raise UserError(f"ffn: {error}") from error
    try:
        set_hardening(nn.Sequential(layer) if layer else nn.Sequential(), form=FORMS[root.hardening.form])
    except ValueError as error:
        raise UserError(f"hardening: {error}") from None
