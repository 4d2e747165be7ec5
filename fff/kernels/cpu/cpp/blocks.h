// What the operators share: holding the tensors' memory, giving out more, sharing blocks of tokens among threads. Not
// what is computed.
#pragma once

#include <ATen/EmptyTensor.h>
#include <ATen/Parallel.h>

#include "checks.h"
#include "forward.h"
#include "memory.h"
#include "ops.h"

namespace fff {

// One tree's top levels are walked once for all tokens of a block, so it takes all. Of many trees, whose rows together
// exceed a core's cache, each is fetched once a block: what that saves outweighs that inputs and sums leave the cache.
constexpr int64_t kBlockOfOneTree = 16384, kBlockOfTrees = 1024;
// A thread is worth waking from about this much work on: multiply-adds.
constexpr int64_t kWorkForThread = 1 << 19;

// A tensor's elements in order, and the memory that they lie in: it stays, whatever is assigned to the tensor
// meanwhile.
template <class E>
struct Held {
  c10::Storage memory;
  const E* at = nullptr;
  Held() = default;
  explicit Held(const Tensor& t) {
    const auto whole = t.expect_contiguous();
    memory = whole->storage();
    at = whole->const_data_ptr<E>();
  }
};

// f(begin, end, space) over blocks of tokens, by as many threads as the work is worth. Results do not depend on how.
template <class F>
void over_blocks(int64_t tokens, int64_t trees, int64_t work_per_token, const F& f) {
  const int64_t threads =
      std::max<int64_t>(1, std::min<int64_t>(at::get_num_threads(), tokens * work_per_token / kWorkForThread));
  const int64_t most = trees == 1 ? kBlockOfOneTree : kBlockOfTrees;
  const int64_t size = std::max<int64_t>(1, std::min(most, (tokens + threads - 1) / threads));
  const int64_t blocks = (tokens + size - 1) / size;
  const auto run = [&](int64_t first, int64_t last) {
    static thread_local Space space;
    for (int64_t block = first; block < last; ++block) f(block * size, std::min(tokens, (block + 1) * size), space);
  };
  if (threads == 1) {
    run(0, blocks);
  } else {
    at::parallel_for(0, blocks, 1, run);
  }
}

template <class E, class B>
int64_t work_of(const Layer<E, B>& layer) {
  return layer.stride() * (layer.width + layer.out_width);
}

template <class F>
auto for_dtype(at::ScalarType dtype, const F& f) {
  return dtype == at::kFloat ? f.template operator()<float>() : f.template operator()<BFloat16>();
}

// An empty tensor, a large one in memory that is kept between calls. Where torch is asked to fill what is not yet
// written, to show reads of it, it is filled.
inline Tensor fresh(at::IntArrayRef sizes, at::ScalarType dtype) {
  const int64_t bytes = c10::multiply_integers(sizes) * static_cast<int64_t>(c10::elementSize(dtype));
  const c10::DispatchKeySet cpu(c10::DispatchKey::CPU);
  Tensor t = bytes < Memory::kLarge ? at::detail::empty_cpu(sizes, dtype, /*pin_memory=*/false, std::nullopt)
                                    : at::detail::empty_generic(sizes, &Memory::instance(), cpu, dtype, std::nullopt);
  fill_if_asked(t);
  return t;
}

inline Tensor output_like(const Tensor& x, int64_t width) {
  auto sizes = x.sizes().vec();
  sizes.back() = width;
  return fresh(sizes, x.scalar_type());
}

inline int64_t rows_of(const Tensor& x) { return x.numel() / x.size(-1); }

}  // namespace fff
