// One optimizer step on the rows of a table that a batch has looked up.
//
// This is the casted gather-reduce of the incoming gradient with the optimizer behind it: the
// gradient of a row is added up in a buffer of one row, and used at once.
#ifndef TFREC_CUSTOM_OPS_ROW_UPDATE_ROW_UPDATE_H_
#define TFREC_CUSTOM_OPS_ROW_UPDATE_ROW_UPDATE_H_

#include <algorithm>
#include <cstdint>
#include <vector>

#include "custom_ops/casting/casting.h"
#include "custom_ops/common/prefetch.h"
#include "custom_ops/gather_reduce/row_reducer.h"
#include "custom_ops/gather_reduce/table_gradient.h"
#include "custom_ops/row_update/row_updater.h"

namespace tfrec {

// A table and the slots of its optimizer.
template <typename T>
struct TrainedTable {
  T* rows;
  int64_t dim;
  int slot_count;
  int64_t slot_dim;
  Accumulator<T>* slots[kMaxSlots];

  // Row and slots of row number `id` will be read and written soon. Inline for the reason that
  // Prefetch() is.
  [[gnu::always_inline]] void PrefetchRows(int64_t id) const {
    Prefetch(rows + id * dim, dim);
    for (int s = 0; s < slot_count; ++s) Prefetch(slots[s] + id * slot_dim, slot_dim);
  }
};

// Updates the rows of the segments that begin in the pairs [first, last) of a casting.
template <typename T>
void UpdateRows(const Casting& casting, const GradientRows<T>& gradient, RowReducer<T> reduce,
                RowUpdater<T> update, const Hyperparameters<Accumulator<T>>& hyper,
                Rounding rounding, const TrainedTable<T>& table, int64_t first, int64_t last) {
  std::vector<T> sum(table.dim);
  ForEachSegment(casting, gradient, first, last, [&](const Segment<T>& segment) {
    // The rows of the incoming gradient are few, and in some cache already.
    if (kPrefetchDistance < segment.ids_readable) {
      table.PrefetchRows(segment.ids[kPrefetchDistance]);
    }
    const T* row_gradient = segment.rows[0];
    if (segment.count > 1 || segment.factors) {
      reduce(segment.rows, segment.factors, segment.count, segment.readable, table.dim,
             Accumulator<T>{1}, sum.data());
      row_gradient = sum.data();
    }
    const int64_t id = segment.ids[0];
    Accumulator<T>* slots[kMaxSlots];
    for (int s = 0; s < table.slot_count; ++s) slots[s] = table.slots[s] + id * table.slot_dim;
    update(row_gradient, table.dim, hyper, rounding, id, table.rows + id * table.dim, slots);
  });
}

}  // namespace tfrec

#endif  // TFREC_CUSTOM_OPS_ROW_UPDATE_ROW_UPDATE_H_
