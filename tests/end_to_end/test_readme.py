"""The README's commands, run in its order in an empty folder: what make would start, at the size of a test."""

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from safetensors.torch import save_file

from tests.helpers.commands import inline
from tests.helpers.data import make_documents, write_txt
from tests.helpers.distilled import bert, tokenizer
from tests.helpers.forked import forks  # noqa: F401, a fixture
from tests.helpers.glue import write_sst2
from tests.helpers.ultrafast import HEADS, synthetic

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
# What is appended to a command of each script. A place of the README's -> one of the test's.
TINY = (
    "data=text data.files=[{home}/text.txt] data.valid_files=[] data.valid_share=0.2 data.vocab_size=200 "
    "data.seq_len=32 data.examples=[] data.workers=1 "
    "model.hidden_size=16 model.layers=1 model.heads=2 train.budget_hours=null train.budget_tokens=2000 train.batch=8 "
    "train.microbatch=8 train.precision=fp32 train.compile=false train.validations=1 train.valid_sequences=16 "
    "train.checkpoints=1 wandb=off"
)
SMALL = {
    "pretrain": TINY,
    "sweep": TINY,
    "micro": f"--rows none,1x2 --seeds 0 {TINY}",
    "glue": f"{TINY} glue.seeds=[0] glue.epochs=1 glue.max_length=32 glue.mini_train=24 glue.mini_dev=12",
    "images": "images.epochs=1 images.widths=[16] images.leaf_widths=[8] images.seeds=[0] images.variants=[plain]",
    "embed": "--threads 1",
    "search": "--threads 1 --index {home}/index",
    "regions": "--tokens 500",
    "convert": f"--heads {HEADS}",
    "distill": "distill.to=leaf:1x8+8 distill.controls=[none,narrow:12] distill.held_out=[{home}/text.txt] "
    "distill.tokens=1500 distill.fit_tokens=1000 distill.block_tokens=500 distill.whole_tokens=500 "
    "distill.neighbours=12 distill.seq_len=32 distill.times=false",
}
# This test itself; what needs the hub; and two processes, which other tests start.
LEFT_OUT = ("make test", "glue=hub", "torchrun")


def commands() -> list[str]:
    """The lines of the README's shell blocks, without their comments."""
    blocks = re.findall(r"```sh\n(.*?)```", README, flags=re.DOTALL)
    return [line.split("  #")[0].strip() for block in blocks for line in block.splitlines() if line.strip()]


def started_by(line: str) -> list[list[str]]:
    """Script and arguments of each Python process that a make command starts."""
    plan = subprocess.run(
        ["make", "-n", "-C", str(ROOT), *shlex.split(line)[1:]], capture_output=True, text=True, check=True
    )
    found = re.findall(r"\.venv/bin/python scripts/(\w+)\.py ?([^;&\n]*)", plan.stdout)
    return [[script, *shlex.split(rest)] for script, rest in found]


def in_place(words: list[str], home: Path) -> list[str]:
    """The README's places as those of the test."""
    runs = sorted(path.name for path in home.glob("outputs/runs/quickstart-1x9-*"))
    places = {"<run>": runs[0] if runs else "<run>"}
    places |= {"/text/train-*.txt.xz": f"{home}/text.txt", "/text/valid.txt.xz": f"{home}/text.txt"}
    places |= {"glue.dir=/glue": f"glue.dir={home}/glue", "/text/*.txt.xz": f"{home}/text.txt"}
    places |= dict.fromkeys(("sentence-transformers/all-MiniLM-L6-v2", "/models/converted"), f"{home}/encoder")
    for name, place in places.items():
        words = [word.replace(name, place) for word in words]
    return words


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a user has: a text, GLUE's files, an encoder, the authors' weights."""
    folder = tmp_path_factory.mktemp("home")
    (folder / "results").mkdir()
    shutil.copy(ROOT / "results/paper.yaml", folder / "results")
    write_txt(folder / "text.txt", make_documents(120))
    write_sst2(folder / "glue", train=32, dev=16)
    bert().save_pretrained(folder / "encoder")
    tokenizer().save_pretrained(folder / "encoder")
    (folder / "UltraFastBERT-1x11-long").mkdir()
    save_file(synthetic(1, 3), folder / "UltraFastBERT-1x11-long/model.safetensors")
    return folder


@pytest.mark.usefixtures("forks")
def test_every_command_of_the_readme_runs(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)
    lines = [line for line in commands() if not any(words in line for words in LEFT_OUT)]
    assert len(lines) >= 14
    for line in lines:
        assert line.startswith("make "), line
        plans = started_by(line)
        assert plans, line
        for script, *words in plans:
            words += ["glue.tasks=[sst2]"] if "glue=local" in words else []
            words += SMALL.get(script, "").format(home=home).split()
            done = inline(script, *in_place(words, home))
            assert done.returncode == 0, f"{line}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    tables = (home / "results/tables/pretraining.md").read_text()
    assert "quickstart" in tables
    assert "cpu_wiki" in tables
    assert (home / "converted/model.safetensors").exists()
    assert (home / "page.html").exists()


def test_the_code_of_the_readme_runs() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    values: dict = {}
    exec(code, values)
    assert values["y"].shape == (8, 128, 768)
    assert values["nodes"].shape == values["scores"].shape == (8, 128, 1, 12)


def test_every_place_that_the_readme_names_is_there() -> None:
    named = re.findall(r"`((?:fff|cramming|configs|scripts|bench|tests|results|docs|notebooks)/[\w/.]+)`", README)
    named += re.findall(r"\]\(((?:results|docs)[\w/.]*)\)", README)
    named += ["CITATION.cff", *re.findall(r"`(\w+\.(?:yml|lock))`", README)]
    missing = [name for name in named if not (ROOT / name.split("/{")[0]).exists()]
    assert len(named) > 20
    assert not missing


def test_the_readme_has_the_fingerprint_of_the_embedded_text() -> None:
    (expected,) = re.findall(r"\b[0-9a-f]{16}\b", (ROOT / "configs/data/docs.yaml").read_text())
    assert f"`{expected}`" in README


def test_the_commands_that_pages_of_results_name_are_there() -> None:
    pages = "\n".join(path.read_text() for path in sorted((ROOT / "results").glob("*.md")))
    pages = re.sub(r"\s+", " ", pages)
    modules, makefile = re.findall(r"python -m ([\w.]+)", pages), (ROOT / "Makefile").read_text()
    files = [f"{name.replace('.', '/')}.py" for name in modules if name != "pytest"]
    files += re.findall(r"\bscripts/\w+\.py", pages)
    targets = re.findall(r"`make (\w+)", pages)
    assert {"bench/paper.py", "scripts/bench.py"} <= set(files)
    assert [name for name in files if not (ROOT / name).exists()] == []
    assert [name for name in targets if f"\n{name}:" not in makefile] == []
