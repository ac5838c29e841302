#include "custom_ops/pim/grouped_reducer.h"

#include <algorithm>
#include <type_traits>

namespace tfrec {
namespace {

// Columns [first, last) in blocks that a compiler keeps in registers of any width.
template <typename T, bool kWeighted>
void SumScalar(const GroupedRows<T>& lookups, int64_t first, int64_t last, Accumulator<T> divisor,
               T* out) {
  constexpr int64_t kBlock = 16;
  for (int64_t column = first; column < last; column += kBlock) {
    const int64_t width = std::min(kBlock, last - column);
    Accumulator<T> sums[kBlock] = {};
    int64_t k = 0;
    for (int64_t group = 0; group < lookups.groups; ++group) {
      Accumulator<T> partial[kBlock] = {};
      for (; k < lookups.ends[group]; ++k) {
        const T* row = lookups.rows[k] + column;
        for (int64_t c = 0; c < width; ++c) {
          partial[c] += kWeighted ? lookups.weights[k] * Widen(row[c]) : Widen(row[c]);
        }
      }
      for (int64_t c = 0; c < width; ++c) sums[c] += partial[c];
    }
    for (int64_t c = 0; c < width; ++c) Narrow(sums[c] / divisor, out + column + c);
  }
}

template <typename T>
void SumPortable(const GroupedRows<T>& lookups, int64_t dim, Accumulator<T> divisor, T* out) {
  if (lookups.groups == 0 || divisor == 0) {
    std::fill_n(out, dim, T{});
  } else if (lookups.weights) {
    SumScalar<T, true>(lookups, 0, dim, divisor, out);
  } else {
    SumScalar<T, false>(lookups, 0, dim, divisor, out);
  }
}

}  // namespace

#ifdef TFREC_X86

namespace avx2 {
template <typename T, bool kWeighted>
void SumRest(const GroupedRows<T>& lookups, int64_t column, int64_t dim, float divisor, T* out) {
  SumScalar<T, kWeighted>(lookups, column, dim, divisor, out);
}
#define TFREC_TARGET TFREC_AVX2
#include "custom_ops/pim/grouped_reducer_simd.inc"
#undef TFREC_TARGET
}  // namespace avx2

namespace avx512 {
// Eight columns fill a register of AVX2.
template <typename T, bool kWeighted>
TFREC_AVX512 void SumRest(const GroupedRows<T>& lookups, int64_t column, int64_t dim, float divisor,
                          T* out) {
  avx2::SumColumns<T, kWeighted>(lookups, column, dim, divisor, out);
}
#define TFREC_TARGET TFREC_AVX512
#include "custom_ops/pim/grouped_reducer_simd.inc"
#undef TFREC_TARGET
}  // namespace avx512

#endif  // TFREC_X86

template <typename T>
GroupedReducer<T> SelectGroupedReducer(Isa isa) {
#ifdef TFREC_X86
  if constexpr (!std::is_same_v<T, double>) {
    if (isa == Isa::kAvx512) return avx512::SumGroups<T>;
    if (isa == Isa::kAvx2) return avx2::SumGroups<T>;
  }
#endif
  return SumPortable<T>;
}

template GroupedReducer<float> SelectGroupedReducer<float>(Isa);
template GroupedReducer<double> SelectGroupedReducer<double>(Isa);
template GroupedReducer<Half> SelectGroupedReducer<Half>(Isa);
template GroupedReducer<BFloat16> SelectGroupedReducer<BFloat16>(Isa);

}  // namespace tfrec
