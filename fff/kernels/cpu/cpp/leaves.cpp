// The operators of LeafFFF, depth at least 1. Not what they refuse (checks.h), their memory and threads (blocks.h), nor
// arithmetic.
#include "leaves_backward.h"
#include "ops.h"
#include "weights.h"

namespace fff {
namespace {

template <class E>
Held<E> held_if(Given t) {
  return t ? Held<E>(*t) : Held<E>();
}

// Weights that fit together (check_leaves).
template <class E>
struct HeldLeaves {
  Held<E> w_node, b_node, w_in, b_in, w_out, b_out, w_value, b_value;
  LeafLayer<E> layer;
  HeldLeaves(const Tensor& nodes, Given node_bias, const Tensor& in, Given in_bias, const Tensor& out,
             const Tensor& out_bias, Given value, Given value_bias, int64_t depth, Activation activation)
      : w_node(nodes),
        b_node(held_if<E>(node_bias)),
        w_in(in),
        b_in(held_if<E>(in_bias)),
        w_out(out),
        b_out(out_bias),
        w_value(held_if<E>(value)),
        b_value(held_if<E>(value_bias)),
        layer{w_node.at,  b_node.at, w_in.at,    b_in.at,    w_out.at,    b_out.at,  w_value.at,
              b_value.at, depth,     in.size(1), in.size(2), out.size(2), activation} {}
};

template <class E>
int64_t work_of(const LeafLayer<E>& layer) {
  return (layer.depth + layer.rows_in()) * layer.width + layer.leaf_width * layer.out_width;
}

template <class E>
void compute(const LeafLayer<E>& layer, const E* x, int64_t tokens, E* y, const LeafRecord& record) {
  over_blocks(tokens, 1, work_of(layer), [&](int64_t begin, int64_t end, Space& space) {
    leaf_forward<E>(layer, x + begin * layer.width, end - begin, y + begin * layer.out_width,
                    record.after(begin, layer.depth, layer.rows_in()), space);
  });
}

}  // namespace

// x (..., H) -> y (..., K)
Tensor leaf_infer_op(const Tensor& x, const Tensor& w_node, const Tensor& b_node, const Tensor& w_in,
                     const Tensor& b_in, const Tensor& w_out, const Tensor& b_out, Given w_value, Given b_value,
                     int64_t activation) {
  const Activation act = activation_of(activation);
  const int64_t depth = check_leaves(x, w_node, b_node, w_in, b_in, w_out, b_out, w_value, b_value);
  check_gate_bias(w_value, b_value);
  Tensor y = output_like(x, w_out.size(2));
  if (!y.numel()) return y;
  for_dtype(x.scalar_type(), [&]<class E>() {
    const HeldLeaves<E> held(w_node, b_node, w_in, b_in, w_out, b_out, w_value, b_value, depth, act);
    const Held<E> from(x);
    compute<E>(held.layer, from.at, rows_of(x), y.mutable_data_ptr<E>(), {});
  });
  return y;
}

// x (N, H) -> y (N, K), leaves' nodes (N) int32, scores (N, D) float32, neurons before their activation and, gated,
// values (N, R) float32
std::tuple<Tensor, Tensor, Tensor, Tensor> leaf_forward_op(const Tensor& x, const Tensor& w_node, const Tensor& b_node,
                                                           const Tensor& w_in, const Tensor& b_in, const Tensor& w_out,
                                                           const Tensor& b_out, Given w_value, Given b_value,
                                                           int64_t activation, Given flips, Given temperature) {
  const Activation act = activation_of(activation);
  const int64_t depth = check_leaves(x, w_node, b_node, w_in, b_in, w_out, b_out, w_value, b_value);
  const int64_t tokens = check_tokens(x), rows_in = w_value ? 2 * w_in.size(1) : w_in.size(1);
  check_gate_bias(w_value, b_value);
  if (flips) {
    check_tensor(*flips, "flips", at::kBool);
    check_sizes(*flips, "flips", {tokens, depth}, "(tokens, depth)");
  }
  if (temperature) check_temperature(*temperature);  // for the backward pass: refused before the work, not after
  Tensor y = fresh({tokens, w_out.size(2)}, x.scalar_type()), leaf = fresh({tokens}, at::kInt);
  Tensor scores = fresh({tokens, depth}, at::kFloat), neurons = fresh({tokens, rows_in}, at::kFloat);
  const Held<bool> turned = flips ? Held<bool>(*flips) : Held<bool>();
  for_dtype(x.scalar_type(), [&]<class E>() {
    const HeldLeaves<E> held(w_node, b_node, w_in, b_in, w_out, b_out, w_value, b_value, depth, act);
    const Held<E> from(x);
    compute<E>(held.layer, from.at, tokens, y.mutable_data_ptr<E>(),
               {turned.at, leaf.mutable_data_ptr<int32_t>(), scores.mutable_data_ptr<float>(),
                neurons.mutable_data_ptr<float>()});
  });
  return {y, leaf, scores, neurons};
}

namespace {

// Of the leaves' weights: (w_in, b_in, w_out, b_out), and (w_value, b_value) of gated ones.
template <class E>
void leaf_weights(const LeafGradients<E>& g, int64_t tokens, E* w_in, E* b_in, E* w_out, E* b_out, E* w_value,
                  E* b_value) {
  constexpr int64_t kStripe =
      256;  // columns: one leaf's rows are shared among threads, too, where all tokens are there
  const LeafLayer<E>& layer = g.layer;
  const int64_t leaves = int64_t{1} << layer.depth, neurons = layer.leaf_width, rows_in = layer.rows_in();
  const ByLeaf by(g.leaf, tokens, layer.depth);
  const auto over_stripes = [&](int64_t width, const auto& f) {
    const int64_t stripes = (width + kStripe - 1) / kStripe;
    at::parallel_for(0, stripes * leaves, 1, [&](int64_t begin, int64_t end) {
      static thread_local std::vector<float> space;
      for (int64_t task = begin; task < end; ++task) {
        const int64_t leaf = task % leaves, column = task / leaves * kStripe, start = by.start[leaf];
        f(leaf, by.order.data() + start, by.start[leaf + 1] - start, column, std::min(kStripe, width - column), space);
      }
    });
  };
  over_stripes(layer.width, [&](int64_t leaf, const int32_t* order, int64_t count, int64_t column, int64_t columns,
                                std::vector<float>& space) {
    sum_over_tokens(
        order, count, g.grad_neurons, rows_in, g.x, layer.width, column, columns,
        [&](int64_t row) {
          return row < neurons ? w_in + (leaf * neurons + row) * layer.width
                               : w_value + (leaf * neurons + row - neurons) * layer.width;
        },
        space);
    for (int64_t n = 0; column == 0 && n < rows_in; ++n) {
      float sum = 0;
      for (int64_t i = 0; i < count; ++i) sum += g.grad_neurons[order[i] * rows_in + n];
      (n < neurons ? b_in + leaf * neurons + n : b_value + leaf * neurons + n - neurons)[0] = static_cast<E>(sum);
    }
  });
  over_stripes(layer.out_width, [&](int64_t leaf, const int32_t* order, int64_t count, int64_t column, int64_t columns,
                                    std::vector<float>& space) {
    sum_over_tokens(
        order, count, g.active, neurons + 1, g.grad, layer.out_width, column, columns,
        [&](int64_t row) {
          return row < neurons ? w_out + (leaf * neurons + row) * layer.out_width : b_out + leaf * layer.out_width;
        },
        space);
  });
}

// Of the decisions' weights. They are a PathFFF of depth D - 1 whose outputs nobody asked for.
template <class E>
void node_weights(const LeafGradients<E>& g, int64_t tokens, Tensor& w_node, Tensor& b_node) {
  if (!g.grad_scores) {
    w_node.zero_(), b_node.zero_();
    return;
  }
  const int64_t nodes = w_node.size(0);
  std::vector<int32_t> parent(tokens);
  for (int64_t n = 0; n < tokens; ++n) parent[n] = (g.leaf[n] - 1) / 2;
  const std::vector<E> nothing(std::max(tokens, nodes), static_cast<E>(0));
  const Layer<E> layer{g.layer.w_node, nullptr, nothing.data(),      1, g.layer.depth - 1,
                       g.layer.width,  1,       Activation::identity};
  const Gradients<E> path{layer, g.x, nothing.data(), g.scores, nullptr, parent.data(), false, 1};
  Tensor in = w_node.unsqueeze(0), bias = b_node.unsqueeze(0), out = fresh({1, nodes, 1}, w_node.scalar_type());
  weight_gradients(path, tokens, g.grad_scores, in, bias, out, [](Sorted, int64_t) {});
}

}  // namespace

// -> gradients of x (N, H), w_node, b_node, w_in, b_in, w_out, b_out and, gated, w_value and b_value
std::vector<Tensor> leaf_backward_op(const Tensor& grad, Given grad_of_scores, const Tensor& x, const Tensor& w_node,
                                     const Tensor& w_in, const Tensor& w_out, const Tensor& b_out, Given w_value,
                                     const Tensor& leaf, const Tensor& scores, const Tensor& neurons, Given temperature,
                                     int64_t activation) {
  const Activation act = activation_of(activation);
  const int64_t depth = check_leaves(x, w_node, std::nullopt, w_in, std::nullopt, w_out, b_out, w_value, std::nullopt);
  const int64_t tokens = check_tokens(x), leaf_width = w_in.size(1);
  check_weight(grad, "grad", x);
  check_sizes(grad, "grad", {tokens, w_out.size(2)}, "(tokens, d_out)");
  check_kept_of_leaves(leaf, scores, neurons, tokens, w_value ? 2 * leaf_width : leaf_width, depth);
  if (grad_of_scores) {
    check_tensor(*grad_of_scores, "grad_of_scores", at::kFloat);
    check_sizes(*grad_of_scores, "grad_of_scores", scores.sizes(), "(tokens, depth)");
  }
  const float warmth = temperature ? check_temperature(*temperature) : 1.0f;
  const auto like = [&](const Tensor& t) { return fresh(t.sizes(), t.scalar_type()); };
  const auto dtype = x.scalar_type();
  Tensor grad_x = like(x), to_node = like(w_node), to_in = like(w_in), to_out = like(w_out), to_bias = like(b_out);
  Tensor to_node_bias = fresh({w_node.size(0)}, dtype), to_in_bias = fresh({w_in.size(0), leaf_width}, dtype);
  Tensor to_value = w_value ? like(*w_value) : Tensor(), to_value_bias = w_value ? like(to_in_bias) : Tensor();
  Tensor grad_neurons = like(neurons), active = fresh({tokens, leaf_width + 1}, at::kFloat);
  const bool deciding = temperature || grad_of_scores;
  Tensor grad_scores = fresh({deciding ? tokens : 0, depth}, at::kFloat);
  const Held<float> s(scores), before(neurons), direct = grad_of_scores ? Held<float>(*grad_of_scores) : Held<float>();
  const Held<int32_t> numbers(leaf);
  for_dtype(dtype, [&]<class E>() {
    const HeldLeaves<E> held(w_node, std::nullopt, w_in, std::nullopt, w_out, b_out, w_value, std::nullopt, depth, act);
    const Held<E> from(x), gradient(grad);
    const LeafGradients<E> g{held.layer,
                             from.at,
                             gradient.at,
                             numbers.at,
                             s.at,
                             before.at,
                             direct.at,
                             temperature.has_value(),
                             warmth,
                             grad_neurons.mutable_data_ptr<float>(),
                             active.mutable_data_ptr<float>(),
                             deciding ? grad_scores.mutable_data_ptr<float>() : nullptr};
    over_blocks(tokens, 1, work_of(held.layer), [&](int64_t begin, int64_t end, Space& space) {
      leaf_backward_tokens(g, begin, end, grad_x.mutable_data_ptr<E>(), space);
    });
    leaf_weights(g, tokens, to_in.mutable_data_ptr<E>(), to_in_bias.mutable_data_ptr<E>(), to_out.mutable_data_ptr<E>(),
                 to_bias.mutable_data_ptr<E>(), w_value ? to_value.mutable_data_ptr<E>() : nullptr,
                 w_value ? to_value_bias.mutable_data_ptr<E>() : nullptr);
    node_weights(g, tokens, to_node, to_node_bias);
  });
  std::vector<Tensor> found{grad_x, to_node, to_node_bias, to_in, to_in_bias, to_out, to_bias};
  if (w_value) found.insert(found.end(), {to_value, to_value_bias});
  return found;
}

}  // namespace fff
