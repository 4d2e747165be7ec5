"""What every objective of pretraining gives: batches, training loss, validation figures. Not an objective itself."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from cramming.data.loader import Sequences
from cramming.model.language import CrammedLanguageModel

MASK_TOKEN = "<mask>"


@dataclass(frozen=True)
class Batch:
    """Tensors of one microbatch of m sequences, named as the model's forward pass names its inputs."""

    input_ids: Tensor  # (m, S) int64

    @property
    def inputs(self) -> dict[str, Tensor]:
        """The tensors by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def to(self, device: torch.device) -> Self:
        """Move to a device; asynchronous from pinned memory."""
        return type(self)(**{name: tensor.to(device, non_blocking=True) for name, tensor in self.inputs.items()})

    def pinned(self) -> Self:
        """A copy in memory that a GPU reads by itself."""
        return type(self)(**{name: tensor.pin_memory() for name, tensor in self.inputs.items()})

    def head(self, sequences: int) -> Self:
        """The first sequences alone."""
        return type(self)(**{name: tensor[:sequences] for name, tensor in self.inputs.items()})


class Objective(ABC):
    """One way to pretrain. Another is one file with a subclass; the loop, the warm-up and the benches know this alone.

    Models are those of the objective; `model` below may be wrapped or compiled. All losses are in nats.
    """

    name: ClassVar[str]  # of the loss in `losses`, apart from auxiliary ones
    unit: ClassVar[str]  # what a loss is the mean over, in words
    model: ClassVar[type[CrammedLanguageModel]]
    encoder: ClassVar[Mapping[str, Any]] = MappingProxyType({})  # what its models' configuration has beside the sizes
    example_masks: ClassVar[tuple[int, ...]]  # how many <mask> an example may have

    @classmethod
    @abstractmethod
    def of(cls, *, seed: int, mask_rate: float, vocab_size: int, token_id: Callable[[str], int]) -> Self:
        """The objective of a run, from what runs and their data have; it takes what concerns it.

        Args:
            token_id: id of a special token.
        """

    @abstractmethod
    def batch(self, sequences: np.ndarray, positions: np.ndarray) -> Batch:
        """A microbatch of token sequences (m, S) int64 at run positions (m,), which decide all that is random in it."""

    @abstractmethod
    def predicted(self, length: int) -> int:
        """How many tokens of a sequence of `length` are predicted."""

    @abstractmethod
    def for_validation(self) -> Self:
        """The same with the randomness that every run's validation shares, whatever its seed."""

    @abstractmethod
    def losses(self, model: nn.Module, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """A training pass: the loss to go backward from, and its parts, detached: `name` and auxiliary ones."""

    @abstractmethod
    def sums(self, model: nn.Module, batch: Any) -> Tensor:
        """An evaluation pass: sums over the batch, float64 (k,), which add up over batches and processes."""

    @abstractmethod
    def figures(self, sums: list[float]) -> dict[str, float]:
        """What the sums of a whole validation set come to: `loss` and others by name."""

    @abstractmethod
    def baseline(self, counts: np.ndarray, batches: Iterable[Any]) -> float:
        """The loss of guessing by the training tokens' counts (V,), on the same batches."""

    @abstractmethod
    def shown(
        self, model: CrammedLanguageModel, tokenizer: PreTrainedTokenizerBase, examples: Sequence[str]
    ) -> Iterator[tuple[str, str]]:
        """What the model, in evaluation mode on the CPU, makes of texts: what it is given, and its answer."""

    def exported(self, tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
        """The data's tokenizer as the finished model's users need it."""
        return tokenizer

    def encode(self, model: Any, batch: Any) -> None:
        """A pass of the plain model's encoder alone, for what hooks on its layers see."""
        model.encode(batch.input_ids)

    def example(self, sequences: Sequences, count: int) -> Batch:
        """A batch of the run's shapes, from its first sequences; its content does not matter."""
        numbers = np.arange(count)
        return self.batch(sequences.take(numbers % len(sequences)), numbers)


def parts_of(name: str, output: Any) -> tuple[Tensor, dict[str, Tensor]]:
    """A model's loss to go backward from, and its parts, detached: `name`; of hardening losses "aux" and "aux_..."."""
    loss, aux = output.loss.detach(), output.aux_loss
    if aux is None:
        return output.loss, {name: loss}
    named = {f"aux_{key}": value.detach() for key, value in (output.auxiliary_losses or {}).items()}
    return output.loss, {name: loss - aux.detach(), "aux": aux.detach(), **named}


def sums_of(loss: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
    """Summed loss, right guesses and number of labels (...), from a mean loss and logits (..., V); float64 (3,)."""
    count, right = labels.numel(), (logits.argmax(-1) == labels).sum()
    return torch.stack([loss.double() * count, right.double(), right.new_tensor(count).double()])


def loss_of_guessing(counts: np.ndarray, labels: Iterable[Tensor]) -> float:
    """Cross-entropy (nats) of labels under the training tokens' counts (V,), add-one smoothed."""
    smoothed = counts.astype(np.float64) + 1.0
    log_p = np.log(smoothed / smoothed.sum())
    return float(-log_p[np.concatenate([each.numpy().ravel() for each in labels])].mean())
