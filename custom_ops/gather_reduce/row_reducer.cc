#include "custom_ops/gather_reduce/row_reducer.h"

#include <algorithm>
#include <type_traits>

#include "custom_ops/common/prefetch.h"

namespace tfrec {
namespace {

// Rows of a table by id, with the look of an array of pointers to them.
template <typename T, typename Id>
struct TableRows {
  const T* table;
  int64_t dim;
  const Id* ids;
  const T* operator[](int64_t k) const { return table + static_cast<int64_t>(ids[k]) * dim; }
};

// Columns [first, last) in blocks that a compiler keeps in registers of any width.
template <typename T, bool kWeighted, typename Rows>
void ReduceScalar(const Rows& rows, const Accumulator<T>* weights, int64_t count, int64_t readable,
                  int64_t first, int64_t last, Accumulator<T> divisor, Pooled<T>* out) {
  constexpr int64_t kBlock = 16;
  for (int64_t column = first; column < last; column += kBlock) {
    const int64_t width = std::min(kBlock, last - column);
    Accumulator<T> sums[kBlock] = {};
    for (int64_t k = 0; k < count; ++k) {
      if (k + kPrefetchDistance < readable) {
        Prefetch(rows[k + kPrefetchDistance] + column, kBlock);
      }
      const T* row = rows[k] + column;
      if (width == kBlock) {
        for (int64_t c = 0; c < kBlock; ++c) {
          sums[c] += kWeighted ? weights[k] * Widen(row[c]) : Widen(row[c]);
        }
      } else {
        for (int64_t c = 0; c < width; ++c) {
          sums[c] += kWeighted ? weights[k] * Widen(row[c]) : Widen(row[c]);
        }
      }
    }
    for (int64_t c = 0; c < width; ++c) Narrow(sums[c] / divisor, out + column + c);
  }
}

template <typename T>
void ReducePortable(const T* const* rows, const Accumulator<T>* weights, int64_t count,
                    int64_t readable, int64_t dim, Accumulator<T> divisor, Pooled<T>* out) {
  if (count == 0 || divisor == 0) {
    std::fill_n(out, dim, Pooled<T>{});
  } else if (weights) {
    ReduceScalar<T, true>(rows, weights, count, readable, 0, dim, divisor, out);
  } else {
    ReduceScalar<T, false>(rows, weights, count, readable, 0, dim, divisor, out);
  }
}

template <typename T, typename Id>
void ReduceIdsPortable(const T* table, int64_t dim, const Id* ids, int64_t count, int64_t readable,
                       Accumulator<T> divisor, Pooled<T>* out) {
  if (count == 0 || divisor == 0) {
    std::fill_n(out, dim, Pooled<T>{});
  } else {
    ReduceScalar<T, false>(TableRows<T, Id>{table, dim, ids}, nullptr, count, readable, 0, dim,
                           divisor, out);
  }
}

}  // namespace

#ifdef TFREC_X86

namespace avx2 {
template <typename T, bool kWeighted, typename Rows>
void ReduceRest(const Rows& rows, const float* weights, int64_t count, int64_t readable,
                int64_t column, int64_t dim, float divisor, Pooled<T>* out) {
  ReduceScalar<T, kWeighted>(rows, weights, count, readable, column, dim, divisor, out);
}
#define TFREC_TARGET TFREC_AVX2
#include "custom_ops/gather_reduce/row_reducer_simd.inc"
#undef TFREC_TARGET
}  // namespace avx2

namespace avx512 {
// Eight columns fill a register of AVX2.
template <typename T, bool kWeighted, typename Rows>
TFREC_AVX512 void ReduceRest(const Rows& rows, const float* weights, int64_t count,
                             int64_t readable, int64_t column, int64_t dim, float divisor,
                             Pooled<T>* out) {
  avx2::ReduceColumns<T, kWeighted>(rows, weights, count, readable, column, dim, divisor, out);
}
#define TFREC_TARGET TFREC_AVX512
#include "custom_ops/gather_reduce/row_reducer_simd.inc"
#undef TFREC_TARGET
}  // namespace avx512

#endif  // TFREC_X86

template <typename T>
RowReducer<T> SelectRowReducer(Isa isa) {
#ifdef TFREC_X86
  if (isa == Isa::kAvx512) return avx512::Reduce<T>;
  if (isa == Isa::kAvx2) return avx2::Reduce<T>;
#endif
  return ReducePortable<T>;
}

// The memory system is already the limit for double at the width the compiler picks by itself.
template <>
RowReducer<double> SelectRowReducer<double>(Isa) {
  return ReducePortable<double>;
}

template <typename T, typename Id>
IdReducer<T, Id> SelectIdReducer(Isa isa) {
  if constexpr (!std::is_same_v<T, double>) {
#ifdef TFREC_X86
    if (isa == Isa::kAvx512) return avx512::ReduceIds<T, Id>;
    if (isa == Isa::kAvx2) return avx2::ReduceIds<T, Id>;
#endif
  }
  return ReduceIdsPortable<T, Id>;
}

#define TFREC_INSTANTIATE(T)                                       \
  template IdReducer<T, int32_t> SelectIdReducer<T, int32_t>(Isa); \
  template IdReducer<T, int64_t> SelectIdReducer<T, int64_t>(Isa)
TFREC_INSTANTIATE(int8_t);
TFREC_INSTANTIATE(float);
TFREC_INSTANTIATE(double);
TFREC_INSTANTIATE(Half);
TFREC_INSTANTIATE(BFloat16);
template RowReducer<int8_t> SelectRowReducer<int8_t>(Isa);
template RowReducer<float> SelectRowReducer<float>(Isa);
template RowReducer<Half> SelectRowReducer<Half>(Isa);
template RowReducer<BFloat16> SelectRowReducer<BFloat16>(Isa);

}  // namespace tfrec
