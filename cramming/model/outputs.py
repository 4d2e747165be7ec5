"""What the models return: transformers' outputs with the auxiliary losses of FFF layers. Not their computation."""

from dataclasses import dataclass

from torch import Tensor
from transformers.modeling_outputs import BaseModelOutput, MaskedLMOutput


@dataclass
class CrammedOutput(BaseModelOutput):
    """The encoder's output; `auxiliary_losses` (means over layers, unweighted) in training with a hardening loss."""

    auxiliary_losses: dict[str, Tensor] | None = None


@dataclass
class CrammedMaskedLMOutput(MaskedLMOutput):
    """MLM's output; `aux_loss` is the weighted sum of `auxiliary_losses` and is contained in `loss`."""

    aux_loss: Tensor | None = None
    auxiliary_losses: dict[str, Tensor] | None = None
