"""The crammed BERT. Importing this package registers its classes with transformers' Auto classes."""

from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM, AutoModelForSequenceClassification

from cramming.model.configuration import CrammedConfig
from cramming.model.modeling import CrammedForMaskedLM, CrammedForSequenceClassification, CrammedModel

__all__ = ["CrammedConfig", "CrammedForMaskedLM", "CrammedForSequenceClassification", "CrammedModel"]

AutoConfig.register(CrammedConfig.model_type, CrammedConfig, exist_ok=True)
AutoModel.register(CrammedConfig, CrammedModel, exist_ok=True)
AutoModelForMaskedLM.register(CrammedConfig, CrammedForMaskedLM, exist_ok=True)
AutoModelForSequenceClassification.register(CrammedConfig, CrammedForSequenceClassification, exist_ok=True)

# `save_pretrained` then copies the model's code, so that a plain AutoModel loads it where `fff` is installed.
CrammedConfig.register_for_auto_class()
CrammedModel.register_for_auto_class("AutoModel")
CrammedForMaskedLM.register_for_auto_class("AutoModelForMaskedLM")
CrammedForSequenceClassification.register_for_auto_class("AutoModelForSequenceClassification")
