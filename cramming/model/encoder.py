"""The crammed BERT's encoder as a transformers class, and what all its models share. Not the heads (modeling.py)."""

from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn
from transformers import Cache, DynamicCache, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.masking_utils import create_bidirectional_mask, create_causal_mask

from .arguments import refuse_segments, refuse_unknown
from .configuration import CrammedConfig
from .layers import CrammedBlock, CrammedEmbedding
from .needed import Feedforward
from .outputs import CrammedOutput
from .positions import RotaryPositions, later_places
from .remote import carry_code


class CrammedPreTrainedModel(PreTrainedModel):
    """What the crammed models share: configuration class, initialisation, attention back ends.

    Raises:
        ValueError: the configuration is of a causal model and the class of one that sees whole texts, or the reverse.
    """

    causal: ClassVar[bool | None] = False  # what config.causal must be; None: either

    config_class = CrammedConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True
    _no_split_modules = ["CrammedBlock"]  # noqa: RUF012 (read by transformers)

    def __init__(self, config: CrammedConfig, *arguments: Any, **settings: Any) -> None:
        if self.causal is not None and config.causal != self.causal:
            trained = "to predict next tokens from earlier ones" if config.causal else "to see whole texts"
            fitting = "AutoModelForCausalLM and AutoModel take it" if config.causal else "other Auto classes take it"
            raise ValueError(
                f"config.causal is {config.causal}: the model was trained {trained}, and {type(self).__name__} does "
                f"not take it; {fitting}."
            )
        super().__init__(config, *arguments, **settings)

    def save_pretrained(self, save_directory: Any, *arguments: Any, **settings: Any) -> Any:
        """As transformers does it; with the code of all heads, so that any Auto class loads the folder."""
        self.config.auto_map = carry_code(Path(save_directory), causal=self.config.causal)
        return super().save_pretrained(save_directory, *arguments, **settings)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """N(0, initializer_range) for every weight, FFF nodes included, as the published models were trained."""
        std = self.config.initializer_range
        if isinstance(module, nn.Linear | nn.Embedding):
            init.normal_(module.weight, mean=0.0, std=std)
            if isinstance(module, nn.Linear) and module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, Feedforward):
            module.init_weights(std, init)
        elif isinstance(module, CrammedEmbedding) and module.position_scale is not None:
            init.constant_(module.position_scale, self.config.hidden_size**-0.5)


class CrammedModel(CrammedPreTrainedModel):
    """The encoder, or the trunk of a decoder. Returns the normalised last hidden state (B, S, H)."""

    causal = None

    def __init__(self, config: CrammedConfig) -> None:
        super().__init__(config)
        self.embedding = CrammedEmbedding(config)
        head_dim = config.hidden_size // config.num_attention_heads
        self.rotary = None
        if config.positions == "rotary":
            self.rotary = RotaryPositions(config.max_position_embeddings, head_dim, config.rotary_base)
        self.blocks = nn.ModuleList(CrammedBlock(config, layer) for layer in range(config.num_hidden_layers))
        self.final_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The word embedding."""
        return self.embedding.words

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the word embedding."""
        self.embedding.words = value  # type: ignore[assignment]

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> CrammedOutput | tuple:
        """Encode tokens.

        Args:
            input_ids: (B, S) int64, or give `inputs_embeds` (B, S, H) instead.
            attention_mask: (B, S), 1 for tokens and 0 for padding; None when nothing is padded. (B, earlier tokens + S)
                with a cache.
            position_ids: (B, S) or (1, S) int64, below max_position_embeddings; None counts from 0, in a causal model
                from the first token that is no padding, the cache's included.
            token_type_ids: zeros: the model knows no segments.
            output_attentions: also `attentions`, per block (B, heads, S, S); it is then computed written out.
            output_hidden_states: also `hidden_states`: the embedding, then each block's output, the last normalised.
            past_key_values: a causal model's keys and values of earlier tokens; they grow by these S. Others have none.
            use_cache: True makes a cache where none is given; the output has it as `past_key_values`.

        Raises:
            ValueError: S, with the cache's, exceeds max_position_embeddings, not exactly one kind of input is given, or
                a segment is.
            TypeError: an argument that the model does not know.
        """
        refuse_unknown(type(self).__name__, kwargs)
        refuse_segments(token_type_ids)
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Give exactly one of input_ids and inputs_embeds.")
        past = self._past(past_key_values, use_cache)
        if self.config.causal:
            earlier = past.get_seq_length() if past is not None else 0
            given: Any = input_ids if inputs_embeds is None else inputs_embeds
            if earlier and earlier + given.shape[1] > (longest := self.config.max_position_embeddings):
                raise ValueError(
                    f"The cache has {earlier} tokens and the input {given.shape[1]}; the model takes {longest} at most."
                )
            if position_ids is None:
                position_ids = later_places(given, attention_mask, earlier)
        x = self.embedding(input_ids, inputs_embeds, position_ids)
        look = bool(self.config.output_attentions if output_attentions is None else output_attentions)
        mask = self._mask(x, attention_mask, past, look)
        rotation = self.rotary(x.shape[1], x, position_ids) if self.rotary is not None else None
        keep = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        states, looked, losses = [], [], []
        for block in self.blocks:
            states += [x] if keep else []
            x, weights, *found = block(x, mask, rotation, look, input_ids, past_key_values=past)
            looked.append(weights)
            losses.append(dict(zip(block.loss_names, found, strict=True)))  # type: ignore[arg-type]
        x = self.final_norm(x)
        output = CrammedOutput(
            last_hidden_state=x,
            hidden_states=(*states, x) if keep else None,
            attentions=tuple(looked) if look else None,
            past_key_values=past,
            auxiliary_losses=_mean_over_layers(losses),
        )
        return output if wants_dict(self.config, return_dict) else output.to_tuple()

    def _past(self, given: Cache | None, use_cache: bool | None) -> Cache | None:
        """The cache of a causal model: the given one, or a new one if it is wanted."""
        if not self.config.causal:
            return None
        return DynamicCache(config=self.config) if given is None and use_cache else given

    def _mask(self, x: torch.Tensor, attention_mask: torch.Tensor | None, past: Cache | None, look: bool) -> Any:
        """Who sees whom, as attention takes it; None for all, or in a causal model for all earlier ones."""
        if attention_mask is None and past is None:
            return None  # some versions of transformers would build a full one while torch.compile traces
        if not self.config.causal:
            return create_bidirectional_mask(config=self.config, inputs_embeds=x, attention_mask=attention_mask)
        return create_causal_mask(
            config=self.config,
            inputs_embeds=x,
            attention_mask=attention_mask,
            past_key_values=past,
            allow_is_causal_skip=not look,
        )


def _mean_over_layers(losses: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor] | None:
    found = [layer for layer in losses if layer]
    return {name: torch.stack([layer[name] for layer in found]).mean() for name in found[0]} if found else None


def wants_dict(config: PreTrainedConfig, return_dict: bool | None) -> bool:
    """Whether a forward pass returns an output object, by its argument or else the configuration."""
    return bool(getattr(config, "return_dict", True) if return_dict is None else return_dict)
