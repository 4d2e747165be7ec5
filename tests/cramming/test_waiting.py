"""How threads wait for one another is set before torch loads, and a user's own choice stands."""

import ast
import os
import subprocess
import sys

import pytest

from tests.helpers.commands import ROOT

KEYS = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
TRAINING = ("pretrain", "pretrain_plain", "glue", "images", "distill")


@pytest.mark.parametrize(
    ("given", "found"),
    [({}, "10000 None"), ({"GOMP_SPINCOUNT": "5"}, "5 None"), ({"OMP_WAIT_POLICY": "active"}, "None active")],
)
def test_spinning_is_bounded_unless_a_user_chose(given: dict[str, str], found: str) -> None:
    environment = {key: value for key, value in os.environ.items() if key not in KEYS} | given
    program = f"import cramming, os, sys; print(*map(os.environ.get, {KEYS})); sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, found)


@pytest.mark.parametrize("script", TRAINING)
def test_commands_that_train_load_the_setting_before_torch(script: str) -> None:
    tree = ast.parse((ROOT / "scripts" / f"{script}.py").read_text("utf-8"))
    modules = [node.module for node in tree.body if isinstance(node, ast.ImportFrom)]
    modules += [name.name for node in tree.body if isinstance(node, ast.Import) for name in node.names]
    ours = [name.partition(".")[0] for name in modules if name]
    assert "cramming" in ours
    assert not {"torch", "transformers", "accelerate", "bench", "fff"} & set(ours)
