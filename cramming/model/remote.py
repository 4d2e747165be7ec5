"""The model's code beside its weights, with which a plain Auto class loads a folder. Not the weights."""

import shutil
from pathlib import Path

from transformers.dynamic_module_utils import get_relative_import_files

HEADS = "modeling.py"  # it imports all the rest
AUTO_MAP = {
    "AutoConfig": "configuration.CrammedConfig",
    "AutoModel": "modeling.CrammedModel",
    "AutoModelForMaskedLM": "modeling.CrammedForMaskedLM",
    "AutoModelForSequenceClassification": "modeling.CrammedForSequenceClassification",
}


def carry_code(folder: Path) -> dict[str, str]:
    """Copy the code of every head into a folder, and return what its configuration's `auto_map` must say."""
    heads = Path(__file__).with_name(HEADS)
    folder.mkdir(parents=True, exist_ok=True)
    for file in {str(heads), *map(str, get_relative_import_files(heads))}:
        if Path(file).parent != folder.resolve():
            shutil.copyfile(file, folder / Path(file).name)
    return dict(AUTO_MAP)
