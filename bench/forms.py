"""What people would run a dense model in on a CPU: types, compilers, int8 of torch and of other libraries. Not timing.

A form takes a float32 module in evaluation and an input, and gives what computes the same on inputs of its type. The
libraries beside torch are the extra `opponents` (`pip install -e .[opponents]`); what is not there is left out, with
the reason.
"""

import copy
import importlib
import importlib.metadata
import math
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cramming.model.saved import first_line
from fff.int8 import quantised
from fff.kernels.int8_linear import unusable
from fff.optimise import optimise_for_cpu

Call = Callable[[Tensor], Tensor]
INT8 = "int8"  # how the names of int8 forms begin
OPTIMISED = "optimised"  # as optimise_for_cpu has it on this processor for so many tokens, of its own choice
ERRORS = {"float32": 1e-5, "bfloat16": 3e-2, INT8: 8e-2, OPTIMISED: 8e-2}  # allowed: of the norm of float32's output
OF_TREES = 2.5  # times as much, where a token may take another way in one of many trees, which moves it by less
ANOTHER_WAY = 0.2  # a token that is so far off its float32 output took other neurons
MOST_APART = 0.25  # allowed: share of tokens; of a lone token's four inputs one


@dataclass(frozen=True)
class Form:
    """One way to run a module.

    Attributes:
        name: "float32", "bfloat16 compiled", "int8 onnxruntime", ...
        make: from the module and an input of it, to what is called.
        package: whose version is told.
        needs: further packages that must be there.
        dtype: of floating inputs.
        ours: this library's own, for models with trees too.
    """

    name: str
    make: Callable[[nn.Module, Tensor], Call]
    package: str = "torch"
    needs: tuple[str, ...] = ()
    dtype: torch.dtype = torch.float32
    ours: bool = False

    @property
    def kind(self) -> str:
        """float32, bfloat16, int8 or optimised."""
        return self.name.split()[0]

    @property
    def library(self) -> str:
        """The library with its version, e.g. "onnxruntime 1.32.0"."""
        return f"{self.package} {importlib.metadata.version(self.package)}"

    def missing(self) -> str | None:
        """Why the form cannot be had here; None where it can."""
        for package in (self.package, *self.needs):
            try:
                importlib.import_module(package)
            except Exception as error:  # a broken library must not end the bench
                return f"{package} cannot be imported ({type(error).__name__}); pip install -e .[opponents]"
        return unusable() if self.ours and self.kind == INT8 else None

    def given(self, x: Tensor) -> Tensor:
        """An input in the form's type; ids stay."""
        return x.to(self.dtype) if x.is_floating_point() else x


def _plain(module: nn.Module, _: Tensor) -> Call:
    return copy.deepcopy(module)


def _half(module: nn.Module, _: Tensor) -> Call:
    return copy.deepcopy(module).bfloat16()


def _compiled(module: nn.Module, _: Tensor) -> Call:
    return torch.compile(copy.deepcopy(module).bfloat16())


def _torch_int8(module: nn.Module, _: Tensor) -> Call:
    """torch's dynamic quantisation by oneDNN, which is faster than its default engine where that is another."""
    before = torch.backends.quantized.engine
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its end, which is announced
        from torch.ao.quantization import quantize_dynamic

        try:
            torch.backends.quantized.engine = "onednn"
            return quantize_dynamic(copy.deepcopy(module), {nn.Linear}, dtype=torch.qint8)
        finally:
            torch.backends.quantized.engine = before


def _torchao(module: nn.Module, _: Tensor) -> Call:
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

    made = copy.deepcopy(module)
    quantize_(made, Int8DynamicActivationInt8WeightConfig())
    return torch.compile(made)


def _onnxruntime(module: nn.Module, x: Tensor) -> Call:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        whole, small = Path(folder, "whole.onnx"), Path(folder, "int8.onnx")
        torch.onnx.export(module, (x,), str(whole), input_names=["x"], output_names=["y"], dynamo=True, verbose=False)
        quantize_dynamic(whole, small, per_channel=True, weight_type=QuantType.QInt8)
        return by_onnxruntime(small)


def by_onnxruntime(path: Path) -> Call:
    """A model of one input as onnxruntime runs it, on as many threads as torch has."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = torch.get_num_threads(), 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda x: torch.from_numpy(session.run(None, {name: x.numpy()})[0])


def _openvino(module: nn.Module, x: Tensor) -> Call:
    import openvino

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = openvino.convert_model(module, example_input=x, input=list(x.shape))
    _compress(model)
    settings = {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "PERFORMANCE_HINT": "LATENCY"}
    request = openvino.compile_model(model, "CPU", settings).create_infer_request()
    return lambda x: torch.from_numpy(request.infer([x.numpy()], share_inputs=True, share_outputs=False)[0])


def _compress(model: Any) -> None:
    """Weights of products as int8 with a scale a row, in the form that openvino takes for compressed ones."""
    from openvino import opset13 as ops

    for node in model.get_ops():
        source = node.input_value(1).get_node() if node.get_type_name() == "MatMul" else None
        if source is None or source.get_type_name() != "Constant" or len(source.shape) != 2:
            continue
        weight, rows = torch.from_numpy(source.get_data().copy()).float(), node.get_attributes()["transpose_b"]
        whole, scale = quantised(weight if rows else weight.T)
        scale = scale[:, None] if rows else scale[None]
        number = ops.convert(ops.constant((whole if rows else whole.T.contiguous()).numpy()), "f32")
        node.input(1).replace_source_output(ops.multiply(number, ops.constant(scale.numpy())).output(0))


def _optimised(module: nn.Module, x: Tensor) -> Call:
    made = copy.deepcopy(module)
    optimise_for_cpu(made, tokens=x[..., 0].numel() if x.is_floating_point() else x.numel())
    return made


def _int8(module: nn.Module, _: Tensor) -> Call:
    made = copy.deepcopy(module)
    optimise_for_cpu(made, linears="int8")
    return made


def _int8_in_half(module: nn.Module, _: Tensor) -> Call:
    made = copy.deepcopy(module).bfloat16()
    optimise_for_cpu(made, linears="int8")
    return made


HALF = torch.bfloat16
FORMS = (
    Form("float32", _plain, ours=True),
    Form("bfloat16", _half, dtype=HALF, ours=True),
    Form("bfloat16 compiled", _compiled, dtype=HALF),
    Form("int8 torch", _torch_int8),
    Form("int8 torchao", _torchao, "torchao"),
    Form("int8 onnxruntime", _onnxruntime, "onnxruntime", ("onnx", "onnxscript")),
    Form("int8 openvino", _openvino, "openvino"),
    Form("int8", _int8, ours=True),
    Form("int8 in bfloat16", _int8_in_half, dtype=HALF, ours=True),
    Form(OPTIMISED, _optimised, ours=True),
)


def distance(found: Tensor, expected: Tensor) -> tuple[float, float]:
    """How far outputs (..., d) are off, of the expected norm, and the share of tokens that went another way.

    A tree is discontinuous: a score near 0 that is rounded otherwise sends its token to other neurons. Such a token is
    counted by the second number and left out of the first.
    """
    errors = ((found - expected).norm(dim=-1) / expected.norm(dim=-1)).flatten()
    kept = (errors <= ANOTHER_WAY).reshape(found.shape[:-1])
    if not kept.any():
        return math.inf, 1.0
    off = float((found - expected)[kept].norm() / expected[kept].norm())
    return off, 1 - float(kept.double().mean())


def made(
    module: nn.Module, xs: Sequence[Tensor], forms: tuple[Form, ...], title: str, *, trees: bool
) -> Iterator[tuple[Form, Call, float]]:
    """The forms that can be had here, each held to the float32 module on xs; says of each what came of it.

    Args:
        trees: whether rounding may send a few tokens another way (see `distance`).

    Raises:
        AssertionError: a form computes something else: nothing is timed then.
    """
    with torch.no_grad():
        expected = torch.cat([module(x) for x in xs])
        for form in forms:
            if reason := form.missing():
                print(f"left out   {title} {form.name}: {reason}", flush=True)
                continue
            try:
                call = form.make(module, xs[0])
                found = torch.cat([call(form.given(x)).float().clone() for x in xs])
            except Exception as error:  # another library's fault, of a model that it does not take
                if form.package == "torch":
                    raise
                print(f"left out   {title} {form.name}: {first_line(error)}", flush=True)
                continue
            off, apart = distance(found, expected)
            said = f"off by {off:.1e} of float32's, {apart:.1%} of tokens another way"
            rounded = trees and form.kind != "float32"
            right = off <= ERRORS[form.kind] * (OF_TREES if rounded else 1) and apart <= MOST_APART * rounded
            assert right, f"{title} {form.name}: another result, {said}"
            print(f"checked    {title} {form.name}, {form.library}: {said}", flush=True)
            yield form, call, off
