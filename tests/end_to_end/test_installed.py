"""What an installation gives: a library, a clear error for the lack of commands, a .venv that knows its place."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import fff

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = ("fff", "cramming", "bench", "configs", "scripts", "tests", "docs", "notebooks")


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel and a source distribution, built from a copy of the tree."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for name in SHIPPED:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for path in ROOT.iterdir():
        if path.is_file():
            shutil.copy(path, source / path.name)
    (source / "results").mkdir()
    for name in ("README.md", "paper.yaml", "paper_defects.md"):
        shutil.copy(ROOT / "results" / name, source / "results" / name)
    for kind in ("wheel", "sdist"):
        build = f"import setuptools.build_meta as b; b.build_{kind}({str(out)!r})"
        subprocess.run([sys.executable, "-c", build], cwd=source, check=True, capture_output=True)
    return out


def test_the_wheel_is_the_typed_library_and_nothing_else(distributions: Path, tmp_path: Path) -> None:
    (wheel,) = distributions.glob("*.whl")
    assert wheel.name.startswith(f"fff_cramming-{fff.__version__}-")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(tmp_path)
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"fff", "cramming"}
    assert {"fff/py.typed", "cramming/py.typed", "fff/kernels/cpu/cpp/ops.cpp", "cramming/regions/page.html"} <= set(
        names
    )
    code = "import sys; sys.argv = ['pretrain']\nfrom cramming.config import entry\nentry('pretrain')(print)()"
    environment = os.environ | {"PYTHONPATH": str(tmp_path), "PYTHONSAFEPATH": "1"}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {tmp_path}/configs is missing: commands need a checkout")
    assert done.stderr.count("\n") == 1


def test_the_source_distribution_has_what_its_tests_need(distributions: Path) -> None:
    (sdist,) = distributions.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    wanted = {"tests/helpers/tiny.py", "configs/pretrain.yaml", "scripts/pretrain.py", "Makefile", "requirements.lock"}
    wanted |= {"results/paper.yaml", "results/paper_defects.md"}
    assert wanted | {"bench/layer.py", "fff/kernels/cpu/cpp/ops.h"} <= names


def test_a_copied_checkout_sets_itself_up_anew(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    (here / ".venv").mkdir(parents=True)
    for name in ("Makefile", "requirements.lock", "pyproject.toml"):
        shutil.copy(ROOT / name, here / name)
    (here / ".venv/.complete").write_text(f"{here}\n")
    shutil.copytree(here, there)
    planned = {
        folder: subprocess.run(["make", "-n", "setup"], cwd=folder, capture_output=True, text=True, check=True).stdout
        for folder in (here, there)
    }
    assert "venv" not in planned[here]
    assert "-m venv --clear .venv" in planned[there]
