"""How threads wait for one another is set before torch loads, and a user's own choice stands."""

import ast
import os
import subprocess
import sys

import pytest

from tests.helpers.commands import ROOT

KEYS = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
COMMANDS = sorted(path.name for path in (ROOT / "scripts").glob("*.py"))
BRING_TORCH = {"torch", "transformers", "accelerate", "bench", "fff"}


@pytest.mark.parametrize(
    ("given", "found"),
    [({}, "10000 None"), ({"GOMP_SPINCOUNT": "5"}, "5 None"), ({"OMP_WAIT_POLICY": "active"}, "None active")],
)
def test_spinning_is_bounded_unless_a_user_chose(given: dict[str, str], found: str) -> None:
    environment = {key: value for key, value in os.environ.items() if key not in KEYS} | given
    program = f"import cramming, os, sys; print(*map(os.environ.get, {KEYS})); sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, found)


@pytest.mark.parametrize("script", COMMANDS)
def test_every_command_loads_the_setting_before_torch(script: str) -> None:
    tree = ast.parse((ROOT / "scripts" / script).read_text("utf-8"))
    modules = []
    for node in tree.body:  # in the order in which they are loaded
        if isinstance(node, ast.ImportFrom):
            modules.append(node.module or "")
        elif isinstance(node, ast.Import):
            modules += [name.name for name in node.names]
    packages = [name.partition(".")[0] for name in modules]
    assert next(name for name in packages if name in BRING_TORCH | {"cramming"}) == "cramming"
