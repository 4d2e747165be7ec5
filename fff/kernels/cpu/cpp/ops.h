// The operators, as library.cpp names them and python.cpp calls some. Each stands in the file named beside it.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/FunctionRef.h>

#include <optional>
#include <tuple>
#include <vector>

namespace fff {

using Work = c10::function_ref<void()>;

inline void at_once(Work work) { work(); }

using Given = const std::optional<at::Tensor>&;

// Where torch is asked to fill what is not yet written, to show reads of it, fills the tensor (library.cpp).
void fill_if_asked(at::Tensor& t);

// Whether autocast is on for a CPU (library.cpp).
bool autocasting();

// x (..., H) -> y (..., K), path nodes only. `around` calls the work, whose memory is held by then: others may change
// the tensors meanwhile.
at::Tensor infer(const at::Tensor& x, const at::Tensor& w_in, const std::optional<at::Tensor>& b_in,
                 const at::Tensor& w_out, int64_t activation, void (*around)(Work) = at_once);

// The same on rows of eight-bit integers with scales (int8.cpp).
at::Tensor bytes_infer(const at::Tensor& x, const at::Tensor& w_in, const at::Tensor& scale_in,
                       const std::optional<at::Tensor>& b_in, const at::Tensor& w_out, const at::Tensor& scale_out,
                       int64_t activation, void (*around)(Work) = at_once);

// x (..., d_in) -> y (..., d_out) by rows of bytes as oneDNN packed them, `block` side by side (int8_linear.cpp).
at::Tensor bytes_linear(const at::Tensor& x, const at::Tensor& rows, const at::Tensor& scale,
                        const std::optional<at::Tensor>& bias, int64_t d_in, int64_t block,
                        void (*around)(Work) = at_once);

// PathFFF (ops.cpp).
std::tuple<at::Tensor, at::Tensor, at::Tensor> path_forward_op(const at::Tensor& x, const at::Tensor& w_in, Given b_in,
                                                               const at::Tensor& w_out, int64_t activation, Given flips,
                                                               Given temperature);
std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> path_backward_op(
    const at::Tensor& grad, Given grad_of_scores, const at::Tensor& x, const at::Tensor& w_in, const at::Tensor& w_out,
    const at::Tensor& leaf, const at::Tensor& scores, Given temperature, int64_t activation);

// Its int8 rows (int8.cpp).
std::tuple<at::Tensor, at::Tensor, at::Tensor> bytes_forward_op(const at::Tensor& x, const at::Tensor& w_in,
                                                                const at::Tensor& scale_in, Given b_in,
                                                                const at::Tensor& w_out, const at::Tensor& scale_out,
                                                                int64_t activation);

// LeafFFF (leaves.cpp).
at::Tensor leaf_infer_op(const at::Tensor& x, const at::Tensor& w_node, const at::Tensor& b_node,
                         const at::Tensor& w_in, const at::Tensor& b_in, const at::Tensor& w_out,
                         const at::Tensor& b_out, Given w_value, Given b_value, int64_t activation);
std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> leaf_forward_op(
    const at::Tensor& x, const at::Tensor& w_node, const at::Tensor& b_node, const at::Tensor& w_in,
    const at::Tensor& b_in, const at::Tensor& w_out, const at::Tensor& b_out, Given w_value, Given b_value,
    int64_t activation, Given flips, Given temperature);
std::vector<at::Tensor> leaf_backward_op(const at::Tensor& grad, Given grad_of_scores, const at::Tensor& x,
                                         const at::Tensor& w_node, const at::Tensor& w_in, const at::Tensor& w_out,
                                         const at::Tensor& b_out, Given w_value, const at::Tensor& leaf,
                                         const at::Tensor& scores, const at::Tensor& neurons, Given temperature,
                                         int64_t activation);

// Its int8 leaves (int8_leaves.cpp).
at::Tensor byte_leaf_infer_op(const at::Tensor& x, at::TensorList nodes, at::TensorList leaves, at::TensorList master,
                              int64_t out_width, int64_t levels, bool gated, int64_t activation);
std::tuple<at::Tensor, at::Tensor, at::Tensor> byte_leaf_forward_op(const at::Tensor& x, at::TensorList nodes,
                                                                    at::TensorList leaves, at::TensorList master,
                                                                    int64_t out_width, int64_t levels, bool gated,
                                                                    int64_t activation);

// Linear layers (int8_linear.cpp).
std::tuple<at::Tensor, at::Tensor> byte_tokens_op(const at::Tensor& x);
void bytes_scaled_op(const at::Tensor& y, const at::Tensor& scale, Given bias, at::Tensor& out);

}  // namespace fff
