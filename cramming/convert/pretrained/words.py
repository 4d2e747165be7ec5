"""A decoder's next words beside its teacher's: the divergence that training lowers. Not the text's own next words.

The teacher's last hidden states are on the disk, so that only its head is computed again.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from cramming.convert.pretrained.dense import TOLERANCE
from cramming.convert.pretrained.teacher import last_hidden
from cramming.convert.pretrained.text import Batch
from cramming.errors import UserError

HELD = 2**25  # logits at a time; where there are more, the backward pass computes them again


class Words:
    """The divergence of a student's next words from its teacher's, both decoders with a head on their hidden states."""

    def __init__(self, student: nn.Module, teacher: nn.Module) -> None:
        self.mine, self.theirs = (model.get_output_embeddings() for model in (student, teacher))  # type: ignore[operator]

    def divergence(self, mine: Tensor, theirs: Tensor) -> Tensor:
        """Mean over tokens of KL(teacher || student) in nats; hidden states (N, H) of both, gradients for the first."""
        size = max(1, HELD // self.theirs.weight.shape[0])
        parts = list(zip(mine.split(size), theirs.split(size), strict=True))
        if len(parts) == 1:
            return self._sum(mine, theirs) / len(mine)
        sums = [checkpoint(self._sum, *part, use_reentrant=False) for part in parts]
        return torch.stack(sums).sum() / len(mine)

    def _sum(self, mine: Tensor, theirs: Tensor) -> Tensor:
        with torch.no_grad():
            wanted = functional.log_softmax(self.theirs(theirs).float(), -1)
        found = functional.log_softmax(self.mine(mine).float(), -1)
        return functional.kl_div(found, wanted, reduction="sum", log_target=True)


@torch.no_grad()
def refuse_other_head(model: nn.Module, inputs: dict[str, Tensor]) -> None:
    """UserError where a decoder's next words are not its head's on its last hidden states (some scale or cap them)."""
    head = model.get_output_embeddings()  # type: ignore[operator]
    if head is not None:
        wanted = model(**inputs).logits
        found = head(last_hidden(model, Batch(inputs["input_ids"], inputs["attention_mask"])))
        if float((found - wanted).norm()) <= TOLERANCE * float(wanted.norm()):
            return
    raise UserError(
        "distill.model: its next words are more than a linear head on its hidden states, so a student cannot be held "
        "to them; set distill.word_weight=0."
    )
