"""The crammed model as a decoder that predicts next tokens and generates text. Not the encoder, nor its training."""

from typing import Any

import torch
from torch import nn
from transformers import Cache, GenerationMixin

from .encoder import wants_dict
from .language import CrammedLanguageModel
from .losses import IGNORED
from .outputs import CrammedCausalLMOutput

__all__ = ["CrammedForCausalLM"]


class CrammedForCausalLM(CrammedLanguageModel, GenerationMixin):
    """The encoder run causally with a decoder tied to the word embedding; its configuration has `causal=True`."""

    causal = True

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        return_dict: bool | None = None,
        with_logits: bool = True,
        num_items_in_batch: torch.Tensor | int | None = None,
        **kwargs: Any,
    ) -> CrammedCausalLMOutput | tuple:
        """Predict each position's next token.

        Args:
            labels: (B, S) int64, the tokens themselves: position i's logits are held against label i + 1; -100 where
                nothing is predicted.
            logits_to_keep: how many of the last positions get logits, or which positions; 0 for all, as with labels.
            with_logits, num_items_in_batch: as `CrammedForMaskedLM.forward`'s.
            position_ids, past_key_values, use_cache, kwargs: as the encoder's.

        Returns:
            logits (B, positions, V); with labels the loss (nats per label), of which auxiliary losses are part as in
            `CrammedForMaskedLM.forward`; the cache, if it was given or wanted.
        """
        encoded = self.model(
            input_ids,
            attention_mask,
            inputs_embeds,
            position_ids,
            past_key_values=past_key_values,
            use_cache=use_cache,
            return_dict=True,
            **kwargs,
        )
        x = encoded.last_hidden_state
        if labels is None:
            x = x[:, slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep]
        logits = self.decoder(x)
        # The labels are moved and not the logits, of which a part would be copied.
        following = None if labels is None else nn.functional.pad(labels[:, 1:], (0, 1), value=IGNORED)
        loss, aux_loss = self.losses(logits, following, encoded.auxiliary_losses, num_items_in_batch)
        output = CrammedCausalLMOutput(
            loss=loss,
            logits=logits if with_logits else None,
            past_key_values=encoded.past_key_values,
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
            aux_loss=aux_loss,
            auxiliary_losses=encoded.auxiliary_losses,
        )
        return output if wants_dict(self.config, return_dict) else output.to_tuple()
