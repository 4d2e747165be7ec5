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

constexpr int kLinearTokens = kLineTokens;  // of a register block, each with up to 4 groups of 16 rows
constexpr int64_t kAheadLines = 32;         // lines of memory that are asked for before they are read

// to[0, count) = sums * scale * token_scale + bias, every step rounded by itself, as torch's operations one by one.
template <class E>
inline void scaled(const uint32_t (&sums)[kGroup], uint32_t added, float token_scale, const float* scale,
                   const float* bias, E* to) {
  for (int at = 0; at < kGroup; at += kLanes) {
    const Floats whole = __builtin_convertvector((Ints)(read<Bits>(sums + at) - added), Floats);
    Floats value = whole * read<Floats>(scale + at) * all(token_scale);
    if (bias) value += read<Floats>(bias + at);
    if constexpr (std::is_same_v<E, float>) {
      std::memcpy(to + at, &value, sizeof(value));
    } else {
      typedef uint16_t Words __attribute__((vector_size(2 * kLanes)));
      const Words words = __builtin_convertvector(rounded(value) >> 16, Words);
      std::memcpy(static_cast<void*>(to + at), &words, sizeof(words));
    }
  }
}

// The same of the last rows, fewer than a group.
template <class E>
inline void scaled_end(const uint32_t (&sums)[kGroup], uint32_t added, float token_scale, const float* scale,
                       const float* bias, E* to, int64_t count) {
  float scales[kGroup] = {}, biases[kGroup] = {};
  E found[kGroup];
  std::memcpy(scales, scale, count * sizeof(float));
  if (bias) std::memcpy(biases, bias, count * sizeof(float));
  scaled(sums, added, token_scale, scales, bias ? biases : nullptr, found);
  std::memcpy(static_cast<void*>(to), found, count * sizeof(E));
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
        __builtin_prefetch(lines[n] + kAheadLines * kLineBytes, 0, 3);
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
      const int64_t row = first + n * kGroup, count = layer.d_out - row, number = token + t;
      const float* const bias = layer.bias ? layer.bias + row : nullptr;
      E* const to = y + number * layer.d_out + row;
      if (count >= kGroup) scaled(found, tokens.added[number], tokens.scale[number], layer.scale + row, bias, to);
      else if (count > 0)
        scaled_end(found, tokens.added[number], tokens.scale[number], layer.scale + row, bias, to, count);
    }
}

// Blocks [begin, end) of rows of all tokens: y (tokens, d_out).
template <class E>
void linear_blocks(const ByteLinear& layer, const ByteTokens& tokens, int64_t begin, int64_t end, E* y) {
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
