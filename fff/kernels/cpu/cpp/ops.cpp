// The operators of PathFFF. Not what they refuse (checks.h), their memory and threads (blocks.h), nor arithmetic.
#include "ops.h"
#include "blocks.h"
#include "weights.h"

namespace fff {
namespace {

// Weights that fit together (check_path), for the functions of forward.h and backward.h.
template <class E>
struct HeldLayer {
  Held<E> w_in, b_in, w_out;
  Layer<E> layer;
  HeldLayer(const Tensor& in, const optional<Tensor>& bias, const Tensor& out, int64_t depth, Activation activation)
      : w_in(in),
        b_in(bias ? Held<E>(*bias) : Held<E>()),
        w_out(out),
        layer{w_in.at, b_in.at, w_out.at, in.size(0), depth, in.size(2), out.size(2), activation} {}
};

template <class E>
void compute(const Layer<E>& layer, const E* x, const bool* flips, int64_t tokens, E* y, float* scores, int32_t* leaf) {
  over_blocks(tokens, layer.trees, work_of(layer), [&](int64_t begin, int64_t end, Space& space) {
    forward<E>(layer, x + begin * layer.width, flips ? flips + begin * layer.trees * layer.depth : nullptr, end - begin,
               y + begin * layer.out_width, scores ? scores + begin * layer.stride() : nullptr,
               leaf ? leaf + begin * layer.trees : nullptr, space);
  });
}

}  // namespace

Tensor infer(const Tensor& x, const Tensor& w_in, const optional<Tensor>& b_in, const Tensor& w_out, int64_t activation,
             void (*around)(Work)) {
  const Activation act = activation_of(activation);
  const int64_t depth = check_path(x, w_in, b_in, w_out);
  Tensor y = output_like(x, w_out.size(2));
  if (!y.numel()) return y;
  for_dtype(x.scalar_type(), [&]<class E>() {
    const HeldLayer<E> held(w_in, b_in, w_out, depth, act);
    const Held<E> from(x);
    const int64_t tokens = rows_of(x);
    E* const to = y.mutable_data_ptr<E>();
    around([&] { compute<E>(held.layer, from.at, nullptr, tokens, to, nullptr, nullptr); });
  });
  return y;
}

// x (N, H) -> y (N, K), leaves' nodes (N, T) int32, scores (N, T, L) float32
std::tuple<Tensor, Tensor, Tensor> path_forward_op(const Tensor& x, const Tensor& w_in, const optional<Tensor>& b_in,
                                                   const Tensor& w_out, int64_t activation,
                                                   const optional<Tensor>& flips, const optional<Tensor>& temperature) {
  const Activation act = activation_of(activation);
  const int64_t depth = check_path(x, w_in, b_in, w_out), tokens = check_tokens(x), trees = w_in.size(0);
  if (flips) check_flips(*flips, tokens, trees, depth);
  if (temperature) check_temperature(*temperature);  // for the backward pass: refused before the work, not after
  Tensor y = fresh({tokens, w_out.size(2)}, x.scalar_type());
  Tensor leaf = fresh({tokens, trees}, at::kInt);
  Tensor scores = fresh({tokens, trees, depth + 1}, at::kFloat);
  const Held<bool> turned = flips ? Held<bool>(*flips) : Held<bool>();
  for_dtype(x.scalar_type(), [&]<class E>() {
    const HeldLayer<E> held(w_in, b_in, w_out, depth, act);
    const Held<E> from(x);
    compute<E>(held.layer, from.at, turned.at, tokens, y.mutable_data_ptr<E>(), scores.mutable_data_ptr<float>(),
               leaf.mutable_data_ptr<int32_t>());
  });
  return {y, leaf, scores};
}

// -> gradients of x (N, H), w_in (T, M, H), b_in (T, M), w_out (T, M, K)
std::tuple<Tensor, Tensor, Tensor, Tensor> path_backward_op(const Tensor& grad, const optional<Tensor>& grad_of_scores,
                                                            const Tensor& x, const Tensor& w_in, const Tensor& w_out,
                                                            const Tensor& leaf, const Tensor& scores,
                                                            const optional<Tensor>& temperature, int64_t activation) {
  const Activation act = activation_of(activation);
  const int64_t depth = check_path(x, w_in, std::nullopt, w_out), tokens = check_tokens(x);
  const int64_t trees = w_in.size(0), nodes = w_in.size(1);
  check_weight(grad, "grad", x);
  check_sizes(grad, "grad", {tokens, w_out.size(2)}, "(tokens, d_out)");
  check_kept(leaf, scores, tokens, trees, depth);
  if (grad_of_scores) {
    check_tensor(*grad_of_scores, "grad_of_scores", at::kFloat);
    check_sizes(*grad_of_scores, "grad_of_scores", scores.sizes(), "(tokens, trees, depth + 1)");
  }
  const float warmth = temperature ? check_temperature(*temperature) : 1.0f;
  const auto like = [&](const Tensor& t) { return fresh(t.sizes(), t.scalar_type()); };
  Tensor grad_x = like(x), grad_in = like(w_in), grad_out = like(w_out);
  Tensor grad_bias = fresh({trees, nodes}, w_in.scalar_type());
  Tensor grad_scores = like(scores);
  const Held<float> s(scores), direct = grad_of_scores ? Held<float>(*grad_of_scores) : Held<float>();
  const Held<int32_t> leaves(leaf);
  for_dtype(x.scalar_type(), [&]<class E>() {
    const HeldLayer<E> held(w_in, std::nullopt, w_out, depth, act);
    const Held<E> from(x), gradient(grad);
    const Gradients<E> g{held.layer, from.at, gradient.at, s.at, direct.at, leaves.at, temperature.has_value(), warmth};
    float* const of_scores = grad_scores.mutable_data_ptr<float>();
    E* const of_x = grad_x.mutable_data_ptr<E>();
    // One tree's tokens are fetched from memory once for all gradients, where chunks are enough for the threads.
    const bool together = trees == 1 && at::get_num_threads() <= chunks_of(tokens, trees);
    if (!together)
      over_blocks(tokens, trees, work_of(held.layer), [&](int64_t begin, int64_t end, Space& space) {
        backward_tokens(g, begin, end, of_scores, of_x, space);
      });
    weight_gradients(g, tokens, of_scores, grad_in, grad_bias, grad_out, [&](Sorted sorted, int64_t count) {
      static thread_local Space space;
      if (together) backward_sorted(g, sorted, count, tokens, of_scores, of_x, space);
    });
  });
  return {grad_x, grad_in, grad_bias, grad_out};
}

}  // namespace fff

// For ctypes.
extern "C" void fff_into_huge_pages(void* at, size_t bytes) { fff::into_huge_pages(at, bytes); }
