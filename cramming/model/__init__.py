"""The crammed BERT. Importing this package registers its classes with transformers' Auto classes."""

import transformers
from transformers import AutoConfig

from cramming.model.causal import CrammedForCausalLM
from cramming.model.configuration import CrammedConfig
from cramming.model.encoder import CrammedModel
from cramming.model.modeling import CrammedForMaskedLM, CrammedForSequenceClassification
from cramming.model.remote import AUTO_MAP
from cramming.model.task_heads import (
    CrammedForMultipleChoice,
    CrammedForQuestionAnswering,
    CrammedForTokenClassification,
)

__all__ = [
    "CrammedConfig",
    "CrammedForCausalLM",
    "CrammedForMaskedLM",
    "CrammedForMultipleChoice",
    "CrammedForQuestionAnswering",
    "CrammedForSequenceClassification",
    "CrammedForTokenClassification",
    "CrammedModel",
]

AutoConfig.register(CrammedConfig.model_type, CrammedConfig, exist_ok=True)
for auto, place in AUTO_MAP.items():
    if auto != "AutoConfig":
        getattr(transformers, auto).register(CrammedConfig, globals()[place.rpartition(".")[2]], exist_ok=True)
