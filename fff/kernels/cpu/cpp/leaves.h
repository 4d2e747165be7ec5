// LeafFFF's hard forms forward: walk the decisions, group tokens by leaf, one small network per group.
#pragma once

#include "backward.h"

namespace fff {

constexpr int64_t kNearBytes = 1 << 18;  // of a leaf's rows, which a core's cache holds while the leaf's tokens pass

// Shapes as in fff/layers/leaf.py: 2^D - 1 decisions, 2^D leaves of W neurons; depth at least 1.
template <class E>
struct LeafLayer {
  const E *w_node, *b_node;    // (2^D - 1, H), (2^D - 1); a backward pass has no b_node and no b_in
  const E *w_in, *b_in;        // (2^D, W, H), (2^D, W)
  const E *w_out, *b_out;      // (2^D, W, K), (2^D, K)
  const E *w_value, *b_value;  // of gated leaves, of w_in's and b_in's shapes, or null
  int64_t depth, leaf_width, width, out_width;
  Activation activation;

  int64_t first_leaf() const { return (int64_t{1} << depth) - 1; }
  int64_t rows_in() const { return w_value ? 2 * leaf_width : leaf_width; }  // of a leaf: R
};

// What training gives to a block and keeps of it, in the order of its tokens; all null in inference.
struct LeafRecord {
  const bool* flips = nullptr;  // (tokens, D): decisions turned round, or null
  int32_t* leaf = nullptr;      // (tokens): heap numbers
  float* scores = nullptr;      // (tokens, D)
  float* neurons = nullptr;     // (tokens, R): before their activation, and then the values of gated ones

  LeafRecord after(int64_t tokens, int64_t depth, int64_t rows_in) const {
    if (!leaf) return {};
    return {flips ? flips + tokens * depth : nullptr, leaf + tokens, scores + tokens * depth,
            neurons + tokens * rows_in};
  }
};

// Tokens [begin, end) of `sorted`, which share a leaf, with `count` rows: the dots of the token at a position come to
// lie in to[position * stride].
template <class E>
void leaf_dots(const E* tokens, int64_t width, const E* const* rows, int64_t count, const Sorted& sorted, int64_t begin,
               int64_t end, float* to, int64_t stride) {
  const int64_t near = std::max<int64_t>(1, kNearBytes / (width * sizeof(E)) / kDotNodes) * kDotNodes;
  for (int64_t first = 0; first < count; first += near)
    in_blocks<kDotTokens>(begin, end, [&]<int T>(int64_t at) {
      const E* from[T];
      for (int t = 0; t < T; ++t) from[t] = tokens + sorted.order[at + t] * width;
      const auto some = [&]<int N>(int64_t row) {
        float out[T][N];
        dots<T, N>(from, rows + row, width, out, Ahead<E>{rows[row], rows[row]});
        for (int t = 0; t < T; ++t) std::copy(out[t], out[t] + N, to + (at + t) * stride + row);
      };
      in_blocks<kDotNodes>(first, std::min(first + near, count), some);
    });
}

// The same tokens' sums of the rows, with the coefficients at from[position * stride]. Moves the pointers in `rows`.
template <class E>
void leaf_sums(const float* from, int64_t stride, const E** rows, int64_t count, const Sorted& sorted, int64_t begin,
               int64_t end, E* to, int64_t width) {
  constexpr int64_t kTile = kSumSteps * kStep;
  const int64_t near = std::max<int64_t>(1, kNearBytes / (count * sizeof(E)) / kTile) * kTile;
  for (int64_t column = 0; column < width; column += near) {
    in_blocks<kSumTokens>(begin, end, [&]<int T>(int64_t at) {
      const float* coefficients[T];
      E* targets[T];
      for (int t = 0; t < T; ++t) {
        coefficients[t] = from + (at + t) * stride;
        targets[t] = to + sorted.order[at + t] * width + column;
      }
      add_rows<T>(rows, count, coefficients, targets, std::min(near, width - column), false);
    });
    if (column + near < width)
      for (int64_t i = 0; i < count; ++i) rows[i] += near;
  }
}

// Pointers to the rows of one leaf in w (2^D, W, width), and beyond them room for `more`.
template <class E>
const E** rows_of_leaf(const E* w, int64_t leaf, int64_t neurons, int64_t width, int64_t more,
                       std::vector<const void*>& space) {
  space.resize(neurons + more);
  const E** rows = reinterpret_cast<const E**>(space.data());
  for (int64_t i = 0; i < neurons; ++i) rows[i] = w + (leaf * neurons + i) * width;
  return rows;
}

// The same of a leaf's rows in: its neurons' and, gated, its values'.
template <class E>
const E** rows_into_leaf(const LeafLayer<E>& layer, int64_t leaf, int64_t more, std::vector<const void*>& space) {
  const int64_t neurons = layer.leaf_width, values = layer.rows_in() - neurons;
  const E** rows = rows_of_leaf(layer.w_in, leaf, neurons, layer.width, values + more, space);
  for (int64_t i = 0; i < values; ++i) rows[neurons + i] = layer.w_value + (leaf * neurons + i) * layer.width;
  return rows;
}

// One leaf's tokens [begin, end) of `sorted`: hidden (tokens, R + 1) takes the neurons, and 1 for the leaf's output
// bias.
template <class E>
void leaf_network(const LeafLayer<E>& layer, const E* x, int64_t leaf, const Sorted& sorted, int64_t begin, int64_t end,
                  E* y, float* hidden, float* kept, std::vector<const void*>& space) {
  const int64_t neurons = layer.leaf_width, rows_in = layer.rows_in(), stride = rows_in + 1;
  const E** rows = rows_into_leaf(layer, leaf, 1, space);
  leaf_dots(x, layer.width, rows, rows_in, sorted, begin, end, hidden, stride);
  const E* const bias = layer.b_in + leaf * neurons;
  const E* const value_bias = layer.w_value ? layer.b_value + leaf * neurons : nullptr;
  for (int64_t i = begin; i < end; ++i) {
    float* const at = hidden + i * stride;
    for (int64_t n = 0; n < neurons; ++n) at[n] += static_cast<float>(bias[n]);
    for (int64_t n = neurons; n < rows_in; ++n) at[n] += static_cast<float>(value_bias[n - neurons]);
    at[rows_in] = 0;
    if (kept) std::copy(at, at + rows_in, kept + sorted.order[i] * rows_in);
  }
  float* from = hidden + begin * stride;
  if (!layer.w_value) activate(layer.activation, from, from, (end - begin) * stride);
  for (const float* const last = from + (end - begin) * stride; layer.w_value && from != last; from += stride) {
    activate(layer.activation, from, from, neurons);
    for (int64_t n = 0; n < neurons; ++n) from[n] *= from[neurons + n];
  }
  for (int64_t i = begin; i < end; ++i) hidden[i * stride + neurons] = 1;
  rows_of_leaf(layer.w_out, leaf, neurons, layer.out_width, 1, space)[neurons] = layer.b_out + leaf * layer.out_width;
  leaf_sums(hidden, stride, rows, neurons + 1, sorted, begin, end, y, layer.out_width);
}

// One block of tokens: x (tokens, H) -> y (tokens, K).
template <class E>
void leaf_forward(const LeafLayer<E>& layer, const E* x, int64_t tokens, E* y, const LeafRecord& record, Space& space) {
  // The decisions are a tree of depth D - 1, whose last scores choose among two leaves.
  const int64_t above = layer.depth - 1, depth = layer.depth;
  space.reserve(2, tokens);
  const Sorted nodes = space.sorted(0, tokens), sorted = space.sorted(1, tokens);
  float* scores = record.scores ? record.scores : at_least(space.active, tokens * depth);
  Walk<E> walk{x,     layer.w_node, {layer.b_node}, record.flips, scores,    layer.width,
               above, depth,        depth,          nodes,        space.walk};
  walk.run(tokens);
  int32_t* leaf = record.leaf ? record.leaf : at_least(space.leaves, tokens);
  for (int64_t i = 0; i < tokens; ++i) {
    const int64_t token = nodes.order[i], last = token * depth + above;
    leaf[token] = 2 * nodes.leaf[i] + 1 + ((scores[last] > 0) != (record.flips && record.flips[last]));
  }
  sort_by_leaf(tokens, depth, [&](int64_t n) { return leaf[n]; }, sorted, space.counts);
  float* hidden = at_least(space.sums, tokens * (layer.rows_in() + 1));
  for_leaves(sorted, tokens, [&](int64_t begin, int64_t end, int64_t node) {
    leaf_network(layer, x, node - layer.first_leaf(), sorted, begin, end, y, hidden, record.neurons, space.rows);
  });
}

}  // namespace fff
