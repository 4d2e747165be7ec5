// PathFFF forward on a block of tokens: walk every tree, take the activations, sum the paths' output rows.
#pragma once

#include "activations.h"
#include "walk.h"

namespace fff {

constexpr size_t kStreamBytes = 16 << 20;

// The layer's weights and sizes; shapes as in fff/topology.py. Rows of E, biases of B.
template <class E, class B = E>
struct Layer {
  const E* w_in;   // (T, M, H)
  const B* b_in;   // (T, M) or null
  const E* w_out;  // (T, M, K)
  int64_t trees, depth, width, out_width;
  Activation activation;

  int64_t nodes() const { return (int64_t{2} << depth) - 1; }
  int64_t length() const { return depth + 1; }
  int64_t stride() const { return trees * length(); }  // scores of a token
};

// What one thread needs for a block, kept between blocks.
struct Space {
  WalkSpace walk;
  std::vector<int32_t> order, leaf;  // (T, tokens)
  std::vector<float> active, sums;
  std::vector<const void*> rows;
  std::vector<int32_t> leaves;
  std::vector<int64_t> counts;
  std::vector<int8_t> bytes;    // of int8.h: tokens quantised,
  std::vector<float> scales;    // their scales,
  std::vector<uint32_t> added;  // and what their dots have too much

  Sorted sorted(int64_t tree, int64_t tokens) { return {order.data() + tree * tokens, leaf.data() + tree * tokens}; }
  void reserve(int64_t trees, int64_t tokens) { at_least(order, trees * tokens), at_least(leaf, trees * tokens); }
};

inline int64_t padded(int64_t width) { return (width + kStep - 1) / kStep * kStep; }

// Rows of so few lines end before a processor has seen that they are read one line after another; longer ones it
// fetches better by itself.
constexpr int64_t kShortRow = 1536;

// Asks memory for those rows of the path to a leaf that are not on the path to another one.
template <class E>
inline void fetch_path(const E* w, int64_t width, int64_t depth, int64_t leaf, int64_t known) {
  for (int64_t l = depth; l >= 0 && ancestor(leaf, depth, l) != ancestor(known, depth, l); --l) {
    const char* const row = reinterpret_cast<const char*>(w + ancestor(leaf, depth, l) * width);
    for (int64_t at = 0; at < width * static_cast<int64_t>(sizeof(E)); at += kLineBytes)
      __builtin_prefetch(row + at, 0, 2);
  }
}

// to (tokens, out_width) = sum over trees and path nodes of coefficient * the node's row; w (T, M, row_width),
// coefficients (tokens, stride). sorted_of(tree): the sorted tokens. `written`: tokens of the whole call.
template <class E, class B, class O, class SortedOf>
void sum_paths(const Layer<E, B>& layer, const E* w, int64_t row_width, const float* coefficients, int64_t tokens,
               O* to, int64_t written, Space& space, const SortedOf& sorted_of) {
  const int64_t length = layer.length(), depth = layer.depth, nodes = layer.nodes();
  // Sums over trees are kept in float32: in place, or beside a bfloat16 output.
  constexpr bool beside = sizeof(O) < sizeof(float);
  const int64_t to_width = beside ? padded(row_width) : row_width;
  float* sums = nullptr;
  if (layer.trees > 1) {
    if constexpr (beside) sums = at_least(space.sums, tokens * to_width);
    else sums = to;
  }
  // A large output of one tree is written once and not read here again.
  const bool streaming = !sums && written * row_width * sizeof(O) >= kStreamBytes &&
                         reinterpret_cast<uintptr_t>(to) % kVectorBytes == 0 &&
                         row_width * sizeof(O) % kVectorBytes == 0;
  const bool fetching = row_width * static_cast<int64_t>(sizeof(E)) <= kShortRow;
  space.rows.resize(length);
  const E** rows = reinterpret_cast<const E**>(space.rows.data());
  for (int64_t tree = 0; tree < layer.trees; ++tree) {
    const E* w_tree = w + tree * nodes * row_width;
    const Sorted sorted = sorted_of(tree);
    for_leaves(sorted, tokens, [&](int64_t begin, int64_t end, int64_t leaf) {
      if (fetching && end + 1 < tokens)  // of a token after the next
        fetch_path(w_tree, row_width, depth, sorted.leaf[end + 1], sorted.leaf[end]);
      for (int64_t l = 0; l < length; ++l) rows[l] = w_tree + ancestor(leaf, depth, l) * row_width;
      in_blocks<kSumTokens>(begin, end, [&]<int T>(int64_t at) {
        const float* c[T];
        for (int t = 0; t < T; ++t) c[t] = coefficients + sorted.order[at + t] * layer.stride() + tree * length;
        if (sums) {
          float* targets[T];
          for (int t = 0; t < T; ++t) targets[t] = sums + sorted.order[at + t] * to_width;
          add_rows<T>(rows, length, c, targets, row_width, tree > 0);
        } else {
          O* targets[T];
          for (int t = 0; t < T; ++t) targets[t] = to + sorted.order[at + t] * row_width;
          if (streaming) add_rows<T, true>(rows, length, c, targets, row_width, false);
          else add_rows<T>(rows, length, c, targets, row_width, false);
        }
      });
    });
  }
  if (streaming) streamed();
  if constexpr (beside)
    if (sums)
      for (int64_t n = 0; n < tokens; ++n) from_halves<E>(sums + n * to_width, to + n * row_width, row_width);
}

// One block. `scores` (tokens, stride) and `leaf` (tokens, T), or null where the caller does not want them.
// score_of(tree): what makes a node's score of a dot, see Walk. weigh(tree, sorted, active): what is done to the
// activations before the sums.
template <class E, class B, class O, class ScoreOf, class Weigh>
void forward_by(const Layer<E, B>& layer, const E* x, const bool* flips, int64_t tokens, O* y, float* scores,
                int32_t* leaf, Space& space, const ScoreOf& score_of, const Weigh& weigh) {
  const int64_t length = layer.length(), nodes = layer.nodes(), trees = layer.trees, stride = layer.stride();
  space.reserve(trees, tokens);
  float* active = at_least(space.active, tokens * stride);
  float* kept = scores ? scores : active;
  for (int64_t tree = 0; tree < trees; ++tree) {
    const Sorted sorted = space.sorted(tree, tokens);
    using Score = decltype(score_of(tree));
    Walk<E, Score> walk{x,
                        layer.w_in + tree * nodes * layer.width,
                        score_of(tree),
                        flips ? flips + tree * layer.depth : nullptr,
                        kept + tree * length,
                        layer.width,
                        layer.depth,
                        stride,
                        trees * layer.depth,
                        sorted,
                        space.walk};
    walk.run(tokens);
    if (leaf)
      for (int64_t i = 0; i < tokens; ++i) leaf[sorted.order[i] * trees + tree] = sorted.leaf[i];
  }
  activate(layer.activation, kept, active, tokens * stride);
  for (int64_t tree = 0; tree < trees; ++tree) weigh(tree, space.sorted(tree, tokens), active);
  sum_paths(layer, layer.w_out, layer.out_width, active, tokens, y, tokens, space,
            [&](int64_t tree) { return space.sorted(tree, tokens); });
}

template <class E>
void forward(const Layer<E>& layer, const E* x, const bool* flips, int64_t tokens, E* y, float* scores, int32_t* leaf,
             Space& space) {
  forward_by(
      layer, x, flips, tokens, y, scores, leaf, space,
      [&](int64_t tree) { return Biased<E>{layer.b_in ? layer.b_in + tree * layer.nodes() : nullptr}; },
      [](int64_t, const Sorted&, float*) {});
}

}  // namespace fff
