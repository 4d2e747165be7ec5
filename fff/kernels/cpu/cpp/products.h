// The three products that the layers are made of, on few rows at a time: dots, sums of rows, and sums over tokens.
// Not which rows: that is known to walk.h, forward.h and backward.h.
//
// Register blocks. AVX has 16 registers: 3 tokens x 3 nodes for dots are 9 accumulators, 3 rows and 1 token, with 9
// multiply-adds for 6 loads (4 x 3 would just fit, but compilers spill); 4 tokens x 16 columns for sums of rows, 8
// for 6. AVX-512 has 32: 4 x 3 and 4 tokens x 64 columns. A dot has one accumulator of a vector's lanes whatever the
// block, and sums run in the order of their terms, so that bits do not depend on what is computed beside.
#pragma once

#include "vectors.h"

namespace fff {

// Of a register block: tokens, nodes, and steps of columns.
#if defined(__AVX512F__)
constexpr int kDotTokens = 4, kDotNodes = 3, kSumTokens = 4, kSumSteps = 2;
#else
constexpr int kDotTokens = 3, kDotNodes = 3, kSumTokens = 4, kSumSteps = 1;
#endif

template <int half, int T, int N, class E>
inline void dots_half(const E* const (&x)[T], const E* const (&w)[N], Floats (&sums)[T][N]) {
  Floats row[N];
  for (int n = 0; n < N; ++n) row[n] = in_register(load<half>(w[n]));
  for (int t = 0; t < T; ++t) {
    const Floats token = in_register(load<half>(x[t]));
    for (int n = 0; n < N; ++n) sums[t][n] = fused(token, row[n], sums[t][n]);
  }
}

#if defined(__AVX512BF16__)
// Products of neighbours, both added to a float32 lane by one instruction, which takes denormal numbers for zero.
template <int T, int N>
inline void dots_pairs(const BFloat16* const (&x)[T], const BFloat16* const (&w)[N], Floats (&sums)[T][N]) {
  __m512bh row[N];
  for (int n = 0; n < N; ++n) row[n] = (__m512bh)in_register(read<Floats>(w[n]));
  for (int t = 0; t < T; ++t) {
    const __m512bh token = (__m512bh)in_register(read<Floats>(x[t]));
    for (int n = 0; n < N; ++n) sums[t][n] = (Floats)_mm512_dpbf16_ps((__m512)sums[t][n], token, row[n]);
  }
}
#endif

template <int T, int N, class E>
inline void dots_step(const E* const (&x)[T], const E* const (&w)[N], Floats (&sums)[T][N]) {
#if defined(__AVX512BF16__)
  if constexpr (sizeof(E) < sizeof(float)) return dots_pairs(x, w, sums);
#endif
  dots_half<0>(x, w, sums);
  dots_half<1>(x, w, sums);
}

// Rows to ask memory for while others are worked on, a step's cache lines at a time: what the next calls will read.
// They may be any rows of the type; of longer ones as much is asked for as the rows in work have.
template <class E>
struct Ahead {
  const E* first;
  const E* second;
  void step(int64_t column) const {
    for (int at = 0; at < kStep; at += kLineBytes / sizeof(E)) {
      __builtin_prefetch(first + column + at, 0, 2);
      __builtin_prefetch(second + column + at, 0, 2);
    }
  }
};

// out[t][n] = tokens[t] . rows[n], in float32.
template <int T, int N, class E>
inline void dots(const E* const* tokens, const E* const* rows, int64_t width, float (&out)[T][N],
                 const Ahead<E>& ahead) {
  Floats sums[T][N] = {};
  const E *x[T], *w[N];
  for (int t = 0; t < T; ++t) x[t] = tokens[t];
  for (int n = 0; n < N; ++n) w[n] = rows[n];
  for (int64_t i = 0; i < width / kStep; ++i) {
    ahead.step(i * kStep);
    dots_step(x, w, sums);
    for (int t = 0; t < T; ++t) x[t] += kStep;
    for (int n = 0; n < N; ++n) w[n] += kStep;
  }
  if (const int64_t rest = width % kStep) {
    E ends[T + N][kStep];
    std::memset(static_cast<void*>(ends), 0, sizeof(ends));
    const auto end_of = [&](const E*& row, int at) {
      std::memcpy(static_cast<void*>(ends[at]), row, rest * sizeof(E));
      row = ends[at];
    };
    for (int t = 0; t < T; ++t) end_of(x[t], t);
    for (int n = 0; n < N; ++n) end_of(w[n], T + n);
    dots_step(x, w, sums);
  }
  for (int t = 0; t < T; ++t)
    for (int n = 0; n < N; ++n) out[t][n] = sum(sums[t][n]);
}

// out[t] = tokens[t] . rows[t], in float32 and with the bits that `dots` gives.
template <int T, class E>
inline void pair_dots(const E* const* tokens, const E* const* rows, int64_t width, float* out, const Ahead<E>& ahead) {
  Floats sums[T][1][1] = {};
  const auto step = [&](int t, const E* token, const E* row) {
    const E *const x[1] = {token}, *const w[1] = {row};
    dots_step<1, 1>(x, w, sums[t]);
  };
  const int64_t rest = width % kStep, whole = width - rest;
  for (int64_t i = 0; i < whole; i += kStep) {
    ahead.step(i);
    for (int t = 0; t < T; ++t) step(t, tokens[t] + i, rows[t] + i);
  }
  if (rest)
    for (int t = 0; t < T; ++t)
      step(t, static_cast<const E*>(End<E>(tokens[t] + whole, rest)),
           static_cast<const E*>(End<E>(rows[t] + whole, rest)));
  for (int t = 0; t < T; ++t) out[t] = sum(sums[t][0][0]);
}

// C steps of a row as vectors.
template <int C, class E>
inline void load_steps(const E* from, Floats (&to)[2 * C]) {
  for (int c = 0; c < C; ++c) to[2 * c] = load<0>(from + c * kStep), to[2 * c + 1] = load<1>(from + c * kStep);
}

// f.operator()<C>(column) over the whole steps of a row, C = kSumSteps at a time while there are as many, then one by
// one; returns the first column that is left.
template <class F>
inline int64_t over_steps(int64_t width, const F& f) {
  int64_t column = 0;
  for (; column + kSumSteps * kStep <= width; column += kSumSteps * kStep) f.template operator()<kSumSteps>(column);
  if constexpr (kSumSteps > 1)
    for (; column + kStep <= width; column += kStep) f.template operator()<1>(column);
  return column;
}

// to[t] (+)= sum over l < count of coefficients[t][l] * rows[l]. Where `to` is float32 for bfloat16 rows, it is in
// halves (vectors.h) and as wide as the next multiple of the step. `streaming`: past the caches, rows of `to` aligned
// to a vector.
template <int T, bool streaming = false, class E, class O>
inline void add_rows(const E* const* rows, int64_t count, const float* const* coefficients, O* const* to, int64_t width,
                     bool add) {
  const auto tile = [&]<int C>(const auto& row_at, const auto& to_at) {
    Floats sums[T][2 * C] = {};
    if (add)
      for (int t = 0; t < T; ++t) load_steps<C>(static_cast<const O*>(to_at(t)), sums[t]);
    for (int64_t l = 0; l < count; ++l) {
      const auto row = row_at(l);
      Floats values[2 * C];
      load_steps<C>(static_cast<const E*>(row), values);
      for (int t = 0; t < T; ++t) {
        const Floats c = all(coefficients[t][l]);
        for (int v = 0; v < 2 * C; ++v) sums[t][v] = fused(c, values[v], sums[t][v]);
      }
    }
    for (int t = 0; t < T; ++t)
      for (int c = 0; c < C; ++c) {
        if constexpr (streaming) stream<E>(to_at(t) + c * kStep, sums[t][2 * c], sums[t][2 * c + 1]);
        else store<E>(to_at(t) + c * kStep, sums[t][2 * c], sums[t][2 * c + 1]);
      }
  };
  const int64_t column = over_steps(width, [&]<int C>(int64_t at) {
    tile.template operator()<C>([&](int64_t l) { return rows[l] + at; }, [&](int t) { return to[t] + at; });
  });
  if (const int64_t rest = width - column) {
    constexpr bool padded = std::is_same_v<E, BFloat16> && std::is_same_v<O, float>;
    O ends[T][kStep];
    for (int t = 0; t < T; ++t)
      std::memcpy(static_cast<void*>(ends[t]), to[t] + column, (padded ? kStep : rest) * sizeof(O));
    tile.template operator()<1>([&](int64_t l) { return End<E>(rows[l] + column, rest); },
                                [&](int t) { return &ends[t][0]; });
    for (int t = 0; t < T; ++t)
      std::memcpy(static_cast<void*>(to[t] + column), ends[t], (padded ? kStep : rest) * sizeof(O));
  }
}

// rows[r] (+)= sum over n < count of coefficients[n][r] * tokens[n], r < R; `rows` float32, in halves and padded
// as above. `fresh[r]`: what is in the row is not read.
template <int R, class E>
inline void add_tokens(const E* const* tokens, int64_t count, const float (*coefficients)[R], float* const* rows,
                       const bool* fresh, int64_t width) {
  const auto tile = [&]<int C>(const auto& token_at, const auto& row_at) {
    Floats sums[R][2 * C] = {};
    for (int r = 0; r < R; ++r)
      if (!fresh[r]) load_steps<C>(static_cast<const float*>(row_at(r)), sums[r]);
    for (int64_t n = 0; n < count; ++n) {
      const auto token = token_at(n);
      Floats values[2 * C];
      load_steps<C>(static_cast<const E*>(token), values);
      for (int r = 0; r < R; ++r) {
        const Floats c = all(coefficients[n][r]);
        for (int v = 0; v < 2 * C; ++v) sums[r][v] = fused(c, values[v], sums[r][v]);
      }
    }
    for (int r = 0; r < R; ++r)
      for (int c = 0; c < C; ++c) store(row_at(r) + c * kStep, sums[r][2 * c], sums[r][2 * c + 1]);
  };
  const int64_t column = over_steps(width, [&]<int C>(int64_t at) {
    tile.template operator()<C>([&](int64_t n) { return tokens[n] + at; }, [&](int r) { return rows[r] + at; });
  });
  if (const int64_t rest = width - column) {
    constexpr bool padded = sizeof(float) > sizeof(E);
    float ends[R][kStep] = {};
    for (int r = 0; r < R; ++r)
      if (!fresh[r]) std::memcpy(ends[r], rows[r] + column, (padded ? kStep : rest) * sizeof(float));
    tile.template operator()<1>([&](int64_t n) { return End<E>(tokens[n] + column, rest); },
                                [&](int r) { return &ends[r][0]; });
    for (int r = 0; r < R; ++r) std::memcpy(rows[r] + column, ends[r], (padded ? kStep : rest) * sizeof(float));
  }
}

// A float32 row in halves of rows of E -> a row of O.
template <class E = BFloat16, class O>
inline void from_halves(const float* from, O* to, int64_t width) {
  int64_t column = 0;
  for (; column + kStep <= width; column += kStep)
    store<E>(to + column, load<0>(from + column), load<1>(from + column));
  if (column < width) {
    O end[kStep];
    store<E>(end, load<0>(from + column), load<1>(from + column));
    std::memcpy(static_cast<void*>(to + column), end, (width - column) * sizeof(O));
  }
}

}  // namespace fff
