// Of the operators (ops.cpp), what others call.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

namespace fff {

// x (..., H) -> y (..., K), path nodes only.
at::Tensor infer(const at::Tensor& x, const at::Tensor& w_in, const std::optional<at::Tensor>& b_in,
                 const at::Tensor& w_out, int64_t activation);

}  // namespace fff
