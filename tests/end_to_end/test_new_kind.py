"""A new kind of feedforward layer is one file, one line and one YAML: a toy in a copy of the project."""

import difflib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.composed import composed
from tests.helpers.tiny import write_text

ROOT = Path(__file__).parents[2]

LAYER = '''
"""Toy: a router sends each token to one of several experts."""

from dataclasses import dataclass

import torch
from torch import nn

from fff.layers.base import Flops, Route, Routed, Settings
from fff.layers.checks import whole_number


@dataclass(frozen=True)
class ToySettings(Settings):
    kind = "toy"

    experts: int
    expert_width: int
    even_weight: float = 0.5
    activation: str = "gelu"

    def __post_init__(self):
        whole_number("experts", self.experts, 2, example=4)
        whole_number("expert_width", self.expert_width, 1)

    @property
    def tag(self):
        return f"toy{self.expert_width}x{self.experts}"

    @property
    def neurons_trained(self):
        return self.experts * self.expert_width

    @property
    def neurons_used(self):
        return self.expert_width

    def flops(self, d_in, d_out):
        router, neuron = 2 * d_in * self.experts, 2 * (d_in + d_out)
        return Flops(router + neuron * self.neurons_used, router + neuron * self.neurons_trained)

    def build(self, d_in, d_out, *, device=None, dtype=None):
        return Toy(d_in, d_out, self).to(device, dtype)


class Toy(Routed):
    losses = ("even",)

    def __init__(self, d_in, d_out, settings):
        super().__init__()
        self.loss_weights = {"even": settings.even_weight}
        self.w_router = nn.Parameter(torch.randn(settings.experts, d_in))
        self.w_in = nn.Parameter(torch.randn(settings.experts, settings.expert_width, d_in))
        self.w_out = nn.Parameter(torch.randn(settings.experts, settings.expert_width, d_out))

    @property
    def groups(self):
        return 1

    @property
    def units(self):
        return len(self.w_router)

    def forward(self, x):
        return self.forward_with_losses(x)[0]

    def forward_with_losses(self, x):
        share = (x @ self.w_router.t()).softmax(-1)
        gate, expert = share.max(-1)
        hidden = nn.functional.gelu(torch.einsum("...h,ewh->...ew", x, self.w_in))
        mine = nn.functional.one_hot(expert, self.units) * gate[..., None]
        y = torch.einsum("...ew,ewk,...e->...k", hidden, self.w_out, mine)
        mean = share.flatten(0, -2).mean(0)
        return y, {"even": (mean * mean.log()).sum() + torch.tensor(float(self.units)).log()}

    @torch.no_grad()
    def route(self, x):
        best = (x @ self.w_router.t()).topk(2)
        return Route(best.indices[..., None, :1], (best.values[..., :1] - best.values[..., 1:])[..., None], self.units)
'''
LINE = '    "toy": "fff.layers.toy.ToySettings",\n'
YAML = "kind: toy\nexperts: 4\nexpert_width: 8\n"

SMALL = [
    *("experiment=quickstart", "seed=3", "wandb=off", "ffn.trees=null", "ffn.depth=null", "data=text"),
    *("data.vocab_size=80", "data.seq_len=32", "data.valid_share=0.2", "data.workers=1", "data.examples=[]"),
    *("model.hidden_size=32", "model.layers=2", "model.heads=2", "train.microbatch=8", "train.batch=8"),
    *("train.budget_tokens=null", "train.budget_steps=6", "train.validations=2", "train.valid_sequences=16"),
    *("train.usage_steps=2", "train.log_steps=1"),
]
LOAD = """
import json, sys
import torch
from transformers import AutoModelForMaskedLM
model = AutoModelForMaskedLM.from_pretrained(sys.argv[1], trust_remote_code=True).train()
assert "cramming" not in sys.modules
ids = torch.arange(32)[None] % 80
output = model(input_ids=ids, labels=ids)
print(json.dumps({"kind": model.config.ffn, "layer": type(model.model.blocks[0].ffn).__name__,
    "aux": output.aux_loss.item(), "even": output.auxiliary_losses["even"].item()}))
"""


@pytest.fixture(scope="module")
def changed(tmp_path_factory) -> Path:
    """A copy of the project with the toy in it."""
    home = tmp_path_factory.mktemp("project")
    for name in ("fff", "cramming", "configs", "scripts"):
        shutil.copytree(ROOT / name, home / name, ignore=shutil.ignore_patterns("__pycache__"))
    (home / "fff/layers/toy.py").write_text(LAYER)
    (home / "configs/ffn/toy.yaml").write_text(YAML)
    chooser = home / "fff/feedforward.py"
    chooser.write_text(chooser.read_text().replace("KINDS = {\n", "KINDS = {\n" + LINE))
    return home


def run(home: Path, *arguments: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=home,
        env={**os.environ, "PYTHONPATH": str(home), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def files_of(home: Path) -> dict[str, str]:
    packages = ("fff", "cramming", "configs", "scripts")
    paths = [path for name in packages for path in (home / name).rglob("*") if path.suffix in (".py", ".yaml")]
    return {str(path.relative_to(home)): path.read_text() for path in paths}


def test_a_new_kind_is_one_file_one_line_and_one_yaml(changed: Path) -> None:
    before, after = files_of(ROOT), files_of(changed)
    assert after.keys() - before.keys() == {"fff/layers/toy.py", "configs/ffn/toy.yaml"}
    lines = [
        line
        for name, text in before.items()
        for line in difflib.ndiff(text.splitlines(True), after[name].splitlines(True))
        if line[0] in "+-"
    ]
    assert lines == ["+ " + LINE]


def test_it_is_trained_measured_saved_and_loaded(changed: Path, tmp_path: Path) -> None:
    write_text(tmp_path / "text.txt")
    folders = [f"data.files=[{tmp_path / 'text.txt'}]", f"output_dir={tmp_path}/outputs", f"results_dir={tmp_path}"]
    run(changed, "scripts/pretrain.py", "ffn=toy", *SMALL, *folders)
    (file,) = (tmp_path / "runs").glob("*.json")
    record = json.loads(file.read_text())
    assert file.name.startswith("quickstart-toy8x4-s3-")
    assert (record["status"], record["ffn"], record["config"]["ffn"]["experts"]) == ("finished", "toy8x4", 4)
    assert 0 < record["metrics"]["usage_entropy"] <= 2
    assert "soft_hard_gap" not in record["metrics"]
    (folder,) = (tmp_path / "outputs/runs").iterdir()
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert any(0 <= row.get("train/aux_even", -1) <= 1.4 for row in rows)
    (tmp_path / "alone").mkdir()
    (tmp_path / "alone/fff").symlink_to(changed / "fff")
    outside = {"PYTHONPATH": f"{tmp_path}/alone", "HF_MODULES_CACHE": f"{tmp_path}/modules"}
    loaded = json.loads(run(tmp_path, "-c", LOAD, str(folder / "model"), **outside))
    assert loaded["layer"] == "Toy"
    assert loaded["kind"] == {
        **{"kind": "toy", "experts": 4, "expert_width": 8},
        **{"even_weight": 0.5, "activation": "gelu"},
    }
    assert loaded["aux"] == pytest.approx(0.5 * loaded["even"])


def test_it_renames_no_run_and_its_mistakes_are_named(changed: Path) -> None:
    code = (
        "import sys\nfrom hydra import compose, initialize_config_dir\n"
        "from cramming.config import CONFIGS, ROOTS, frozen, register\nfrom cramming.errors import UserError\n"
        "from cramming.model import CrammedConfig\nfrom cramming.model.flops import training_flops\n"
        "register()\n"
        "def root(*words):\n"
        "    with initialize_config_dir(str(CONFIGS), version_base='1.3'):\n"
        "        return frozen(ROOTS['pretrain'], compose('pretrain', overrides=list(words)))\n"
        "print(root().run_name)\n"
        "toy = root('ffn=toy', 'ffn.trees=null', 'ffn.depth=null')\n"
        "print(training_flops(CrammedConfig(ffn=toy.ffn.specification(), **toy.model.encoder()), 128, 32).path > 0)\n"
        "for words in (['ffn.experts=1'], ['ffn.experts=null'], ['ffn.width=3'], ['ffn=path', 'ffn.experts=4']):\n"
        "    try:\n"
        "        root('ffn=toy', 'ffn.trees=null', 'ffn.depth=null', *words)\n"
        "    except UserError as error:\n"
        "        print(error)\n"
    )
    lines = run(changed, "-c", code).splitlines()
    assert lines[0] == composed("pretrain").run_name
    assert lines[1] == "True"
    assert lines[2].startswith("ffn.experts is 1; set it to 2 or more, e.g. ffn.experts=4")
    assert lines[3].startswith("ffn.experts is None; set it to 2 or more")
    assert lines[4].startswith("ffn.width does not belong to ffn=toy; set ffn.width=null. It belongs to ffn=dense")
    assert lines[5].startswith("ffn.experts does not belong to ffn=path; set ffn.experts=null. It belongs to ffn=toy")
