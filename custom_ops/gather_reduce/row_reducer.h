// The inner loop of every gather-reduce: a weighted sum of rows that lie anywhere in memory.
#ifndef TFREC_CUSTOM_OPS_GATHER_REDUCE_ROW_REDUCER_H_
#define TFREC_CUSTOM_OPS_GATHER_REDUCE_ROW_REDUCER_H_

#include <cstdint>

#include "custom_ops/common/narrow_float.h"

namespace tfrec {

// Instruction sets, weakest first. All of them add in the same order and never fuse a
// multiplication with an addition, so they return the same bits.
enum class Isa { kPortable, kAvx2, kAvx512 };

// The best one that this processor and operating system can run.
Isa BestIsa();

// out[c] = (sum over k < count of weights[k] * rows[k][c]) / divisor, for c < dim.
//
// A null `weights` means ones. No rows, or a zero divisor, give zeros. `rows` may go on behind
// `count` with the rows of later calls: the first `readable` of them are prefetched in time.
template <typename T>
using RowReducer = void (*)(const T* const* rows, const Accumulator<T>* weights, int64_t count,
                            int64_t readable, int64_t dim, Accumulator<T> divisor, T* out);

// T is float, double, Half or BFloat16.
template <typename T>
RowReducer<T> SelectRowReducer(Isa isa);

}  // namespace tfrec

#endif  // TFREC_CUSTOM_OPS_GATHER_REDUCE_ROW_REDUCER_H_
