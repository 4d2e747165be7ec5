"""The crammed BERT's transformers configuration. Not the user's configuration groups (config.py)."""

from typing import Any

from transformers import PreTrainedConfig

from .needed import settings_from
from .sizes import check_sizes


class CrammedConfig(PreTrainedConfig):
    """Configuration of a crammed BERT; the defaults are UltraFastBERT-1x11's (arXiv 2311.10770, section 2).

    Args:
        ffn: the feedforward layer as `fff.feedforward.settings_from` reads it, e.g.
            {"kind": "path", "trees": 1, "depth": 11, "bias": True, "activation": "gelu"}.
        positions: "sinusoidal" (the published models': added to the embedding, with one learned scale) or "rotary"
            (queries and keys are turned, arXiv 2104.09864).
        rotary_base: slowest rotation's wavelength is about 2 pi times this many tokens.
        max_position_embeddings: longest input in tokens.
        hidden_dropout_prob: dropout after the embedding and on each residual branch; 0 in pretraining, 0.1 in
            finetuning.
        classifier_size: width of the classification head's hidden layer.
        causal: whether a token sees itself and earlier ones alone, as a decoder that generates text; a model is trained
            as one or the other.
        sparse_prediction: in training, MLM logits are computed at labelled positions only. Same loss.

    Raises:
        ValueError: a size or a key of `ffn` that no model can have, by its name.
    """

    model_type = "crammed_fff"

    def __init__(
        self,
        vocab_size: int = 32768,
        hidden_size: int = 768,
        num_hidden_layers: int = 16,
        num_attention_heads: int = 12,
        max_position_embeddings: int = 128,
        positions: str = "sinusoidal",
        rotary_base: float = 10000.0,
        ffn: dict[str, Any] | None = None,
        layer_norm_eps: float = 1e-12,
        initializer_range: float = 0.02,
        hidden_dropout_prob: float = 0.0,
        classifier_size: int = 1024,
        classifier_dropout: float = 0.1,
        sparse_prediction: bool = True,
        causal: bool = False,
        pad_token_id: int = 0,
        tie_word_embeddings: bool = True,
        **kwargs: Any,
    ) -> None:
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.max_position_embeddings = max_position_embeddings
        self.positions = positions
        self.rotary_base = rotary_base
        self.ffn = ffn or {"kind": "path", "trees": 1, "depth": 11}
        self.layer_norm_eps = layer_norm_eps
        self.initializer_range = initializer_range
        self.hidden_dropout_prob = hidden_dropout_prob
        self.classifier_size = classifier_size
        self.classifier_dropout = classifier_dropout
        self.sparse_prediction = sparse_prediction
        self.causal = causal
        check_sizes(vars(self), {name: name for name in vars(self)})
        settings_from(self.ffn, "ffn")
        kwargs |= {"pad_token_id": pad_token_id, "tie_word_embeddings": tie_word_embeddings}
        super().__init__(**kwargs)
        # Some releases reset these to the base class's defaults while they read kwargs.
        self.pad_token_id, self.tie_word_embeddings = pad_token_id, tie_word_embeddings
