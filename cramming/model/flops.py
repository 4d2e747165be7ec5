"""What a pass of the crammed BERT must compute, from its configuration alone. Not how long it takes (bench.py)."""

from dataclasses import dataclass

from transformers import PreTrainedConfig

from fff.feedforward import settings_from

BACKWARD = 3  # a training step: the forward's products, and two as large for the gradients of inputs and weights


@dataclass(frozen=True)
class ModelFlops:
    """Floating-point operations per token of a training step (forward and backward), a product's sum counted as two.

    Counted: the four projections of attention, its scores and mixtures over all positions (of a causal model those
    seen, half of them), the feedforward layers, and the decoder at predicted positions; three times the forward's. Not
    counted: embeddings, norms, activations, the optimiser, and anything that is computed twice or in vain.

    Attributes:
        path: feedforward layers by the neurons that a token visits (12 of 1x11's 4095). What the model asks for.
        dense: by all neurons that are trained, as if each were computed. For dense layers the same.
    """

    path: float
    dense: float

    def utilisation(self, tokens_per_s: float, peak: float) -> dict[str, float]:
        """Model FLOP utilisation (MFU), shares of `peak` (FLOP/s of all devices): these FLOPs times tokens/s / peak.

        "mfu" counts the path alone; "mfu_dense_equivalent" is what a dense layer of as many neurons would have to reach
        for the same tokens per second, and may exceed 1.
        """
        return {
            "mfu": self.path * tokens_per_s / peak,
            "mfu_dense_equivalent": self.dense * tokens_per_s / peak,
        }


def training_flops(config: PreTrainedConfig, length: int, predicted: int) -> ModelFlops:
    """FLOPs per token of a crammed model's training step on sequences of `length` tokens, `predicted` of which are."""
    width = config.hidden_size
    seen = (length + 1) / 2 if config.causal else length
    attention = 8 * width * width + 4 * seen * width
    decoder = 2 * width * config.vocab_size * predicted / length
    layer = settings_from(config.ffn, "ffn").flops(width, width)
    layers = config.num_hidden_layers
    return ModelFlops(
        path=BACKWARD * (layers * (attention + layer.used) + decoder),
        dense=BACKWARD * (layers * (attention + layer.trained) + decoder),
    )
