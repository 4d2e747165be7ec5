"""The crammed BERT. Importing this package registers its classes with transformers' Auto classes."""

from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM, AutoModelForSequenceClassification

from cramming.model.configuration import CrammedConfig
from cramming.model.encoder import CrammedModel
from cramming.model.modeling import CrammedForMaskedLM, CrammedForSequenceClassification

__all__ = ["CrammedConfig", "CrammedForMaskedLM", "CrammedForSequenceClassification", "CrammedModel"]

AutoConfig.register(CrammedConfig.model_type, CrammedConfig, exist_ok=True)
AutoModel.register(CrammedConfig, CrammedModel, exist_ok=True)
AutoModelForMaskedLM.register(CrammedConfig, CrammedForMaskedLM, exist_ok=True)
AutoModelForSequenceClassification.register(CrammedConfig, CrammedForSequenceClassification, exist_ok=True)
