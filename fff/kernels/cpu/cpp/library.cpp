// What wants the largest of torch's headers, which take as long to compile as an operator: the operators' names, and
// two questions. What operators do is in the files that ops.h names.
#include <ATen/Context.h>
#include <ATen/autocast_mode.h>
#include <ATen/native/TensorFactories.h>
#include <torch/library.h>

#include "ops.h"

namespace fff {

using at::Tensor;
using std::optional;

void fill_if_asked(Tensor& t) {
  const auto& context = at::globalContext();
  if (context.deterministicAlgorithms() && context.deterministicFillUninitializedMemory())
    at::native::fill_empty_deterministic_(t);
}

bool autocasting() { return at::autocast::is_autocast_enabled(at::kCPU); }

TORCH_LIBRARY_FRAGMENT(fff, m) {
  m.def("cpu_infer(Tensor x, Tensor w_in, Tensor? b_in, Tensor w_out, int activation) -> Tensor");
  m.def(
      "cpu_forward(Tensor x, Tensor w_in, Tensor? b_in, Tensor w_out, int activation, Tensor? flips, "
      "Tensor? temperature) -> (Tensor, Tensor, Tensor)");
  m.def(
      "cpu_backward(Tensor grad, Tensor? grad_of_scores, Tensor x, Tensor w_in, Tensor w_out, Tensor leaf, "
      "Tensor scores, Tensor? temperature, int activation) -> (Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "cpu_int8_infer(Tensor x, Tensor w_in, Tensor scale_in, Tensor? b_in, Tensor w_out, Tensor scale_out, "
      "int activation) -> Tensor");
  m.def(
      "cpu_int8_forward(Tensor x, Tensor w_in, Tensor scale_in, Tensor? b_in, Tensor w_out, Tensor scale_out, "
      "int activation) -> (Tensor, Tensor, Tensor)");
  m.def(
      "cpu_int8_leaf_infer(Tensor x, Tensor[] nodes, Tensor[] leaves, Tensor[] master, int d_out, int levels, "
      "bool gated, int activation) -> Tensor");
  m.def(
      "cpu_int8_leaf_forward(Tensor x, Tensor[] nodes, Tensor[] leaves, Tensor[] master, int d_out, int levels, "
      "bool gated, int activation) -> (Tensor, Tensor, Tensor)");
  m.def("cpu_int8_tokens(Tensor x) -> (Tensor, Tensor)");
  m.def("cpu_int8_scaled(Tensor y, Tensor scale, Tensor? bias, Tensor(a!) out) -> ()");
  m.def("cpu_int8_linear(Tensor x, Tensor rows, Tensor scale, Tensor? bias, int d_in, int block) -> Tensor");
  m.def(
      "cpu_leaf_infer(Tensor x, Tensor w_node, Tensor b_node, Tensor w_in, Tensor b_in, Tensor w_out, Tensor b_out, "
      "Tensor? w_value, Tensor? b_value, int activation) -> Tensor");
  m.def(
      "cpu_leaf_forward(Tensor x, Tensor w_node, Tensor b_node, Tensor w_in, Tensor b_in, Tensor w_out, Tensor b_out, "
      "Tensor? w_value, Tensor? b_value, int activation, Tensor? flips, Tensor? temperature) "
      "-> (Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "cpu_leaf_backward(Tensor grad, Tensor? grad_of_scores, Tensor x, Tensor w_node, Tensor w_in, Tensor w_out, "
      "Tensor b_out, Tensor? w_value, Tensor leaf, Tensor scores, Tensor neurons, Tensor? temperature, int activation) "
      "-> Tensor[]");
}

TORCH_LIBRARY_IMPL(fff, CPU, m) {
  m.impl("cpu_infer", [](const Tensor& x, const Tensor& w_in, const optional<Tensor>& b_in, const Tensor& w_out,
                         int64_t activation) { return infer(x, w_in, b_in, w_out, activation); });
  m.impl("cpu_forward", path_forward_op);
  m.impl("cpu_backward", path_backward_op);
  m.impl("cpu_int8_infer", [](const Tensor& x, const Tensor& w_in, const Tensor& scale_in, const optional<Tensor>& b_in,
                              const Tensor& w_out, const Tensor& scale_out, int64_t activation) {
    return bytes_infer(x, w_in, scale_in, b_in, w_out, scale_out, activation);
  });
  m.impl("cpu_int8_forward", bytes_forward_op);
  m.impl("cpu_int8_leaf_infer", byte_leaf_infer_op);
  m.impl("cpu_int8_leaf_forward", byte_leaf_forward_op);
  m.impl("cpu_int8_tokens", byte_tokens_op);
  m.impl("cpu_int8_scaled", bytes_scaled_op);
  m.impl("cpu_int8_linear",
         [](const Tensor& x, const Tensor& rows, const Tensor& scale, const optional<Tensor>& bias, int64_t d_in,
            int64_t block) { return bytes_linear(x, rows, scale, bias, d_in, block); });
  m.impl("cpu_leaf_infer", leaf_infer_op);
  m.impl("cpu_leaf_forward", leaf_forward_op);
  m.impl("cpu_leaf_backward", leaf_backward_op);
}

}  // namespace fff
