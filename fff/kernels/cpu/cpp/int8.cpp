// The operators of PathFFF on rows of eight-bit integers. No arithmetic (int8.h).
#include "int8.h"
#include "blocks.h"
#include "ops.h"

namespace fff {
namespace {

// Weights that fit together (check_bytes).
struct HeldBytes {
  Held<int8_t> w_in, w_out;
  Held<float> scale_in, b_in, scale_out;
  BytesLayer layer;
  HeldBytes(const Tensor& in, const Tensor& in_scale, const optional<Tensor>& bias, const Tensor& out,
            const Tensor& out_scale, int64_t depth, Activation activation)
      : w_in(in),
        w_out(out),
        scale_in(in_scale),
        b_in(bias ? Held<float>(*bias) : Held<float>()),
        scale_out(out_scale),
        layer{{w_in.at, b_in.at, w_out.at, in.size(0), depth, in.size(2), out.size(2), activation},
              scale_in.at,
              scale_out.at} {}
};

template <class E>
void compute(const BytesLayer& layer, const E* x, int64_t tokens, E* y, float* scores, int32_t* leaf) {
  over_blocks(tokens, layer.trees, work_of(layer), [&](int64_t begin, int64_t end, Space& space) {
    bytes_forward<E>(layer, x + begin * layer.width, end - begin, y + begin * layer.out_width,
                     scores ? scores + begin * layer.stride() : nullptr, leaf ? leaf + begin * layer.trees : nullptr,
                     space);
  });
}

}  // namespace

Tensor bytes_infer(const Tensor& x, const Tensor& w_in, const Tensor& scale_in, const optional<Tensor>& b_in,
                   const Tensor& w_out, const Tensor& scale_out, int64_t activation, void (*around)(Work)) {
  const Activation act = activation_of(activation);
  const int64_t depth = check_bytes(x, w_in, scale_in, b_in, w_out, scale_out);
  Tensor y = output_like(x, w_out.size(2));
  if (!y.numel()) return y;
  const HeldBytes held(w_in, scale_in, b_in, w_out, scale_out, depth, act);
  for_dtype(x.scalar_type(), [&]<class E>() {
    const Held<E> from(x);
    const int64_t tokens = rows_of(x);
    E* const to = y.mutable_data_ptr<E>();
    around([&] { compute<E>(held.layer, from.at, tokens, to, nullptr, nullptr); });
  });
  return y;
}

// x (N, H) -> y (N, K), leaves' nodes (N, T) int32, scores (N, T, L) float32
std::tuple<Tensor, Tensor, Tensor> bytes_forward_op(const Tensor& x, const Tensor& w_in, const Tensor& scale_in,
                                                    const optional<Tensor>& b_in, const Tensor& w_out,
                                                    const Tensor& scale_out, int64_t activation) {
  const Activation act = activation_of(activation);
  const int64_t depth = check_bytes(x, w_in, scale_in, b_in, w_out, scale_out), tokens = check_tokens(x);
  const int64_t trees = w_in.size(0);
  Tensor y = fresh({tokens, w_out.size(2)}, x.scalar_type());
  Tensor leaf = fresh({tokens, trees}, at::kInt);
  Tensor scores = fresh({tokens, trees, depth + 1}, at::kFloat);
  const HeldBytes held(w_in, scale_in, b_in, w_out, scale_out, depth, act);
  for_dtype(x.scalar_type(), [&]<class E>() {
    const Held<E> from(x);
    compute<E>(held.layer, from.at, tokens, y.mutable_data_ptr<E>(), scores.mutable_data_ptr<float>(),
               leaf.mutable_data_ptr<int32_t>());
  });
  return {y, leaf, scores};
}

}  // namespace fff
