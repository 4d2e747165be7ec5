// The weight gradients of trees: every tree's sums (backward.h) shared among threads by chunks of its sorted tokens.
// Not the gradients of scores and inputs.
#pragma once

#include "backward.h"
#include "blocks.h"

namespace fff {

// Chunks of a tree's tokens: enough for some threads, large enough that the rows at their borders do not count. It may
// depend on sizes, never on threads: it sets the order of sums.
inline int64_t chunk_of(int64_t tokens, int64_t trees) {
  const int64_t chunks = std::max<int64_t>(1, 16 / trees);
  return std::max<int64_t>(256, (tokens + chunks - 1) / chunks);
}

inline int64_t chunks_of(int64_t tokens, int64_t trees) {
  const int64_t chunk = chunk_of(tokens, trees);
  return (tokens + chunk - 1) / chunk;
}

// Sums in float32 -> a gradient of the weights' type, zero where no token came.
template <class E>
void write_rows(const float* sums, int64_t sums_width, const bool* visited, E* to, int64_t rows, int64_t width) {
  at::parallel_for(0, rows, 64, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      if (!visited[row]) {
        std::memset(static_cast<void*>(to + row * width), 0, width * sizeof(E));
      } else if constexpr (sizeof(E) < sizeof(float)) {  // float32 sums are in their place already
        from_halves(sums + row * sums_width, to + row * width, width);
      }
    }
  });
}

// ready(sorted, count): called by one thread or another before the sums of those tokens of a tree.
template <class E, class F>
void weight_gradients(const Gradients<E>& g, int64_t tokens, const float* grad_scores, Tensor& grad_in,
                      Tensor& grad_bias, Tensor& grad_out, const F& ready) {
  const Layer<E>& layer = g.layer;
  const int64_t trees = layer.trees, nodes = layer.nodes();
  constexpr bool beside = sizeof(E) < sizeof(float);
  const int64_t in_width = beside ? padded(layer.width) : layer.width;
  const int64_t out_width = beside ? padded(layer.out_width) : layer.out_width;
  Tensor in = beside ? fresh({trees, nodes, in_width}, at::kFloat) : grad_in;
  Tensor out = beside ? fresh({trees, nodes, out_width}, at::kFloat) : grad_out;
  Tensor bias = beside ? fresh({trees, nodes}, at::kFloat) : grad_bias;
  const int64_t chunk = chunk_of(tokens, trees), chunks = chunks_of(tokens, trees);
  const int64_t parts = chunks > 1 ? chunks * 2 * layer.length() * (in_width + out_width + 1) : 0;
  Tensor cut = fresh({trees * parts}, at::kFloat);
  std::vector<int32_t> order(trees * tokens), leaf(trees * tokens);
  const std::unique_ptr<bool[]> visited(new bool[trees * nodes]());
  const auto sums_of = [&](int64_t tree) {
    return TreeSums<E>{g,
                       tree,
                       {order.data() + tree * tokens, leaf.data() + tree * tokens},
                       tokens,
                       grad_scores,
                       in.mutable_data_ptr<float>() + tree * nodes * in_width,
                       out.mutable_data_ptr<float>() + tree * nodes * out_width,
                       bias.mutable_data_ptr<float>() + tree * nodes,
                       in_width,
                       out_width,
                       cut.mutable_data_ptr<float>() + tree * parts};
  };
  at::parallel_for(0, trees, 1, [&](int64_t begin, int64_t end) {
    std::vector<int64_t> counts;
    for (int64_t tree = begin; tree < end; ++tree) {
      const TreeSums<E> sums = sums_of(tree);
      sort_by_leaf(tokens, layer.depth, [&](int64_t n) { return g.leaf[n * trees + tree]; }, sums.sorted, counts);
      sums.mark(visited.get() + tree * nodes);
    }
  });
  at::parallel_for(0, trees * chunks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t number = task % chunks;
      const TreeSums<E> sums = sums_of(task / chunks);
      sums.chunk(number, number * chunk, std::min(tokens, (number + 1) * chunk), [&](int64_t at, int64_t stop) {
        ready(Sorted{sums.sorted.order + at, sums.sorted.leaf + at}, stop - at);
      });
    }
  });
  at::parallel_for(0, chunks > 1 ? trees : 0, 1, [&](int64_t begin, int64_t end) {
    for (int64_t tree = begin; tree < end; ++tree) sums_of(tree).join(chunks, chunk);
  });
  write_rows(in.const_data_ptr<float>(), in_width, visited.get(), grad_in.mutable_data_ptr<E>(), trees * nodes,
             layer.width);
  write_rows(out.const_data_ptr<float>(), out_width, visited.get(), grad_out.mutable_data_ptr<E>(), trees * nodes,
             layer.out_width);
  const float* sums = bias.const_data_ptr<float>();
  E* to = grad_bias.mutable_data_ptr<E>();
  for (int64_t row = 0; row < trees * nodes; ++row)
    to[row] = visited[row] ? static_cast<E>(sums[row]) : static_cast<E>(0);
}

}  // namespace fff
