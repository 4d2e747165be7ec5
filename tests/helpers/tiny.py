"""A tiny pretraining run on made-up text, in this process or another one. Not a test.

As a script: `python tests/helpers/tiny.py FOLDER [key=value ...]` with keys of `train` and, as ffn.KEY, of the layer.
With send=SIGNAL[+SIGNAL]@PLACE the process of rank=R (0) gets these signals before step PLACE + 1, or when it has
written the weights of a "checkpoint" or "export".
"""

import json
import os
import random
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from cramming.data.config import DataConfig
from cramming.door import door
from cramming.model import saved
from cramming.model.config import FFNConfig, ModelConfig
from cramming.train import checkpoint, loop
from cramming.train.config import TrainConfig, WandbConfig
from cramming.train.pretrain import pretrain
from cramming.train.root import PretrainRoot

NOUNS = ["cat", "dog", "bird", "tree", "river", "stone", "house", "garden", "teacher", "child", "king", "letter"]
VERBS = ["sees", "finds", "likes", "follows", "remembers", "paints", "carries", "watches"]
# What writes weights, by place.
WRITTEN = {"checkpoint": checkpoint, "export": saved}


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


def send(signals: list[str], place: str, rank: int) -> None:
    """Let the process of that rank get the signals at a place: before step N + 1, or after weights were written."""

    def sending(work: Callable[..., Any], now: Callable[..., bool], *, before: bool) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **keywords: Any) -> Any:
            due = int(os.environ.get("RANK", "0")) == rank and now(*arguments)
            result = None if before else work(*arguments, **keywords)
            for name in signals if due else ():
                os.kill(os.getpid(), signal.Signals[f"SIG{name}"])
            return work(*arguments, **keywords) if before else result

        return wrapped

    if place in WRITTEN:
        module = WRITTEN[place]
        module.save_model = sending(module.save_model, lambda *_: True, before=False)  # type: ignore[attr-defined]
    else:
        step = sending(loop.Trainer.step, lambda trainer: trainer.state.step == int(place), before=True)
        loop.Trainer.step = step  # type: ignore[method-assign]


def run(words: list[str]) -> None:
    """The run of a folder, then settings and what is sent: KEY=JSON, ffn.KEY=JSON, wandb=MODE, send=SIGNALS@PLACE."""
    folder, pairs = Path(words[0]), dict(pair.split("=") for pair in words[1:])
    if "send" in pairs:
        signals, place = pairs.pop("send").split("@")
        send(signals.split("+"), place, int(pairs.pop("rank", "0")))
    wandb = pairs.pop("wandb", "off")
    settings = {key: json.loads(value) for key, value in pairs.items()}
    layer = {key.removeprefix("ffn."): settings.pop(key) for key in list(settings) if key.startswith("ffn.")}
    root = tiny_root(folder, **settings)
    pretrain(replace(root, ffn=replace(root.ffn, **layer), wandb=WandbConfig(mode=wandb)))


if __name__ == "__main__":
    with door():
        run(sys.argv[1:])
