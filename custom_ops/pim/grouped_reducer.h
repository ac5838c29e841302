// The sum of the sums of groups of rows, in one pass.
#ifndef TFREC_CUSTOM_OPS_PIM_GROUPED_REDUCER_H_
#define TFREC_CUSTOM_OPS_PIM_GROUPED_REDUCER_H_

#include <cstdint>

#include "custom_ops/common/narrow_float.h"
#include "custom_ops/common/vector_isa.h"

namespace tfrec {

// Rows of one bag, group behind group: group g ends at `ends[g]`. Null `weights` mean ones.
template <typename T>
struct GroupedRows {
  const T* const* rows;
  const Accumulator<T>* weights;
  const int64_t* ends;
  int64_t groups;
};

// out[c] = (sum over groups of (sum over their rows k of weights[k] * rows[k][c])) / divisor, for
// c < dim. No groups, or a zero divisor, give zeros.
template <typename T>
using GroupedReducer = void (*)(const GroupedRows<T>& lookups, int64_t dim, Accumulator<T> divisor,
                                T* out);

// T is float, double, Half or BFloat16.
template <typename T>
GroupedReducer<T> SelectGroupedReducer(Isa isa);

}  // namespace tfrec

#endif  // TFREC_CUSTOM_OPS_PIM_GROUPED_REDUCER_H_
