"""A tiny random BERT with a tokenizer and text, to be converted in a second. Not a test."""

import random
from pathlib import Path
from typing import Any

import torch
import transformers as t
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from cramming.convert.pretrained.config import DistillConfig
from cramming.convert.pretrained.job import Job, Texts
from cramming.convert.pretrained.teacher import Teacher, teacher_of
from tests.helpers.tiny import NOUNS, VERBS

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
QUICK: dict[str, Any] = {
    "model": "tiny",
    "to": "leaf:1x12+8",
    "controls": ["none", "narrow:12"],
    "tokens": 4000,
    "seq_len": 32,
    "fit_tokens": 3000,
    "block_tokens": 4000,
    "block_batch": 256,
    "whole_tokens": 4000,
    "whole_batch": 8,
    "neighbours": 12,
    "checkpoint_steps": 3,
    "compute": "float32",
    "times": False,
}


def documents(count: int = 300, seed: int = 0) -> list[str]:
    """Made-up text of a few sentences each."""
    draw = random.Random(seed)
    return [
        " ".join(
            f"The {draw.choice(NOUNS)} {draw.choice(VERBS)} the {draw.choice(NOUNS)} near the {draw.choice(NOUNS)} ."
            for _ in range(draw.randint(2, 6))
        )
        for _ in range(count)
    ]


def tokenizer(extra: int = 0) -> t.PreTrainedTokenizerFast:
    """Words of `documents`, and `extra` ones that no text has."""
    words = [*SPECIAL, "The", "the", "near", ".", *NOUNS, *VERBS, *(f"extra{n}" for n in range(extra))]
    made = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return t.PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )


def bert(**changes: Any) -> t.BertModel:
    """Random, with weights large enough that feedforward blocks matter."""
    torch.manual_seed(0)
    config = t.BertConfig(**SIZES, vocab_size=32, max_position_embeddings=64, initializer_range=0.3, **changes)
    model = t.BertModel(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.1)
    return model


def llama() -> t.LlamaForCausalLM:
    """A tiny decoder, gated."""
    torch.manual_seed(0)
    config = t.LlamaConfig(**SIZES, vocab_size=32, max_position_embeddings=64, initializer_range=0.2)
    return t.LlamaForCausalLM(config).eval()


GGUF_BLOCK = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
GGUF_WHOLE = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def write_gguf(path: Path, model: t.LlamaForCausalLM) -> None:
    """A decoder's float32 weights in one .gguf file, without a tokenizer. Needs the package gguf."""
    from gguf import GGUFWriter

    config = model.config
    writer = GGUFWriter(str(path), "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    for key, weight in model.state_dict().items():
        name = key.removesuffix(".weight")
        if name in GGUF_WHOLE:
            theirs = GGUF_WHOLE[name]
        else:
            _, _, number, inner = name.split(".", 3)
            theirs = f"blk.{number}.{GGUF_BLOCK[inner]}"
        if name.endswith(("q_proj", "k_proj")):  # its rotation takes neighbours, transformers' takes halves
            weight = weight.unflatten(0, (config.num_attention_heads, 2, -1)).transpose(1, 2).flatten(0, 2)
        writer.add_tensor(f"{theirs}.weight", weight.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def teacher(model: Any = None) -> Teacher:
    """The model with its tokenizer."""
    return teacher_of(bert() if model is None else model, tokenizer(), "tiny")


def job(folder: Path, model: Any = None, **changes: Any) -> Job:
    """A conversion of seconds."""
    return Job(teacher(model), Texts(documents(), documents(60, 1)), DistillConfig(**(QUICK | changes)), folder)
