// Huge pages for large tables.
//
// Random rows of a table on pages of 4 KiB cost a walk through the page tables each; on pages of
// 2 MiB the translations of a table of gigabytes fit the processor.
#ifndef TFREC_CUSTOM_OPS_COMMON_HUGE_PAGES_H_
#define TFREC_CUSTOM_OPS_COMMON_HUGE_PAGES_H_

#include <cstdint>
#include <mutex>
#include <set>
#include <utility>

namespace tfrec {

class HugePages {
 public:
  // Moves the memory of a table onto huge pages, in place, where the kernel allows: readers and
  // writers may go on meanwhile. Takes about three seconds for a gigabyte, and next to nothing for
  // memory that this object has seen or that is on huge pages. Small tables stay where they are,
  // and with TFREC_HUGE_PAGES=0 all do.
  void Use(const void* data, int64_t bytes);

 private:
  std::mutex mutex_;
  std::set<std::pair<const void*, int64_t>> seen_;
};

}  // namespace tfrec

#endif  // TFREC_CUSTOM_OPS_COMMON_HUGE_PAGES_H_
