"""The parts of a pretraining run, put together in one place for runs, checks and benches. Not their use (loop.py)."""

from collections.abc import Callable

import torch
from torch import nn

from cramming.errors import UserError
from cramming.files import short_hash
from cramming.model import CrammedConfig
from cramming.model.language import CrammedLanguageModel
from cramming.objectives.base import Objective
from cramming.objectives.config import OBJECTIVES
from cramming.parallel.world import World
from cramming.train.compiled import compile_blocks, compiled
from cramming.train.config import TrainConfig
from cramming.train.frozen import check_frozen
from cramming.train.hardening import LAYER_FORMS, Hardening
from cramming.train.optim import build_optimiser
from cramming.train.oracle import check_oracle
from cramming.train.parts import Parts, Tokens
from cramming.train.root import PretrainRoot
from cramming.train.split import check_split
from cramming.train.start import start_from, start_of
from cramming.train.width import start_by_width, width_factor
from fff.hardening import set_hardening
from fff.layers.base import Feedforward


def assemble(root: PretrainRoot, data: Tokens, world: World) -> Parts:
    """Everything at its beginning; weights follow from the seed, or are those of `train.start`.

    Raises:
        UserError: the feedforward layer cannot be, or cannot take the form of training; or the model to start from is
            missing, damaged or another one.
    """
    objective = objective_of(root, data)
    model = build_model(root, data, world.seed)
    if start := start_of(root):
        start_from(start, model)
    if world.workers > 1:
        # Up to here equal generators made equal weights. From here each process draws its own numbers: otherwise the
        # region leak would turn round the same decisions in all of them.
        world.seed(root.seed, each_its_own=True)
    model.set_attn_implementation(attention(root.train, world.device))
    if root.train.recompute:
        enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)  # its old name
        enable({"use_reentrant": False})
    hardening = Hardening(root.hardening, model)
    if world.sharded:
        blocks = model.model.blocks
        compile_blocks(blocks, root.train)
        wrapped, optimiser = world.spread(model, blocks, lambda: build_optimiser(model, root, world.device))
    else:
        wrapped, optimiser = world.wrap(model, build_optimiser(model, root, world.device))
        wrapped = compiled(wrapped, root.train)
    return Parts(root, world, data, objective, model, wrapped, optimiser, hardening)


def finished_model(parts: Parts) -> CrammedLanguageModel:
    """The trained model as one process has it; of a spread one a copy, on the main process alone, and they meet."""
    if not parts.world.sharded:
        return parts.model
    weights = parts.world.weights(parts.model)
    if not parts.world.main:
        return parts.model
    config = parts.model.config
    assert isinstance(config, CrammedConfig)
    model = OBJECTIVES[parts.root.objective.kind].model(config)
    model.set_attn_implementation(attention(parts.config, torch.device("cpu")))
    model.load_state_dict(weights)
    return model


def attention(config: TrainConfig, device: torch.device) -> str:
    """Who computes attention, as transformers names it."""
    if config.attention != "auto":
        return config.attention
    return "eager" if device.type == "cpu" and config.precision != "fp32" else "sdpa"


def objective_of(root: PretrainRoot, data: Tokens) -> Objective:
    """The objective that the configuration names."""
    return OBJECTIVES[root.objective.kind].of(
        seed=root.seed, mask_rate=root.train.mask_rate, vocab_size=data.vocab_size, token_id=data.token_id
    )


def build_model(root: PretrainRoot, data: Tokens, seed: Callable[[int], None]) -> CrammedLanguageModel:
    """A freshly initialised model that fits the data; its weights follow from the seed."""
    seed(root.seed)
    model, objective = root.model, OBJECTIVES[root.objective.kind]
    config = CrammedConfig(
        vocab_size=data.vocab_size,
        max_position_embeddings=data.seq_len,
        **model.encoder(),
        ffn=root.ffn.specification(),
        sparse_prediction=model.sparse_prediction,
        **objective.encoder,
    )
    try:
        built = objective.model(config)
    except (ValueError, RuntimeError) as error:
        raise UserError(f"ffn: {error}") from error
    if root.train.equal_start:
        draw_by_name(built, model.init_std, root.seed)
    start_by_width(built, width_factor(root))
    return built


@torch.no_grad()
def draw_by_name(model: nn.Module, std: float, seed: int) -> None:
    """Draw the matrices outside feedforward layers anew, each from a generator of its own: N(0, std)."""
    layers = {id(p) for module in model.modules() if isinstance(module, Feedforward) for p in module.parameters()}
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1 and id(parameter) not in layers:
            generator = torch.Generator().manual_seed(int(short_hash([seed, name], 15), 16))
            parameter.copy_(torch.empty(parameter.shape).normal_(0.0, std, generator=generator))


def check_layer(root: PretrainRoot) -> None:
    """Refuse what the feedforward layer cannot be, or a form of training that it cannot take; needs no memory.

    Raises:
        UserError: naming the group of keys.
    """
    try:
        with torch.device("meta"):
            layer = root.ffn.settings.build(root.model.hidden_size, root.model.hidden_size)
    except (ValueError, RuntimeError) as error:
        raise UserError(f"ffn: {error}") from error
    try:
        set_hardening(nn.Sequential(layer) if layer else nn.Sequential(), form=LAYER_FORMS[root.hardening.form])
    except ValueError as error:
        raise UserError(f"hardening: {error}") from None
    check_split(root, layer)
    check_frozen(root, layer)
    check_oracle(root, layer)
