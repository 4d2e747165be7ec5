// Inference called from Python past torch's dispatcher, whose way from Python to an operator takes longer than one
// token's walk. Only where it would end at the same function: plain tensors on the CPU, no gradients, autocast, mode,
// tracer or profiler. Empty where Python's headers are missing, which costs the shortcut alone.
#if __has_include(<Python.h>)
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/autograd/python_variable.h>

#include <ATen/PythonTorchFunctionTLS.h>
#include <ATen/autocast_mode.h>
#include <ATen/record_function.h>

#include "ops.h"

namespace fff {
namespace {

// Other threads of Python run while the work does.
void released(Work work) {
  struct Released {
    PyThreadState* const state = PyEval_SaveThread();
    ~Released() { PyEval_RestoreThread(state); }
  } const others;
  work();
}

bool within(c10::DispatchKeySet keys, c10::DispatchKeySet most) { return (keys | most) == most; }

bool plain_here() {
  return !at::GradMode::is_enabled() && !at::autocast::is_autocast_enabled(at::kCPU) && !at::hasCallbacks() &&
         within(c10::impl::tls_local_dispatch_key_set().included_, c10::default_included_set) &&
         !at::impl::torch_function_mode_enabled();
}

bool plain(PyObject* object) {
  constexpr c10::DispatchKeySet dense{c10::DispatchKey::CPU, c10::DispatchKey::AutogradCPU,
                                      c10::DispatchKey::AutocastCPU, c10::DispatchKey::ADInplaceOrView};
  return THPVariable_CheckExact(object) && within(THPVariable_Unpack(object).key_set(), dense);
}

// A parameter by name, owned: the dictionary may let go of it at any time. Null where it is missing.
struct Parameter {
  PyObject* object = nullptr;
  Parameter(PyObject* parameters, PyObject* name) {
#if PY_VERSION_HEX >= 0x030D0000
    PyDict_GetItemRef(parameters, name, &object);
#else
    object = Py_XNewRef(PyDict_GetItemWithError(parameters, name));
#endif
  }
  Parameter(const Parameter&) = delete;
  ~Parameter() { Py_XDECREF(object); }
};

// (x, parameters by name) -> y, or None for a call that must go through torch's dispatcher. `activation` is the number
// of the activation function.
PyObject* call(PyObject* activation, PyObject* const* given, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  static PyObject* const names[] = {PyUnicode_InternFromString("w_in"), PyUnicode_InternFromString("b_in"),
                                    PyUnicode_InternFromString("w_out")};
  if (count != 2 || !PyDict_Check(given[1]) || !plain_here() || !plain(given[0])) Py_RETURN_NONE;
  const Parameter in(given[1], names[0]), bias(given[1], names[1]), out(given[1], names[2]);
  if (PyErr_Occurred()) return nullptr;
  if (!in.object || !bias.object || !out.object || !plain(in.object) || !plain(out.object) ||
      (bias.object != Py_None && !plain(bias.object)))
    Py_RETURN_NONE;
  const at::Tensor &x = THPVariable_Unpack(given[0]), &w_in = THPVariable_Unpack(in.object);
  const auto dtype = x.scalar_type();
  if (dtype != w_in.scalar_type() || (dtype != at::kFloat && dtype != at::kBFloat16)) Py_RETURN_NONE;
  const auto b_in = bias.object == Py_None ? std::nullopt : std::optional<at::Tensor>(THPVariable_Unpack(bias.object));
  const int64_t number = PyLong_AsLongLong(activation);
  return THPVariable_Wrap(infer(x, w_in, b_in, THPVariable_Unpack(out.object), number, released));
  END_HANDLE_TH_ERRORS
}

PyMethodDef method{"infer", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(&call)), METH_FASTCALL, nullptr};

}  // namespace
}  // namespace fff

// For ctypes: a new reference to the function for one activation.
extern "C" PyObject* fff_infer(long activation) {
  PyObject* const number = PyLong_FromLong(activation);
  PyObject* const function = number ? PyCFunction_New(&fff::method, number) : nullptr;
  Py_XDECREF(number);
  return function;
}
#endif
