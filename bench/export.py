"""What exports of a layer take beside the layer itself: `python -m bench.export`. Not whether they are right (tests).

PathFFF and LeafFFF under their own provider, the same by onnxruntime from fff.export.onnx and by AOTInductor from
fff.export.package, and the usual dense layer, in turn on the same inputs. Each first has to give the layer's outputs.
"""

import argparse
import importlib
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bench.cases import WIDTH, dense
from bench.forms import Call, by_onnxruntime
from bench.layer import layer_of
from bench.options import Setting, Shape, check_out, check_seconds, shapes, thread_counts, whole_numbers
from bench.rows import SpeedRow, stamp, write_rows
from bench.timing import figures, interleaved
from cramming.door import door, path_argument
from cramming.errors import UserError
from cramming.machine import this_device
from fff import export

USUAL = 4 * WIDTH
INPUTS = 4  # that rotate
EXAMPLE = 8  # tokens
CLEAR = 0.99  # share of outputs that must agree: where a score is near 0, rounding decides


@dataclass(frozen=True)
class Turn:
    """One thing that is timed, on the turn's input."""

    call: Call
    inputs: list[Tensor]

    def __call__(self, turn: int) -> None:
        """Run it once."""
        self.call(self.inputs[turn % len(self.inputs)])


def by_onnx(layer: nn.Module, folder: Path) -> Call:
    """The layer written as ONNX and run by onnxruntime."""
    export.onnx(layer, torch.randn(EXAMPLE, WIDTH), folder / "layer.onnx")
    return by_onnxruntime(folder / "layer.onnx")


def by_aotinductor(layer: nn.Module, folder: Path) -> Call:
    """The layer compiled by AOTInductor."""
    export.package(layer, torch.randn(EXAMPLE, WIDTH), folder / "layer.pt2")
    return torch._inductor.aoti_load_package(str(folder / "layer.pt2"))


def run_exports(shape: Shape, tokens: list[int], threads: int, seconds: float) -> list[SpeedRow]:
    """Rows of one shape for each number of tokens, printed as they are found.

    Raises:
        AssertionError: an export gives other outputs than the layer; nothing is timed then.
    """
    torch.manual_seed(0)
    torch.set_num_threads(threads)
    setting = Setting(shape.trees, shape.depth, 1, torch.float32, "inference", leaf_width=shape.leaf_width)
    layer, usual = layer_of(setting).eval(), dense(USUAL, torch.float32).eval()
    rows: list[SpeedRow] = []
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        ways: dict[str, Call] = {"fff": layer, "onnxruntime": by_onnx(layer, Path(folder))}
        ways |= {"AOTInductor": by_aotinductor(layer, Path(folder)), f"dense {USUAL}": usual}
        for count in tokens:
            xs = [torch.randn(count, WIDTH) for _ in range(INPUTS)]
            for name in ("onnxruntime", "AOTInductor"):
                refuse_other_outputs(name, ways[name](xs[0]), layer(xs[0]))
            timed = interleaved({name: Turn(call, xs) for name, call in ways.items()}, torch.device("cpu"), seconds)
            found = {name: figures(samples) for name, samples in timed.items()}
            rows += [row(name, found, shape, count, threads) for name in found]
            print(f"\n{shape}  {count} tokens, {threads} threads")
            for each in rows[-len(found) :]:
                print(f"  {each.name:<14} {each.median * 1e3:10.3f} ms  {each.ratio or 1:8.2f}x of fff", flush=True)
    return rows


def refuse_other_outputs(name: str, found: Tensor, expected: Tensor) -> None:
    """AssertionError where more outputs differ than rounding of scores near 0 explains."""
    same = torch.isclose(found, expected, rtol=1e-3, atol=1e-4).all(-1).float().mean().item()
    assert same >= CLEAR or len(found) * (1 - same) <= 1, f"{name} agrees on {same:.1%} of the tokens alone"


def row(name: str, found: dict[str, dict[str, Any]], shape: Shape, tokens: int, threads: int) -> SpeedRow:
    """One way's row; its ratio is to the layer itself."""
    compared = {} if name == "fff" else {"opponent": "fff", "ratio": found["fff"]["median"] / found[name]["median"]}
    return SpeedRow(
        what="layer",
        name=name,
        shape=str(shape),
        width=WIDTH,
        tokens=tokens,
        dtype="float32",
        mode="inference",
        inputs="iid",
        **found[name],
        **compared,
        **stamp(torch.device("cpu"), threads),
    )


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="bench.export", description=__doc__)
    parser.add_argument("--shapes", default="1x11,leaf32x7", help="trees x depth or leaf_width x depth")
    parser.add_argument("--tokens", default="1,128,2048")
    parser.add_argument("--threads", default="1")
    parser.add_argument("--seconds", type=float, default=2.0, help="for each thing timed")
    parser.add_argument("--out", type=path_argument, help="JSON file to write")
    options = parser.parse_args(arguments)
    with door():
        chosen, tokens = shapes(options.shapes), whole_numbers("tokens", options.tokens)
        counts = thread_counts(options.threads)
        check_seconds(options.seconds)
        check_out(options.out)
        if others := [shape for shape in chosen if shape.rival]:
            raise UserError(f"--shapes names {others[0]}; exports are timed of trees alone, e.g. 1x11, leaf32x7.")
        if this_device().type != "cpu":
            print("exports are timed on the CPU, though there is a GPU")
        refuse_missing()
        rows = [r for shape in chosen for count in counts for r in run_exports(shape, tokens, count, options.seconds)]
        if options.out:
            write_rows(options.out, rows)
            print(f"written    {options.out}")


def refuse_missing() -> None:
    """UserError where onnxruntime, or what writes for it, is not installed."""
    for name in ("onnx", "onnxscript", "onnxruntime"):
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise UserError(
                f"{name} is needed and missing ({error}); `pip install 'fff-cramming[onnx]'` installs it."
            ) from None


if __name__ == "__main__":
    main()
