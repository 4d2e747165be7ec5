"""A folder of a transformers model whose feedforward blocks were replaced, written and read. No other format."""

import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from fff.surgery.replace import KEY, rebuild

CODE = "modeling_fff.py"
SOURCE = '''"""{name} with the feedforward layers that `fff` in config.json names. Needs the package fff."""

from fff.surgery import rebuild
from transformers import {name}


class FFF{name}({name}):
    def __init__(self, config, *args, **kwargs):
        super().__init__(config, *args, **kwargs)
        rebuild(self)
'''
CARD = """# {name} with fast feedforward layers

{count} of its feedforward blocks were replaced; the new layers are as good as their training since then.

| block | neurons before | now | trained | used by a token |
|---|---|---|---|---|
{rows}

With fff and transformers installed: `fff.surgery.load(folder)`, or
`{auto}.from_pretrained(folder, trust_remote_code=True)`. Without fff the folder cannot be loaded: a plain class
would begin at random weights where the layers stand.
"""


def save(model: Any, folder: str | Path) -> None:
    """`model.save_pretrained(folder)`, and beside it what `trust_remote_code=True` loads, and a card (README.md).

    Raises:
        ValueError: the model is none of transformers', or nothing in it was replaced.
    """
    if not hasattr(model, "save_pretrained") or not getattr(model.config, KEY, None):
        raise ValueError(
            f"{type(model).__name__} is no transformers model in which `replace_feedforward` replaced something; "
            "replace first, or keep its `state_dict()` and replace again before you load it."
        )
    folder, name = Path(folder), type(model).__name__
    model.save_pretrained(folder)
    autos = _autos(_transformers(), model)
    if autos:
        (folder / CODE).write_text(SOURCE.format(name=name))
        config = json.loads((folder / "config.json").read_text())
        config["auto_map"] = dict.fromkeys(autos, f"{CODE.removesuffix('.py')}.FFF{name}")
        (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    (folder / "README.md").write_text(_card(model, name, autos[0] if autos else "AutoModel"))


def _card(model: Any, name: str, auto: str) -> str:
    from fff.feedforward import settings_from

    rows = []
    for entry in getattr(model.config, KEY):
        new = settings_from(entry["layer"])
        rows += [
            f"| {block['path'] or 'the model'} | {block['neurons']}{' gated' if block['gated'] else ''} | {new.tag} "
            f"| {new.neurons_trained} | {new.neurons_used} |"
            for block in entry["modules"]
        ]
    return CARD.format(name=name, count=len(rows), rows="\n".join(rows), auto=auto)


def load(folder: str | Path, **options: Any) -> nn.Module:
    """A model that `save` or `save_pretrained` wrote after `replace_feedforward`: of its own class, in evaluation mode.

    Its config.json says which class of transformers' it is and which layers stand where. Safetensors alone are read.

    Args:
        options: of `from_pretrained`, e.g. dtype and device_map.

    Raises:
        ImportError: transformers is not installed.
        ValueError: the folder is none that was so written, or its weights are not exactly the model's.
    """
    folder = Path(folder)
    config = _config(folder)
    if not any(folder.glob("*.safetensors")):
        raise ValueError(f"{folder} has no *.safetensors; save the model again (`fff.surgery.save`).")
    transformers = _transformers()
    name = (config.get("architectures") or [None])[0]
    found = getattr(transformers, name or "", None)
    if found is None:
        raise ValueError(
            f"{folder}/config.json has architectures = {config.get('architectures')}, and transformers "
            f"{transformers.__version__} has no such class; install the version that wrote it."
        )
    fixed = {"output_loading_info": True, "ignore_mismatched_sizes": True, "use_safetensors": True}
    try:
        model, told = _with_layers(found).from_pretrained(folder, **fixed, local_files_only=True, **options)
    except importlib.import_module("safetensors").SafetensorError as error:  # which transformers brings
        raise ValueError(f"{folder}: a *.safetensors is cut or damaged ({error}); copy it again.") from None
    wrong = {what: sorted(map(str, told[what])) for what in ("missing_keys", "unexpected_keys", "mismatched_keys")}
    if any(wrong.values()):
        shown = ", ".join(f"{len(keys)} {what} ({keys[0]})" for what, keys in wrong.items() if keys)
        raise ValueError(f"{folder}: its weights are not the model's: {shown}; save the model again.")
    model.__class__ = found  # what differs is done; so it is saved under its own name
    if CODE.removesuffix(".py") in str(getattr(model.config, "auto_map", "")):
        del model.config.auto_map  # `save` writes it, with the code
    return model


def _config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.is_file():
        raise ValueError(
            f"{folder} is no model's folder: it has no config.json; give one that `save_pretrained` wrote."
        )
    try:
        config = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is no JSON ({error}); save the model again.") from None
    if not isinstance(config, dict) or not config.get(KEY):
        raise ValueError(f"{path} has no `{KEY}`: nothing was replaced in this model; load it by `from_pretrained`.")
    return config


def _transformers() -> ModuleType:
    try:
        return importlib.import_module("transformers")  # by name: this package needs torch alone
    except ImportError as error:
        raise ImportError(
            f"transformers saves and loads these folders, and is missing ({error}); install it."
        ) from None


def _with_layers(found: type) -> Any:
    """A class of transformers' that puts the layers in when it is made, under its own name."""

    def init(self: Any, config: Any, *args: Any, **options: Any) -> None:
        found.__init__(self, config, *args, **options)  # type: ignore[misc]
        rebuild(self)

    return type(found.__name__, (found,), {"__init__": init, "__module__": found.__module__})


def _autos(transformers: ModuleType, model: Any) -> list[str]:
    """Names of the Auto classes that load such a model."""
    found = []
    for name in dir(transformers):
        mapping = getattr(getattr(transformers, name), "_model_mapping", None) if name.startswith("AutoModel") else None
        known = getattr(mapping, "_model_mapping", {}).get(model.config.model_type)  # names, which import no model
        if type(model).__name__ in (known if isinstance(known, (tuple, list)) else (known,)):
            found.append(name)
    return found
