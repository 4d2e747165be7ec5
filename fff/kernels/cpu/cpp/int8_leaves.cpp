// The operators of LeafFFF on eight-bit integers. No arithmetic (int8_leaves.h).
#include "int8_leaves.h"

#include "backward.h"
#include "blocks.h"
#include "ops.h"

namespace fff {
namespace {

using Some = at::TensorList;  // of the decisions (3), leaves and master (6 each); none for a missing master

void check_count(Some some, const char* name, size_t count, const char* members) {
  TORCH_CHECK_VALUE(some.size() == count, name, " must be ", count, " tensors, ", members, ", got ", some.size());
}

// Packed rows of some networks: (networks, groups, quads, 16, 4) with numbers of at least `width`.
Packed check_packed(const Tensor& w, const std::string& name, int64_t networks, int64_t width) {
  check_tensor(w, name.c_str(), at::kChar);
  TORCH_CHECK_VALUE(w.dim() == 5 && w.size(0) == networks && w.size(1) > 0 && w.size(3) == kGroup && w.size(4) == kQuad,
                    name, " must be (", networks, ", groups, quads, ", kGroup, ", ", kQuad, "), got ", w.sizes());
  const int64_t quads = w.size(2);
  TORCH_CHECK_VALUE(
      quads * kQuad >= width && quads * kQuad <= kWidest && (quads <= kTileLines || quads % kTileLines == 0), name,
      " has ", quads, " quads; they must hold ", width, " numbers, at most ", kWidest, ", and be at most ", kTileLines,
      " or a multiple");
  TORCH_CHECK_VALUE(w.is_contiguous(), name, " must be contiguous");
  return {w.const_data_ptr<int8_t>(), w.size(1), quads};
}

ByteNetworks check_networks(Some w, const char* whose, int64_t networks, int64_t width, int64_t out_width, bool gated) {
  check_count(w, whose, 6, "w_in, scale_in, b_in, w_out, scale_out and b_out");
  const auto name = [&](const char* part) { return std::string(whose) + "." + part; };
  ByteNetworks found{};
  found.gated = gated;
  found.in = check_packed(w[0], name("w_in"), networks, width);
  TORCH_CHECK_VALUE(!gated || found.in.groups % 2 == 0, name("w_in"), " has ", found.in.groups,
                    " groups; gated, half of them are values'");
  found.out = check_packed(w[3], name("w_out"), networks, found.neurons());
  TORCH_CHECK_VALUE(found.out.groups == (out_width + kGroup - 1) / kGroup, name("w_out"), " has ", found.out.groups,
                    " groups, which do not hold ", out_width, " outputs");
  const int64_t in_sizes[] = {networks, found.in.rows()}, out_sizes[] = {networks, found.out.rows()};
  found.scale_in = check_numbers_of(w[1], name("scale_in"), in_sizes, "(leaves, rows in)");
  found.b_in = check_numbers_of(w[2], name("b_in"), in_sizes, "(leaves, rows in)");
  found.scale_out = check_numbers_of(w[4], name("scale_out"), out_sizes, "(leaves, rows out)");
  found.b_out = check_numbers_of(w[5], name("b_out"), out_sizes, "(leaves, rows out)");
  return found;
}

// Storages of all tensors: they stay, whatever is assigned to the layer meanwhile.
struct HeldByteLeaves {
  std::vector<c10::Storage> memory;
  ByteLeaves layer{};

  HeldByteLeaves(const Tensor& x, Some nodes, Some leaves, Some master, int64_t out_width, int64_t levels, bool gated,
                 int64_t activation) {
    layer.activation = activation_of(activation);
    check_count(nodes, "nodes", 3, "w_node, scale_node and b_node");
    check_tensor(nodes[0], "w_node", at::kShort);
    TORCH_CHECK_VALUE(nodes[0].dim() == 2 && nodes[0].size(1) > 0 && nodes[0].is_contiguous(),
                      "w_node must be (nodes, d_in), contiguous, got ", nodes[0].sizes());
    const int64_t count = nodes[0].size(0);
    layer.width = nodes[0].size(1);
    check_input(x, layer.width);
    while (layer.depth < kDeepest && (int64_t{1} << layer.depth) <= count) ++layer.depth;
    TORCH_CHECK_VALUE(count == (int64_t{1} << layer.depth) - 1, "w_node has ", count,
                      " nodes; a tree decides by 2 ** depth - 1, and a depth of at most ", kDeepest);
    TORCH_CHECK_VALUE(layer.width <= kWidest, "the layer has d_in=", layer.width, "; int8 dots are exact up to ",
                      kWidest);
    TORCH_CHECK_VALUE(levels >= 1 && levels * levels <= ((int64_t{1} << 31) - 1) / layer.width && levels < (1 << 15),
                      "levels=", levels, " are no words whose products sum up to an int32 at d_in=", layer.width);
    TORCH_CHECK_VALUE(out_width > 0, "d_out must be 1 or more, got ", out_width);
    layer.w_node = nodes[0].const_data_ptr<int16_t>();
    layer.scale_node = check_numbers_of(nodes[1], "scale_node", {count}, "(nodes,)");
    layer.b_node = check_numbers_of(nodes[2], "b_node", {count}, "(nodes,)");
    layer.levels = static_cast<float>(levels), layer.out_width = out_width, layer.has_master = !master.empty();
    layer.leaves = check_networks(leaves, "leaves", int64_t{1} << layer.depth, layer.width, out_width, gated);
    if (layer.has_master) {
      layer.master = check_networks(master, "master", 1, layer.width, out_width, gated);
      TORCH_CHECK_VALUE(layer.master.in.quads == layer.leaves.in.quads, "master.w_in and leaves.w_in differ in quads");
    }
    for (const Some some : {nodes, leaves, master})
      for (const Tensor& t : some) memory.push_back(t.storage());
  }

  int64_t work() const {
    const auto of = [](const ByteNetworks& n) { return n.in.bytes() + n.out.bytes(); };
    return layer.depth * layer.width + of(layer.leaves) + (layer.has_master ? of(layer.master) : 0);  // of one token
  }

  template <class E>
  void compute(const E* x, int64_t tokens, E* y, int32_t* leaf, float* scores) const {
    over_blocks(tokens, 1, work(), [&](int64_t begin, int64_t end, Space& space) {
      byte_leaves_forward<E>(layer, x + begin * layer.width, end - begin, y + begin * layer.out_width,
                             leaf ? leaf + begin : nullptr, scores ? scores + begin * layer.depth : nullptr, space);
    });
  }
};

}  // namespace

// x (..., H) -> y (..., K)
Tensor byte_leaf_infer_op(const Tensor& x, Some nodes, Some leaves, Some master, int64_t out_width, int64_t levels,
                          bool gated, int64_t activation) {
  const HeldByteLeaves held(x, nodes, leaves, master, out_width, levels, gated, activation);
  Tensor y = output_like(x, out_width);
  if (!y.numel()) return y;
  for_dtype(x.scalar_type(), [&]<class E>() {
    const Held<E> from(x);
    held.compute<E>(from.at, rows_of(x), y.mutable_data_ptr<E>(), nullptr, nullptr);
  });
  return y;
}

// x (N, H) -> y (N, K), leaves' nodes (N) int32, scores (N, D) float32
std::tuple<Tensor, Tensor, Tensor> byte_leaf_forward_op(const Tensor& x, Some nodes, Some leaves, Some master,
                                                        int64_t out_width, int64_t levels, bool gated,
                                                        int64_t activation) {
  const HeldByteLeaves held(x, nodes, leaves, master, out_width, levels, gated, activation);
  const int64_t tokens = check_tokens(x);
  Tensor y = fresh({tokens, out_width}, x.scalar_type()), leaf = fresh({tokens}, at::kInt);
  Tensor scores = fresh({tokens, held.layer.depth}, at::kFloat);
  for_dtype(x.scalar_type(), [&]<class E>() {
    const Held<E> from(x);
    held.compute<E>(from.at, tokens, y.mutable_data_ptr<E>(), leaf.mutable_data_ptr<int32_t>(),
                    scores.mutable_data_ptr<float>());
  });
  return {y, leaf, scores};
}

}  // namespace fff
