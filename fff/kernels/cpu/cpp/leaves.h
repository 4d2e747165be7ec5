// LeafFFF's hard inference: walk the decisions, group tokens by leaf, one small network per group.
#pragma once

#include "backward.h"

namespace fff {

// Shapes as in fff/layers/leaf.py: 2^D - 1 decisions, 2^D leaves of W neurons; depth at least 1.
template <class E>
struct LeafLayer {
  const E *w_node, *b_node;  // (2^D - 1, H), (2^D - 1)
  const E *w_in, *b_in;      // (2^D, W, H), (2^D, W)
  const E *w_out, *b_out;    // (2^D, W, K), (2^D, K)
  int64_t depth, leaf_width, width, out_width;
  Activation activation;
};

// One leaf's tokens [begin, end) of `sorted`: hidden (tokens, W + 1) takes the neurons, and 1 for the leaf's output
// bias.
template <class E>
void leaf_network(const LeafLayer<E>& layer, const E* x, int64_t leaf, const Sorted& sorted, int64_t begin, int64_t end,
                  E* y, float* hidden, std::vector<const void*>& space) {
  const int64_t neurons = layer.leaf_width, stride = neurons + 1;
  space.resize(2 * neurons + 1);
  const E** rows_in = reinterpret_cast<const E**>(space.data());
  const E** rows_out = rows_in + neurons;
  for (int64_t i = 0; i < neurons; ++i) rows_in[i] = layer.w_in + (leaf * neurons + i) * layer.width;
  for (int64_t i = 0; i < neurons; ++i) rows_out[i] = layer.w_out + (leaf * neurons + i) * layer.out_width;
  rows_out[neurons] = layer.b_out + leaf * layer.out_width;
  in_blocks<kDotTokens>(begin, end, [&]<int T>(int64_t at) {
    const E* tokens[T];
    for (int t = 0; t < T; ++t) tokens[t] = x + sorted.order[at + t] * layer.width;
    const auto some = [&]<int N>(int64_t neuron) {
      float out[T][N];
      dots<T, N>(tokens, rows_in + neuron, layer.width, out, Ahead<E>{rows_in[neuron], rows_in[neuron]});
      for (int t = 0; t < T; ++t)
        for (int n = 0; n < N; ++n)
          hidden[(at + t) * stride + neuron + n] =
              out[t][n] + static_cast<float>(layer.b_in[leaf * neurons + neuron + n]);
    };
    in_blocks<kDotNodes>(0, neurons, some);
  });
  for_activation(layer.activation, [&]<Activation a>() {
    float* from = hidden + begin * stride;
    map(from, from, (end - begin) * stride, [](Floats s) { return value<a>(s); });
  });
  in_blocks<kSumTokens>(begin, end, [&]<int T>(int64_t at) {
    const float* coefficients[T];
    E* to[T];
    for (int t = 0; t < T; ++t) {
      hidden[(at + t) * stride + neurons] = 1;
      coefficients[t] = hidden + (at + t) * stride;
      to[t] = y + sorted.order[at + t] * layer.out_width;
    }
    add_rows<T>(rows_out, neurons + 1, coefficients, to, layer.out_width, false);
  });
}

// One block of tokens: x (tokens, H) -> y (tokens, K).
template <class E>
void leaf_forward(const LeafLayer<E>& layer, const E* x, int64_t tokens, E* y, Space& space) {
  // The decisions are a tree of depth D - 1, whose last scores choose among two leaves.
  const int64_t above = layer.depth - 1, first_leaf = (int64_t{1} << layer.depth) - 1;
  space.reserve(2, tokens);
  const Sorted nodes = space.sorted(0, tokens), sorted = space.sorted(1, tokens);
  float* scores = at_least(space.active, tokens * layer.depth);
  Walk<E> walk{x, layer.w_node, {layer.b_node}, nullptr, scores, layer.width, above, layer.depth, 0, nodes, space.walk};
  walk.run(tokens);
  int32_t* leaf = at_least(space.leaves, tokens);
  for (int64_t i = 0; i < tokens; ++i) {
    const int64_t token = nodes.order[i];
    leaf[token] = 2 * nodes.leaf[i] + 1 + (scores[token * layer.depth + above] > 0);
  }
  sort_by_leaf(tokens, layer.depth, [&](int64_t n) { return leaf[n]; }, sorted, space.counts);
  float* hidden = at_least(space.sums, tokens * (layer.leaf_width + 1));
  for_leaves(sorted, tokens, [&](int64_t begin, int64_t end, int64_t node) {
    leaf_network(layer, x, node - first_leaf, sorted, begin, end, y, hidden, space.rows);
  });
}

}  // namespace fff
