// The activations over rows of floats, compiled once for all that need them.
#include "activations.h"

namespace fff {

void activate(Activation a, const float* from, float* to, int64_t count) {
  for_activation(a, [&]<Activation a>() { map2(from, from, to, count, [](Floats x, Floats) { return value<a>(x); }); });
}

void times_slope(Activation a, const float* grad, const float* from, float* to, int64_t count) {
  for_activation(
      a, [&]<Activation a>() { map2(grad, from, to, count, [](Floats g, Floats x) { return g * slope<a>(x); }); });
}

}  // namespace fff
