"""A pretrained model as a file that runs without this project: ONNX, or a package of AOTInductor. No network."""

import signal

import cramming  # noqa: F401 (before torch: how its threads wait)

signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C while libraries load ends without a traceback

import argparse
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import Dim
from transformers import AutoModelForMaskedLM

from cramming.door import door, path_argument
from cramming.errors import UserError
from cramming.files import check_writable
from cramming.model.saved import load_weights, open_pretrained
from fff import export

ENDINGS = {"onnx": ".onnx", "pt2": ".pt2"}
NEXT = {
    "onnx": 'onnxruntime.InferenceSession("{out}") takes input_ids and attention_mask, int64 (batch, length)',
    "pt2": 'torch._inductor.aoti_load_package("{out}") takes input_ids and attention_mask, int64 (batch, length)',
}


class Logits(nn.Module):
    """What the file computes: ids and mask (B, S) int64 -> logits (B, S, vocabulary)."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Apply the model."""
        return self.model(input_ids=input_ids, attention_mask=attention_mask).logits


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=path_argument, help="a run's folder, or the model folder in it")
    parser.add_argument("--to", choices=tuple(ENDINGS), required=True, help="what is written")
    parser.add_argument("--out", type=path_argument, required=True, help="the file, in .onnx or .pt2; none is replaced")
    chosen = parser.parse_args()
    with door():
        longest = run(chosen.run, chosen.to, chosen.out)
    print(f"model      masked-language logits of {chosen.run}, batch and length open, up to {longest} tokens")
    print(f"written    {chosen.out} ({chosen.out.stat().st_size / 1e6:.1f} MB)")
    print(f"next       {NEXT[chosen.to].format(out=chosen.out)}")


def run(folder: Path, to: str, out: Path) -> int:
    """Write the file, after all that can be checked was; returns the longest input in tokens."""
    if out.suffix != ENDINGS[to]:
        raise UserError(f"--out is {out}, and --to {to} writes files that end in {ENDINGS[to]}; name it so.")
    if out.exists():
        raise UserError(f"--out is {out}, which exists, and nothing is written over it; name another file.")
    check_writable(out.absolute().parent, "--out", out.name)
    pretrained = open_pretrained(folder)
    model = Logits(load_weights(AutoModelForMaskedLM, pretrained, attn_implementation="sdpa")).eval()
    ids = torch.zeros(2, min(8, pretrained.max_length), dtype=torch.int64)
    example = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    sizes = {0: Dim("batch"), 1: Dim("length", max=pretrained.max_length)}
    write = export.onnx if to == "onnx" else export.package
    try:
        write(model, example, out, dynamic=dict.fromkeys(example, sizes))
    except (ImportError, RuntimeError, ValueError) as error:
        raise UserError(f"{error}.") from error
    return pretrained.max_length


if __name__ == "__main__":
    main()
