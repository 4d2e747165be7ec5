// LeafFFF's hard forms backward: gradients of scores, neurons and x on a block of tokens, gradients of the leaves'
// rows. Not the decisions' rows, which are a PathFFF's (weights.h).
#pragma once

#include "leaves.h"

namespace fff {

// What both halves of the backward read, and what the first one writes for the second.
template <class E>
struct LeafGradients {
  const LeafLayer<E>& layer;
  const E *x, *grad;             // (N, H), (N, K)
  const int32_t* leaf;           // (N)
  const float *scores, *before;  // (N, D), (N, R): the neurons before their activation, and values
  const float* grad_of_scores;   // (N, D) or null: from losses of the scores themselves
  const bool straight_through;
  const float temperature;
  float *grad_neurons, *active;  // out, (N, R), (N, W + 1): the last is 1, for the output bias
  float* grad_scores;            // out, (N, D); null where decisions have no gradients

  int64_t decisions() const { return grad_scores ? layer.depth : 0; }
};

// One token's scores: to (D). `added` (D + 1): what the nodes on its path add to the loss's derivative.
template <class E>
void leaf_decisions(const LeafGradients<E>& g, int64_t token, const float* added, float* to) {
  const int64_t depth = g.layer.depth;
  const float* const direct = g.grad_of_scores ? g.grad_of_scores + token * depth : nullptr;
  for (int64_t l = 0; l < depth; ++l) to[l] = 0;
  if (g.straight_through) add_decisions(g.scores + token * depth, added, g.leaf[token], depth, g.temperature, to);
  for (int64_t l = 0; direct && l < depth; ++l) to[l] += direct[l];
  std::copy(to, to + depth, g.grad_scores + token * depth);
}

// The block [begin, end): gradients of scores and neurons, and grad_x (N, H).
template <class E>
void leaf_backward_tokens(const LeafGradients<E>& g, int64_t begin, int64_t end, E* grad_x, Space& space) {
  const LeafLayer<E>& layer = g.layer;
  const int64_t tokens = end - begin, neurons = layer.leaf_width, depth = layer.depth;
  const int64_t rows_in = layer.rows_in(), stride = rows_in + 1 + depth;
  space.reserve(1, tokens);
  const Sorted sorted = space.sorted(0, tokens);
  sort_by_leaf(tokens, depth, [&](int64_t n) { return g.leaf[begin + n]; }, sorted, space.counts);
  // First the dots with the leaf's output rows, then the coefficients of its input rows and of its decisions'.
  float* const products = at_least(space.sums, tokens * stride);
  std::vector<float> added(depth + 1);  // of the nodes on a path only the leaf adds anything
  std::vector<float> of_values(rows_in - neurons);
  float* const grad_values = of_values.data();
  for_leaves(sorted, tokens, [&](int64_t first, int64_t next, int64_t node) {
    const int64_t leaf = node - layer.first_leaf();
    const E** rows = rows_of_leaf(layer.w_out, leaf, neurons, layer.out_width, 1, space.rows);
    rows[neurons] = layer.b_out + leaf * layer.out_width;
    leaf_dots(g.grad + begin * layer.out_width, layer.out_width, rows, neurons + g.straight_through, sorted, first,
              next, products, stride);
    for (int64_t i = first; i < next; ++i) {
      const int64_t token = begin + sorted.order[i];
      float *const at = products + i * stride, *const active = g.active + token * (neurons + 1);
      const float *const before = g.before + token * rows_in, *const values = before + neurons;
      activate(layer.activation, before, active, neurons);
      if (layer.w_value) {  // at + neurons has the output bias's dot, which is asked for below
        map2(at, active, grad_values, neurons, [](Floats d, Floats v) { return d * v; });
        map2(active, values, active, neurons, [](Floats v, Floats w) { return v * w; });
      }
      active[neurons] = 1;
      added[depth] = 0;
      for (int64_t n = 0; g.straight_through && n <= neurons; ++n) added[depth] += active[n] * at[n];
      times_slope(layer.activation, at, before, at, neurons);
      if (layer.w_value) {
        map2(at, values, at, neurons, [](Floats d, Floats w) { return d * w; });
        std::copy(grad_values, grad_values + neurons, at + neurons);
      }
      std::copy(at, at + rows_in, g.grad_neurons + token * rows_in);
      if (g.grad_scores) leaf_decisions(g, token, added.data(), at + rows_in);
    }
    rows = rows_into_leaf(layer, leaf, depth, space.rows);
    for (int64_t l = 0; l < g.decisions(); ++l)
      rows[rows_in + l] = layer.w_node + ancestor(node, depth, l) * layer.width;
    leaf_sums(products, stride, rows, rows_in + g.decisions(), sorted, first, next, grad_x + begin * layer.width,
              layer.width);
  });
}

// All tokens by leaf: those of leaf l are order[start[l]] to order[start[l + 1]].
struct ByLeaf {
  std::vector<int32_t> order, leaf;
  std::vector<int64_t> start;

  ByLeaf(const int32_t* leaf_of, int64_t tokens, int64_t depth) : order(tokens), leaf(tokens) {
    const int64_t leaves = int64_t{1} << depth, first = leaves - 1;
    sort_by_leaf(tokens, depth, [&](int64_t n) { return leaf_of[n]; }, Sorted{order.data(), leaf.data()}, start);
    start.assign(leaves + 1, tokens);
    for (int64_t i = tokens; i-- > 0;) start[leaf[i] - first] = i;
    for (int64_t l = leaves; l-- > 0;) start[l] = std::min(start[l], start[l + 1]);
  }
};

// Rows at to(row) = sum over `count` tokens of coefficients (N, rows) * from (N, width), in the order of the tokens:
// the columns [column, column + columns) alone.
template <class E, class To>
void sum_over_tokens(const int32_t* order, int64_t count, const float* coefficients, int64_t rows, const E* from,
                     int64_t width, int64_t column, int64_t columns, const To& to, std::vector<float>& space) {
  constexpr int64_t kBlock = 64;  // tokens that stay in a core's cache while the rows pass
  const int64_t stride = padded(columns);
  float* const sums = at_least(space, rows * stride);
  for (int64_t begin = 0; begin < count; begin += kBlock) {
    const int64_t some = std::min(kBlock, count - begin);
    const E* tokens[kBlock];
    for (int64_t i = 0; i < some; ++i) tokens[i] = from + order[begin + i] * width + column;
    in_blocks<4>(0, rows, [&]<int R>(int64_t row) {
      float c[kBlock][R];
      float* targets[R];
      bool fresh[R];
      for (int64_t i = 0; i < some; ++i)
        for (int r = 0; r < R; ++r) c[i][r] = coefficients[order[begin + i] * rows + row + r];
      for (int r = 0; r < R; ++r) targets[r] = sums + (row + r) * stride, fresh[r] = begin == 0;
      add_tokens<R>(tokens, some, c, targets, fresh, columns);
    });
  }
  for (int64_t row = 0; row < rows; ++row) {
    E* const at = to(row) + column;
    if (count) from_halves<E>(sums + row * stride, at, columns);
    else std::memset(static_cast<void*>(at), 0, columns * sizeof(E));
  }
}

}  // namespace fff
