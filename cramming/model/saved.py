"""A model folder as transformers reads it: written, checked, read. Not training, nor what a head is for."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from safetensors import SafetensorError
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

import cramming.model  # registers the Auto classes
from cramming.errors import UserError
from cramming.files import checked_name, new_folder, read_json, sha256
from cramming.model.card import model_card
from cramming.record import refuse_unfinished

WEIGHTS = "model.safetensors"
CONFIG = "config.json"
EXPORT_AGAIN = "`make pretrain` with the run's settings exports the model again, from its last checkpoint"
# What a record says of its run and becomes part of other names.
NAMES = ("name", "experiment", "ffn", "group", "data_fingerprint")


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
        causal: whether tokens see earlier ones alone, of a decoder.
        foreign: whether it is an encoder of another project (cramming.model.foreign).
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
    causal: bool = False
    foreign: bool = False


def write_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    numbers: Mapping[str, str] = MappingProxyType({}),
) -> str:
    """Write weights, configuration, tokenizer and card, complete or absent; returns the SHA-256 of the weights' file.

    Args:
        folder: the caller's own; one of that name is replaced as a whole.
        numbers: what the card shows as results, see `cramming.model.card.model_card`.
    """
    with new_folder(folder, replace=True) as beside:
        save_model(model, beside)
        tokenizer.save_pretrained(beside)
        (beside / "README.md").write_text(model_card(model, numbers))
    return sha256(folder / WEIGHTS)


def save_model(model: PreTrainedModel, folder: Path) -> None:
    """Save weights and configuration. Who computes the layers is a matter of the machine: that goes back to "auto"."""
    chosen = model.config.ffn
    model.config.ffn = {key: "auto" if key in ("execution", "provider") else value for key, value in chosen.items()}
    try:
        with quiet():
            model.save_pretrained(folder)
    finally:
        model.config.ffn = chosen


def folder_of(path: Path) -> Path:
    """The model's folder in a run's, or itself."""
    return path / "model" if (path / "model").is_dir() else path


def open_pretrained(path: Path) -> Pretrained:
    """Check `<run>/model` (give the run's folder or the model's), its weights against the run's record.

    Raises:
        UserError: something is missing, damaged, of another kind, or named so that no file may be called after it.
    """
    folder = folder_of(path)
    config = _table(folder / CONFIG) if (folder / CONFIG).exists() else {}
    if not config or "train" in config:  # nothing, or an unfinished run's own configuration
        raise UserError(f"checkpoint: {path} holds no finished model (no {CONFIG}); run `make pretrain EXP=...` first.")
    expected = cramming.model.CrammedConfig.model_type
    if config.get("model_type") != expected:
        raise UserError(
            f"{folder / CONFIG}: model_type is {config.get('model_type')!r}, not {expected!r}; give a "
            "checkpoint of this project (convert the authors' weights first)."
        )
    for key in ("vocab_size", "max_position_embeddings"):
        if type(config.get(key)) is not int:
            raise UserError(f"{folder / CONFIG}: {key} is {config.get(key)!r}, not a number; {EXPORT_AGAIN}.")
    weights = folder / WEIGHTS
    if not weights.exists():
        raise UserError(f"{weights} is missing; {EXPORT_AGAIN}.")
    whole = folder.absolute()
    home = whole.parent if whole.name == "model" else whole
    path = home / "record.json"
    record = _table(path) if path.exists() else {}
    if "status" in record:
        refuse_unfinished(record, mend=f"its model is none to use: {path} says so. Pretrain with a lower train.lr.")
    digest = sha256(weights)
    if record.get("weights_sha256", digest) != digest:  # records of before the check have none
        raise UserError(f"{weights} is damaged (its SHA-256 is not the one in {path}); {EXPORT_AGAIN}.")
    names = {key: checked_name(record[key], f"{path}: {key}") for key in NAMES if record.get(key)}
    settings = record.get("config", {})
    if not isinstance(settings, dict):
        raise UserError(f"{path}: config is no table; it was changed after it was written.")
    return Pretrained(
        folder=folder,
        run=names.get("name") or re.sub(r"[^\w.+=-]", "_", home.name).lstrip("._+=-") or "model",
        experiment=names.get("experiment", "imported"),
        ffn=names.get("ffn", ""),
        group=names.get("group", ""),
        data_fingerprint=names.get("data_fingerprint", ""),
        config={key: settings[key] for key in ("model", "ffn", "train") if key in settings},
        weights_sha256=digest,
        max_length=config["max_position_embeddings"],
        causal=config.get("causal") is True,
    )


def _table(path: Path) -> dict[str, Any]:
    content = read_json(path)
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no table of keys; it was changed after it was written.")
    return content


def load_tokenizer(pretrained: Pretrained) -> PreTrainedTokenizerBase:
    """The checkpoint's tokenizer. Code that a checkpoint brings is never run, and nobody is asked whether to.

    Raises:
        UserError: it is missing, damaged, needs code of its own or has another vocabulary than the model.
    """
    folder, mend = pretrained.folder, "copy the tokenizer the model was trained with."
    if not (folder / "tokenizer.json").exists():
        raise UserError(f"{folder / 'tokenizer.json'} is missing; {mend}")
    settings = folder / "tokenizer_config.json"
    if settings.exists() and "auto_map" in _table(settings):
        raise UserError(
            f"{settings} asks for code of its own (auto_map), and no code of a checkpoint is ever run; {mend}"
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # the libraries raise plain ones too
        raise UserError(f"{folder}: the tokenizer is damaged ({first_line(error)}); {mend}") from error
    vocabulary = read_json(folder / CONFIG)["vocab_size"]
    if len(tokenizer) != vocabulary:
        raise UserError(f"{folder}: the tokenizer has {len(tokenizer)} tokens, the model {vocabulary}; {mend}")
    return tokenizer


def load_weights(auto: Any, pretrained: Pretrained, **settings: Any) -> PreTrainedModel:
    """The checkpoint in float32 by one of transformers' Auto classes, with `settings` instead of its own.

    UserError when the file is damaged, or weights of the encoder are missing, left over or of another shape than its
    configuration says.
    """
    weights = pretrained.folder / WEIGHTS
    try:
        with quiet():
            model, report = auto.from_pretrained(
                pretrained.folder, output_loading_info=True, trust_remote_code=False, **settings
            )
    except SafetensorError as error:
        raise UserError(f"{weights} is damaged ({first_line(error)}); {EXPORT_AGAIN}.") from error
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
def quiet() -> Iterator[None]:
    """Without transformers' warning of a fresh head, which is meant, and its bars of a moment."""
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
