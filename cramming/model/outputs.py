"""What the models return: transformers' outputs with the auxiliary losses of FFF layers. Not their computation."""

from dataclasses import dataclass

from torch import Tensor
from transformers import Cache
from transformers.modeling_outputs import BaseModelOutput, CausalLMOutputWithPast, MaskedLMOutput


@dataclass
class CrammedOutput(BaseModelOutput):
    """The encoder's output; `auxiliary_losses` (means over layers, unweighted) in training with a hardening loss.

    `past_key_values` is there where a causal model was asked for it.
    """

    past_key_values: Cache | None = None
    auxiliary_losses: dict[str, Tensor] | None = None


@dataclass
class CrammedMaskedLMOutput(MaskedLMOutput):
    """MLM's output; `aux_loss` is the weighted sum of `auxiliary_losses` and is contained in `loss`."""

    aux_loss: Tensor | None = None
    auxiliary_losses: dict[str, Tensor] | None = None


@dataclass
class CrammedCausalLMOutput(CausalLMOutputWithPast):
    """A causal model's output; `aux_loss` and `auxiliary_losses` as above."""

    aux_loss: Tensor | None = None
    auxiliary_losses: dict[str, Tensor] | None = None
