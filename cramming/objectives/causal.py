"""Next tokens, a decoder's objective: batches, loss, validation figures, text that goes on. Not the model."""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar, Self

import numpy as np
import torch
from tokenizers import processors
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from cramming.data.tokenizer import SEP, SPECIAL_TOKENS
from cramming.model import CrammedForCausalLM
from cramming.model.language import CrammedLanguageModel
from cramming.objectives.base import MASK_TOKEN, Batch, Objective, loss_of_guessing, parts_of, sums_of

MOST_NEW = 40  # tokens of a sample of text


class CausalTokens(Objective):
    """Predict each token of a sequence from those before it; the first alone is not predicted. Nothing is random.

    Documents follow one another in a sequence, each ended by <sep>, and see those before them, as GPT-2's.
    """

    name: ClassVar[str] = "causal"
    unit: ClassVar[str] = "token"
    model: ClassVar[type[CrammedLanguageModel]] = CrammedForCausalLM
    encoder: ClassVar[Mapping[str, Any]] = MappingProxyType({"causal": True, "eos_token_id": SEP})
    example_masks: ClassVar[tuple[int, ...]] = (0, 1)

    @classmethod
    def of(cls, *, seed: int, mask_rate: float, vocab_size: int, token_id: Callable[[str], int]) -> Self:
        """The objective; nothing concerns it."""
        return cls()

    def batch(self, sequences: np.ndarray, positions: np.ndarray) -> Batch:
        """The sequences (m, S) themselves."""
        return Batch(torch.from_numpy(sequences))

    def predicted(self, length: int) -> int:
        """All but the first."""
        return length - 1

    def for_validation(self) -> Self:
        """Itself."""
        return self

    def losses(self, model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross-entropy per token ("causal"), and auxiliary losses as of masked tokens."""
        return parts_of(self.name, model(**batch.inputs, labels=batch.input_ids, with_logits=False))

    @torch.no_grad()
    def sums(self, model: nn.Module, batch: Batch) -> Tensor:
        """Summed loss, right guesses, predicted tokens."""
        output = model(**batch.inputs, labels=batch.input_ids)
        return sums_of(output.loss, output.logits[:, :-1], batch.input_ids[:, 1:])

    def figures(self, sums: list[float]) -> dict[str, float]:
        """`loss` (nats per token), `accuracy`, and `perplexity`, the loss's exponential."""
        loss = sums[0] / sums[2]
        return {"loss": loss, "accuracy": sums[1] / sums[2], "perplexity": float(np.exp(loss))}

    def baseline(self, counts: np.ndarray, batches: Iterable[Any]) -> float:
        """Cross-entropy of the predicted tokens under the training tokens' frequencies, add-one smoothed."""
        return loss_of_guessing(counts, (batch.input_ids[:, 1:] for batch in batches))

    @torch.no_grad()
    def shown(
        self, model: CrammedLanguageModel, tokenizer: PreTrainedTokenizerBase, examples: Sequence[str]
    ) -> Iterator[tuple[str, str]]:
        """How each text goes on from its <mask>, or from its end; greedily, with repetitions made less likely."""
        longest, decoder = model.config.max_position_embeddings, self.exported(tokenizer)
        for text in examples:
            given = text.partition(MASK_TOKEN)[0].strip()
            # Nothing is the beginning of a document, which follows on the end of another one.
            ids = torch.tensor([decoder(given)["input_ids"] or [SEP]])
            settings = {"do_sample": False, "repetition_penalty": 1.3, "attention_mask": torch.ones_like(ids)}
            made: Any = model.generate(ids, max_new_tokens=min(MOST_NEW, longest - ids.shape[1]), **settings)  # type: ignore[operator]
            yield given, str(decoder.decode(made[0, ids.shape[1] :], skip_special_tokens=True))

    def exported(self, tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
        """A copy that does not end a text, so that it can go on, and pads on the left, where nothing goes on."""
        made: Any = copy.deepcopy(tokenizer)
        made.padding_side = made.init_kwargs["padding_side"] = "left"  # the latter is what a folder keeps
        made.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single="$A", pair="$A <sep> $B:0", special_tokens=[(SPECIAL_TOKENS[SEP], SEP)]
        )
        return made
