"""A tiny pretraining run on made-up text, in this process or another one. Not a test.

As a script: `python tests/helpers/tiny.py FOLDER [key=value ...]`, with kill_at=N to die by SIGKILL before step N + 1.
"""

import os
import random
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from cramming.data.config import DataConfig
from cramming.model.config import FFNConfig, ModelConfig
from cramming.train import loop
from cramming.train.config import TrainConfig, WandbConfig
from cramming.train.root import PretrainRoot

NOUNS = ["cat", "dog", "bird", "tree", "river", "stone", "house", "garden", "teacher", "child", "king", "letter"]
VERBS = ["sees", "finds", "likes", "follows", "remembers", "paints", "carries", "watches"]


def write_text(path: Path, documents: int = 200) -> None:
    """Documents of simple sentences from a fixed seed."""
    draw = random.Random(0)
    lines = []
    for _ in range(documents):
        lines += [
            f"The {draw.choice(NOUNS)} {draw.choice(VERBS)} the {draw.choice(NOUNS)} near the {draw.choice(NOUNS)}."
            for _ in range(8)
        ]
        lines.append("")
    path.write_text("\n".join(lines))


def tiny_root(folder: Path, **train: Any) -> PretrainRoot:
    """A run of 12 steps on such text."""
    folder.mkdir(parents=True, exist_ok=True)
    text = folder / "text.txt"
    if not text.exists():
        write_text(text)
    settings = {"budget_steps": 12, "microbatch": 8, "batch": 16, "batch_ramp": 0.5, "lr": 3e-3, "checkpoints": 4}
    settings |= {"validations": 2, "valid_sequences": 16, "log_steps": 1, "keep_checkpoints": 2, **train}
    return PretrainRoot(
        experiment="tiny",
        output_dir=str(folder / "outputs"),
        results_dir=str(folder / "results"),
        data=DataConfig(
            name="tiny", source="text", files=[str(text)], valid_share=0.2, vocab_size=80, seq_len=32, workers=1
        ),
        model=ModelConfig(hidden_size=32, layers=2, heads=2),
        ffn=FFNConfig(kind="path", trees=2, depth=3),
        train=TrainConfig(**settings),
        wandb=WandbConfig(mode="off"),
    )


def main() -> None:
    """Run as a script."""
    folder, pairs = Path(sys.argv[1]), dict(pair.split("=") for pair in sys.argv[2:])
    kill_at = int(pairs.pop("kill_at", -1))
    wandb = pairs.pop("wandb", "off")
    root = replace(
        tiny_root(folder, **{key: int(value) for key, value in pairs.items()}), wandb=WandbConfig(mode=wandb)
    )
    step = loop.Trainer.step

    def step_or_die(self: loop.Trainer) -> loop.Step:
        if self.state.step == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return step(self)

    loop.Trainer.step = step_or_die  # type: ignore[method-assign]
    from cramming.train.pretrain import pretrain

    pretrain(root)


if __name__ == "__main__":
    main()
