"""A saved folder's card says what the model is, how it loads and what it reached."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from cramming.model import CrammedForMaskedLM
from cramming.model.card import TASKS, model_card
from cramming.model.remote import AUTO_MAP
from cramming.model.saved import write_model
from tests.helpers.glue import tiny_tokenizer
from tests.helpers.heads import CLASSES, sized
from tests.helpers.model import config

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize(
    ("model", "auto", "task"),
    [
        ("encoder", "AutoModel", "feature-extraction"),
        ("masked", "AutoModelForMaskedLM", "fill-mask"),
        ("causal", "AutoModelForCausalLM", "text-generation"),
        ("sequence", "AutoModelForSequenceClassification", "text-classification"),
        ("token", "AutoModelForTokenClassification", "token-classification"),
        ("question", "AutoModelForQuestionAnswering", "question-answering"),
        ("choice", "AutoModelForMultipleChoice", "multiple-choice"),
    ],
)
def test_the_card_names_class_layer_and_numbers(model: str, auto: str, task: str) -> None:
    found = CLASSES[model](sized(model))
    card = model_card(found, {"validation loss": "4.3700 nats"})
    head = yaml.safe_load(card.split("---")[1])
    assert head["pipeline_tag"] == task
    assert f"{auto}.from_pretrained" in card
    assert f"{found.num_parameters():,} parameters" in card
    assert "| validation loss | 4.3700 nats |" in card
    assert "None are known" in model_card(found, {})


def test_every_class_has_its_task() -> None:
    assert {"AutoConfig", *TASKS} == set(AUTO_MAP)


def test_a_written_folder_has_its_card(tmp_path: Path) -> None:
    write_model(CrammedForMaskedLM(config()), tiny_tokenizer(), tmp_path / "model", {"accuracy": "12 %"})
    assert "| accuracy | 12 % |" in (tmp_path / "model/README.md").read_text()


RUN = """
import pathlib, sys
way, *folders = sys.argv[1:]
if way == "1":
    sys.modules["cramming"] = None  # as where this project is not installed
for folder in folders:
    card = pathlib.Path(folder, "README.md").read_text()
    code = card.split("```python\\n")[1 + int(way)].split("```")[0]
    exec(code.replace("FOLDER", folder), names := {})
    output = names["model"](**names["tokenizer"]("the film is good", return_tensors="pt"))
    print(type(names["model"]).__module__.split(".")[0], type(names["model"]).__name__, len(output))
"""


@pytest.mark.parametrize(("way", "package"), [(0, "cramming"), (1, "transformers_modules")])
def test_the_cards_code_loads_each_class_with_and_without_the_project(way: int, package: str, tmp_path: Path) -> None:
    for name, model in CLASSES.items():
        write_model(model(sized(name, vocab_size=len(tiny_tokenizer()))), tiny_tokenizer(), tmp_path / name)
    # Without the project, the folder fff of its source is all that can be imported.
    (tmp_path / "path").mkdir()
    for each in ("fff",) if way else ("fff", "cramming"):
        (tmp_path / "path" / each).symlink_to(ROOT / each)
    names = [name for name in CLASSES if name != "choice"]  # it takes several texts
    folders = [str(tmp_path / name) for name in names]
    environment = {"PYTHONPATH": str(tmp_path / "path"), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
    environment |= {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(way), *folders],
        env=environment, cwd=tmp_path, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-800:]
    found = [line.split()[:2] for line in done.stdout.splitlines()]
    assert found == [[package, CLASSES[name].__name__] for name in names]
    assert re.search(r"PYTHONPATH", (tmp_path / "masked/README.md").read_text())
