"""Encoders of transformers that are not this project's, with or without layers that surgery put in. No hub, no code.

Weights are read from SafeTensors alone, and no code that a folder brings is run.
"""

import copy
import re
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

import fff.surgery
from cramming.errors import UserError
from cramming.files import read_json, sha256, short_hash
from cramming.model import CrammedConfig
from cramming.model.saved import CONFIG, Pretrained, first_line, folder_of, quiet

LONGEST = 512  # tokens, where neither model nor tokenizer knows a limit
BROKEN = (RuntimeError, ValueError, KeyError, TypeError, OSError, ImportError, SafetensorError)
WIDTHS = ("intermediate_size", "hidden_dim", "ffn_dim", "d_ff", "n_inner")  # what architectures call it
DROPOUTS = ("hidden_dropout_prob", "classifier_dropout", "dropout", "seq_classif_dropout", "mlp_dropout")


def is_foreign(path: Path) -> bool:
    """Whether a folder holds a model that is of another kind than this project's."""
    config = folder_of(path) / CONFIG
    kind = read_json(config).get("model_type") if config.is_file() else None
    return kind is not None and kind != CrammedConfig.model_type


def open_foreign(path: Path) -> Pretrained:
    """What finetuning needs to know of such a folder; UserError where it holds no encoder."""
    folder = folder_of(path)
    config = read_json(folder / CONFIG)
    name = str((config.get("architectures") or [""])[0])
    decodes = config.get("is_encoder_decoder") or config.get("is_decoder")
    if decodes or name.endswith(("ForCausalLM", "LMHeadModel")):
        raise UserError(f"{folder} holds a decoder ({name}), whose first token sees no other; give an encoder.")
    limits = [config.get("max_position_embeddings"), tokenizer_of(folder).model_max_length, LONGEST]
    files = sorted(folder.glob("*.safetensors"))
    return Pretrained(
        folder=folder,
        run=re.sub(r"[^\w.+=-]", "_", folder.absolute().name).lstrip("._+=-") or "model",
        experiment="imported",
        ffn=feedforward_of(config),
        group="",
        data_fingerprint="",
        config={},
        weights_sha256=sha256(files[0]) if len(files) == 1 else short_hash([sha256(each) for each in files], 64),
        max_length=min(limit for limit in limits if isinstance(limit, int) and limit > 0),
        foreign=True,
    )


def feedforward_of(config: dict[str, Any]) -> str:
    """Tags of what surgery put in, else of dense layers as wide as the configuration says; "" if it does not say."""
    if layers := config.get("fff"):
        return "+".join(sorted({fff.feedforward.settings_from(entry["layer"]).tag for entry in layers}))
    width = next((config[key] for key in WIDTHS if isinstance(config.get(key), int)), None)
    return "" if width is None else f"dense{width}"


def tokenizer_of(folder: Path) -> PreTrainedTokenizerBase:
    """The folder's own; UserError where it is missing or damaged."""
    if not (folder / "tokenizer.json").exists():
        raise UserError(f"{folder / 'tokenizer.json'} is missing; copy the tokenizer the model was trained with.")
    try:
        found = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # the libraries raise plain ones too
        raise UserError(f"{folder}: the tokenizer is damaged ({first_line(error)}); copy it again.") from error
    return found


def encoder_of(folder: Path, **settings: Any) -> nn.Module:
    """The encoder, without a head that it may have; `settings` in the place of its configuration's own."""
    if not any(folder.glob("*.safetensors")):
        raise UserError(f"{folder} has no *.safetensors; save the model again, by `save_pretrained`.")
    try:
        with quiet():
            if read_json(folder / CONFIG).get("fff"):
                return _without_head(fff.surgery.load(folder, **settings))
            config = AutoConfig.from_pretrained(folder, trust_remote_code=False, **settings)
            model, told = AutoModel.from_pretrained(
                folder, config=config, output_loading_info=True, use_safetensors=True, trust_remote_code=False
            )
    except BROKEN as error:
        raise UserError(f"{folder}: the model cannot be loaded ({first_line(error)}).") from error
    if missing := sorted(key for key in told["missing_keys"] if not key.startswith("pooler.")):
        raise UserError(f"{folder} lacks {len(missing)} of its weights, {missing[0]} among them; copy it again.")
    return model


def classifier_of(pretrained: Pretrained, dropout: float, **settings: Any) -> PreTrainedModel:
    """The encoder under the head that transformers' own class has for sequences, fresh; UserError where it has none."""
    folder = pretrained.folder
    known = read_json(folder / CONFIG)
    encoder: Any = encoder_of(folder, **{key: dropout for key in DROPOUTS if key in known})
    config = copy.deepcopy(encoder.config)
    config.update({**settings, **{key: dropout for key in DROPOUTS if hasattr(config, key)}})
    try:
        model = AutoModelForSequenceClassification.from_config(config)
    except ValueError as error:
        raise UserError(f"{folder}: transformers has no classifier of this kind ({first_line(error)}).") from error
    setattr(model, model.base_model_prefix, encoder)
    model.config = config
    return model.float()


def _without_head(model: Any) -> nn.Module:
    """The encoder in a model with a head, as a model of its own: whole, and its configuration speaks of its modules."""
    encoder = getattr(model, "base_model", model)
    if encoder is model:
        return model
    encoder.config.fff = _without_prefix(encoder.config.fff, f"{model.base_model_prefix}.")
    whole = type(encoder)(encoder.config)  # under a head it may lack a pooler, which no mean reads
    fff.surgery.rebuild(whole)
    whole.load_state_dict(encoder.state_dict(), strict=False)
    return whole


def _without_prefix(values: Any, prefix: str) -> Any:
    if isinstance(values, dict):
        return {key: _without_prefix(value, prefix) for key, value in values.items()}
    if isinstance(values, list):
        return [_without_prefix(value, prefix) for value in values]
    return values.removeprefix(prefix) if isinstance(values, str) else values
