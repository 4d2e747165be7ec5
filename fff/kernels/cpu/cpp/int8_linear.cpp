// The operator of linear layers of bytes, for few tokens. Not the arithmetic (int8_linear.h).
#include "int8_linear.h"

#include "blocks.h"
#include "ops.h"

namespace fff {
namespace {

constexpr int64_t kPassWork = 2;  // of a number that is read once, in multiply-adds: when threads are worth waking

// Tokens quantised in this thread's memory, which others read.
template <class E>
ByteTokens quantised(const E* x, int64_t count, int64_t width, int64_t stride) {
  static thread_local Space space;
  int8_t* const bytes = at_least(space.bytes, (count + kMostTokens) * stride);  // tiles read past the last one
  float* const scales = at_least(space.scales, count);
  uint32_t* const added = at_least(space.added, count);
  for (int64_t n = 0; n < count; ++n) {
    int8_t* const to = bytes + n * stride;
    scales[n] = quantise(x + n * width, width, to, added[n], x + std::min(n + 1, count - 1) * width);
    std::memset(to + width, 0, stride - width);
  }
  return {bytes, stride, count, scales, added};
}

ByteLinear check(const Tensor& x, const Tensor& rows, const Tensor& scale, const optional<Tensor>& bias, int64_t d_in,
                 int64_t block) {
  TORCH_CHECK_VALUE(d_in > 0 && d_in <= kWidest, "d_in must be from 1 to ", kWidest, ", got ", d_in);
  TORCH_CHECK_VALUE(block > 0 && block % kGroup == 0, "block must be a multiple of ", kGroup, ", got ", block);
  check_input(x, d_in);
  check_tensor(scale, "scale", at::kFloat);
  TORCH_CHECK_VALUE(scale.dim() == 1 && scale.size(0) > 0 && scale.is_contiguous(),
                    "scale must be (d_out,), contiguous, got ", scale.sizes());
  const int64_t d_out = scale.size(0), blocks = (d_out + block - 1) / block;
  check_tensor(rows, "rows", at::kChar);
  const int64_t quads = rows.dim() == 1 ? rows.size(0) / (blocks * block * kQuad) : 0;
  TORCH_CHECK_VALUE(rows.is_contiguous() && rows.numel() > 0 && rows.numel() == blocks * quads * block * kQuad &&
                        quads % 2 == 0 && quads * kQuad >= d_in,
                    "rows must be (blocks * quads * block * 4,), contiguous, of ", blocks, " blocks of ", block,
                    " rows and of an even number of quads that hold d_in=", d_in, ", got ", rows.sizes());
  const float* const added = bias ? check_numbers_of(*bias, "bias", {d_out}, "(d_out,)") : nullptr;
  return {rows.const_data_ptr<int8_t>(), scale.const_data_ptr<float>(), added, d_in, d_out, block, quads};
}

template <class E>
void compute(const ByteLinear& layer, const E* x, int64_t count, E* y) {
  const ByteTokens tokens = quantised(x, count, layer.d_in, layer.quads * kQuad);
  const int64_t most = std::min<int64_t>(at::get_num_threads(), count * layer.d_in * layer.d_out / kWorkForThread);
  const int64_t threads = std::max<int64_t>(1, std::min(most, layer.blocks()));
  if (threads == 1) return linear_blocks<E>(layer, tokens, 0, layer.blocks(), y);
  const int64_t share = (layer.blocks() + threads - 1) / threads;
  at::parallel_for(0, layer.blocks(), share,
                   [&](int64_t begin, int64_t end) { linear_blocks<E>(layer, tokens, begin, end, y); });
}

}  // namespace

Tensor bytes_linear(const Tensor& x, const Tensor& rows, const Tensor& scale, const optional<Tensor>& bias,
                    int64_t d_in, int64_t block, void (*around)(Work)) {
  const ByteLinear layer = check(x, rows, scale, bias, d_in, block);
  Tensor y = output_like(x, layer.d_out);
  if (!y.numel()) return y;
  for_dtype(x.scalar_type(), [&]<class E>() {
    const Held<E> from(x);
    const int64_t tokens = rows_of(x);
    E* const to = y.mutable_data_ptr<E>();
    around([&] { compute<E>(layer, from.at, tokens, to); });
  });
  return y;
}

// x (N, d_in) -> its whole numbers, and scales (N): for products that are oneDNN's.
std::tuple<Tensor, Tensor> byte_tokens_op(const Tensor& x) {
  TORCH_CHECK_VALUE(x.dim() == 2 && x.size(1) > 0 && x.size(1) <= kWidest, "x must be (tokens, d_in), d_in from 1 to ",
                    kWidest, ", got ", x.sizes());
  check_input(x, x.size(1));
  const int64_t count = x.size(0), width = x.size(1);
  Tensor whole = fresh(x.sizes(), at::kChar), scale = fresh({count}, at::kFloat);
  for_dtype(x.scalar_type(), [&]<class E>() {
    const Held<E> from(x);
    int8_t* const to = whole.mutable_data_ptr<int8_t>();
    float* const scales = scale.mutable_data_ptr<float>();
    over_blocks(count, 1, kPassWork * width, [&](int64_t begin, int64_t end, Space&) {
      uint32_t sum;
      for (int64_t n = begin; n < end; ++n)
        scales[n] =
            quantise(from.at + n * width, width, to + n * width, sum, from.at + std::min(n + 1, end - 1) * width);
    });
  });
  return {whole, scale};
}

// out (N, d_out) = y * scale + bias: what is left of a product whose rows are scaled. `out` may be y.
void bytes_scaled_op(const Tensor& y, const Tensor& scale, const optional<Tensor>& bias, Tensor& out) {
  check_tensor(y, "y", at::kFloat);
  TORCH_CHECK_VALUE(y.dim() == 2 && y.is_contiguous(), "y must be (tokens, d_out), contiguous, got ", y.sizes());
  const int64_t count = y.size(0), width = y.size(1);
  check_tensor(scale, "scale", at::kFloat);
  check_sizes(scale, "scale", {count}, "(tokens,)");
  check_place(out, "out");
  TORCH_CHECK_VALUE(out.scalar_type() == at::kFloat || out.scalar_type() == at::kBFloat16, "out is ", out.scalar_type(),
                    "; provider 'cpu' gives float32 and bfloat16");
  check_sizes(out, "out", y.sizes(), "as y");
  TORCH_CHECK_VALUE(out.is_contiguous() && scale.is_contiguous(), "out and scale must be contiguous");
  const float* const biases = bias ? check_numbers_of(*bias, "bias", {width}, "(d_out,)") : nullptr;
  const float *const from = y.const_data_ptr<float>(), *const scales = scale.const_data_ptr<float>();
  for_dtype(out.scalar_type(), [&]<class E>() {
    E* const to = out.mutable_data_ptr<E>();
    over_blocks(count, 1, kPassWork * width, [&](int64_t begin, int64_t end, Space&) {
      for (int64_t n = begin; n < end; ++n) scaled_row(from + n * width, scales[n], biases, width, to + n * width);
    });
  });
}

}  // namespace fff
