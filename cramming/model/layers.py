"""Parts of the encoder: embedding, attention, block. Not the models made of them (modeling.py)."""

from typing import Any

import torch
from torch import nn
from torch.nn.modules import module as torch_module
from transformers import Cache
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .configuration import CrammedConfig
from .needed import Feedforward, Unsaved, settings_from
from .positions import Rotation, rotate, sinusoid_table


class CrammedEmbedding(Unsaved):
    """Word embedding (+ learned scale x sinusoidal positions), normalised. (B, S) -> (B, S, H)."""

    def __init__(self, config: CrammedConfig) -> None:
        super().__init__()
        self.words = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id)
        self.longest = config.max_position_embeddings
        self.position_scale = None
        if config.positions == "sinusoidal":
            self.position_scale = nn.Parameter(torch.empty(1))
            self.keep("positions", sinusoid_table(self.longest, config.hidden_size))
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(
        self,
        input_ids: torch.Tensor | None,
        inputs_embeds: torch.Tensor | None,
        position_ids: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Embed tokens (B, S), or add positions, (B, S) or counted from 0, to given vectors (B, S, H)."""
        x = self.words(input_ids) if inputs_embeds is None else inputs_embeds
        length = x.shape[1]
        if length > self.longest:
            raise ValueError(f"The input has {length} tokens; the model takes {self.longest} at most.")
        if self.position_scale is not None:
            table = self.unsaved("positions", x.device)
            places = table[:length] if position_ids is None else table[position_ids]
            x = x + self.position_scale * places.to(self.position_scale.dtype)
        return self.dropout(self.norm(x))


class CrammedAttention(nn.Module):
    """Self-attention without biases; the rows of `qkv` are all queries, then all keys, then all values.

    Args:
        layer: its number in the model, by which a cache keeps its keys and values.
    """

    def __init__(self, config: CrammedConfig, layer: int = 0) -> None:
        super().__init__()
        self.config, self.layer_idx = config, layer
        self.is_causal = config.causal  # read by transformers' attention functions where there is no mask
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=False)
        self.out = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(
        self,
        x: torch.Tensor,
        mask: torch.Tensor | None,
        rotation: Rotation | None,
        look: bool = False,
        past_key_values: Cache | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Mix the tokens of x (B, S, H), and earlier ones that the cache holds, which it is made to remember.

        With `look` also the weights (B, heads, S, tokens seen), written out.
        """
        B, S, H = x.shape
        q, k, v = self.qkv(x).view(B, S, 3, -1, self.head_dim).permute(2, 0, 3, 1, 4)
        if rotation is not None:
            q, k = rotate(q, rotation), rotate(k, rotation)
        if past_key_values is not None:
            k, v = past_key_values.update(k, v, self.layer_idx)
        attend = eager_attention
        if not look:
            attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention)
        mixed, weights = attend(self, q, k, v, mask, dropout=0.0, scaling=self.scaling)
        return self.out(mixed.reshape(B, S, H)), weights


def eager_attention(
    module: nn.Module, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None, **options: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention written out, for `attn_implementation="eager"` or to look at its weights.

    q, k, v (B, heads, S, head); mask is added to the scores, or bool, True where a token may look. Without a mask all
    are seen, or by a causal module those up to the query, of which the last is the last key.
    """
    scores = (q @ k.transpose(-1, -2)) * options["scaling"]
    if mask is None and getattr(module, "is_causal", False):
        rows, columns = scores.shape[-2:]
        mask = torch.ones(rows, columns, dtype=torch.bool, device=scores.device).tril(columns - rows)
    if mask is not None:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min) if mask.dtype == torch.bool else scores + mask
    weights = scores.softmax(-1, dtype=torch.float32).to(q.dtype)
    return (weights @ v).transpose(1, 2), weights


class CrammedBlock(GradientCheckpointingLayer):
    """Pre-norm block: x + attention(norm(x)), then x + feedforward(norm(x)) unless the feedforward is "none"."""

    def __init__(self, config: CrammedConfig, layer: int = 0) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attention = CrammedAttention(config, layer)
        self.ffn = settings_from(config.ffn, "ffn").build(config.hidden_size, config.hidden_size)
        self.ffn_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps) if self.ffn is not None else None
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    @property
    def loss_names(self) -> tuple[str, ...]:
        """The auxiliary losses that a forward pass computes now, none in evaluation."""
        return self.ffn.losses if isinstance(self.ffn, Feedforward) and self.ffn.training else ()

    def forward(
        self,
        x: torch.Tensor,
        mask: torch.Tensor | None,
        rotation: Rotation | None,
        look: bool = False,
        tokens: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
    ) -> tuple[torch.Tensor | None, ...]:
        """Apply both branches to x (B, S, H); tokens (B, S) are their ids, for feedforwards that ask for them.

        Returns:
            The sum; attention's weights (B, heads, S, S) with `look`; then the auxiliary losses of `loss_names`, beside
            them and in no dict: reentrant checkpointing sees the gradients of a tuple's own tensors alone.
        """
        mixed, weights = self.attention(self.attention_norm(x), mask, rotation, look, past_key_values)
        x = x + self.dropout(mixed)
        if self.ffn is None or self.ffn_norm is None:
            return x, weights
        normed, ffn = self.ffn_norm(x), self.ffn
        losses: dict[str, torch.Tensor] = {}
        if self.loss_names:
            y, losses = ffn.forward_with_losses(normed)
        else:
            y = ffn(normed, tokens) if getattr(ffn, "reads_tokens", False) else ffn(normed)
        y = self.dropout(y)
        # This x is the block's own. A new tensor of many tokens costs more than the sum: the system clears its pages.
        in_place = not (torch.is_grad_enabled() or _watched(self.ffn_norm))
        return (x.add_(y) if in_place else x + y), weights, *(losses[name] for name in self.loss_names)


def _watched(module: nn.Module) -> bool:
    """Whether a hook sees, and may keep, what the module is given."""
    everywhere = torch_module._global_forward_hooks or torch_module._global_forward_pre_hooks
    return bool(module._forward_hooks or module._forward_pre_hooks or everywhere)
