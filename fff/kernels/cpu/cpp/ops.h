// Of the operators (ops.cpp), what others call.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/FunctionRef.h>

#include <optional>

namespace fff {

using Work = c10::function_ref<void()>;

inline void at_once(Work work) { work(); }

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

}  // namespace fff
