"""Tiny, untrained models of other houses, each with an input and the feedforward blocks that it has. Not a test."""

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
import transformers as t
from torch import Tensor, nn

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
TEXT = SIZES | {"vocab_size": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
GROUPED = TEXT | {"num_key_value_heads": 2, "hidden_act": "gelu"}
T5 = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "vocab_size": 64}
BART = {"d_model": 32, "vocab_size": 64} | {
    f"{side}_{key}": value
    for side in ("encoder", "decoder")
    for key, value in (("layers", 1), ("attention_heads", 4), ("ffn_dim", 48))
}


class Foreign(NamedTuple):
    """How to make a model, what to call it with, and the paths of its blocks with {} for 0 and 1."""

    make: Callable[[], nn.Module]
    inputs: str
    paths: tuple[str, ...]

    @property
    def blocks(self) -> list[str]:
        """The paths of the blocks, in order."""
        return [path.format(n) for path in self.paths for n in ((0, 1) if "{}" in path else (0,))]


def t5(gated: bool) -> nn.Module:
    config = t.T5Config(**T5, feed_forward_proj="gated-gelu" if gated else "gelu", decoder_start_token_id=0)
    config.dense_act_fn = "gelu"  # not gelu's approximation, so that a DenseFF computes the same
    return t.T5ForConditionalGeneration(config)


def timm_vit() -> nn.Module:
    timm = pytest.importorskip("timm", reason="timm is not in the lock file; install it to try its Mlp")
    return timm.models.vision_transformer.VisionTransformer(
        img_size=16, patch_size=8, embed_dim=32, depth=2, num_heads=4, mlp_ratio=1.5, num_classes=3
    )


T5_PATHS = ("encoder.block.{}.layer.1.DenseReluDense", "decoder.block.{}.layer.2.DenseReluDense")
# fmt: off
TRANSFORMERS = {
    "bert": Foreign(lambda: t.BertForSequenceClassification(t.BertConfig(**TEXT)), "ids", ("bert.encoder.layer.{}",)),
    "minilm": Foreign(lambda: t.BertModel(t.BertConfig(**TEXT)), "ids", ("encoder.layer.{}",)),
    "roberta": Foreign(
        lambda: t.RobertaForMaskedLM(t.RobertaConfig(**TEXT)), "ids", ("roberta.encoder.layer.{}",),
    ),
    "distilbert": Foreign(
        lambda: t.DistilBertForMaskedLM(
            t.DistilBertConfig(dim=32, n_layers=2, n_heads=4, hidden_dim=48, vocab_size=64, dropout=0.25)
        ),
        "ids", ("distilbert.transformer.layer.{}.ffn",),
    ),
    "modernbert": Foreign(
        lambda: t.ModernBertForMaskedLM(t.ModernBertConfig(
            **TEXT, cls_token_id=1, sep_token_id=2, mlp_bias=True, mlp_dropout=0.25,
        )), "ids", ("model.layers.{}.mlp",),
    ),
    "gpt2": Foreign(
        lambda: t.GPT2LMHeadModel(t.GPT2Config(
            n_embd=32, n_layer=2, n_head=4, n_inner=48, vocab_size=64, bos_token_id=1, eos_token_id=2,
            activation_function="gelu",
        )), "ids", ("transformer.h.{}.mlp",),
    ),
    "llama": Foreign(
        lambda: t.LlamaForCausalLM(t.LlamaConfig(**GROUPED, mlp_bias=True)), "ids", ("model.layers.{}.mlp",),
    ),
    "mistral": Foreign(lambda: t.MistralForCausalLM(t.MistralConfig(**GROUPED)), "ids", ("model.layers.{}.mlp",)),
    "qwen3": Foreign(
        lambda: t.Qwen3ForCausalLM(t.Qwen3Config(**GROUPED, head_dim=16)), "ids", ("model.layers.{}.mlp",),
    ),
    "phi3": Foreign(lambda: t.Phi3ForCausalLM(t.Phi3Config(**GROUPED)), "ids", ("model.layers.{}.mlp",)),
    "t5": Foreign(lambda: t5(False), "both", T5_PATHS),
    "t5-gated": Foreign(lambda: t5(True), "both", T5_PATHS),
    "bart": Foreign(
        lambda: t.BartForConditionalGeneration(t.BartConfig(**BART)), "both",
        ("model.encoder.layers.0", "model.decoder.layers.0"),
    ),
    "opt": Foreign(
        lambda: t.OPTForCausalLM(t.OPTConfig(
            **{key: value for key, value in TEXT.items() if key != "intermediate_size"}, ffn_dim=48,
            word_embed_proj_dim=32, activation_function="gelu",
        )), "ids", ("model.decoder.layers.{}",),
    ),
    "albert": Foreign(
        lambda: t.AlbertModel(t.AlbertConfig(**TEXT, embedding_size=16, hidden_act="gelu")), "ids",
        ("encoder.albert_layer_groups.0.albert_layers.0",),
    ),
    "vit": Foreign(
        lambda: t.ViTForImageClassification(t.ViTConfig(**SIZES, image_size=16, patch_size=8)), "image",
        ("vit.layers.{}.mlp",),
    ),
}
MODELS = TRANSFORMERS | {
    "timm": Foreign(timm_vit, "tensor image", ("blocks.{}.mlp",)),
    "torch": Foreign(
        lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(32, 4, 48, activation="gelu", batch_first=True), 2),
        "vectors", ("layers.{}",),
    ),
    "torch-seq2seq": Foreign(
        lambda: nn.Transformer(32, 4, 1, 1, 48, activation="gelu", batch_first=True), "two of vectors",
        ("encoder.layers.0", "decoder.layers.0"),
    ),
    "sequential": Foreign(
        lambda: nn.Sequential(nn.LayerNorm(32), nn.Sequential(
            nn.Linear(32, 48), nn.GELU(), nn.Dropout(0.5), nn.Linear(48, 32), nn.Dropout(0.25),
        )), "vectors", ("1",),
    ),
}
# fmt: on


def foreign(name: str) -> nn.Module:
    """The model, in evaluation mode, with biases that are not 0."""
    torch.manual_seed(0)
    model = MODELS[name].make().eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if key.endswith("bias"):
                parameter.normal_(std=0.1)
    return model


def inputs_of(name: str) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    """Positional and keyword arguments for a call of the model."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, 64, (2, 7), generator=generator)
    vectors, image = torch.randn(2, 7, 32, generator=generator), torch.randn(2, 3, 16, 16, generator=generator)
    return {
        "ids": ((), {"input_ids": ids, "attention_mask": torch.ones_like(ids)}),
        "both": ((), {"input_ids": ids, "attention_mask": torch.ones_like(ids), "decoder_input_ids": ids}),
        "image": ((), {"pixel_values": image}),
        "tensor image": ((image,), {}),
        "vectors": ((vectors,), {}),
        "two of vectors": ((vectors, vectors), {}),
    }[MODELS[name].inputs]  # type: ignore[return-value]


def output_of(name: str, model: nn.Module) -> Tensor:
    """The first tensor that a call of the model gives."""
    args, kwargs = inputs_of(name)
    result: Any = model(*args, **kwargs)
    return result if isinstance(result, Tensor) else result[0]
