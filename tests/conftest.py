"""One thread per test process: results do not depend on the machine, and processes do not fight over two cores."""

import os

os.environ.setdefault("WANDB_SILENT", "true")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch

if not torch.cuda.is_available():
    # tests/fff/test_triton.py: the kernels run in Triton's interpreter, which must be known before Triton is imported.
    os.environ.setdefault("TRITON_INTERPRET", "1")

for name in ("ARGS", "MAKEFLAGS", "MAKEOVERRIDES", "MFLAGS"):  # of `make test ARGS=...`, not of what tests call
    os.environ.pop(name, None)

torch.set_num_threads(1)
