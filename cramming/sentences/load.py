"""From a model folder to a sentence encoder: this project's, one that surgery changed, any of transformers'. No hub."""

from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoModel, AutoTokenizer, PreTrainedTokenizerBase

import fff.surgery
from cramming.errors import UserError
from cramming.files import read_json, sha256, short_hash
from cramming.model import CrammedConfig
from cramming.model.saved import first_line, load_tokenizer, load_weights, open_pretrained, quiet
from cramming.sentences.encoder import SentenceEncoder
from fff.hardening import set_hardening
from fff.optimise import optimise_for_cpu

STEPS = ("Transformer", "Pooling", "Normalize")  # of sentence-transformers; a vector is normalised in any case
LONGEST = 512  # tokens, where neither model nor tokenizer knows a limit
BROKEN = (RuntimeError, ValueError, KeyError, TypeError, OSError, ImportError, SafetensorError)


def load_encoder(path: Path, max_length: int | None = None, int8: bool = False) -> SentenceEncoder:
    """The encoder of a model folder, or of the run's folder around it, in float32 and in evaluation mode, on the CPU.

    Weights are read from SafeTensors alone, and no code that a folder brings is run.

    Args:
        max_length: tokens of a text; fewer than the model takes, or None for what its folder says.
        int8: linears and trees of neurons in int8 (`fff.optimise`), for the CPU. Such an encoder cannot be saved.

    Raises:
        UserError: the folder holds no model or tokenizer, they are damaged or do not fit, it pools in another way, or
            nothing in it can be int8 here.
    """
    folder = path / "model" if (path / "model").is_dir() else path
    if not (folder / "config.json").is_file():
        raise UserError(f"{path} holds no model (no config.json); give a model folder, or a run's folder around one.")
    config = read_json(folder / "config.json")
    _refuse_other_steps(folder)
    if config.get("model_type") == CrammedConfig.model_type:
        pretrained = open_pretrained(path)
        tokenizer = load_tokenizer(pretrained)
        model: nn.Module = load_weights(AutoModel, pretrained)
    else:
        tokenizer = _tokenizer(folder)
        model = _foreign(folder, replaced=bool(config.get("fff")))
    set_hardening(model, form="hard")
    model = model.float().eval()
    if int8:
        try:
            optimise_for_cpu(model)
        except (ValueError, RuntimeError) as error:
            raise UserError(f"{path} cannot be used in int8 ({first_line(error)}); use it as it is.") from error
    return SentenceEncoder(
        model=model,
        tokenizer=tokenizer,
        max_length=_length(folder, model, tokenizer, max_length),
        identity={"model": _digest(folder), "pooling": "mean", "normalised": True, "int8": int8},
    )


def _tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    if not (folder / "tokenizer.json").exists():
        raise UserError(f"{folder / 'tokenizer.json'} is missing; copy the tokenizer the model was trained with.")
    try:
        found = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # the libraries raise plain ones too
        raise UserError(f"{folder}: the tokenizer is damaged ({first_line(error)}); copy it again.") from error
    return found


def _foreign(folder: Path, replaced: bool) -> nn.Module:
    """A model of transformers', with or without replaced layers; the encoder in it where it has a head."""
    if not any(folder.glob("*.safetensors")):
        raise UserError(f"{folder} has no *.safetensors; save the model again, by `save_pretrained`.")
    try:
        with quiet():
            if replaced:
                return _encoder_of(fff.surgery.load(folder))
            config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
            model, told = AutoModel.from_pretrained(
                folder, config=config, output_loading_info=True, use_safetensors=True, trust_remote_code=False
            )
    except BROKEN as error:
        raise UserError(f"{folder}: the model cannot be loaded ({first_line(error)}).") from error
    if missing := sorted(key for key in told["missing_keys"] if not key.startswith("pooler.")):
        raise UserError(f"{folder} lacks {len(missing)} of its weights, {missing[0]} among them; copy it again.")
    return model


def _encoder_of(model: Any) -> nn.Module:
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


def _refuse_other_steps(folder: Path) -> None:
    """Of a sentence-transformers folder, which says what follows the encoder, and how it pools."""
    steps = folder / "modules.json"
    if steps.exists():
        kinds = [str(step.get("type")).rpartition(".")[2] for step in read_json(steps)]
        if other := [kind for kind in kinds if kind not in STEPS]:
            raise UserError(f"{steps} asks for {', '.join(other)}; only {', '.join(STEPS)} are offered.")
    path = folder / "1_Pooling" / "config.json"
    if not path.exists():
        return
    found = read_json(path)
    old = [key for key, value in found.items() if key.startswith("pooling_mode_") and value is True]
    modes = old or [found.get("pooling_mode", "mean")]
    if modes not in (["pooling_mode_mean_tokens"], ["mean"], [["mean"]]):
        raise UserError(f"{path} asks for {', '.join(map(str, modes))}; only the mean over tokens is offered.")


def _length(folder: Path, model: Any, tokenizer: PreTrainedTokenizerBase, asked: int | None) -> int:
    path = folder / "sentence_bert_config.json"
    said = read_json(path).get("max_seq_length") if path.exists() else None
    limits = [tokenizer.model_max_length, getattr(model.config, "max_position_embeddings", LONGEST)]
    most = min(limit for limit in (*limits, LONGEST) if limit and limit > 0)
    if asked is not None and not 2 <= asked <= most:
        raise UserError(f"max_length is {asked}; set it from 2 to {most}, which is what {folder} takes.")
    return asked or min(said or most, most)


def _digest(folder: Path) -> str:
    """Of all that vectors follow from, so that those of two models are never mixed."""
    files = [*sorted(folder.glob("*.safetensors")), folder / "config.json", folder / "tokenizer.json"]
    return short_hash([sha256(path) for path in files], 16)
