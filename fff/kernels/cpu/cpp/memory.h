// Memory for large results, kept between calls. Not for small ones, which the C library serves well.
//
// The C library gives a large block back to the system when it is freed, and the system clears new pages on their first
// touch: for 16384 tokens in float32 that took a quarter of a call in inference and half of a training step. So freed
// blocks of this size are kept, up to a limit, for the next call that wants as much. They are in huge pages, whose
// first touch costs least.
#pragma once

#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>

#include <cstdlib>
#include <mutex>
#include <vector>

#ifdef __linux__
#include <sys/mman.h>
#if !defined(MADV_COLLAPSE)
#define MADV_COLLAPSE 25  // of Linux 6.1
#endif
#endif

namespace fff {

class Memory final : public c10::Allocator {
 public:
  static constexpr size_t kPage = 2 << 20;
  static constexpr size_t kLarge = 4 << 20;  // bytes from which a result is kept

  static Memory& instance() {
    static Memory* const memory = new Memory;  // never destroyed: tensors may outlive static objects
    return *memory;
  }

  c10::DataPtr allocate(size_t bytes) override {
    const size_t size = (bytes + kPage - 1) / kPage * kPage;
    void* block = take(size);
    if (!block) block = fresh(size);
    auto* const owned = new Block{block, size};
    return {block, owned, &release, c10::Device(c10::DeviceType::CPU)};
  }

  void copy_data(void* to, const void* from, size_t bytes) const override { default_copy_data(to, from, bytes); }

 private:
  struct Block {
    void* at;
    size_t size;
  };

  // FFF_KEEP_MB, by default 512: the most that is kept.
  Memory() : limit_(size_t{512} << 20) {
    const char* const text = std::getenv("FFF_KEEP_MB");
    if (!text) return;
    char* end = nullptr;
    limit_ = std::strtoull(text, &end, 10) << 20;
    TORCH_CHECK_VALUE(*text && !*end && *text != '-', "FFF_KEEP_MB=", text,
                      " is not a number of megabytes; 0 keeps none");
  }

  static void* fresh(size_t size) {
    void* const block = std::aligned_alloc(kPage, size);
    TORCH_CHECK(block, "there is no memory for ", size, " bytes");
#ifdef __linux__
    madvise(block, size, MADV_HUGEPAGE);
#endif
    return block;
  }

  // A kept block of this size. Nobody waits here: where another thread is at the list, memory is taken from the system.
  void* take(size_t size) {
    const std::unique_lock lock(mutex_, std::try_to_lock);
    if (!lock) return nullptr;
    for (size_t i = kept_.size(); i-- > 0;) {
      if (kept_[i].size != size) continue;
      void* const block = kept_[i].at;
      kept_.erase(kept_.begin() + i);
      total_ -= size;
      return block;
    }
    return nullptr;
  }

  void keep(Block block) {
    const std::unique_lock lock(mutex_, std::try_to_lock);
    if (!lock || block.size > limit_) return std::free(block.at);
    while (total_ + block.size > limit_) {  // the oldest go first: sizes that nobody wants any more
      total_ -= kept_.front().size;
      std::free(kept_.front().at);
      kept_.erase(kept_.begin());
    }
    kept_.push_back(block);
    total_ += block.size;
  }

  static void release(void* owned) {
    const Block block = *static_cast<Block*>(owned);
    delete static_cast<Block*>(owned);
    instance().keep(block);
  }

  std::mutex mutex_;
  std::vector<Block> kept_;
  size_t total_ = 0, limit_;
};

// Memory that is there already, of any owner, into huge pages where it fills them: contents and addresses stay. A row
// of weights that is in no cache waits for its page's entry first, and huge pages are few. Where the system cannot,
// nothing happens.
inline void into_huge_pages(void* at, size_t bytes) {
#ifdef __linux__
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(at) + Memory::kPage - 1) / Memory::kPage * Memory::kPage;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(at) + bytes) / Memory::kPage * Memory::kPage;
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_COLLAPSE);
#endif
}

}  // namespace fff
