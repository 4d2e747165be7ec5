// The operators: check what comes in, give out memory, share blocks of tokens among threads. No arithmetic.
#include <ATen/Context.h>
#include <ATen/EmptyTensor.h>
#include <ATen/Parallel.h>
#include <ATen/native/TensorFactories.h>
#include <torch/library.h>

#include "leaves.h"
#include "memory.h"
#include "ops.h"

namespace fff {
namespace {

using at::Tensor;
using std::optional;

// One tree's top levels are walked once for all tokens of a block, so it takes all. Of many trees, whose rows together
// exceed a core's cache, each is fetched once a block: what that saves outweighs that inputs and sums leave the cache.
constexpr int64_t kBlockOfOneTree = 16384, kBlockOfTrees = 1024;
// A thread is worth waking from about this much work on: multiply-adds.
constexpr int64_t kWorkForThread = 1 << 19;

Activation activation_of(int64_t number) {
  TORCH_CHECK_VALUE(number >= 0 && number <= static_cast<int64_t>(Activation::identity), "activation ", number);
  return static_cast<Activation>(number);
}

void check_float(const Tensor& t, const char* name, at::ScalarType dtype) {
  TORCH_CHECK_VALUE(t.device().is_cpu(), name, " is on ", t.device(), "; provider 'cpu' needs it on the CPU");
  TORCH_CHECK_VALUE(t.scalar_type() == dtype, name, " is ", t.scalar_type(), ", but x is ", dtype,
                    "; convert one of them");
}

// The last dimension is the width; all sizes fit together.
void check(const Tensor& x, const Tensor& w_in, const optional<Tensor>& b_in, const Tensor& w_out) {
  const auto dtype = x.scalar_type();
  TORCH_CHECK_VALUE(dtype == at::kFloat || dtype == at::kBFloat16, "x is ", dtype,
                    "; provider 'cpu' takes float32 and bfloat16");
  check_float(x, "x", dtype);
  check_float(w_in, "w_in", dtype);
  check_float(w_out, "w_out", dtype);
  TORCH_CHECK_VALUE(
      w_in.dim() == 3 && w_out.dim() == 3 && w_in.size(0) == w_out.size(0) && w_in.size(1) == w_out.size(1),
      "w_in and w_out must be (trees, nodes, width), with the same trees and nodes");
  const int64_t nodes = w_in.size(1);
  TORCH_CHECK_VALUE(nodes > 0 && (nodes & (nodes + 1)) == 0 && nodes < (int64_t{1} << 31),
                    "a complete tree has 2 ** (depth + 1) - 1 nodes and a depth of at most 29, got ", nodes);
  TORCH_CHECK_VALUE(x.dim() >= 1 && x.size(-1) == w_in.size(2), "the input's last dimension is ",
                    x.dim() ? x.size(-1) : 0, ", but the layer has d_in=", w_in.size(2));
  if (b_in) {
    check_float(*b_in, "b_in", dtype);
    TORCH_CHECK_VALUE(b_in->dim() == 2 && b_in->size(0) == w_in.size(0) && b_in->size(1) == nodes,
                      "b_in must be (trees, nodes)");
  }
}

int64_t depth_of(const Tensor& w) {
  int64_t depth = 0;
  while ((int64_t{2} << depth) - 1 < w.size(1)) ++depth;
  return depth;
}

// Contiguous weights, kept alive beside the pointers into them.
template <class E>
struct Held {
  Tensor w_in, b_in, w_out;
  Layer<E> layer;
  Held(const Tensor& in, const optional<Tensor>& bias, const Tensor& out, int64_t activation)
      : w_in(in.contiguous()),
        b_in(bias ? bias->contiguous() : Tensor()),
        w_out(out.contiguous()),
        layer{w_in.const_data_ptr<E>(),
              bias ? b_in.const_data_ptr<E>() : nullptr,
              w_out.const_data_ptr<E>(),
              w_in.size(0),
              depth_of(w_in),
              w_in.size(2),
              w_out.size(2),
              activation_of(activation)} {}
};

// f(begin, end, space) over blocks of tokens, by as many threads as the work is worth. Results do not depend on how.
template <class F>
void over_blocks(int64_t tokens, int64_t trees, int64_t work_per_token, const F& f) {
  const int64_t threads =
      std::max<int64_t>(1, std::min<int64_t>(at::get_num_threads(), tokens * work_per_token / kWorkForThread));
  const int64_t most = trees == 1 ? kBlockOfOneTree : kBlockOfTrees;
  const int64_t size = std::max<int64_t>(1, std::min(most, (tokens + threads - 1) / threads));
  const int64_t blocks = (tokens + size - 1) / size;
  const auto run = [&](int64_t first, int64_t last) {
    static thread_local Space space;
    for (int64_t block = first; block < last; ++block) f(block * size, std::min(tokens, (block + 1) * size), space);
  };
  if (threads == 1) {
    run(0, blocks);
  } else {
    at::parallel_for(0, blocks, 1, run);
  }
}

template <class E>
int64_t work_of(const Layer<E>& layer) {
  return layer.stride() * (layer.width + layer.out_width);
}

template <class F>
auto for_dtype(at::ScalarType dtype, const F& f) {
  return dtype == at::kFloat ? f.template operator()<float>() : f.template operator()<BFloat16>();
}

// An empty tensor, a large one in memory that is kept between calls. Where torch is asked to fill what is not yet
// written, to show reads of it, it is filled.
Tensor fresh(at::IntArrayRef sizes, at::ScalarType dtype) {
  const int64_t bytes = c10::multiply_integers(sizes) * static_cast<int64_t>(c10::elementSize(dtype));
  const c10::DispatchKeySet cpu(c10::DispatchKey::CPU);
  Tensor t = bytes < Memory::kLarge ? at::detail::empty_cpu(sizes, dtype, /*pin_memory=*/false, std::nullopt)
                                    : at::detail::empty_generic(sizes, &Memory::instance(), cpu, dtype, std::nullopt);
  const auto& context = at::globalContext();
  if (context.deterministicAlgorithms() && context.deterministicFillUninitializedMemory())
    at::native::fill_empty_deterministic_(t);
  return t;
}

Tensor output_like(const Tensor& x, int64_t width) {
  auto sizes = x.sizes().vec();
  sizes.back() = width;
  return fresh(sizes, x.scalar_type());
}

int64_t rows_of(const Tensor& x) { return x.size(-1) ? x.numel() / x.size(-1) : 0; }

template <class E>
void compute(const Held<E>& held, const Tensor& x, const bool* flips, Tensor& y, float* scores, int32_t* leaf) {
  const Layer<E>& layer = held.layer;
  const E* from = x.const_data_ptr<E>();
  E* to = y.mutable_data_ptr<E>();
  over_blocks(rows_of(x), layer.trees, work_of(layer), [&](int64_t begin, int64_t end, Space& space) {
    forward<E>(layer, from + begin * layer.width, flips ? flips + begin * layer.trees * layer.depth : nullptr,
               end - begin, to + begin * layer.out_width, scores ? scores + begin * layer.stride() : nullptr,
               leaf ? leaf + begin * layer.trees : nullptr, space);
  });
}

}  // namespace

Tensor infer(const Tensor& x, const Tensor& w_in, const optional<Tensor>& b_in, const Tensor& w_out,
             int64_t activation) {
  check(x, w_in, b_in, w_out);
  Tensor y = output_like(x, w_out.size(2));
  if (y.numel())
    for_dtype(x.scalar_type(), [&]<class E>() {
      const Held<E> held(w_in, b_in, w_out, activation);
      compute<E>(held, x.contiguous(), nullptr, y, nullptr, nullptr);
    });
  return y;
}

namespace {

// LeafFFF, depth at least 1: x (..., H) -> y (..., K)
Tensor leaf_infer(const Tensor& x, const Tensor& w_node, const Tensor& b_node, const Tensor& w_in, const Tensor& b_in,
                  const Tensor& w_out, const Tensor& b_out, int64_t activation) {
  const auto dtype = x.scalar_type();
  TORCH_CHECK_VALUE(dtype == at::kFloat || dtype == at::kBFloat16, "x is ", dtype,
                    "; provider 'cpu' takes float32 and bfloat16");
  for (const Tensor& t : {x, w_node, b_node, w_in, b_in, w_out, b_out}) check_float(t, "an operand", dtype);
  const int64_t leaves = w_in.size(0), neurons = w_in.size(1), width = w_in.size(2), out_width = w_out.size(2);
  int64_t depth = 0;
  while ((int64_t{1} << depth) < leaves) ++depth;
  TORCH_CHECK_VALUE(depth >= 1 && leaves == int64_t{1} << depth &&
                        w_node.sizes() == at::IntArrayRef({leaves - 1, width}) && b_node.numel() == leaves - 1 &&
                        b_in.numel() == leaves * neurons &&
                        w_out.sizes() == at::IntArrayRef({leaves, neurons, out_width}) &&
                        b_out.numel() == leaves * out_width && x.dim() >= 1 && x.size(-1) == width,
                    "the operands do not fit together as LeafFFF's");
  Tensor y = output_like(x, out_width);
  if (!y.numel()) return y;
  const Tensor held[] = {x.contiguous(),    w_node.contiguous(), b_node.contiguous(), w_in.contiguous(),
                         b_in.contiguous(), w_out.contiguous(),  b_out.contiguous()};
  for_dtype(dtype, [&]<class E>() {
    const auto at = [&](int i) { return held[i].const_data_ptr<E>(); };
    const LeafLayer<E> layer{
        at(1), at(2), at(3), at(4), at(5), at(6), depth, neurons, width, out_width, activation_of(activation)};
    over_blocks(rows_of(x), 1, depth * width + neurons * (width + out_width),
                [&](int64_t begin, int64_t end, Space& space) {
                  leaf_forward<E>(layer, at(0) + begin * width, end - begin,
                                  y.mutable_data_ptr<E>() + begin * out_width, space);
                });
  });
  return y;
}

// x (N, H) -> y (N, K), leaves' nodes (N, T) int32, scores (N, T, L) float32
std::tuple<Tensor, Tensor, Tensor> forward_op(const Tensor& x, const Tensor& w_in, const optional<Tensor>& b_in,
                                              const Tensor& w_out, int64_t activation, const optional<Tensor>& flips) {
  check(x, w_in, b_in, w_out);
  TORCH_CHECK_VALUE(x.dim() == 2, "x must be (tokens, width)");
  const int64_t tokens = x.size(0), trees = w_in.size(0), depth = depth_of(w_in);
  TORCH_CHECK_VALUE(tokens < (int64_t{1} << 31), "x has ", tokens, " tokens; at most 2^31 - 1 in one call");
  if (flips)
    TORCH_CHECK_VALUE(flips->scalar_type() == at::kBool && flips->numel() == tokens * trees * depth,
                      "flips must be bool (tokens, trees, depth)");
  Tensor y = fresh({tokens, w_out.size(2)}, x.scalar_type());
  Tensor leaf = fresh({tokens, trees}, at::kInt);
  Tensor scores = fresh({tokens, trees, depth + 1}, at::kFloat);
  const Tensor turned = flips ? flips->contiguous() : Tensor();
  for_dtype(x.scalar_type(), [&]<class E>() {
    compute<E>(Held<E>(w_in, b_in, w_out, activation), x.contiguous(), flips ? turned.const_data_ptr<bool>() : nullptr,
               y, scores.mutable_data_ptr<float>(), leaf.mutable_data_ptr<int32_t>());
  });
  return {y, leaf, scores};
}

// Chunks of a tree's tokens: enough for some threads, large enough that the rows at their borders do not count. It may
// depend on sizes, never on threads: it sets the order of sums.
int64_t chunk_of(int64_t tokens, int64_t trees) {
  const int64_t chunks = std::max<int64_t>(1, 16 / trees);
  return std::max<int64_t>(256, (tokens + chunks - 1) / chunks);
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

template <class E>
void weight_gradients(const Gradients<E>& g, int64_t tokens, const float* grad_scores, Tensor& grad_in,
                      Tensor& grad_bias, Tensor& grad_out) {
  const Layer<E>& layer = g.layer;
  const int64_t trees = layer.trees, nodes = layer.nodes();
  constexpr bool beside = sizeof(E) < sizeof(float);
  const int64_t in_width = beside ? padded(layer.width) : layer.width;
  const int64_t out_width = beside ? padded(layer.out_width) : layer.out_width;
  Tensor in = beside ? fresh({trees, nodes, in_width}, at::kFloat) : grad_in;
  Tensor out = beside ? fresh({trees, nodes, out_width}, at::kFloat) : grad_out;
  Tensor bias = beside ? fresh({trees, nodes}, at::kFloat) : grad_bias;
  const int64_t chunk = chunk_of(tokens, trees), chunks = (tokens + chunk - 1) / chunk;
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
      sums_of(task / chunks).chunk(number, number * chunk, std::min(tokens, (number + 1) * chunk));
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

// -> gradients of x (N, H), w_in (T, M, H), b_in (T, M), w_out (T, M, K)
std::tuple<Tensor, Tensor, Tensor, Tensor> backward_op(const Tensor& grad, const optional<Tensor>& grad_of_scores,
                                                       const Tensor& x, const Tensor& w_in, const Tensor& w_out,
                                                       const Tensor& leaf, const Tensor& scores,
                                                       const optional<Tensor>& temperature, int64_t activation) {
  check(x, w_in, std::nullopt, w_out);
  check_float(grad, "grad", x.scalar_type());
  const int64_t tokens = x.size(0), trees = w_in.size(0), nodes = w_in.size(1);
  TORCH_CHECK_VALUE(grad.sizes() == at::IntArrayRef({tokens, w_out.size(2)}) && leaf.numel() == tokens * trees &&
                        scores.numel() == tokens * trees * (depth_of(w_in) + 1),
                    "grad, leaf and scores do not fit x and the weights");
  const auto like = [&](const Tensor& t) { return fresh(t.sizes(), t.scalar_type()); };
  Tensor grad_x = like(x), grad_in = like(w_in), grad_out = like(w_out);
  Tensor grad_bias = fresh({trees, nodes}, w_in.scalar_type());
  Tensor grad_scores = like(scores);
  const Tensor from = x.contiguous(), gradient = grad.contiguous(), leaves = leaf.contiguous(), s = scores.contiguous();
  const Tensor direct = grad_of_scores ? grad_of_scores->to(at::kFloat).contiguous() : Tensor();
  for_dtype(x.scalar_type(), [&]<class E>() {
    const Held<E> held(w_in, std::nullopt, w_out, activation);
    const Gradients<E> g{held.layer,
                         from.const_data_ptr<E>(),
                         gradient.const_data_ptr<E>(),
                         s.const_data_ptr<float>(),
                         grad_of_scores ? direct.const_data_ptr<float>() : nullptr,
                         leaves.const_data_ptr<int32_t>(),
                         temperature.has_value(),
                         temperature ? temperature->item<float>() : 1.0f};
    over_blocks(tokens, trees, work_of(held.layer), [&](int64_t begin, int64_t end, Space& space) {
      backward_tokens(g, begin, end, grad_scores.mutable_data_ptr<float>(), grad_x.mutable_data_ptr<E>(), space);
    });
    weight_gradients(g, tokens, grad_scores.const_data_ptr<float>(), grad_in, grad_bias, grad_out);
  });
  return {grad_x, grad_in, grad_bias, grad_out};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(fff, m) {
  m.def("cpu_infer(Tensor x, Tensor w_in, Tensor? b_in, Tensor w_out, int activation) -> Tensor");
  m.def(
      "cpu_leaf_infer(Tensor x, Tensor w_node, Tensor b_node, Tensor w_in, Tensor b_in, Tensor w_out, Tensor b_out, "
      "int activation) -> Tensor");
  m.def(
      "cpu_forward(Tensor x, Tensor w_in, Tensor? b_in, Tensor w_out, int activation, Tensor? flips, "
      "Tensor? temperature) -> (Tensor, Tensor, Tensor)");
  m.def(
      "cpu_backward(Tensor grad, Tensor? grad_of_scores, Tensor x, Tensor w_in, Tensor w_out, Tensor leaf, "
      "Tensor scores, Tensor? temperature, int activation) -> (Tensor, Tensor, Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(fff, CPU, m) {
  m.impl("cpu_infer", infer);
  m.impl("cpu_leaf_infer", leaf_infer);
  m.impl("cpu_forward", [](const Tensor& x, const Tensor& w_in, const optional<Tensor>& b_in, const Tensor& w_out,
                           int64_t activation, const optional<Tensor>& flips,
                           const optional<Tensor>&) { return forward_op(x, w_in, b_in, w_out, activation, flips); });
  m.impl("cpu_backward", backward_op);
}

}  // namespace fff
