// LeafFFF on eight-bit integers, defined in fff/int8_leaf.py: decisions by words, leaves by bytes, both exact. Not the
// products (tiles.h).
#pragma once

#include "tiles.h"

namespace fff {

constexpr int64_t kWalkTokens = 256;  // whose words a core's cache holds

// Two-layer networks side by side, each packed: rows in (R), of gated ones neurons and then values; rows out (K).
struct ByteNetworks {
  Packed in, out;                // the first one's
  const float *scale_in, *b_in;  // (networks, R), padded as the rows are
  const float *scale_out, *b_out;
  bool gated;
  int64_t neurons() const { return gated ? in.rows() / 2 : in.rows(); }
};

struct ByteLeaves {
  const int16_t* w_node;             // (2^D - 1, H)
  const float *scale_node, *b_node;  // (2^D - 1)
  ByteNetworks leaves, master;       // 2^D of them, and 1 or none
  int64_t depth, width, out_width;
  float levels;  // of a token's words
  Activation activation;
  bool has_master;
};

// A decision's score: the dot, exact, rounded to float32, times both scales one after the other, and the bias.
struct ScaledWords {
  using Dot = uint32_t;
  const float* token_scale;  // (tokens)
  const float* row_scale;    // (nodes)
  const float* bias;         // (nodes)
  float operator()(uint32_t dot, int64_t token, int64_t node) const {
    return static_cast<float>(static_cast<int32_t>(dot)) * token_scale[token] * row_scale[node] + bias[node];
  }
};

// What one thread needs for a block beside Space; kept between blocks.
struct LeafSpace {
  std::vector<int16_t> words;           // (kWalkTokens, H)
  std::vector<int8_t> bytes, together;  // (tokens, padded H), (kMostTokens, padded H)
  std::vector<int8_t> hidden;           // (kMostTokens, padded W)
  std::vector<float> active, sums;      // (W), (kMostTokens, padded K)
  std::vector<int32_t> whole;           // (kMostTokens, R or K)
};

// A vector's memory from a line's beginning on.
template <class T>
T* aligned(std::vector<T>& vector, int64_t size) {
  void* place = at_least(vector, size + kLineBytes);
  size_t room = vector.size() * sizeof(T);
  return static_cast<T*>(std::align(kLineBytes, size * sizeof(T), place, room));
}

inline Floats whole_floats(const int32_t* from) { return __builtin_convertvector(read<Ints>(from), Floats); }

// `count` tokens that pass one network, before others pass the `next` one: f(i, column, values) over the outputs, a
// vector at a time.
template <class F>
void through_network(const ByteNetworks& all_of_them, int64_t number, int64_t next, Activation activation, Tiles& tiles,
                     const int8_t* tokens, const float* scales, const uint32_t* added, int64_t count, LeafSpace& space,
                     const F& f) {
  const Packed in = all_of_them.in.number(number, next), out = all_of_them.out.number(number, next);
  const int64_t neurons = all_of_them.neurons(), stride = out.token_bytes();
  const float *const scale_in = all_of_them.scale_in + number * in.rows(), *const b_in =
                                                                               all_of_them.b_in + number * in.rows();
  int32_t* const whole = aligned(space.whole, kMostTokens * std::max(in.rows(), out.rows()));
  int8_t* const hidden = aligned(space.hidden, kMostTokens * stride);
  float* const active = aligned(space.active, neurons);
  float hidden_scales[kMostTokens];
  uint32_t hidden_added[kMostTokens];
  products(tiles, tokens, in.token_bytes(), added, count, in, whole);
  for_activation(activation, [&]<Activation a>() {
    for (int64_t i = 0; i < count; ++i) {
      const int32_t* const dots = whole + i * in.rows();
      const Floats scale = all(scales[i]);
      const auto score = [&](int64_t row) {
        return whole_floats(dots + row) * scale * read<Floats>(scale_in + row) + read<Floats>(b_in + row);
      };
      Floats most{};
      for (int64_t n = 0; n < neurons; n += kLanes) {
        Floats neuron = value<a>(score(n));
        if (all_of_them.gated) neuron = neuron * score(neurons + n);
        std::memcpy(active + n, &neuron, sizeof(neuron));
      }
      int8_t* const to = hidden + i * stride;
      hidden_scales[i] = quantise(active, neurons, to, hidden_added[i], static_cast<const float*>(active));
      std::memset(to + neurons, 0, stride - neurons);
    }
  });
  products(tiles, hidden, stride, hidden_added, count, out, whole);
  const float *const scale_out = all_of_them.scale_out + number * out.rows(), *const b_out = all_of_them.b_out +
                                                                                             number * out.rows();
  for (int64_t i = 0; i < count; ++i) {
    const Floats scale = all(hidden_scales[i]);
    for (int64_t column = 0; column < out.rows(); column += kLanes)
      f(i, column,
        whole_floats(whole + i * out.rows() + column) * scale * read<Floats>(scale_out + column) +
            read<Floats>(b_out + column));
  }
}

// A row of floats in order, as E.
inline void write_row(const float* from, float* to, int64_t width) { std::copy(from, from + width, to); }
inline void write_row(const float* from, BFloat16* to, int64_t width) {
  int64_t column = 0;
  for (; column + kStep <= width; column += kStep) {
    const Bits pairs = joined(read<Floats>(from + column), read<Floats>(from + column + kLanes));
    std::memcpy(static_cast<void*>(to + column), &pairs, sizeof(pairs));
  }
  if (column < width) {
    float last[kStep] = {};
    std::copy(from + column, from + width, last);
    const Bits pairs = joined(read<Floats>(last), read<Floats>(last + kLanes));
    std::memcpy(static_cast<void*>(to + column), &pairs, (width - column) * sizeof(BFloat16));
  }
}

// The end of the next stretch of sorted tokens, at most kMostTokens: whole leaves where they fit.
inline int64_t stretch_end(const Sorted& sorted, int64_t begin, int64_t tokens) {
  int64_t end = begin;
  for (int64_t at = begin; at < std::min(tokens, begin + kMostTokens); ++at)
    if (at + 1 == tokens || sorted.leaf[at + 1] != sorted.leaf[at]) end = at + 1;
  return end > begin ? end : std::min(tokens, begin + kMostTokens);
}

// Which leaf each of some tokens reaches, and their bytes, scales and `added` (int8.h): a part of a block.
template <class E>
void take_tokens(const ByteLeaves& layer, const E* x, int64_t tokens, int8_t* bytes, float* scales, uint32_t* added,
                 int32_t* leaf, float* scores, Space& space, LeafSpace& more) {
  const int64_t width = layer.width, depth = layer.depth, stride = layer.leaves.in.token_bytes();
  int16_t* const words = aligned(more.words, tokens * width);
  float word_scales[kWalkTokens];
  for (int64_t n = 0; n < tokens; ++n) {
    const E* const from = x + n * width;
    int8_t* const to = bytes + n * stride;
    const float most = largest(from, width, x + std::min(n + 2, tokens - 1) * width);
    uint32_t sum;
    if (depth) word_scales[n] = whole_numbers(from, width, most, layer.levels, words + n * width, sum);
    scales[n] = whole_numbers(from, width, most, 127.0f, to, sum);
    added[n] = sum * kRaised;
    std::memset(to + width, 0, stride - width);
  }
  if (!depth) return std::fill(leaf, leaf + tokens, 0);
  // The decisions are a tree of depth D - 1, whose last scores choose among two leaves.
  const Sorted nodes = space.sorted(1, kWalkTokens);
  float* const found = scores ? scores : at_least(space.active, tokens * depth);
  const ScaledWords score{word_scales, layer.scale_node, layer.b_node};
  Walk<int16_t, ScaledWords> walk{words,     layer.w_node, score, nullptr, found,     width,
                                  depth - 1, depth,        depth, nodes,   space.walk};
  walk.run(tokens);
  for (int64_t i = 0; i < tokens; ++i) {
    const int64_t token = nodes.order[i];
    leaf[token] = 2 * nodes.leaf[i] + 1 + (found[token * depth + depth - 1] > 0);
  }
}

// One block of tokens: x (tokens, H) -> y (tokens, K); leaf (tokens) and scores (tokens, D), or null.
template <class E>
void byte_leaves_forward(const ByteLeaves& layer, const E* x, int64_t tokens, E* y, int32_t* leaf, float* scores,
                         Space& space) {
  static thread_local LeafSpace more;
  const int64_t depth = layer.depth, stride = layer.leaves.in.token_bytes(), first = (int64_t{1} << depth) - 1;
  int8_t* const bytes = aligned(more.bytes, tokens * stride);
  float* const scales = at_least(space.scales, tokens);
  uint32_t* const added = at_least(space.added, tokens);
  int32_t* const places = leaf ? leaf : at_least(space.leaves, tokens);
  space.reserve(2, std::max(tokens, kWalkTokens));
  for (int64_t at = 0; at < tokens; at += kWalkTokens)
    take_tokens(layer, x + at * layer.width, std::min(kWalkTokens, tokens - at), bytes + at * stride, scales + at,
                added + at, places + at, scores ? scores + at * depth : nullptr, space, more);
  const Sorted sorted = space.sorted(0, tokens);
  sort_by_leaf(tokens, depth, [&](int64_t n) { return places[n]; }, sorted, space.counts);
  Tiles tiles;
  const int64_t columns = layer.leaves.out.rows();
  float* const sums = aligned(more.sums, kMostTokens * columns);
  int8_t* const together = aligned(more.together, 2 * kMostTokens * stride);
  float their_scales[kMostTokens];
  uint32_t their_added[kMostTokens];
  for (int64_t begin = 0, end; begin < tokens; begin = end) {
    end = stretch_end(sorted, begin, tokens);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t token = sorted.order[i];
      std::memcpy(together + (i - begin) * stride, bytes + token * stride, stride);
      their_scales[i - begin] = scales[token], their_added[i - begin] = added[token];
      const char* const row = reinterpret_cast<const char*>(y + token * layer.out_width);
      for (int64_t at = 0; at < layer.out_width * static_cast<int64_t>(sizeof(E)); at += kLineBytes)
        __builtin_prefetch(row + at, 1, 2);
    }
    const auto pass = [&](const ByteNetworks& networks, int64_t number, int64_t next, int64_t from, int64_t to,
                          const auto& f) {
      through_network(networks, number, next, layer.activation, tiles, together + from * stride, their_scales + from,
                      their_added + from, to - from, more, f);
    };
    const int64_t count = end - begin;
    if (layer.has_master)
      pass(layer.master, 0, 0, 0, count, [&](int64_t i, int64_t column, Floats values) {
        std::memcpy(sums + i * columns + column, &values, sizeof(values));
      });
    for (int64_t from = 0, to; from < count; from = to) {
      const int32_t here = sorted.leaf[begin + from];
      for (to = from + 1; to < count && sorted.leaf[begin + to] == here;) ++to;
      const int32_t next = begin + to < tokens ? sorted.leaf[begin + to] : here;
      float* const rows = sums + from * columns;
      pass(layer.leaves, here - first, next - first, from, to, [&](int64_t i, int64_t column, Floats values) {
        float* const at = rows + i * columns + column;
        if (layer.has_master) values = values + read<Floats>(at);
        std::memcpy(at, &values, sizeof(values));
      });
    }
    for (int64_t i = 0; i < count; ++i)
      write_row(sums + i * columns, y + sorted.order[begin + i] * layer.out_width, layer.out_width);
  }
}

}  // namespace fff
