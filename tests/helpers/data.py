"""Small corpora and configurations for the tests of the data room."""

import random
from pathlib import Path
from typing import Any

from cramming.data.config import DataConfig

SUBJECTS = "The river|A small boat|My brother|The old teacher|Their village|This bird|Her garden|The café"
VERBS = "follows|remembers|crosses|watches|repairs|describes|paints|loses"
OBJECTS = "the mountain|a wooden bridge|every letter|the quiet harbour|an empty room|its shadow|our naïve plan"
TAILS = "in the morning|without a word|after the storm|for many years|because it rained|near the station"


def sentence(dice: random.Random) -> str:
    return " ".join(dice.choice(part.split("|")) for part in (SUBJECTS, VERBS, OBJECTS, TAILS)) + "."


def make_documents(count: int, seed: int = 0, sentences: int = 12) -> list[str]:
    dice = random.Random(seed)
    return [
        f"Number {seed}-{index}. " + " ".join(sentence(dice) for _ in range(dice.randint(3, sentences)))
        for index in range(count)
    ]


def write_txt(path: Path, documents: list[str]) -> Path:
    path.write_text("\n\n".join(documents) + "\n", encoding="utf-8")
    return path


def text_config(files: list[Path | str], **changes: Any) -> DataConfig:
    settings: dict[str, Any] = {
        "name": "tiny",
        "source": "text",
        "files": [str(path) for path in files],
        "valid_share": 0.1,
        "vocab_size": 200,
        "seq_len": 16,
        "workers": 1,
    }
    return DataConfig(**(settings | changes))
