"""MLM loss and accuracy on held-out text, with the unigram baseline of the same tokens. Not when it is due."""

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn

from cramming.data.loader import Masker, Microbatch
from cramming.data.shards import PreparedData

VALIDATION_SEED = 20231121  # masks of the validation text are the same for every run and seed


class Validation:
    """A fixed set of masked validation sequences, the same for every run on the same data.

    Args:
        sequences: at most this many, evenly spread over the held-out text.
    """

    def __init__(self, data: PreparedData, *, sequences: int, microbatch: int, rate: float, mask_id: int) -> None:
        count = min(sequences, len(data.valid))
        self.data, self.microbatch = data, microbatch
        self.positions = np.unique(np.linspace(0, len(data.valid) - 1, count).round().astype(np.int64))
        self.masker = Masker(VALIDATION_SEED, rate, data.vocab_size, mask_id)

    def __len__(self) -> int:
        """Number of sequences."""
        return len(self.positions)

    def batches(self, process: int = 0, processes: int = 1) -> list[Microbatch]:
        """This process's share of the set."""
        chunks = [self.positions[i : i + self.microbatch] for i in range(0, len(self), self.microbatch)]
        return [self.masker(self.data.valid.take(chunk), chunk) for chunk in chunks[process::processes]]

    @torch.no_grad()
    def run(self, model: nn.Module, accelerator: Accelerator) -> dict[str, float]:
        """Loss (nats per masked token) and accuracy of the model in evaluation mode, over all processes."""
        was_training = model.training
        model.eval()
        sums = torch.zeros(3, dtype=torch.float64, device=accelerator.device)
        for batch in self.batches(accelerator.process_index, accelerator.num_processes):
            b = batch.to(accelerator.device)
            output = model(input_ids=b.input_ids, masked_positions=b.masked_positions, labels=b.labels)
            count = b.labels.numel()
            right = (output.logits.argmax(-1) == b.labels).sum()
            sums += torch.stack([output.loss.double() * count, right.double(), right.new_tensor(count).double()])
        model.train(was_training)
        total = accelerator.reduce(sums, "sum").tolist()
        return {"loss": total[0] / total[2], "accuracy": total[1] / total[2]}

    def unigram_loss(self) -> float:
        """Cross-entropy (nats) of the same masked tokens under the training tokens' frequencies, add-one smoothed."""
        counts = self.data.unigram_counts().astype(np.float64) + 1.0
        log_p = np.log(counts / counts.sum())
        labels = np.concatenate([b.labels.numpy().ravel() for b in self.batches()])
        return float(-log_p[labels].mean())
