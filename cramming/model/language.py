"""What the models that predict tokens share: a decoder tied to the word embedding, auxiliary losses. Not the losses."""

from typing import Any

import torch
from torch import nn

from .configuration import CrammedConfig
from .encoder import CrammedModel, CrammedPreTrainedModel
from .losses import IGNORED, cross_entropy
from .needed import Feedforward, Unsaved


class CrammedLanguageModel(CrammedPreTrainedModel, Unsaved):
    """The encoder with a decoder tied to the word embedding, without transform and bias."""

    _tied_weights_keys = {"decoder.weight": "model.embedding.words.weight"}  # noqa: RUF012 (read by transformers)

    def __init__(self, config: CrammedConfig) -> None:
        super().__init__(config)
        self.model = CrammedModel(config)
        self.decoder = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        weights: dict[str, float] = {}
        for module in self.modules():
            if isinstance(module, Feedforward):
                weights |= module.loss_weights
        self.loss_names = tuple(weights)
        self.keep("auxiliary_weights", torch.tensor(list(weights.values()), dtype=torch.float32, device="cpu"))
        self.post_init()

    @property
    def auxiliary_weights(self) -> torch.Tensor:
        """Weights of the losses in `loss_names`, in that order: the layers' own unless training sets them."""
        return self.unsaved("auxiliary_weights", self.decoder.weight.device)

    def set_auxiliary_weights(self, weights: dict[str, float]) -> None:
        """Set weights by name; names that no layer knows are left out."""
        for place, name in enumerate(self.loss_names):
            if name in weights:  # filled: a copy from the host would wait for the device
                self.auxiliary_weights[place].fill_(weights[name])

    def encode(self, input_ids: torch.Tensor) -> Any:
        """The encoder's output of tokens (B, S), without predictions."""
        return self.model(input_ids=input_ids)

    def losses(
        self,
        logits: torch.Tensor,
        labels: torch.Tensor | None,
        auxiliary: dict[str, torch.Tensor] | None,
        items: torch.Tensor | int | None,
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """The loss of logits (..., V) for labels (...), auxiliary losses included, and their weighted sum.

        None where there are no labels, and no such losses.

        Args:
            items: labels of the whole batch, see `cramming.model.losses.cross_entropy`.
        """
        aux_loss = self._weighted(auxiliary, labels, items)
        if labels is None:
            return None, aux_loss
        loss = cross_entropy(logits.flatten(0, -2), labels.flatten(), items)
        return loss if aux_loss is None else loss + aux_loss, aux_loss

    def _weighted(
        self,
        losses: dict[str, torch.Tensor] | None,
        labels: torch.Tensor | None,
        items: torch.Tensor | int | None,
    ) -> torch.Tensor | None:
        """The auxiliary losses' weighted sum; None without any.

        Args:
            labels: of this part of a batch, -100 where there is none; items: of the whole batch, see
                `cramming.model.losses.cross_entropy`: the sum is then this part's share.
        """
        if not losses:
            return None
        weights = zip(self.auxiliary_weights, self.loss_names, strict=True)
        aux_loss: torch.Tensor = sum(w * losses[name] for w, name in weights if name in losses)
        if items is not None and labels is not None:
            aux_loss = aux_loss * (labels != IGNORED).sum() / items
        return aux_loss

    def get_output_embeddings(self) -> nn.Module:
        """The decoder."""
        return self.decoder

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Replace the decoder."""
        self.decoder = new_embeddings  # type: ignore[assignment]
