"""A model folder as transformers reads it: written, checked, read. Not training, nor what a head is for."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

import cramming.model  # registers the Auto classes
from cramming.errors import UserError
from cramming.files import new_folder, read_json, sha256

WEIGHTS = "model.safetensors"


@dataclass(frozen=True)
class Pretrained:
    """A checked checkpoint.

    Attributes:
        folder: what `save_pretrained` wrote.
        run: name of the pretraining run; the folder's name for a checkpoint without a record.
        experiment, ffn, group: as in the run's record; "imported", "" and "" without one.
        data_fingerprint: of the tokens it was trained on; "" if unknown.
        config: the run's configuration without its data paths.
        weights_sha256: of the weights file.
        max_length: longest input in tokens.
    """

    folder: Path
    run: str
    experiment: str
    ffn: str
    group: str
    data_fingerprint: str
    config: dict[str, Any]
    weights_sha256: str
    max_length: int


def write_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> str:
    """Write weights, configuration and tokenizer, complete or absent; returns the SHA-256 of the weights' file.

    Args:
        folder: the caller's own; one of that name is replaced as a whole.
    """
    with new_folder(folder, replace=True) as beside:
        save_model(model, beside)
        tokenizer.save_pretrained(beside)
    return sha256(folder / WEIGHTS)


def save_model(model: PreTrainedModel, folder: Path) -> None:
    """Save weights and configuration. Who computes the layers is a matter of the machine: that goes back to "auto"."""
    chosen = model.config.ffn
    model.config.ffn = {key: "auto" if key in ("execution", "provider") else value for key, value in chosen.items()}
    try:
        model.save_pretrained(folder)
    finally:
        model.config.ffn = chosen


def open_pretrained(path: Path) -> Pretrained:
    """Check `<run>/model` (give the run's folder or the model's). UserError says what is missing or does not fit."""
    folder = path / "model" if (path / "model").is_dir() else path
    if not (folder / "config.json").exists():
        raise UserError(
            f"checkpoint: {path} holds no finished model (no config.json); run `make pretrain EXP=...` first."
        )
    config = read_json(folder / "config.json")
    expected = cramming.model.CrammedConfig.model_type
    if config.get("model_type") != expected:
        raise UserError(
            f"{folder / 'config.json'}: model_type is {config.get('model_type')!r}, not {expected!r}; give a "
            "checkpoint of this project (convert the authors' weights first)."
        )
    if not (folder / WEIGHTS).exists():
        raise UserError(f"{folder / WEIGHTS} is missing; run `make pretrain EXP=...` again.")
    home = folder.parent if folder.name == "model" else folder
    record = read_json(home / "record.json") if (home / "record.json").exists() else {}
    return Pretrained(
        folder=folder,
        run=record.get("name", home.name),
        experiment=record.get("experiment", "imported"),
        ffn=record.get("ffn", ""),
        group=record.get("group", ""),
        data_fingerprint=record.get("data_fingerprint", ""),
        config={key: record["config"][key] for key in ("model", "ffn", "train") if key in record.get("config", {})},
        weights_sha256=sha256(folder / WEIGHTS),
        max_length=int(config["max_position_embeddings"]),
    )


def load_tokenizer(pretrained: Pretrained) -> PreTrainedTokenizerBase:
    """The checkpoint's tokenizer; UserError when it is missing, damaged or has another vocabulary than the model."""
    if not (pretrained.folder / "tokenizer.json").exists():
        raise UserError(
            f"{pretrained.folder / 'tokenizer.json'} is missing; copy the tokenizer the model was trained with."
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(pretrained.folder)
    except Exception as error:  # the libraries raise plain ones too
        raise UserError(
            f"{pretrained.folder}: the tokenizer is damaged ({first_line(error)}); copy the one the model was trained "
            "with."
        ) from error
    vocabulary = read_json(pretrained.folder / "config.json")["vocab_size"]
    if len(tokenizer) != vocabulary:
        raise UserError(
            f"{pretrained.folder}: the tokenizer has {len(tokenizer)} tokens, the model {vocabulary}; copy the "
            "tokenizer the model was trained with."
        )
    return tokenizer


def load_weights(auto: Any, pretrained: Pretrained, **settings: Any) -> PreTrainedModel:
    """The checkpoint in float32 by one of transformers' Auto classes, with `settings` instead of its own.

    UserError when the file is damaged, or weights of the encoder are missing, left over or of another shape than its
    configuration says.
    """
    weights = pretrained.folder / WEIGHTS
    try:
        with quiet_loading():
            model, report = auto.from_pretrained(pretrained.folder, output_loading_info=True, **settings)
    except SafetensorError as error:
        raise UserError(f"{weights} is damaged ({first_line(error)}); run `make pretrain` again.") from error
    except (RuntimeError, ValueError, KeyError, TypeError, OSError) as error:
        raise UserError(f"{pretrained.folder}: the weights do not fit config.json ({first_line(error)}).") from error
    # A model with a head keeps the encoder under this name; the head may be fresh.
    encoder = "" if isinstance(model, cramming.model.CrammedModel) else f"{model.base_model_prefix}."
    for what, keys in (("lacks", report["missing_keys"]), ("has too many, namely", report["unexpected_keys"])):
        if found := sorted(key for key in keys if key.startswith(encoder)):
            raise UserError(
                f"{weights} {what} {len(found)} weights of the encoder, {found[0]} among them; it is of another "
                "architecture than config.json says."
            )
    return model.float()


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Without transformers' warning of the fresh head, which is meant, and its bar for every seed."""
    verbosity, bar = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bar:
            transformers_logging.enable_progress_bar()


def first_line(error: Exception) -> str:
    """An exception's type and first line, short enough for a message."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:200]}".rstrip(": ")
