"""Masked tokens, BERT's objective: batches, loss, validation figures. Not the draw of the masks (data.masking)."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from cramming.data.masking import mask_tokens, masked_count
from cramming.model import CrammedForMaskedLM
from cramming.model.language import CrammedLanguageModel
from cramming.objectives.base import MASK_TOKEN, Batch, Objective, loss_of_guessing, parts_of, sums_of

VALIDATION_SEED = 20231121  # masks of the validation text are the same for every run and seed


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
    unit: ClassVar[str] = "masked token"
    model: ClassVar[type[CrammedLanguageModel]] = CrammedForMaskedLM
    example_masks: ClassVar[tuple[int, ...]] = (1,)

    seed: int
    rate: float
    vocab_size: int
    mask_id: int

    @classmethod
    def of(cls, *, seed: int, mask_rate: float, vocab_size: int, token_id: Callable[[str], int]) -> Self:
        """The objective of a run."""
        return cls(seed, mask_rate, vocab_size, token_id(MASK_TOKEN))

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
        return parts_of(self.name, model(**batch.inputs, with_logits=False))

    @torch.no_grad()
    def sums(self, model: nn.Module, batch: MaskedBatch) -> Tensor:
        """Summed loss, right guesses, masked tokens."""
        output = model(**batch.inputs)
        return sums_of(output.loss, output.logits, batch.labels)

    def figures(self, sums: list[float]) -> dict[str, float]:
        """`loss` (nats per masked token) and `accuracy`."""
        return {"loss": sums[0] / sums[2], "accuracy": sums[1] / sums[2]}

    def baseline(self, counts: np.ndarray, batches: Iterable[Any]) -> float:
        """Cross-entropy of the masked tokens under the training tokens' frequencies, add-one smoothed."""
        return loss_of_guessing(counts, (batch.labels for batch in batches))

    def shown(
        self, model: CrammedLanguageModel, tokenizer: PreTrainedTokenizerBase, examples: Sequence[str]
    ) -> Iterator[tuple[str, str]]:
        """The five tokens that it holds likely for <mask>, with their probabilities."""
        if not examples:
            return
        from transformers import pipeline  # slow to import, and needed at the end only

        fill = pipeline("fill-mask", model=model, tokenizer=tokenizer, device="cpu")  # type: ignore[call-overload]
        for text in examples:
            yield text, ", ".join(f"{guess['token_str']} {guess['score']:.0%}" for guess in fill(text, top_k=5))
