"""From a model folder to a sentence encoder: this project's, one that surgery changed, any of transformers'. No hub."""

from pathlib import Path
from typing import Any

from transformers import AutoModel, PreTrainedTokenizerBase

from cramming.errors import UserError
from cramming.files import read_json, sha256, short_hash
from cramming.model.foreign import LONGEST, encoder_of, folder_of, is_foreign, tokenizer_of
from cramming.model.saved import first_line, load_tokenizer, load_weights, open_pretrained
from cramming.sentences.encoder import SentenceEncoder
from fff.hardening import set_hardening
from fff.optimise import fastest_linears, optimise_for_cpu

STEPS = ("Transformer", "Pooling", "Normalize")  # of sentence-transformers; a vector is normalised in any case


def load_encoder(path: Path, max_length: int | None = None, int8: bool = False, fast: bool = False) -> SentenceEncoder:
    """The encoder of a model folder, or of the run's folder around it, in float32 and in evaluation mode, on the CPU.

    Weights are read from SafeTensors alone, and no code that a folder brings is run.

    Args:
        max_length: tokens of a text; fewer than the model takes, or None for what its folder says.
        int8: linears and trees of neurons in int8 (`fff.optimise`), for the CPU. Such an encoder cannot be saved.
        fast: the same in what `fff.optimise` chooses for this processor.

    Raises:
        UserError: the folder holds no model or tokenizer, they are damaged or do not fit, it pools in another way, or
            nothing in it can be int8 here, or made fast.
    """
    if int8 and fast:
        raise UserError("int8 and fast are two choices of one thing; give one of them.")
    folder = folder_of(path)
    if not (folder / "config.json").is_file():
        raise UserError(f"{path} holds no model (no config.json); give a model folder, or a run's folder around one.")
    _refuse_other_steps(folder)
    if is_foreign(path):
        tokenizer = tokenizer_of(folder)
        model = encoder_of(folder)
    else:
        pretrained = open_pretrained(path)
        tokenizer = load_tokenizer(pretrained)
        model = load_weights(AutoModel, pretrained)
    set_hardening(model, form="hard")
    model = model.float().eval()
    linears = "int8" if int8 else fastest_linears() if fast else None
    if linears:
        try:
            optimise_for_cpu(model, linears=linears)
        except (ValueError, RuntimeError) as error:
            how = "in int8" if int8 else "fast"
            raise UserError(f"{path} cannot be used {how} ({first_line(error)}); use it as it is.") from error
    return SentenceEncoder(
        model=model,
        tokenizer=tokenizer,
        max_length=_length(folder, model, tokenizer, max_length),
        identity={"model": _digest(folder), "pooling": "mean", "normalised": True, "int8": int8}
        | ({"fast": linears} if fast else {}),
    )


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
