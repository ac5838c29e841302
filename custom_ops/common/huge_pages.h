// Huge pages for large tables.
//
// Random rows of a table on pages of 4 KiB cost a walk through the page tables each; on pages of
// 2 MiB the translations of a table of gigabytes fit the processor.
#ifndef TFREC_CUSTOM_OPS_COMMON_HUGE_PAGES_H_
#define TFREC_CUSTOM_OPS_COMMON_HUGE_PAGES_H_

#include <cstddef>
#include <cstdint>
#include <mutex>
#include <vector>

namespace tfrec {

class HugePages {
 public:
  // Moves the memory of table number `table` onto huge pages, in place, where the kernel allows:
  // readers and writers may go on meanwhile. Does so the second time in a row that the table lies
  // there, since memory that changes with each step is not worth it. Takes up to four seconds for a
  // gigabyte, once. Small tables stay where they are, and with TFREC_HUGE_PAGES=0 all do.
  void Use(size_t table, const void* data, int64_t bytes);

 private:
  struct Seen {
    const void* data = nullptr;
    int64_t bytes = 0;
    bool is_moved = false;
  };
  std::mutex mutex_;
  std::vector<Seen> seen_;
};

}  // namespace tfrec

#endif  // TFREC_CUSTOM_OPS_COMMON_HUGE_PAGES_H_
