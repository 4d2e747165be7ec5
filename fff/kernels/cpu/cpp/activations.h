// The activations of fff/activations.py and their derivatives, on vectors.
#pragma once

#include "vectors.h"

namespace fff {

// In the order of fff/activations.py.
enum class Activation : int64_t { gelu, gelu_tanh, relu, silu, tanh, identity };

// c[0] + c[1] z + ... by Horner.
template <int n>
inline Floats polynomial(Floats z, const float (&c)[n]) {
  Floats value = all(c[n - 1]);
  for (int i = n - 2; i >= 0; --i) value = fused(value, z, all(c[i]));
  return value;
}

inline Floats select(Ints mask, Floats yes, Floats no) { return (Floats)((mask & (Ints)yes) | (~mask & (Ints)no)); }
inline Floats clamp(Floats x, float low, float high) {
  // Comparisons are false for a NaN, so that it passes through.
  x = select((Ints)(x < low), all(low), x);
  return select((Ints)(x > high), all(high), x);
}

// x * P(x^2) / Q(x^2), a rational fit on [-4, 4]; 1 - erf(4) is 1.5e-8. Absolute error below 4e-7.
inline Floats erf(Floats x) {
  constexpr float p[] = {1.128379225730896f,      0.1847105771303177f,     0.05433262139558792f,
                         0.0038395379669964314f,  0.00038269220385700464f, 4.780532890436007e-06f,
                         -1.3666763720721065e-08f};
  constexpr float q[] = {1.0f,
                         0.49702903628349304f,
                         0.11382640153169632f,
                         0.01545353326946497f,
                         0.0013095808681100607f,
                         6.400921120075509e-05f};
  x = clamp(x, -4.0f, 4.0f);
  const Floats z = x * x;
  return x * polynomial(z, p) / polynomial(z, q);
}

// 2^n * e^r with r within half of ln 2; relative error below 3e-7.
inline Floats exp(Floats x) {
  constexpr float taylor[] = {1.0f, 1.0f, 1.0f / 2, 1.0f / 6, 1.0f / 24, 1.0f / 120, 1.0f / 720};
  x = clamp(x, -87.0f, 88.0f);
  const Floats shift = all(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
  const Floats n = (x * 1.44269504f + shift) - shift;
  const Floats r = fused(n, all(2.12194440e-4f), fused(n, all(-0.693359375f), x));
  const Ints exponent = __builtin_convertvector(n, Ints) << 23;
  return (Floats)((Ints)polynomial(r, taylor) + exponent);
}

inline Floats sigmoid(Floats x) { return 1.0f / (1.0f + exp(-x)); }
inline Floats tanh(Floats x) {
  // Near 0 the difference of exponentials would lose its digits; an odd series has them.
  constexpr float series[] = {1.0f, -1.0f / 3, 2.0f / 15, -17.0f / 315, 62.0f / 2835};
  const Floats z = x * x, far = 1.0f - 2.0f / (exp(2.0f * x) + 1.0f);
  return select((Ints)(z < 0.04f), x * polynomial(z, series), far);
}

constexpr float kRoot2Inverse = 0.70710678118654752f, kRoot2PiInverse = 0.39894228040143268f;
constexpr float kTanhSlope = 0.79788456080286536f, kTanhCube = 0.044715f;

// The value, and the derivative.
template <Activation a>
inline Floats value(Floats x) {
  if constexpr (a == Activation::gelu) return 0.5f * x * (1.0f + erf(x * kRoot2Inverse));
  if constexpr (a == Activation::gelu_tanh) return 0.5f * x * (1.0f + tanh(kTanhSlope * (x + kTanhCube * x * x * x)));
  if constexpr (a == Activation::relu) return select((Ints)(x < 0.0f), all(0.0f), x);
  if constexpr (a == Activation::silu) return x * sigmoid(x);
  if constexpr (a == Activation::tanh) return tanh(x);
  return x;
}

template <Activation a>
inline Floats slope(Floats x) {
  if constexpr (a == Activation::gelu)
    return 0.5f * (1.0f + erf(x * kRoot2Inverse)) + x * kRoot2PiInverse * exp(-0.5f * x * x);
  if constexpr (a == Activation::gelu_tanh) {
    const Floats t = tanh(kTanhSlope * (x + kTanhCube * x * x * x));
    return 0.5f * (1.0f + t) + 0.5f * x * (1.0f - t * t) * kTanhSlope * (1.0f + 3.0f * kTanhCube * x * x);
  }
  if constexpr (a == Activation::relu) return select((Ints)(x <= 0.0f), all(0.0f), all(1.0f));
  if constexpr (a == Activation::silu) {
    const Floats s = sigmoid(x);
    return s * (1.0f + x * (1.0f - s));
  }
  if constexpr (a == Activation::tanh) {
    const Floats t = tanh(x);
    return 1.0f - t * t;
  }
  return all(1.0f);
}

template <class F>
inline void for_activation(Activation a, F&& f) {
  switch (a) {
    case Activation::gelu: return f.template operator()<Activation::gelu>();
    case Activation::gelu_tanh: return f.template operator()<Activation::gelu_tanh>();
    case Activation::relu: return f.template operator()<Activation::relu>();
    case Activation::silu: return f.template operator()<Activation::silu>();
    case Activation::tanh: return f.template operator()<Activation::tanh>();
    case Activation::identity: return f.template operator()<Activation::identity>();
  }
}

// to[i] = f(a[i], b[i]) over `count` floats, eight at a time; the last ones through a padded copy, so that a value does
// not depend on where it stands.
template <class F>
inline void map2(const float* a, const float* b, float* to, int64_t count, F&& f) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    const Floats result = f(read<Floats>(a + i), read<Floats>(b + i));
    std::memcpy(to + i, &result, sizeof(result));
  }
  if (i < count) {
    Floats last_a{}, last_b{};
    std::memcpy(&last_a, a + i, (count - i) * sizeof(float));
    std::memcpy(&last_b, b + i, (count - i) * sizeof(float));
    const Floats result = f(last_a, last_b);
    std::memcpy(to + i, &result, (count - i) * sizeof(float));
  }
}

// to[i] = the activation's value at from[i].
void activate(Activation a, const float* from, float* to, int64_t count);

// to[i] = grad[i] * the activation's derivative at from[i].
void times_slope(Activation a, const float* grad, const float* from, float* to, int64_t count);

}  // namespace fff
