"""One thread per test process: results do not depend on the machine, and processes do not fight over two cores."""

import os

os.environ.setdefault("WANDB_SILENT", "true")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch

torch.set_num_threads(1)
