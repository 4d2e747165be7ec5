// What the operators refuse: tensors of another type, place or size than theirs, and numbers out of range. A message
// names the argument, what it must be and what it is. Not what is computed.
#pragma once

#include <ATen/core/Tensor.h>

#include <cmath>
#include <optional>

#include "activations.h"

namespace fff {

using at::Tensor;
using std::optional;

constexpr int64_t kDeepest = 29;      // heap numbers of nodes are int32
constexpr int64_t kWidest = 1 << 17;  // products of two bytes whose sum is an int32

inline Activation activation_of(int64_t number) {
  constexpr auto last = static_cast<int64_t>(Activation::identity);
  TORCH_CHECK_VALUE(number >= 0 && number <= last, "activation must be from 0 to ", last, ", got ", number);
  return static_cast<Activation>(number);
}

// On the CPU, with its memory. (A storage can be taken from a tensor: sharding does so between calls.)
inline void check_place(const Tensor& t, const char* name) {
  TORCH_CHECK_VALUE(t.device().is_cpu(), name, " is on ", t.device(), "; provider 'cpu' needs it on the CPU");
  TORCH_CHECK_VALUE(!t.is_contiguous() || (t.storage_offset() + t.numel()) * t.element_size() <= t.storage().nbytes(),
                    name, " is ", t.sizes(), ", but its storage was resized to ", t.storage().nbytes(), " bytes");
}

inline void check_tensor(const Tensor& t, const char* name, at::ScalarType dtype, const char* whose = "must be") {
  check_place(t, name);
  TORCH_CHECK_VALUE(t.scalar_type() == dtype, name, " is ", t.scalar_type(), ", but ", whose, " ", dtype,
                    "; convert one of them");
}

inline void check_sizes(const Tensor& t, const char* name, at::IntArrayRef sizes, const char* meaning) {
  TORCH_CHECK_VALUE(t.sizes() == sizes, name, " must be ", meaning, " = ", sizes, ", got ", t.sizes());
}

// The input, whose type all weights have: (..., d_in).
inline void check_input(const Tensor& x, int64_t width) {
  const auto dtype = x.scalar_type();
  TORCH_CHECK_VALUE(dtype == at::kFloat || dtype == at::kBFloat16, "x is ", dtype,
                    "; provider 'cpu' takes float32 and bfloat16");
  check_place(x, "x");
  TORCH_CHECK_VALUE(x.dim() >= 1 && x.size(-1) == width, "the input's last dimension is ", x.dim() ? x.size(-1) : 0,
                    ", but the layer has d_in=", width);
}

inline void check_weight(const Tensor& w, const char* name, const Tensor& x) {
  check_tensor(w, name, x.scalar_type(), "x is");
}

// Trees and their input fit together; returns the depth. check_rows(weight, name): its type.
template <class F>
int64_t check_trees(const Tensor& x, const Tensor& w_in, const Tensor& w_out, const F& check_rows) {
  TORCH_CHECK_VALUE(w_in.dim() == 3 && w_in.size(0) > 0 && w_in.size(2) > 0,
                    "w_in must be (trees, nodes, d_in), none of them 0, got ", w_in.sizes());
  check_input(x, w_in.size(2));
  check_rows(w_in, "w_in");
  check_rows(w_out, "w_out");
  const int64_t trees = w_in.size(0), nodes = w_in.size(1);
  int64_t depth = 0;
  while (depth < kDeepest && (int64_t{2} << depth) - 1 < nodes) ++depth;
  TORCH_CHECK_VALUE(nodes == (int64_t{2} << depth) - 1, "w_in has ", nodes,
                    " nodes; a complete tree has 2 ** (depth + 1) - 1, and a depth of at most ", kDeepest);
  TORCH_CHECK_VALUE(w_out.dim() == 3 && w_out.size(0) == trees && w_out.size(1) == nodes && w_out.size(2) > 0,
                    "w_out must be (trees, nodes, d_out) = [", trees, ", ", nodes, ", 1 or more], got ", w_out.sizes());
  return depth;
}

inline void check_of_nodes(const Tensor& t, const char* name, const Tensor& w_in) {
  check_sizes(t, name, {w_in.size(0), w_in.size(1)}, "(trees, nodes)");
}

// PathFFF's input and weights fit together; returns the depth.
inline int64_t check_path(const Tensor& x, const Tensor& w_in, const optional<Tensor>& b_in, const Tensor& w_out) {
  const int64_t depth =
      check_trees(x, w_in, w_out, [&](const Tensor& w, const char* name) { check_weight(w, name, x); });
  if (b_in) {
    check_weight(*b_in, "b_in", x);
    check_of_nodes(*b_in, "b_in", w_in);
  }
  return depth;
}

// The same of rows of eight-bit integers with float32 scales and biases.
inline int64_t check_bytes(const Tensor& x, const Tensor& w_in, const Tensor& scale_in, const optional<Tensor>& b_in,
                           const Tensor& w_out, const Tensor& scale_out) {
  const int64_t depth =
      check_trees(x, w_in, w_out, [](const Tensor& w, const char* name) { check_tensor(w, name, at::kChar); });
  TORCH_CHECK_VALUE(w_in.size(2) <= kWidest, "the layer has d_in=", w_in.size(2), "; int8 dots are exact up to ",
                    kWidest);
  const auto check_numbers = [&](const Tensor& t, const char* name) {
    check_tensor(t, name, at::kFloat);
    check_of_nodes(t, name, w_in);
  };
  check_numbers(scale_in, "scale_in");
  check_numbers(scale_out, "scale_out");
  if (b_in) check_numbers(*b_in, "b_in");
  return depth;
}

// The number of tokens of an input that must be (tokens, d_in).
inline int64_t check_tokens(const Tensor& x) {
  TORCH_CHECK_VALUE(x.dim() == 2, "x must be (tokens, d_in), got ", x.sizes());
  TORCH_CHECK_VALUE(x.size(0) < (int64_t{1} << 31), "x has ", x.size(0), " tokens; at most 2^31 - 1 in one call");
  return x.size(0);
}

inline void check_flips(const Tensor& flips, int64_t tokens, int64_t trees, int64_t depth) {
  check_tensor(flips, "flips", at::kBool);
  check_sizes(flips, "flips", {tokens, trees, depth}, "(tokens, trees, depth)");
}

inline float check_temperature(const Tensor& temperature) {
  check_place(temperature, "temperature");
  TORCH_CHECK_VALUE(at::isFloatingType(temperature.scalar_type()) && temperature.numel() == 1,
                    "temperature must be one floating-point number, got ", temperature.scalar_type(), " ",
                    temperature.sizes());
  const double value = temperature.item<double>();
  TORCH_CHECK_VALUE(value > 0 && std::isfinite(value), "temperature must be finite and above 0, got ", value);
  return static_cast<float>(value);
}

// Heap numbers of leaves, `per_token` for each token.
inline void check_numbers(const Tensor& leaf, int64_t depth, int64_t per_token) {
  const auto numbers = leaf.expect_contiguous();
  const int32_t* at = numbers->const_data_ptr<int32_t>();
  const int32_t first = (1 << depth) - 1;
  for (int64_t i = 0; i < leaf.numel(); ++i)
    TORCH_CHECK_VALUE(at[i] >= first && at[i] <= 2 * first, "leaf must hold heap numbers of leaves, from ", first,
                      " to ", 2 * first, " at depth ", depth, ", got ", at[i], " for token ", i / per_token);
}

// What a forward pass kept, as it must be to find the paths again: heap numbers of leaves, and scores.
inline void check_kept(const Tensor& leaf, const Tensor& scores, int64_t tokens, int64_t trees, int64_t depth) {
  check_tensor(leaf, "leaf", at::kInt);
  check_sizes(leaf, "leaf", {tokens, trees}, "(tokens, trees)");
  check_tensor(scores, "scores", at::kFloat);
  check_sizes(scores, "scores", {tokens, trees, depth + 1}, "(tokens, trees, depth + 1)");
  check_numbers(leaf, depth, trees);
}

// The same of LeafFFF, which keeps its neurons before their activation, too.
inline void check_kept_of_leaves(const Tensor& leaf, const Tensor& scores, const Tensor& neurons, int64_t tokens,
                                 int64_t rows_in, int64_t depth) {
  check_tensor(leaf, "leaf", at::kInt);
  check_sizes(leaf, "leaf", {tokens}, "(tokens,)");
  check_tensor(scores, "scores", at::kFloat);
  check_sizes(scores, "scores", {tokens, depth}, "(tokens, depth)");
  check_tensor(neurons, "neurons", at::kFloat);
  check_sizes(neurons, "neurons", {tokens, rows_in}, "(tokens, leaf_width; gated, twice that)");
  check_numbers(leaf, depth, 1);
}

// A contiguous float32 tensor of these sizes; what its numbers lie at.
inline const float* check_numbers_of(const Tensor& t, const std::string& name, at::IntArrayRef sizes,
                                     const char* meaning) {
  check_tensor(t, name.c_str(), at::kFloat);
  check_sizes(t, name.c_str(), sizes, meaning);
  TORCH_CHECK_VALUE(t.is_contiguous(), name, " must be contiguous");
  return t.const_data_ptr<float>();
}

// Of gated leaves there are rows and biases, of others neither.
inline void check_gate_bias(const optional<Tensor>& w_value, const optional<Tensor>& b_value) {
  TORCH_CHECK_VALUE(w_value.has_value() == b_value.has_value(), "w_value and b_value come together, but ",
                    w_value ? "b_value" : "w_value", " is missing");
}

// LeafFFF's input and weights fit together; returns the depth. A backward pass has no use for some biases.
inline int64_t check_leaves(const Tensor& x, const Tensor& w_node, const optional<Tensor>& b_node, const Tensor& w_in,
                            const optional<Tensor>& b_in, const Tensor& w_out, const Tensor& b_out,
                            const optional<Tensor>& w_value, const optional<Tensor>& b_value) {
  TORCH_CHECK_VALUE(w_in.dim() == 3 && w_in.size(1) > 0 && w_in.size(2) > 0,
                    "w_in must be (leaves, leaf_width, d_in), none of them 0, got ", w_in.sizes());
  const int64_t leaves = w_in.size(0), neurons = w_in.size(1), width = w_in.size(2);
  check_input(x, width);
  int64_t depth = 1;
  while (depth < kDeepest && (int64_t{1} << depth) < leaves) ++depth;
  TORCH_CHECK_VALUE(leaves == int64_t{1} << depth, "w_in has ", leaves,
                    " leaves; a tree has 2 ** depth, and a depth from 1 to ", kDeepest);
  check_weight(w_node, "w_node", x);
  if (b_node) check_weight(*b_node, "b_node", x);
  check_weight(w_in, "w_in", x);
  if (b_in) check_weight(*b_in, "b_in", x);
  check_weight(w_out, "w_out", x);
  check_weight(b_out, "b_out", x);
  if (w_value) check_weight(*w_value, "w_value", x);
  if (b_value) check_weight(*b_value, "b_value", x);
  check_sizes(w_node, "w_node", {leaves - 1, width}, "(leaves - 1, d_in)");
  if (b_node) check_sizes(*b_node, "b_node", {leaves - 1}, "(leaves - 1,)");
  if (b_in) check_sizes(*b_in, "b_in", {leaves, neurons}, "(leaves, leaf_width)");
  if (w_value) check_sizes(*w_value, "w_value", w_in.sizes(), "(leaves, leaf_width, d_in)");
  if (b_value) check_sizes(*b_value, "b_value", {leaves, neurons}, "(leaves, leaf_width)");
  TORCH_CHECK_VALUE(w_out.dim() == 3 && w_out.size(0) == leaves && w_out.size(1) == neurons && w_out.size(2) > 0,
                    "w_out must be (leaves, leaf_width, d_out) = [", leaves, ", ", neurons, ", 1 or more], got ",
                    w_out.sizes());
  check_sizes(b_out, "b_out", {leaves, w_out.size(2)}, "(leaves, d_out)");
  return depth;
}

}  // namespace fff
