// Where the rows of a table lie in a processing-in-memory device.
//
// Ranks form groups. A row lies in one group, each rank of which holds a slice of its columns, so
// that all ranks of a group do the same at the same time. One rank to a group interleaves rows, one
// group of all ranks slices columns.
#ifndef TFREC_CUSTOM_OPS_PIM_PLACEMENT_H_
#define TFREC_CUSTOM_OPS_PIM_PLACEMENT_H_

#include <algorithm>
#include <cstdint>

#include "custom_ops/gather_reduce/table_gradient.h"

namespace tfrec {

class Placement {
 public:
  // Row 0 is in `first_group`, and with `by_table` so are all others. Each group has a copy of the
  // rows `hot_ids`, which rise.
  Placement(int64_t groups, int64_t first_group, bool by_table, const int64_t* hot_ids = nullptr,
            int64_t hot_count = 0)
      : groups_(groups),
        first_group_(first_group),
        by_table_(by_table),
        hot_ids_(hot_ids),
        hot_count_(hot_count),
        by_groups_(groups) {}

  int64_t groups() const { return groups_; }
  bool IsHot(int64_t id) const {
    return hot_count_ > 0 && std::binary_search(hot_ids_, hot_ids_ + hot_count_, id);
  }
  int64_t HomeOf(int64_t id) const {
    if (by_table_) return first_group_;
    const int64_t group = id - by_groups_.Divide(id) * groups_ + first_group_;
    return group < groups_ ? group : group - groups_;
  }
  // Lookups of rows that are everywhere take turns, by their position among all lookups.
  int64_t GroupOf(int64_t id, int64_t position) const {
    return IsHot(id) ? position % groups_ : HomeOf(id);
  }
  // Where a row lies within its group, in rows: behind the copies of the hot ones.
  int64_t LocalRow(int64_t id) const {
    const int64_t* const end = hot_ids_ + hot_count_;
    const int64_t* const found = std::lower_bound(hot_ids_, end, id);
    if (found != end && *found == id) return found - hot_ids_;
    return hot_count_ + (by_table_ ? id : by_groups_.Divide(id));
  }

 private:
  int64_t groups_;
  int64_t first_group_;
  bool by_table_;
  const int64_t* hot_ids_;
  int64_t hot_count_;
  Divisor by_groups_;
};

// How the memory of a rank is organised, in rows as it stores them.
struct RankMemory {
  int64_t rows_per_page;  // of those that share an open page
  int64_t pages_per_row;  // of those wider than a page
  int64_t banks;
  int64_t cached_rows;  // of the cache beside the rank; 0 for none
};

}  // namespace tfrec

#endif  // TFREC_CUSTOM_OPS_PIM_PLACEMENT_H_
