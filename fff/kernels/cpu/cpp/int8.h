// PathFFF on rows of eight-bit integers, defined in fff/int8.py: tokens quantised once, dots exact in int32, scores and
// sums of rows in float32. Who reaches which leaf is walk.h's.
#pragma once

#include <bit>
#include <cmath>
#include <memory>

#include "forward.h"

namespace fff {

constexpr int kPiece = 64;  // bytes of a row at a time
template <class B>
constexpr int kPieceOf = kPiece / sizeof(B);  // numbers
constexpr float kLeast = 0x1p-50f;
constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer, which the low bits then are

// Products of four neighbours, of bytes from 0 to 255 with signed ones, added to an int32 by one instruction where the
// machine has it. So rows are raised by 128, which turns their bytes' highest bits round, and what that adds to a dot,
// 128 times the sum of the token's bytes, is taken off afterwards. Numbers wrap, and end where they should.
#if defined(__AVX512F__) && defined(__AVX512VNNI__)
#define FFF_VNNI
typedef __m512i Quads;
inline Quads raised(const int8_t* row) { return _mm512_xor_si512(read<Quads>(row), _mm512_set1_epi8(-128)); }
inline Quads add_products(Quads sum, Quads row, Quads token) { return _mm512_dpbusd_epi32(sum, row, token); }
inline Quads add_word_products(Quads sum, Quads row, Quads token) { return _mm512_dpwssd_epi32(sum, row, token); }
inline Quads in_register(Quads value) { return (Quads)in_register((Floats)value); }
#elif defined(__AVX2__) && defined(__AVXVNNI__)
#define FFF_VNNI
typedef __m256i Quads;
inline Quads raised(const int8_t* row) { return _mm256_xor_si256(read<Quads>(row), _mm256_set1_epi8(-128)); }
inline Quads add_products(Quads sum, Quads row, Quads token) { return _mm256_dpbusd_avx_epi32(sum, row, token); }
inline Quads add_word_products(Quads sum, Quads row, Quads token) { return _mm256_dpwssd_avx_epi32(sum, row, token); }
inline Quads in_register(Quads value) {
  asm("" : "+x"(value));
  return value;
}
#endif

#if defined(FFF_VNNI)
constexpr uint32_t kRaised = 128;
typedef Quads QuadSum;

inline uint32_t total(QuadSum sum) {
  uint32_t lanes[sizeof(sum) / 4], found = 0;
  std::memcpy(lanes, &sum, sizeof(sum));
  for (const uint32_t lane : lanes) found += lane;
  return found;
}

// sums[t][n] += a piece of the token t with a piece of the row n.
template <int T, int N>
inline void add_piece(const int8_t* const (&x)[T], const int8_t* const (&w)[N], QuadSum (&sums)[T][N]) {
  for (int at = 0; at < kPiece; at += sizeof(Quads)) {
    Quads rows[N];
    for (int n = 0; n < N; ++n) rows[n] = raised(w[n] + at);
    for (int t = 0; t < T; ++t) {
      const Quads token = in_register(read<Quads>(x[t] + at));
      for (int n = 0; n < N; ++n) sums[t][n] = add_products(sums[t][n], rows[n], token);
    }
  }
}

// The same of words, whose products know signs.
template <int T, int N>
inline void add_piece(const int16_t* const (&x)[T], const int16_t* const (&w)[N], QuadSum (&sums)[T][N]) {
  for (int at = 0; at < kPiece / 2; at += sizeof(Quads) / 2) {
    Quads rows[N];
    for (int n = 0; n < N; ++n) rows[n] = in_register(read<Quads>(w[n] + at));
    for (int t = 0; t < T; ++t) {
      const Quads token = in_register(read<Quads>(x[t] + at));
      for (int n = 0; n < N; ++n) sums[t][n] = add_word_products(sums[t][n], rows[n], token);
    }
  }
}
#else
constexpr uint32_t kRaised = 0;
typedef uint32_t QuadSum;

inline uint32_t total(QuadSum sum) { return sum; }

template <int T, int N, class B>
inline void add_piece(const B* const (&x)[T], const B* const (&w)[N], QuadSum (&sums)[T][N]) {
  for (int t = 0; t < T; ++t)
    for (int n = 0; n < N; ++n) {
      uint32_t sum = 0;
      for (int i = 0; i < kPieceOf<B>; ++i) sum += static_cast<uint32_t>(x[t][i] * w[n][i]);
      sums[t][n] += sum;
    }
}
#endif

// A piece at the end of a row, followed by zeros.
template <class B>
struct EndPiece {
  B numbers[kPieceOf<B>] = {};
  EndPiece(const B* from, int64_t count) { std::memcpy(numbers, from, count * sizeof(B)); }
};

// Of bytes, out[t][n] = tokens[t] . rows[n] + kRaised * the sum of tokens[t], of words without the latter; as in
// products.h.
template <int T, int N, class B>
inline void dots(const B* const* tokens, const B* const* rows, int64_t width, uint32_t (&out)[T][N],
                 const Ahead<B>& ahead) {
  constexpr int kNumbers = kPieceOf<B>;
  QuadSum sums[T][N] = {};
  const B *x[T], *w[N];
  for (int t = 0; t < T; ++t) x[t] = tokens[t];
  for (int n = 0; n < N; ++n) w[n] = rows[n];
  for (int64_t i = 0; i < width / kNumbers; ++i) {
    ahead.step(i * kNumbers);
    add_piece(x, w, sums);
    for (int t = 0; t < T; ++t) x[t] += kNumbers;
    for (int n = 0; n < N; ++n) w[n] += kNumbers;
  }
  if (const int64_t rest = width % kNumbers) {
    B ends[T + N][kNumbers] = {};
    const auto end_of = [&](const B*& row, int at) {
      std::memcpy(ends[at], row, rest * sizeof(B));
      row = ends[at];
    };
    for (int t = 0; t < T; ++t) end_of(x[t], t);
    for (int n = 0; n < N; ++n) end_of(w[n], T + n);
    add_piece(x, w, sums);
  }
  for (int t = 0; t < T; ++t)
    for (int n = 0; n < N; ++n) out[t][n] = total(sums[t][n]);
}

// The same of tokens[t] and rows[t].
template <int T, class B>
inline void pair_dots(const B* const* tokens, const B* const* rows, int64_t width, uint32_t* out,
                      const Ahead<B>& ahead) {
  QuadSum sums[T][1][1] = {};
  const auto step = [&](int t, const B* token, const B* row) {
    const B *const x[1] = {token}, *const w[1] = {row};
    add_piece<1, 1>(x, w, sums[t]);
  };
  const int64_t rest = width % kPieceOf<B>, whole = width - rest;
  for (int64_t i = 0; i < whole; i += kPieceOf<B>) {
    ahead.step(i);
    for (int t = 0; t < T; ++t) step(t, tokens[t] + i, rows[t] + i);
  }
  if (rest)
    for (int t = 0; t < T; ++t)
      step(t, EndPiece<B>(tokens[t] + whole, rest).numbers, EndPiece<B>(rows[t] + whole, rest).numbers);
  for (int t = 0; t < T; ++t) out[t] = total(sums[t][0][0]);
}

// A node's score: the dot, exact, rounded to float32, times both scales one after the other, and the bias. Every
// rounding is one of IEEE's, so that decisions are the definition's, bit by bit.
struct Scaled {
  using Dot = uint32_t;
  const float* token_scale;  // (tokens)
  const uint32_t* added;     // (tokens): what a dot has too much
  const float* row_scale;    // (nodes)
  const float* b_in;         // (nodes) or null
  float operator()(uint32_t dot, int64_t token, int64_t node) const {
    const float whole = static_cast<float>(static_cast<int32_t>(dot - added[token]));
    return whole * token_scale[token] * row_scale[node] + (b_in ? b_in[node] : 0.0f);
  }
};

inline Floats in_order(const float* from) { return read<Floats>(from); }
inline Floats in_order(const BFloat16* from) {
  typedef uint16_t Words __attribute__((vector_size(2 * kLanes)));
  return (Floats)(__builtin_convertvector(read<Words>(from), Bits) << 16);
}

// f(column, count, vector) over a row's vectors in order; the last one may have zeros at its end.
template <class E, class F>
inline void over_row(const E* row, int64_t width, const F& f) {
  int64_t column = 0;
  for (; column + kLanes <= width; column += kLanes) f(column, kLanes, in_order(row + column));
  if (column < width) {
    const End<E> end(row + column, width - column);
    f(column, static_cast<int>(width - column), in_order(static_cast<const E*>(end)));
  }
}

// The largest absolute value; a NaN is larger than infinity. Memory is asked for the row `next` meanwhile.
template <class E>
inline float largest(const E* row, int64_t width, const E* next) {
  Ints found{};  // bits of numbers of one sign are ordered as the numbers
  over_row(row, width, [&](int64_t column, int, Floats value) {
    __builtin_prefetch(next + column);
    const Ints bits = (Ints)value & 0x7FFFFFFF;
    found = bits > found ? bits : found;
  });
  int32_t most = 0;
  for (int i = 0; i < kLanes; ++i) most = std::max<int32_t>(most, found[i]);
  return std::bit_cast<float>(most);
}

// Whole numbers of a row whose largest is `most`, up to `levels`, and its scale; `sum`: of the numbers, which wraps. A
// row that is not finite has the scale NaN and zeros.
template <class W, class E>
inline float whole_numbers(const E* row, int64_t width, float most, float levels, W* to, uint32_t& sum) {
  sum = 0;
  if (!(most >= kLeast && std::isfinite(most))) {
    std::memset(to, 0, width * sizeof(W));
    return most < kLeast ? 0.0f : NAN;
  }
  typedef std::make_unsigned_t<W> Numbers __attribute__((vector_size(kLanes * sizeof(W))));
  const Floats inverse = all(levels / most), shift = all(kRound);
  Bits sums{};
  over_row(row, width, [&](int64_t column, int count, Floats value) {
    const Bits whole = (Bits)(value * inverse + shift) - std::bit_cast<uint32_t>(kRound);
    const Numbers numbers = __builtin_convertvector(whole, Numbers);
    if (count == kLanes) std::memcpy(to + column, &numbers, sizeof(numbers));
    else std::memcpy(to + column, &numbers, count * sizeof(W));
    sums += whole;
  });
  for (int i = 0; i < kLanes; ++i) sum += sums[i];
  return most / levels;
}

// A token's bytes and scale; `added` as in Scaled.
template <class E>
inline float quantise(const E* row, int64_t width, int8_t* to, uint32_t& added, const E* next) {
  const float scale = whole_numbers(row, width, largest(row, width, next), 127.0f, to, added);
  added *= kRaised;
  return scale;
}

struct BytesLayer : Layer<int8_t, float> {
  const float* scale_in;   // (T, M)
  const float* scale_out;  // (T, M)
};

// One block: x (tokens, H) of E -> y (tokens, K) of E; `scores` and `leaf` as in forward.h.
template <class E>
void bytes_forward(const BytesLayer& layer, const E* x, int64_t tokens, E* y, float* scores, int32_t* leaf,
                   Space& space) {
  const int64_t width = layer.width, nodes = layer.nodes(), stride = layer.stride(), length = layer.length();
  void* place = at_least(space.bytes, tokens * width + kLineBytes);
  size_t room = space.bytes.size();
  auto* const bytes = static_cast<int8_t*>(std::align(kLineBytes, tokens * width, place, room));
  float* const scales = at_least(space.scales, tokens);
  uint32_t* const added = at_least(space.added, tokens);
  for (int64_t n = 0; n < tokens; ++n)
    scales[n] = quantise(x + n * width, width, bytes + n * width, added[n], x + std::min(n + 2, tokens - 1) * width);
  const Layer<int8_t, float>& rows = layer;
  forward_by(
      rows, static_cast<const int8_t*>(bytes), nullptr, tokens, y, scores, leaf, space,
      [&](int64_t tree) {
        return Scaled{scales, added, layer.scale_in + tree * nodes, layer.b_in ? layer.b_in + tree * nodes : nullptr};
      },
      [&](int64_t tree, const Sorted& sorted, float* active) {
        const float* const scale = layer.scale_out + tree * nodes;
        for (int64_t i = 0; i < tokens; ++i) {
          float* const of_path = active + sorted.order[i] * stride + tree * length;
          for (int64_t l = 0; l < length; ++l) of_path[l] *= scale[ancestor(sorted.leaf[i], layer.depth, l)];
        }
      });
}

}  // namespace fff
