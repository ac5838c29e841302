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
#include "custom_ops/gather_reduce/row_reducer.h"
#include "custom_ops/gather_reduce/table_gradient.h"
#include "custom_ops/row_update/row_updater.h"

namespace tfrec {

template <typename T>
void PrefetchRow(const T* row, int64_t dim) {
  for (int64_t byte = 0; byte < dim * static_cast<int64_t>(sizeof(T)); byte += 64) {
    __builtin_prefetch(reinterpret_cast<const char*>(row) + byte);
  }
}

// A table and the slots of its optimizer.
template <typename T>
struct TrainedTable {
  T* rows;
  int64_t dim;
  int slot_count;
  int64_t slot_dim;
  Accumulator<T>* slots[kMaxSlots];

  // Row and slots of row number `id` will be read and written soon.
  void Prefetch(int64_t id) const {
    PrefetchRow(rows + id * dim, dim);
    for (int s = 0; s < slot_count; ++s) PrefetchRow(slots[s] + id * slot_dim, slot_dim);
  }
};

// Updates the rows of the segments that begin in the pairs [first, last) of a casting.
template <typename T>
void UpdateRows(const Casting& casting, const GradientRows<T>& gradient, RowReducer<T> reduce,
                RowUpdater<T> update, const Hyperparameters<Accumulator<T>>& hyper,
                Rounding rounding, const TrainedTable<T>& table, int64_t first, int64_t last) {
  constexpr int64_t kPrefetchRows = 12;
  constexpr int64_t kPrefetchGradients = 6;
  std::vector<T> sum(table.dim);
  ForEachSegment(casting, gradient, first, last, [&](const Segment<T>& segment) {
    if (kPrefetchRows < segment.ids_readable) table.Prefetch(segment.ids[kPrefetchRows]);
    if (kPrefetchGradients < segment.readable) {
      PrefetchRow(segment.rows[kPrefetchGradients], table.dim);
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
