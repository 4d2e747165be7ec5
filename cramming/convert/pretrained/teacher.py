"""A dense model and its tokenizer, loaded and checked before long work. Nothing here is unpickled; not its blocks."""

import copy
import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import HfApi, try_to_load_from_cache
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer

from cramming.checks import at_home
from cramming.convert.pretrained.compute import device_of
from cramming.convert.pretrained.text import Batch
from cramming.errors import UserError
from cramming.model.saved import first_line, quiet

ANSWER_S = 10.0  # that the hub has
NO_CODE = {"trust_remote_code": False}  # that a model brings: never run, and nobody is asked whether to


@dataclass(frozen=True)
class Teacher:
    """The dense model, in evaluation mode and float32.

    Attributes:
        name: readable, of the folder, file or id.
        causal: whether it predicts the next token; else its tokens' mean is a text's embedding.
        pad: id that fills batches up.
    """

    model: Any
    tokenizer: Any
    name: str
    causal: bool
    pad: int

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits over every weight and the vocabulary."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.model.state_dict().items()):
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
        digest.update(repr(sorted(self.tokenizer.get_vocab().items())).encode())
        return digest.hexdigest()[:16]

    def on(self, device: torch.device) -> "Teacher":
        """It with its model there; a copy, if the model is elsewhere."""
        if device_of(self.model).type == device.type:
            return self
        return replace(self, model=copy.deepcopy(self.model).to(device))


def load_teacher(given: str, tokenizer: str | None = None) -> Teacher:
    """A folder, a .gguf file or a hub id.

    Raises:
        UserError: it is none of these, of a kind that is not taken, or its tokenizer does not fit.
    """
    source, options = _source(at_home(given, "distill.model"))
    with quiet():
        try:
            _ask_hub(source)
            causal = _is_causal(source, options)
            auto = AutoModelForCausalLM if causal else AutoModel
            model = auto.from_pretrained(source, dtype=torch.float32, **NO_CODE, **options, **_unpacked(options))
        except UserError:
            raise
        except MemoryError:
            raise
        except Exception as error:  # of a damaged file, a missing network, a kind that transformers does not know
            raise UserError(
                f"distill.model: {given} cannot be loaded ({first_line(error)}); give a model's folder, a .gguf file, "
                "or the id of a model on the Hugging Face hub."
            ) from error
        try:
            own = tokenizer is None
            read = AutoTokenizer.from_pretrained(source if own else tokenizer, **NO_CODE, **(options if own else {}))
        except Exception as error:
            raise UserError(
                f"distill.tokenizer: {tokenizer or given} has none that can be read ({first_line(error)}); name one."
            ) from error
    return teacher_of(model, read, Path(given).stem if given.endswith(".gguf") else Path(given).name)


def teacher_of(model: nn.Module, tokenizer: Any, name: str = "model") -> Teacher:
    """The same of loaded objects; UserError where they do not fit."""
    config = getattr(model, "config", None)
    if config is None or not hasattr(model, "get_input_embeddings"):
        raise UserError(f"distill.model: {type(model).__name__} is no transformers model; give one that is.")
    if getattr(config, "is_encoder_decoder", False):
        raise UserError(
            f"distill.model: {type(model).__name__} is an encoder with a decoder; give an encoder or a decoder alone."
        )
    if getattr(model, "is_quantized", False):
        raise UserError(f"distill.model: {name} is quantised; give a model of plain float weights.")
    rows = model.get_input_embeddings().weight.shape[0]  # type: ignore[operator]
    highest = max(tokenizer.get_vocab().values(), default=-1)
    if highest >= rows:
        raise UserError(
            f"distill.tokenizer does not fit the model: its largest id is {highest}, and the model has {rows} word "
            "embeddings; give the model's own tokenizer."
        )
    causal = type(model).__name__.endswith(("ForCausalLM", "LMHeadModel"))
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else (tokenizer.eos_token_id or 0)
    return Teacher(model.float().eval().requires_grad_(False), tokenizer, name, causal, pad)


def check_length(teacher: Teacher, seq_len: int) -> None:
    """UserError where pieces would be longer than the model's positions."""
    most = getattr(teacher.model.config, "max_position_embeddings", None)
    if isinstance(most, int) and seq_len > most:
        raise UserError(f"distill.seq_len is {seq_len}, and {teacher.name} has {most} positions; set it to less.")


def last_hidden(teacher_model: Any, batch: Batch) -> torch.Tensor:
    """Hidden states (B, S, H) after the last norm, of a model with a head or without."""
    base = teacher_model.base_model if hasattr(teacher_model, "base_model") else teacher_model
    return base(**batch.inputs).last_hidden_state


def _source(given: str) -> tuple[str, dict[str, Any]]:
    path = Path(given)
    if path.suffix == ".gguf":
        if not path.is_file():
            raise UserError(f"distill.model: {given} is missing.")
        return str(path.parent), {"gguf_file": path.name}
    if path.is_dir() and not (path / "config.json").is_file():
        raise UserError(f"distill.model: {given} is no model's folder: it has no config.json.")
    if path.is_file():
        raise UserError(f"distill.model: {given} is a file; give the folder that it is in, or a .gguf file.")
    if not path.is_dir() and (path.is_absolute() or given.startswith(".")):
        raise UserError(f"distill.model: {given} is missing.")
    return given, {}


def _ask_hub(source: str) -> None:
    """Raise what the hub says of an id that is not there, or that cannot be asked for: transformers asks again and
    again, for half a minute and aloud. What is in the cache is not asked for.
    """
    if not Path(source).exists() and not isinstance(try_to_load_from_cache(source, "config.json"), str):
        HfApi().model_info(source, timeout=ANSWER_S)


def _unpacked(options: dict[str, Any]) -> dict[str, Any]:
    """So that a .gguf file's blocks become plain float weights; older versions of transformers do nothing else."""
    config = getattr(transformers, "GgufConfig", None)
    return {"quantization_config": config(dequantize=True)} if options and config is not None else {}


def _is_causal(source: str, options: dict[str, Any]) -> bool:
    config = AutoConfig.from_pretrained(source, **NO_CODE, **options)
    if getattr(config, "is_encoder_decoder", False):
        raise UserError(f"distill.model: {source} is an encoder with a decoder; give an encoder or a decoder alone.")
    names = getattr(config, "architectures", None) or []
    return bool(options) or any(name.endswith(("ForCausalLM", "LMHeadModel")) for name in names)
