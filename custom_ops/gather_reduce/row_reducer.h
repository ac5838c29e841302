// The inner loop of every gather-reduce: a weighted sum of rows that lie anywhere in memory.
#ifndef TFREC_CUSTOM_OPS_GATHER_REDUCE_ROW_REDUCER_H_
#define TFREC_CUSTOM_OPS_GATHER_REDUCE_ROW_REDUCER_H_

#include <cstdint>

#include "custom_ops/common/narrow_float.h"
#include "custom_ops/common/vector_isa.h"

namespace tfrec {

// out[c] = (sum over k < count of weights[k] * rows[k][c]) / divisor, for c < dim.
//
// A null `weights` means ones. No rows, or a zero divisor, give zeros. `rows` may go on behind
// `count` with the rows of later calls: the first `readable` of them are prefetched in time.
template <typename T>
using RowReducer = void (*)(const T* const* rows, const Accumulator<T>* weights, int64_t count,
                            int64_t readable, int64_t dim, Accumulator<T> divisor, Pooled<T>* out);

// The same for rows of a table, which need no weights and whose ids are known to be rows of it:
// saves the array of pointers. `ids` may go on behind `count` as `rows` may.
template <typename T, typename Id>
using IdReducer = void (*)(const T* table, int64_t dim, const Id* ids, int64_t count,
                           int64_t readable, Accumulator<T> divisor, Pooled<T>* out);

// T is float, double, Half, BFloat16 or int8_t.
template <typename T>
RowReducer<T> SelectRowReducer(Isa isa);
template <typename T, typename Id>
IdReducer<T, Id> SelectIdReducer(Isa isa);

}  // namespace tfrec

#endif  // TFREC_CUSTOM_OPS_GATHER_REDUCE_ROW_REDUCER_H_
