// Inference called from Python past torch's dispatcher, whose way from Python to an operator takes longer than one
// token's walk. Only where it would end at the same function: plain tensors on the CPU, no gradients, autocast, mode,
// tracer or profiler. Empty where Python's headers are missing, which costs the shortcut alone.
#if __has_include(<Python.h>)
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/autograd/python_variable.h>

#include <ATen/PythonTorchFunctionTLS.h>
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

// Nobody wants to see what happens but autograd.
bool unwatched() {
  return !autocasting() && !at::hasCallbacks() &&
         within(c10::impl::tls_local_dispatch_key_set().included_, c10::default_included_set) &&
         !at::impl::torch_function_mode_enabled();
}

bool plain_here() { return !at::GradMode::is_enabled() && unwatched(); }

bool plain(PyObject* object) {
  constexpr c10::DispatchKeySet dense{c10::DispatchKey::CPU, c10::DispatchKey::AutogradCPU,
                                      c10::DispatchKey::AutocastCPU, c10::DispatchKey::ADInplaceOrView};
  return THPVariable_CheckExact(object) && within(THPVariable_Unpack(object).key_set(), dense);
}

// A tensor by name, owned: the dictionary may let go of it at any time. Null where it is missing.
struct Named {
  PyObject* object = nullptr;
  Named(PyObject* tensors, PyObject* name) {
#if PY_VERSION_HEX >= 0x030D0000
    PyDict_GetItemRef(tensors, name, &object);
#else
    object = Py_XNewRef(PyDict_GetItemWithError(tensors, name));
#endif
  }
  Named(const Named&) = delete;
  ~Named() { Py_XDECREF(object); }

  bool none() const { return object == Py_None; }
  bool usable() const { return object && plain(object); }
  const at::Tensor& tensor() const { return THPVariable_Unpack(object); }
  std::optional<at::Tensor> if_any() const { return none() ? std::nullopt : std::optional<at::Tensor>(tensor()); }
};

// The layers' tensors.
struct Names {
  PyObject *const in = of("w_in"), *const bias = of("b_in"), *const out = of("w_out");
  PyObject *const in_scale = of("scale_in"), *const out_scale = of("scale_out");
  static PyObject* of(const char* text) { return PyUnicode_InternFromString(text); }
  static const Names& all() {
    static const Names names;
    return names;
  }
};

bool is_floating(const at::Tensor& x) { return x.scalar_type() == at::kFloat || x.scalar_type() == at::kBFloat16; }

bool takes(PyObject* const* given, Py_ssize_t count) {
  if (count != 2 || !PyDict_Check(given[1]) || !plain_here() || !plain(given[0])) return false;
  return is_floating(THPVariable_Unpack(given[0]));
}

// (x, tensors by name) -> y, or None for a call that must go through torch's dispatcher. `activation` is the number of
// the activation function.
PyObject* call(PyObject* activation, PyObject* const* given, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  if (!takes(given, count)) Py_RETURN_NONE;
  const at::Tensor& x = THPVariable_Unpack(given[0]);
  const Names& names = Names::all();
  const Named in(given[1], names.in), bias(given[1], names.bias), out(given[1], names.out);
  if (PyErr_Occurred()) return nullptr;
  if (!in.usable() || !out.usable() || !(bias.none() || bias.usable())) Py_RETURN_NONE;
  if (x.scalar_type() != in.tensor().scalar_type()) Py_RETURN_NONE;
  const int64_t number = PyLong_AsLongLong(activation);
  return THPVariable_Wrap(infer(x, in.tensor(), bias.if_any(), out.tensor(), number, released));
  END_HANDLE_TH_ERRORS
}

PyObject* call_bytes(PyObject* activation, PyObject* const* given, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  if (!takes(given, count)) Py_RETURN_NONE;
  const Names& names = Names::all();
  const Named in(given[1], names.in), bias(given[1], names.bias), out(given[1], names.out);
  const Named in_scale(given[1], names.in_scale), out_scale(given[1], names.out_scale);
  if (PyErr_Occurred()) return nullptr;
  for (const Named* const found : {&in, &in_scale, &out, &out_scale})
    if (!found->usable()) Py_RETURN_NONE;
  if (!(bias.none() || bias.usable())) Py_RETURN_NONE;
  return THPVariable_Wrap(bytes_infer(THPVariable_Unpack(given[0]), in.tensor(), in_scale.tensor(), bias.if_any(),
                                      out.tensor(), out_scale.tensor(), PyLong_AsLongLong(activation), released));
  END_HANDLE_TH_ERRORS
}

// (x) -> y of a linear layer, or None as above. `layer`: rows, scale, bias or None, d_in, block, the most tokens that
// are taken, and what holds the memory. Its numbers are no parameters: gradients are wanted where x has them.
PyObject* call_linear(PyObject* layer, PyObject* const* given, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  const auto part = [&](Py_ssize_t i) { return PyTuple_GET_ITEM(layer, i); };
  if (count != 1 || !unwatched() || !plain(given[0])) Py_RETURN_NONE;
  const at::Tensor& x = THPVariable_Unpack(given[0]);
  if (!is_floating(x) || (at::GradMode::is_enabled() && x.requires_grad())) Py_RETURN_NONE;
  const int64_t d_in = PyLong_AsLongLong(part(3)), most = PyLong_AsLongLong(part(5));
  if (x.dim() == 0 || x.size(-1) != d_in || x.numel() > most * d_in) Py_RETURN_NONE;
  const std::optional<at::Tensor> bias =
      part(2) == Py_None ? std::nullopt : std::optional<at::Tensor>(THPVariable_Unpack(part(2)));
  return THPVariable_Wrap(bytes_linear(x, THPVariable_Unpack(part(0)), THPVariable_Unpack(part(1)), bias, d_in,
                                       PyLong_AsLongLong(part(4)), released));
  END_HANDLE_TH_ERRORS
}

using Call = PyObject*(PyObject*, PyObject* const*, Py_ssize_t);

PyMethodDef method_of(const char* name, Call* function) {
  return {name, reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(function)), METH_FASTCALL, nullptr};
}

PyObject* with_activation(PyMethodDef& method, long activation) {
  PyObject* const number = PyLong_FromLong(activation);
  PyObject* const function = number ? PyCFunction_New(&method, number) : nullptr;
  Py_XDECREF(number);
  return function;
}

}  // namespace
}  // namespace fff

// For ctypes: new references to the functions for one activation.
extern "C" PyObject* fff_infer(long activation) {
  static PyMethodDef method = fff::method_of("infer", fff::call);
  return fff::with_activation(method, activation);
}

extern "C" PyObject* fff_int8_infer(long activation) {
  static PyMethodDef method = fff::method_of("int8_infer", fff::call_bytes);
  return fff::with_activation(method, activation);
}

// The same for one linear layer; `layer` as call_linear has it.
extern "C" PyObject* fff_int8_linear(PyObject* layer) {
  static PyMethodDef method = fff::method_of("int8_linear", fff::call_linear);
  return PyCFunction_New(&method, layer);
}
#endif
