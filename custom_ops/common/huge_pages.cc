#include "custom_ops/common/huge_pages.h"

#include <cstdlib>
#include <string>

#ifdef __linux__
#include <sys/mman.h>
#ifndef MADV_COLLAPSE  // Linux 6.1; older C libraries do not name it
#define MADV_COLLAPSE 25
#endif
#endif

namespace tfrec {
namespace {

// Below this the translations of small pages are cached well enough.
constexpr int64_t kLeastBytes = int64_t{16} << 20;
constexpr uintptr_t kHugePage = uintptr_t{2} << 20;

bool Enabled() {
  static const bool enabled = [] {
    const char* setting = std::getenv("TFREC_HUGE_PAGES");
    return setting == nullptr || std::string(setting) != "0";
  }();
  return enabled;
}

}  // namespace

void HugePages::Use(size_t table, const void* data, int64_t bytes) {
#ifdef __linux__
  if (bytes < kLeastBytes || !Enabled()) return;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (table >= seen_.size()) seen_.resize(table + 1);
    Seen& seen = seen_[table];
    if (seen.data != data || seen.bytes != bytes) {
      seen = {data, bytes, false};
      return;
    }
    if (seen.is_moved) return;
    seen.is_moved = true;
  }
  // Whole huge pages only: what lies around them belongs to others.
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(data) + kHugePage - 1) & ~(kHugePage - 1);
  const uintptr_t end = (reinterpret_cast<uintptr_t>(data) + bytes) & ~(kHugePage - 1);
  if (end <= begin) return;
  void* const first = reinterpret_cast<void*>(begin);
  // Where the kernel refuses the second call, its background thread may still follow the first.
  if (madvise(first, end - begin, MADV_HUGEPAGE) == 0) madvise(first, end - begin, MADV_COLLAPSE);
#endif
}

}  // namespace tfrec
