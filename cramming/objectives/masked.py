"""Masked tokens, BERT's objective: batches, loss, validation figures. Not the draw of the masks (data.masking)."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor, nn

from cramming.data.masking import mask_tokens, masked_count
from cramming.objectives.base import Batch, Objective

VALIDATION_SEED = 20231121  # masks of the validation text are the same for every run and seed
MASK_TOKEN = "<mask>"


@dataclass(frozen=True)
class MaskedBatch(Batch):
    """Tokens with masks: input_ids (m, S), and K predicted tokens of each sequence."""

    masked_positions: Tensor  # (m, K) int64, ascending
    labels: Tensor  # (m, K) int64


@dataclass(frozen=True)
class MaskedTokens(Objective):
    """Predict a fixed share of each sequence's tokens from the rest (arXiv 2212.14034, section 4.3).

    Args:
        rate: share of a sequence's positions that is predicted.
        mask_id: id of the token <mask>.
    """

    name: ClassVar[str] = "mlm"

    seed: int
    rate: float
    vocab_size: int
    mask_id: int

    def batch(self, sequences: np.ndarray, positions: np.ndarray) -> MaskedBatch:
        """Mask sequences (m, S) at run positions (m,)."""
        arrays = mask_tokens(
            sequences, positions, seed=self.seed, rate=self.rate, vocab_size=self.vocab_size, mask_id=self.mask_id
        )
        return MaskedBatch(*(torch.from_numpy(array) for array in arrays))

    def predicted(self, length: int) -> int:
        """Masked tokens of a sequence, the same number for all."""
        return masked_count(self.rate, length)

    def for_validation(self) -> Self:
        """With VALIDATION_SEED."""
        return replace(self, seed=VALIDATION_SEED)

    def losses(self, model: nn.Module, batch: MaskedBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross-entropy per masked token ("mlm"); with hardening losses also "aux", their weighted sum, and "aux_...".

        The logits are left out: 4096 predictions of 32768 tokens are half a gigabyte in float32.
        """
        output = model(**batch.inputs, with_logits=False)
        loss, aux = output.loss.detach(), output.aux_loss
        if aux is None:
            return output.loss, {self.name: loss}
        named = {f"aux_{name}": value.detach() for name, value in (output.auxiliary_losses or {}).items()}
        return output.loss, {self.name: loss - aux.detach(), "aux": aux.detach(), **named}

    @torch.no_grad()
    def sums(self, model: nn.Module, batch: MaskedBatch) -> Tensor:
        """Summed loss, right guesses, masked tokens."""
        output = model(**batch.inputs)
        count = batch.labels.numel()
        right = (output.logits.argmax(-1) == batch.labels).sum()
        return torch.stack([output.loss.double() * count, right.double(), right.new_tensor(count).double()])

    def figures(self, sums: list[float]) -> dict[str, float]:
        """`loss` (nats per masked token) and `accuracy`."""
        return {"loss": sums[0] / sums[2], "accuracy": sums[1] / sums[2]}

    def baseline(self, counts: np.ndarray, batches: Iterable[Any]) -> float:
        """Cross-entropy of the masked tokens under the training tokens' frequencies, add-one smoothed."""
        smoothed = counts.astype(np.float64) + 1.0
        log_p = np.log(smoothed / smoothed.sum())
        labels = np.concatenate([batch.labels.numpy().ravel() for batch in batches])
        return float(-log_p[labels].mean())
