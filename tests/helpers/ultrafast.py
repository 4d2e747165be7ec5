"""A made-up checkpoint with the authors' names and shapes. Not a test."""

import math

import torch

H, HEADS, LAYERS, V, S = 32, 4, 2, 50, 16


def synthetic(trees: int, depth: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(trees * 100 + depth)
    rows = trees * (2 ** (depth + 1) - 1)
    word = torch.randn(V, H)
    state = {
        "encoder.embedding.word_embedding.weight": word,
        "encoder.embedding.pos_embedding.scale_factor": torch.tensor([0.3]),
        "encoder.final_norm.weight": torch.randn(H),
        "encoder.final_norm.bias": torch.randn(H),
        "encoder.embedding.norm.weight": torch.randn(H),
        "encoder.embedding.norm.bias": torch.randn(H),
        "decoder.weight": word.clone(),
    }
    for i in range(LAYERS):
        p = f"encoder.layers.{i}."
        for norm in ("norm1", "norm2"):
            state[f"{p}{norm}.weight"], state[f"{p}{norm}.bias"] = torch.randn(H), torch.randn(H)
        state[p + "attn.self_attention.norm_factor"] = torch.tensor(1 / math.sqrt(H / HEADS))
        state[p + "attn.self_attention.query_key_value.weight"] = torch.randn(3 * H, H) / 4
        state[p + "attn.dense.weight"] = torch.randn(H, H) / 4
        state[p + "ffn.linear_in.weight"] = torch.randn(rows, H)
        state[p + "ffn.linear_in.bias"] = torch.randn(rows)
        state[p + "ffn.linear_out.weight"] = torch.randn(H, rows) / 4
    return state
