// A few tokens through a linear layer of bytes: quantised, multiplied with rows as oneDNN packed them, scaled, in one
// pass over the rows. Not large products, which are oneDNN's.
//
// oneDNN packs a block of rows side by side: a line of `block` rows has four neighbouring numbers of each of them, as
// one of tiles.h has of 16. So one copy of the weights serves both.
#pragma once

#include "tiles.h"

namespace fff {

struct ByteLinear {
  const int8_t* rows;
  const float* scale;  // (d_out)
  const float* bias;   // (d_out) or null
  int64_t d_in, d_out, block, quads;
  int64_t blocks() const { return (d_out + block - 1) / block; }
};

// Tokens of bytes, each followed by zeros up to `stride`, their scales, and what their sums have too much.
struct ByteTokens {
  const int8_t* bytes;
  int64_t stride, count;
  const float* scale;
  const uint32_t* added;
};

constexpr int kLinearTokens = kLineTokens;        // of a register block, each with up to 4 groups of 16 rows
constexpr int64_t kAheadBytes = 32 * kLineBytes;  // of rows, from what is read to what memory is asked for

template <class E>
inline void put(Floats value, E* to) {
  if constexpr (std::is_same_v<E, float>) {
    std::memcpy(to, &value, sizeof(value));
  } else {  // not by the processor's instruction, which takes denormal numbers for zeros and torch does not
    typedef uint16_t Words __attribute__((vector_size(2 * kLanes)));
    const Words words = __builtin_convertvector(rounded(value) >> 16, Words);
    std::memcpy(static_cast<void*>(to), &words, sizeof(words));
  }
}

// to = (sums - added) * scale * token_scale + bias of a group, every step rounded by itself, as by torch's operations.
template <class E>
inline void scaled(const void* sums, uint32_t added, float token_scale, const float* scale, const float* bias, E* to) {
  for (int at = 0; at < kGroup; at += kLanes) {
    const Floats whole =
        __builtin_convertvector((Ints)(read<Bits>(static_cast<const uint32_t*>(sums) + at) - added), Floats);
    const Floats value = whole * read<Floats>(scale + at) * all(token_scale);
    put(bias ? value + read<Floats>(bias + at) : value, to + at);
  }
}

// The same of a row of floats: to = from * token_scale + bias. They may be one.
template <class E>
inline void scaled_row(const float* from, float token_scale, const float* bias, int64_t width, E* to) {
  over_row(from, width, [&](int64_t column, int count, Floats value) {
    value *= all(token_scale);
    if (count == kLanes) return put(bias ? value + read<Floats>(bias + column) : value, to + column);
    float end[kLanes] = {};
    E found[kLanes];
    if (bias) std::memcpy(end, bias + column, count * sizeof(float));
    put(bias ? value + read<Floats>(end) : value, found);
    std::memcpy(static_cast<void*>(to + column), found, count * sizeof(E));
  });
}

// A group's sums, 32 bits each, of which each has `added` too much, into the token's outputs, or as many as there are.
template <class E>
inline void finish(const ByteLinear& layer, float token_scale, uint32_t added, const void* sums, int64_t row, E* y) {
  const float *const scale = layer.scale + row, *const bias = layer.bias ? layer.bias + row : nullptr;
  const int64_t count = layer.d_out - row;
  if (count >= kGroup) return scaled(sums, added, token_scale, scale, bias, y + row);
  if (count <= 0) return;
  float scales[kGroup] = {}, biases[kGroup] = {};
  E found[kGroup];
  std::memcpy(scales, scale, count * sizeof(float));
  if (bias) std::memcpy(biases, bias, count * sizeof(float));
  scaled(sums, added, token_scale, scales, bias ? biases : nullptr, found);
  std::memcpy(static_cast<void*>(y + row), found, count * sizeof(E));
}

// T tokens with N groups of a block that begin at the row `first`.
template <int T, int N, class E>
inline void linear_block(const ByteLinear& layer, const ByteTokens& tokens, int64_t token, int64_t first, E* y) {
  constexpr int kChains = T == 1 ? 2 : 1;  // a lone token's sums would wait for one another
  LineSum sums[kChains][T][N];
  const int64_t line = layer.block * kQuad;
  const int8_t* at = layer.rows + first / layer.block * layer.quads * line + first % layer.block * kQuad;
  const int8_t* const x = tokens.bytes + token * tokens.stride;
  for (int64_t quad = 0; quad < layer.quads; quad += kChains)
    for (int chain = 0; chain < kChains; ++chain, at += line) {
      const int8_t *from[T], *lines[N];
      for (int t = 0; t < T; ++t) from[t] = x + t * tokens.stride + (quad + chain) * kQuad;
      for (int n = 0; n < N; ++n) {
        lines[n] = at + n * kLineBytes;
        __builtin_prefetch(lines[n] + kAheadBytes, 0, 3);
      }
      add_line<T, N>(from, lines, sums[chain]);
    }
  for (int t = 0; t < T; ++t)
    for (int n = 0; n < N; ++n) {
      uint32_t found[kGroup], more[kGroup];
      std::memcpy(found, sums[0][t][n].parts, sizeof(found));
      if constexpr (kChains > 1) {
        std::memcpy(more, sums[1][t][n].parts, sizeof(more));
        for (int row = 0; row < kGroup; ++row) found[row] += more[row];
      }
      finish(layer, tokens.scale[token + t], tokens.added[token + t], found, first + n * kGroup,
             y + (token + t) * layer.d_out);
    }
}

#if defined(FFF_TILES)
// Up to kMostTokens tokens with a block, by the processor's tiles.
template <class E>
void linear_tiles(const ByteLinear& layer, const ByteTokens& tokens, int64_t token, int64_t block, E* y) {
  const int64_t count = std::min(kMostTokens, tokens.count - token), first = block * layer.block;
  const int64_t last = std::min(layer.d_out, first + layer.block), line = layer.block * kQuad;
  const Lines lines{line, kLineBytes, layer.quads, kAheadBytes};
  const int8_t* const rows = layer.rows + block * layer.quads * line;
  const int8_t* const x = tokens.bytes + token * tokens.stride;
  for (int64_t row = first; row < last; row += 2 * kGroup) {
    alignas(kLineBytes) int32_t sums[kMostTokens][2 * kGroup];
    const int8_t* const from = rows + (row - first) * kQuad;
    const bool both = row + kGroup<first + layer.block, many = count> kTileTokens;
    asm volatile("" ::: "memory");
    if (both && many) tile_block<2, 2>(x, tokens.stride, from, lines, sums[0], 2 * kGroup);
    else if (both) tile_block<1, 2>(x, tokens.stride, from, lines, sums[0], 2 * kGroup);
    else if (many) tile_block<2, 1>(x, tokens.stride, from, lines, sums[0], 2 * kGroup);
    else tile_block<1, 1>(x, tokens.stride, from, lines, sums[0], 2 * kGroup);
    asm volatile("" ::: "memory");
    for (int64_t t = 0; t < count; ++t)
      for (int n = 0; n < (both ? 2 : 1); ++n)
        finish(layer, tokens.scale[token + t], 0, sums[t] + n * kGroup, row + n * kGroup,
               y + (token + t) * layer.d_out);
  }
}
#endif

// Blocks [begin, end) of rows of all tokens: y (tokens, d_out).
template <class E>
void linear_blocks(const ByteLinear& layer, const ByteTokens& tokens, int64_t begin, int64_t end, E* y) {
#if defined(FFF_TILES)
  Tiles tiles;
  if (tokens.count > kLinearTokens && layer.quads % kTileLines == 0 && tiles.take(layer.quads)) {
    for (int64_t block = begin; block < end; ++block)
      for (int64_t token = 0; token < tokens.count; token += kMostTokens) linear_tiles(layer, tokens, token, block, y);
    return;
  }
#endif
  for (int64_t block = begin; block < end; ++block)
    in_blocks<kLinearTokens>(0, tokens.count, [&]<int T>(int64_t token) {
      const int64_t first = block * layer.block, last = std::min(layer.d_out, first + layer.block);
      int64_t row = first;
      for (; row + (kLineGroups - 1) * kGroup < last && row + kLineGroups * kGroup <= first + layer.block;
           row += kLineGroups * kGroup)
        linear_block<T, kLineGroups>(layer, tokens, token, row, y);
      for (; row < last; row += kGroup) linear_block<T, 1>(layer, tokens, token, row, y);
    });
}

}  // namespace fff
