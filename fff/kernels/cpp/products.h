// The three products that the layers are made of, on few rows at a time: dots, sums of rows, and sums over tokens.
// Not which rows: that is known to walk.h, forward.h and backward.h.
//
// Register blocks: 3 tokens x 3 nodes for dots are 9 accumulators, 3 rows and 1 token of AVX's 16 registers, with 9
// multiply-adds for 6 loads (4 x 3 would just fit, but compilers spill); 4 tokens x 16 columns for sums of rows, 8 for 6.
// A dot has one accumulator of 8 lanes whatever the block, and sums run in the order of their terms, so that bits do not
// depend on what is computed beside.
#pragma once

#include "vectors.h"

namespace fff {

// Of a register block.
constexpr int kDotTokens = 3, kDotNodes = 3, kSumTokens = 4;

template <int half, int T, int N, class E>
inline void dots_step(const E* const (&x)[T], const E* const (&w)[N], Floats (&sums)[T][N]) {
  Floats row[N];
  for (int n = 0; n < N; ++n) row[n] = in_register(load<half>(w[n]));
  for (int t = 0; t < T; ++t) {
    const Floats token = in_register(load<half>(x[t]));
    for (int n = 0; n < N; ++n) sums[t][n] = fused(token, row[n], sums[t][n]);
  }
}

// Rows to ask memory for while others are worked on, a cache line at a step: what the next calls will read. They may be
// any rows, but rows of the right type and width.
template <class E>
struct Ahead {
  const E* first;
  const E* second;
  void step(int64_t column) const {
    __builtin_prefetch(first + column, 0, 2);
    __builtin_prefetch(second + column, 0, 2);
  }
};

// out[t][n] = tokens[t] . rows[n], in float32.
template <int T, int N, class E>
inline void dots(const E* const* tokens, const E* const* rows, int64_t width, float (&out)[T][N], const Ahead<E>& ahead) {
  Floats sums[T][N] = {};
  const E *x[T], *w[N];
  for (int t = 0; t < T; ++t) x[t] = tokens[t];
  for (int n = 0; n < N; ++n) w[n] = rows[n];
  for (int64_t i = 0; i < width / kStep; ++i) {
    ahead.step(i * kStep);
    dots_step<0>(x, w, sums);
    dots_step<1>(x, w, sums);
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
    dots_step<0>(x, w, sums);
    dots_step<1>(x, w, sums);
  }
  for (int t = 0; t < T; ++t)
    for (int n = 0; n < N; ++n) out[t][n] = sum(sums[t][n]);
}

// to[t] (+)= sum over l < count of coefficients[t][l] * rows[l]. Where `to` is float32 for bfloat16 rows, it is in halves
// (vectors.h) and as wide as the next multiple of the step. `streaming`: past the caches, rows of `to` aligned to 32 bytes.
template <int T, bool streaming = false, class E, class O>
inline void add_rows(const E* const* rows, int64_t count, const float* const* coefficients, O* const* to, int64_t width,
                     bool add, const Ahead<E>& ahead) {
  const auto tile = [&](const auto& row_at, const auto& to_at) {
    Floats first[T] = {}, second[T] = {};
    if (add)
      for (int t = 0; t < T; ++t) first[t] = load<0>(to_at(t)), second[t] = load<1>(to_at(t));
    for (int64_t l = 0; l < count; ++l) {
      const auto row = row_at(l);
      const Floats a = load<0>(static_cast<const E*>(row)), b = load<1>(static_cast<const E*>(row));
      for (int t = 0; t < T; ++t) {
        const Floats c = all(coefficients[t][l]);
        first[t] = fused(c, a, first[t]);
        second[t] = fused(c, b, second[t]);
      }
    }
    for (int t = 0; t < T; ++t) {
      if constexpr (streaming) stream(to_at(t), first[t], second[t]);
      else store(to_at(t), first[t], second[t]);
    }
  };
  int64_t column = 0;
  for (; column + kStep <= width; column += kStep) {
    ahead.step(column);
    tile([&](int64_t l) { return rows[l] + column; }, [&](int t) { return to[t] + column; });
  }
  if (const int64_t rest = width - column) {
    constexpr bool padded = sizeof(O) > sizeof(E);
    O ends[T][kStep];
    for (int t = 0; t < T; ++t) std::memcpy(static_cast<void*>(ends[t]), to[t] + column, (padded ? kStep : rest) * sizeof(O));
    tile([&](int64_t l) { return End<E>(rows[l] + column, rest); }, [&](int t) { return &ends[t][0]; });
    for (int t = 0; t < T; ++t) std::memcpy(static_cast<void*>(to[t] + column), ends[t], (padded ? kStep : rest) * sizeof(O));
  }
}

// rows[r] (+)= sum over n < count of coefficients[n][r] * tokens[n], r < R; `rows` float32, in halves and padded
// as above. `fresh[r]`: what is in the row is not read.
template <int R, class E>
inline void add_tokens(const E* const* tokens, int64_t count, const float (*coefficients)[R], float* const* rows,
                       const bool* fresh, int64_t width) {
  const auto tile = [&](const auto& token_at, const auto& row_at) {
    Floats first[R], second[R];
    for (int r = 0; r < R; ++r) {
      first[r] = fresh[r] ? Floats{} : load<0>(row_at(r));
      second[r] = fresh[r] ? Floats{} : load<1>(row_at(r));
    }
    for (int64_t n = 0; n < count; ++n) {
      const auto token = token_at(n);
      const Floats a = load<0>(static_cast<const E*>(token)), b = load<1>(static_cast<const E*>(token));
      for (int r = 0; r < R; ++r) {
        const Floats c = all(coefficients[n][r]);
        first[r] = fused(c, a, first[r]);
        second[r] = fused(c, b, second[r]);
      }
    }
    for (int r = 0; r < R; ++r) store(row_at(r), first[r], second[r]);
  };
  int64_t column = 0;
  for (; column + kStep <= width; column += kStep)
    tile([&](int64_t n) { return tokens[n] + column; }, [&](int r) { return rows[r] + column; });
  if (const int64_t rest = width - column) {
    constexpr bool padded = sizeof(float) > sizeof(E);
    float ends[R][kStep] = {};
    for (int r = 0; r < R; ++r)
      if (!fresh[r]) std::memcpy(ends[r], rows[r] + column, (padded ? kStep : rest) * sizeof(float));
    tile([&](int64_t n) { return End<E>(tokens[n] + column, rest); }, [&](int r) { return &ends[r][0]; });
    for (int r = 0; r < R; ++r) std::memcpy(rows[r] + column, ends[r], (padded ? kStep : rest) * sizeof(float));
  }
}

// A float32 row in halves -> a row of E.
template <class E>
inline void from_halves(const float* from, E* to, int64_t width) {
  int64_t column = 0;
  for (; column + kStep <= width; column += kStep) store(to + column, load<0>(from + column), load<1>(from + column));
  if (column < width) {
    E end[kStep];
    store(end, load<0>(from + column), load<1>(from + column));
    std::memcpy(static_cast<void*>(to + column), end, (width - column) * sizeof(E));
  }
}

}  // namespace fff
