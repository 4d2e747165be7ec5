// Sixteen floats at a time with AVX-512, else eight, in float32, bfloat16 and int8 memory alike. Not what is computed
// with them.
//
// The compiler's own vector type: it becomes AVX on x86, NEON pairs on ARM, SSE2 on a plain machine, without a line of
// code for each. Rows are read two vectors at a time, as halves. In bfloat16 memory the halves are the even and the
// odd elements, because a shift and a mask then make floats of them; in other memory the first and the last. Dot
// products do not care, as both operands are split alike, and `store` puts halves back in their places.
#pragma once

#include <c10/util/BFloat16.h>

#include <cstdint>
#include <cstring>
#include <type_traits>

#if defined(__AVX__)
#include <immintrin.h>
#endif

namespace fff {

using BFloat16 = c10::BFloat16;
#if defined(__AVX512F__)
constexpr int kLanes = 16;
#else
constexpr int kLanes = 8;
#endif
constexpr int kStep = 2 * kLanes;
constexpr int kVectorBytes = 4 * kLanes, kLineBytes = 64;

typedef float Floats __attribute__((vector_size(kVectorBytes)));
typedef int32_t Ints __attribute__((vector_size(kVectorBytes)));
typedef uint32_t Bits __attribute__((vector_size(kVectorBytes)));

template <class V>
inline V read(const void* from) {
  V value;
  std::memcpy(&value, from, sizeof(V));
  return value;
}

// Keeps the compiler from reading a vector from memory again at each use, which costs as much as what it is used for.
inline Floats in_register(Floats value) {
#if defined(__AVX512F__)
  asm("" : "+v"(value));
#elif defined(__AVX__)
  asm("" : "+x"(value));
#endif
  return value;
}

// a * b + c, rounded once where the machine can. Written out, with contraction by the compiler turned off: what a
// compiler contracts depends on the code around it, and then bits would depend on how tokens are grouped.
inline Floats fused(Floats a, Floats b, Floats c) {
#if defined(__AVX512F__)
  return (Floats)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__AVX__) && defined(__FMA__)
  return (Floats)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__FP_FAST_FMAF)
  for (int i = 0; i < kLanes; ++i) c[i] = __builtin_fmaf(a[i], b[i], c[i]);
  return c;
#else
  return a * b + c;
#endif
}

inline Floats all(float value) {
#if defined(__AVX512F__)
  // Which a multiply-add reads from memory as it is; adding zeros is no such thing.
  return (Floats)_mm512_set1_ps(value);
#elif defined(__AVX__)
  return (Floats)_mm256_set1_ps(value);
#else
  return Floats{} + value;
#endif
}

template <int half>
inline Floats load(const float* from) {
  return read<Floats>(from + half * kLanes);
}

template <int half>
inline Floats load(const BFloat16* from) {
  const Bits pairs = read<Bits>(from);
  return half == 0 ? (Floats)(pairs << 16) : (Floats)(pairs & 0xFFFF0000u);
}

template <int half>
inline Floats load(const int8_t* from) {
#if defined(__AVX512F__)
  return (Floats)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(read<__m128i>(from + half * kLanes)));
#else
  typedef int8_t Bytes __attribute__((vector_size(kLanes)));
  return __builtin_convertvector(__builtin_convertvector(read<Bytes>(from + half * kLanes), Ints), Floats);
#endif
}

// Halves of rows of E, here and below.
template <class E = float>
inline void store(float* to, Floats first, Floats second) {
  std::memcpy(to, &first, sizeof(first));
  std::memcpy(to + kLanes, &second, sizeof(second));
}

// To the nearest bfloat16, ties to even, in the upper half of the word; a NaN stays one.
inline Bits rounded(Floats value) {
  const Bits bits = (Bits)value;
  const Bits up = bits + 0x7FFFu + ((bits >> 16) & 1u);
  const Bits nan = (Bits)(value != value);
  return (up & ~nan) | ((bits | 0x400000u) & nan);
}

// Both as bfloat16, in turn.
inline Bits interleaved(Floats even, Floats odd) {
#if defined(__AVX512BF16__)
  // One instruction rounds both (denormal numbers to zero) and writes them one after the other; another puts them in
  // turn.
  typedef uint16_t Words __attribute__((vector_size(64)));
  constexpr Words turns = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                           8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  return (Bits)_mm512_permutexvar_epi16((__m512i)turns, (__m512i)_mm512_cvtne2ps_pbh((__m512)odd, (__m512)even));
#else
  return (rounded(even) >> 16) | (rounded(odd) & 0xFFFF0000u);
#endif
}

// Both as bfloat16, one after the other.
inline Bits joined(Floats first, Floats second) {
#if defined(__AVX512BF16__)
  return (Bits)_mm512_cvtne2ps_pbh((__m512)second, (__m512)first);
#else
  typedef uint16_t Words __attribute__((vector_size(2 * kLanes)));
  const Words halves[2] = {__builtin_convertvector(rounded(first) >> 16, Words),
                           __builtin_convertvector(rounded(second) >> 16, Words)};
  return read<Bits>(halves);
#endif
}

template <class E>
inline Bits in_place(Floats first, Floats second) {
  return std::is_same_v<E, BFloat16> ? interleaved(first, second) : joined(first, second);
}

template <class E = BFloat16>
inline void store(BFloat16* to, Floats first, Floats second) {
  const Bits pairs = in_place<E>(first, second);
  std::memcpy(to, &pairs, sizeof(pairs));
}

// The same past the caches, for outputs so large that they would only drive out what is needed: memory that is written
// whole need not be read first. `to` must be aligned to a vector; `streamed` before others read it.
template <class E>
inline void stream(float* to, Floats first, Floats second) {
#if defined(__AVX512F__)
  _mm512_stream_ps(to, (__m512)first);
  _mm512_stream_ps(to + kLanes, (__m512)second);
#elif defined(__AVX__)
  _mm256_stream_ps(to, (__m256)first);
  _mm256_stream_ps(to + kLanes, (__m256)second);
#else
  store<E>(to, first, second);
#endif
}

template <class E>
inline void stream(BFloat16* to, Floats first, Floats second) {
#if defined(__AVX512F__)
  _mm512_stream_si512(reinterpret_cast<__m512i*>(to), (__m512i)in_place<E>(first, second));
#elif defined(__AVX__)
  _mm256_stream_si256(reinterpret_cast<__m256i*>(to), (__m256i)in_place<E>(first, second));
#else
  store<E>(to, first, second);
#endif
}

inline void streamed() {
#if defined(__AVX__)
  _mm_sfence();
#endif
}

// The last `count` elements of a row whose width is no multiple of the step, followed by zeros.
template <class E>
struct End {
  E values[kStep];
  End(const E* from, int64_t count) {
    std::memset(static_cast<void*>(values), 0, sizeof(values));
    std::memcpy(static_cast<void*>(values), from, count * sizeof(E));
  }
  explicit operator const E*() const { return values; }
};

// Sum of the lanes, halves onto halves, always in this order: a dot product has the same bits whatever is computed
// beside it.
template <class Half, class V>
inline Half folded(V v) {
  Half halves[2];
  static_assert(sizeof(halves) == sizeof(v));
  std::memcpy(halves, &v, sizeof(v));
  return halves[0] + halves[1];
}

inline float sum(Floats v) {
  typedef float Quarter __attribute__((vector_size(16)));
#if defined(__AVX512F__)
  typedef float Half __attribute__((vector_size(32)));
  const Quarter q = folded<Quarter>(folded<Half>(v));
#else
  const Quarter q = folded<Quarter>(v);
#endif
  return (q[0] + q[2]) + (q[1] + q[3]);
}

}  // namespace fff
