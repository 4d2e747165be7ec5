"""Code in a Python of its own."""

import os
import subprocess
import sys


def in_a_new_process(code: str, **environment: str) -> str:
    """What the code prints, standard error included."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=600,
        check=True,
    )
    return done.stdout + done.stderr
