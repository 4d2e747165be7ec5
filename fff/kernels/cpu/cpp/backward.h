// PathFFF backward: gradients of the scores and of x on a block of tokens, gradients of the weights on a chunk of one
// tree's tokens. Path nodes only.
#pragma once

#include <numeric>

#include "forward.h"

namespace fff {

// What both halves of the backward read.
template <class E>
struct Gradients {
  const Layer<E>& layer;
  const E* x;                   // (N, H)
  const E* grad;                // (N, K)
  const float* scores;          // (N, T, L)
  const float* grad_of_scores;  // (N, T, L) or null: from losses of the scores themselves
  const int32_t* leaf;          // (N, T)
  const bool straight_through;
  const float temperature;
};

// Tokens [0, count) by the leaf that `leaf_of` gives; stable.
template <class F>
void sort_by_leaf(int64_t count, int64_t depth, const F& leaf_of, Sorted sorted, std::vector<int64_t>& space) {
  const int64_t leaves = int64_t{1} << depth, first = leaves - 1;
  if (leaves <= 4 * count + 64) {
    space.assign(leaves + 1, 0);
    for (int64_t n = 0; n < count; ++n) ++space[leaf_of(n) - first + 1];
    std::partial_sum(space.begin(), space.end(), space.begin());
    for (int64_t n = 0; n < count; ++n) sorted.order[space[leaf_of(n) - first]++] = static_cast<int32_t>(n);
  } else {
    space.resize(count);
    for (int64_t n = 0; n < count; ++n) space[n] = (static_cast<int64_t>(leaf_of(n)) << 32) | n;
    std::sort(space.begin(), space.end());
    for (int64_t i = 0; i < count; ++i) sorted.order[i] = static_cast<int32_t>(space[i] & 0xFFFFFFFF);
  }
  for (int64_t i = 0; i < count; ++i) sorted.leaf[i] = leaf_of(sorted.order[i]);
}

// dot (tokens, stride): each token's gradient with the output rows of its path. sorted_of(tree): the sorted tokens. x:
// rows of the same tokens to ask memory for, because they are needed next, or null.
template <class E, class SortedOf>
void dot_paths(const Layer<E>& layer, const E* grad, int64_t tokens, float* dot, const SortedOf& sorted_of,
               const E* x = nullptr) {
  const int64_t length = layer.length(), width = layer.out_width;
  std::vector<const E*> rows(length);
  for (int64_t tree = 0; tree < layer.trees; ++tree) {
    const E* w = layer.w_out + tree * layer.nodes() * width;
    const Sorted sorted = sorted_of(tree);
    for_leaves(sorted, tokens, [&](int64_t begin, int64_t end, int64_t leaf) {
      for (int64_t l = 0; l < length; ++l) rows[l] = w + ancestor(leaf, layer.depth, l) * width;
      const E* next_leaf = w + (end < tokens ? sorted.leaf[end] : leaf) * width;
      in_blocks<kDotTokens>(begin, end, [&]<int T>(int64_t at) {
        const E* from[T];
        float* to[T];
        for (int t = 0; t < T; ++t) {
          from[t] = grad + sorted.order[at + t] * width;
          to[t] = dot + sorted.order[at + t] * layer.stride() + tree * length;
        }
        const auto some = [&]<int N>(int64_t l) {
          float out[T][N];
          const int64_t turn = l / kDotNodes;
          const Ahead<E> ahead{x ? x + sorted.order[std::min(at + turn, tokens - 1)] * layer.width : next_leaf,
                               grad + sorted.order[std::min(at + T + turn, tokens - 1)] * width};
          dots<T, N>(from, rows.data() + l, width, out, ahead);
          for (int t = 0; t < T; ++t) std::copy(out[t], out[t] + N, to[t] + l);
        };
        in_blocks<kDotNodes>(0, length, some);
      });
    });
  }
}

// Straight-through: to each decision's score the gradient of its own probability, times what the nodes below add
// (`fff.decisions.straight_through_gates`). One token's path in one tree; contribution = activation * dot.
inline void add_decisions(const float* scores, const float* contribution, int64_t leaf, int64_t depth,
                          float temperature, float* grad_scores) {
  float below = 0;
  for (int64_t l = depth; l > 0; --l) {
    below += contribution[l];
    const bool right = ancestor(leaf, depth, l) % 2 == 0;
    const float p = 1 / (1 + std::exp((right ? -scores[l - 1] : scores[l - 1]) / temperature));
    const float slope = p * (1 - p) / temperature;
    grad_scores[l - 1] += (right ? slope : -slope) * below;
  }
}

// Tokens [begin, begin + tokens): from each path row's dot with the gradient, in grad_scores (N, T, L), to the gradient
// of its score.
template <class E>
void through_activations(const Gradients<E>& g, int64_t begin, int64_t tokens, float* grad_scores, Space& space) {
  const Layer<E>& layer = g.layer;
  const int64_t stride = layer.stride(), trees = layer.trees;
  float* dot = grad_scores + begin * stride;
  const float* scores = g.scores + begin * stride;
  if (g.straight_through) {
    float* active = at_least(space.active, tokens * stride);
    activate(layer.activation, scores, active, tokens * stride);
    for (int64_t i = 0; i < tokens * stride; ++i) active[i] *= dot[i];
  }
  times_slope(layer.activation, dot, scores, dot, tokens * stride);
  if (g.straight_through)
    for (int64_t n = 0; n < tokens; ++n)
      for (int64_t tree = 0; tree < trees; ++tree) {
        const int64_t at = n * stride + tree * layer.length();
        add_decisions(scores + at, space.active.data() + at, g.leaf[(begin + n) * trees + tree], layer.depth,
                      g.temperature, dot + at);
      }
  if (g.grad_of_scores)
    for (int64_t i = 0; i < tokens * stride; ++i) dot[i] += g.grad_of_scores[begin * stride + i];
}

// The block [begin, end): grad_scores (N, T, L) and grad_x (N, H).
template <class E>
void backward_tokens(const Gradients<E>& g, int64_t begin, int64_t end, float* grad_scores, E* grad_x, Space& space) {
  const Layer<E>& layer = g.layer;
  const int64_t tokens = end - begin, trees = layer.trees;
  space.reserve(trees, tokens);
  for (int64_t tree = 0; tree < trees; ++tree)
    sort_by_leaf(
        tokens, layer.depth, [&](int64_t n) { return g.leaf[(begin + n) * trees + tree]; }, space.sorted(tree, tokens),
        space.counts);
  const auto sorted_of = [&](int64_t tree) { return space.sorted(tree, tokens); };
  float* dot = grad_scores + begin * layer.stride();
  dot_paths(layer, g.grad + begin * layer.out_width, tokens, dot, sorted_of);
  through_activations(g, begin, tokens, grad_scores, space);
  sum_paths(layer, layer.w_in, layer.width, dot, tokens, grad_x + begin * layer.width, tokens, space, sorted_of);
}

// The same for some of one tree's N sorted tokens: what is fetched for them is still near when weights need it.
template <class E>
void backward_sorted(const Gradients<E>& g, Sorted sorted, int64_t count, int64_t tokens, float* grad_scores, E* grad_x,
                     Space& space) {
  const auto sorted_of = [&](int64_t) { return sorted; };
  dot_paths(g.layer, g.grad, count, grad_scores, sorted_of, g.x);
  for (int64_t i = 0; i < count; ++i) through_activations(g, sorted.order[i], 1, grad_scores, space);
  sum_paths(g.layer, g.layer.w_in, g.layer.width, grad_scores, count, grad_x, tokens, space, sorted_of);
}

// Weight gradients of one tree, summed in the order of its sorted tokens, chunk by chunk. A node whose tokens lie in
// one chunk is summed in place. A chunk's border can cut only the paths to its first and its last token: such a node
// has a row of its own in each chunk that it touches, and `join` adds them from the first chunk to the last. So no two
// chunks write one row, and the order of every sum follows from the sizes alone.
template <class E>
struct TreeSums {
  static constexpr int kLevels = 4;  // summed for one pass over the tokens
  static constexpr int kBlock = 64;  // tokens that stay in a core's cache while the groups of levels pass

  const Gradients<E>& g;
  int64_t tree;
  Sorted sorted;  // of all N tokens
  int64_t tokens;
  const float* grad_scores;  // (N, T, L)
  float *in, *out, *bias;    // (M, in_width), (M, out_width), (M): sums of this tree
  int64_t in_width, out_width;
  float* parts;  // (chunks, 2, L, in_width + out_width + 1)

  const Layer<E>& layer() const { return g.layer; }
  int64_t node(int64_t position, int64_t level) const { return ancestor(sorted.leaf[position], layer().depth, level); }
  int64_t part_width() const { return in_width + out_width + 1; }
  float* part(int64_t chunk, int side, int64_t level) const {
    return parts + ((chunk * 2 + side) * layer().length() + level) * part_width();
  }

  // Which of its chunk's borders cut the node at `level` above a position.
  struct Cut {
    bool left, right;
  };
  Cut cut(int64_t begin, int64_t end, int64_t position, int64_t level) const {
    const int64_t here = node(position, level);
    return {begin > 0 && node(begin - 1, level) == here, end < tokens && node(end, level) == here};
  }

  // ready(at, stop): called before the sums of positions [at, stop).
  template <class F>
  void chunk(int64_t number, int64_t begin, int64_t end, const F& ready) const {
    for (int64_t at = begin; at < end; at += kBlock) {
      const int64_t stop = std::min<int64_t>(at + kBlock, end);
      ready(at, stop);
      for (int64_t level = 0; level < layer().length(); level += kLevels) {
        const int64_t last = std::min<int64_t>(level + kLevels, layer().length()) - 1;
        for (int64_t first = at, next; first < stop; first = next) {
          for (next = first + 1; next < stop && node(next, last) == node(first, last);) ++next;
          switch (last - level + 1) {
            case 4: add<4>(number, begin, end, first, next, level); break;
            case 3: add<3>(number, begin, end, first, next, level); break;
            case 2: add<2>(number, begin, end, first, next, level); break;
            case 1: add<1>(number, begin, end, first, next, level); break;
          }
        }
      }
    }
  }

  // Positions [first, next) share the nodes of levels [level, level + R).
  template <int R>
  void add(int64_t number, int64_t begin, int64_t end, int64_t first, int64_t next, int64_t level) const {
    const int64_t count = next - first, length = layer().length();
    float *in_rows[R], *out_rows[R], *biases[R];
    bool fresh[R];
    for (int r = 0; r < R; ++r) {
      const int64_t here = node(first, level + r);
      const auto [left, right] = cut(begin, end, first, level + r);
      fresh[r] = first == begin || node(first - 1, level + r) != here;
      if (left || right) {
        in_rows[r] = part(number, left ? 0 : 1, level + r);
        out_rows[r] = in_rows[r] + in_width;
        biases[r] = out_rows[r] + out_width;
      } else {
        in_rows[r] = in + here * in_width;
        out_rows[r] = out + here * out_width;
        biases[r] = bias + here;
      }
    }
    const E *x[kBlock], *grad[kBlock];
    float c_in[kBlock][R], c_out[kBlock][R];
    for (int64_t i = 0; i < count; ++i) {
      const int64_t token = sorted.order[first + i], at = token * layer().stride() + tree * length + level;
      x[i] = g.x + token * layer().width;
      grad[i] = g.grad + token * layer().out_width;
      std::copy(grad_scores + at, grad_scores + at + R, c_in[i]);
      std::copy(g.scores + at, g.scores + at + R, c_out[i]);
    }
    activate(layer().activation, c_out[0], c_out[0], count * R);
    add_tokens<R>(x, count, c_in, in_rows, fresh, layer().width);
    add_tokens<R>(grad, count, c_out, out_rows, fresh, layer().out_width);
    for (int r = 0; r < R; ++r) {
      float sum = fresh[r] ? 0 : *biases[r];
      for (int64_t i = 0; i < count; ++i) sum += c_in[i][r];
      *biases[r] = sum;
    }
  }

  // The rows that borders cut.
  void join(int64_t chunks, int64_t chunk_size) const {
    for (int64_t c = 0; c < chunks; ++c) {
      const int64_t begin = c * chunk_size, end = std::min(begin + chunk_size, tokens);
      for (int side = 0; side < 2; ++side)
        for (int64_t level = 0; level < layer().length(); ++level) {
          const int64_t position = side == 0 ? begin : end - 1, here = node(position, level);
          const auto [left, right] = cut(begin, end, position, level);
          if (side == 0 ? !left : (left || !right)) continue;
          const float* from = part(c, side, level);
          join_row(from, in + here * in_width, in_width, side == 0);
          join_row(from + in_width, out + here * out_width, out_width, side == 0);
          join_row(from + in_width + out_width, bias + here, 1, side == 0);
        }
    }
  }

  static void join_row(const float* from, float* to, int64_t width, bool add) {
    for (int64_t i = 0; i < width; ++i) to[i] = add ? to[i] + from[i] : from[i];
  }

  // visited (M): which nodes have tokens.
  void mark(bool* visited) const {
    for_leaves(sorted, tokens, [&](int64_t, int64_t, int64_t leaf) {
      for (int64_t l = layer().depth; l >= 0 && !visited[ancestor(leaf, layer().depth, l)]; --l)
        visited[ancestor(leaf, layer().depth, l)] = true;
    });
  }
};

}  // namespace fff
