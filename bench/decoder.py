"""A decoder of SmolLM2-135M's shape as it is timed: sizes, feedforwards, types, one token's step. Not timing it.

The step calls the model's own linears, layers and head with keys and values in memory that is there, without what
transformers does around them: at batch 1 that takes longer than small layers do.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from bench.touched import hooked
from cramming.convert.pretrained.faster import by_torch
from fff.kernels.int8_linear import unusable
from fff.optimise import optimise_for_cpu
from fff.surgery import replace_feedforward

DENSE, NONE = "dense", "none"
INT8, INT8_BY_TORCH = "int8", "int8 by torch"
FIRST_ID = 3
# Largest distance of the step's vectors from transformers', relative to their length.
DISTANCES = {"float32": 1e-3, "bfloat16": 5e-2, INT8: 5e-2, INT8_BY_TORCH: 5e-2}


@dataclass(frozen=True)
class Size:
    """Of a Llama with gated feedforward blocks and a head tied to the embedding; defaults are SmolLM2-135M's."""

    layers: int = 30
    width: int = 576
    neurons: int = 1536
    heads: int = 9
    key_heads: int = 3
    vocab_size: int = 49152
    rotary_base: float = 100000.0

    def model(self, room: int) -> LlamaForCausalLM:
        """With random weights, for at most `room` tokens."""
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=self.vocab_size,
            hidden_size=self.width,
            intermediate_size=self.neurons,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.key_heads,
            max_position_embeddings=room,
            rope_parameters={"rope_type": "default", "rope_theta": self.rotary_base},
            tie_word_embeddings=True,
        )
        return LlamaForCausalLM(config).eval()

    def tokens(self, count: int) -> Tensor:
        """Random ones, (count,): random weights would repeat their own, and visit the same rows of their trees."""
        return torch.randint(FIRST_ID, self.vocab_size, (count,), generator=torch.Generator().manual_seed(0))


def with_feedforward(size: Size, feedforward: str, room: int) -> LlamaForCausalLM:
    """The model with its own blocks ("dense"), with trees ("1x7"), or with nothing ("none") in their place."""
    model = size.model(room)
    if feedforward != DENSE:
        trees, _, depth = feedforward.partition("x")
        layer = {"kind": "path", "trees": int(trees), "depth": int(depth)} if depth else {"kind": "none"}
        replace_feedforward(model, layer)
    return model.eval()


def in_type(model: LlamaForCausalLM, dtype: str) -> LlamaForCausalLM:
    """A copy with weights of another type: "int8" by `fff.optimise`, "int8 by torch" by its dynamic quantisation.

    Either way trees have int8 rows. Where this machine cannot do the former's products, it is the latter too.
    """
    made = copy.deepcopy(model)
    if dtype not in (INT8, INT8_BY_TORCH):
        return made.to(getattr(torch, dtype))
    if dtype == INT8 and unusable() is None:
        optimise_for_cpu(made, linears="int8")
        return made
    return by_torch(made)


class Step:
    """Logits (V,) of the token after one more: `step(token, place)`, with earlier ones in the cache.

    Args:
        room: tokens that the cache has room for.
    """

    def __init__(self, model: LlamaForCausalLM, room: int) -> None:
        config: Any = model.config
        trunk = model.model
        self.model, self.eps = model, config.rms_norm_eps
        self.heads, self.key_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_dim = config.hidden_size // self.heads
        dtype = trunk.embed_tokens.weight.dtype
        shape = (1, self.key_heads, room, self.head_dim)
        self.keys = [torch.zeros(shape, dtype=dtype) for _ in trunk.layers]
        self.values = [torch.zeros(shape, dtype=dtype) for _ in trunk.layers]
        cos, sin = trunk.rotary_emb(torch.zeros((), dtype=dtype), torch.arange(room)[None])
        sign = torch.ones(self.head_dim).index_fill_(0, torch.arange(self.head_dim // 2), -1.0)
        self.cos, self.sin = cos[0], sin[0] * sign.to(dtype)  # of halves that change places, the first is subtracted

    def __call__(self, token: Tensor, place: int) -> Tensor:
        """Logits after `token` (1,), which stands at `place`."""
        trunk = self.model.model
        x = trunk.embed_tokens(token)
        for number, layer in enumerate(trunk.layers):
            x = x + self._attention(layer.self_attn, self._norm(x, layer.input_layernorm), number, place)
            x = x + layer.mlp(self._norm(x, layer.post_attention_layernorm))
        return self.model.lm_head(self._norm(x, trunk.norm))[0]

    def _norm(self, x: Tensor, norm: Any) -> Tensor:
        return functional.rms_norm(x, x.shape[-1:], norm.weight, self.eps)

    def _attention(self, attention: Any, x: Tensor, number: int, place: int) -> Tensor:
        q, k = attention.q_proj(x).view(-1, self.head_dim), attention.k_proj(x).view(-1, self.head_dim)
        both = torch.cat((q, k))
        turned = torch.addcmul(both * self.cos[place], both.roll(self.head_dim // 2, -1), self.sin[place])
        keys, values = self.keys[number], self.values[number]
        keys[0, :, place] = turned[self.heads :]
        values[0, :, place] = attention.v_proj(x).view(-1, self.head_dim)
        # Queries that share keys stand in the place of a text's positions.
        grouped = turned[: self.heads].view(1, self.key_heads, -1, self.head_dim)
        mixed = functional.scaled_dot_product_attention(grouped, keys[:, :, : place + 1], values[:, :, : place + 1])
        return attention.o_proj(mixed.reshape(1, -1))


def by_transformers(model: LlamaForCausalLM) -> Callable[[Tensor, int], Tensor]:
    """The same by the model's own forward; called with places 0, 1, 2, ... in order, where 0 begins anew."""
    cache = DynamicCache(config=model.config)

    def step(token: Tensor, place: int) -> Tensor:
        nonlocal cache
        if not place:
            cache = DynamicCache(config=model.config)
        return model(input_ids=token[None], past_key_values=cache, use_cache=True).logits[0, 0]

    return step


@torch.inference_mode()
def logits_of(step: Callable[[Tensor, int], Tensor], tokens: Tensor) -> Tensor:
    """Logits (n, V) float32 after each of the tokens (n,)."""
    return torch.stack([step(tokens[place : place + 1], place).float() for place in range(len(tokens))])


def check(model: LlamaForCausalLM, step: Step, tokens: Tensor, dtype: str, name: str) -> None:
    """AssertionError where the step computes something else than transformers does on tokens (n,).

    Feedforwards, which are the model's own in both, must be asked the same and then answer the same: in a small type
    rounding turns decisions, after which a tree's answer has nothing in common with the other one.
    """
    blocks = [layer.mlp for layer in model.model.layers]
    asked: dict[nn.Module, list[tuple[Tensor, Tensor]]] = {block: [] for block in blocks}
    pairs = []

    def keep(block: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        asked[block].append((inputs[0], output))

    def give(block: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        question, answer = asked[block].pop(0)
        pairs.append((inputs[0], question.view_as(inputs[0])))
        return answer.view_as(output)

    with hooked(blocks, keep):
        expected = logits_of(by_transformers(model), tokens)
    with hooked(blocks, give):
        pairs.append((logits_of(step, tokens), expected))
    distance = max(((found - wanted).norm() / wanted.norm()).item() for found, wanted in pairs)
    assert distance <= DISTANCES[dtype], f"{name}: {distance:.1e} from transformers, above {DISTANCES[dtype]:.0e}"
