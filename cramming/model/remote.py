"""The model's code beside its weights, with which a plain Auto class loads a folder. Not the weights."""

import shutil
from pathlib import Path

from transformers.dynamic_module_utils import get_relative_import_files

# Auto class -> file.class that it loads a folder as. The package's own page registers the same.
AUTO_MAP = {
    "AutoConfig": "configuration.CrammedConfig",
    "AutoModel": "modeling.CrammedModel",
    "AutoModelForMaskedLM": "modeling.CrammedForMaskedLM",
    "AutoModelForSequenceClassification": "modeling.CrammedForSequenceClassification",
    "AutoModelForTokenClassification": "task_heads.CrammedForTokenClassification",
    "AutoModelForQuestionAnswering": "task_heads.CrammedForQuestionAnswering",
    "AutoModelForMultipleChoice": "task_heads.CrammedForMultipleChoice",
    "AutoModelForCausalLM": "causal.CrammedForCausalLM",
}
OF_BOTH, OF_CAUSAL = ("AutoConfig", "AutoModel"), ("AutoModelForCausalLM",)


def carry_code(folder: Path, *, causal: bool) -> dict[str, str]:
    """Copy the code of every head into a folder, and return what its configuration's `auto_map` must say.

    Args:
        causal: whether the folder's model is, which decides what heads it can have.
    """
    named = {Path(__file__).with_name(f"{place.split('.')[0]}.py") for place in AUTO_MAP.values()}
    needed = {Path(file) for heads in named for file in get_relative_import_files(heads)}
    folder.mkdir(parents=True, exist_ok=True)
    for file in named | needed:
        if file.parent != folder.resolve():
            shutil.copyfile(file, folder / file.name)
    return {auto: place for auto, place in AUTO_MAP.items() if auto in OF_BOTH or (auto in OF_CAUSAL) == causal}
