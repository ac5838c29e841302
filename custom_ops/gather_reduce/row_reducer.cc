#include "custom_ops/gather_reduce/row_reducer.h"

#include <algorithm>

#if defined(__x86_64__)
#include <immintrin.h>
#define TFREC_X86 1
#endif

namespace tfrec {
namespace {

// Rows are random, so the hardware prefetcher is of no help. For rows of 256 bytes, distances from
// 8 to 32 measured the same on the machine of docs/embedding.md.
constexpr int64_t kPrefetchDistance = 16;
constexpr int64_t kCacheLine = 64;

// Columns [first, last) in blocks that a compiler keeps in registers of any width.
template <typename T, bool kWeighted>
void ReduceScalar(const T* const* rows, const Accumulator<T>* weights, int64_t count,
                  int64_t readable, int64_t first, int64_t last, Accumulator<T> divisor, T* out) {
  constexpr int64_t kBlock = 16;
  for (int64_t column = first; column < last; column += kBlock) {
    const int64_t width = std::min(kBlock, last - column);
    Accumulator<T> sums[kBlock] = {};
    for (int64_t k = 0; k < count; ++k) {
      if (k + kPrefetchDistance < readable) {
        __builtin_prefetch(rows[k + kPrefetchDistance] + column);
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
                    int64_t readable, int64_t dim, Accumulator<T> divisor, T* out) {
  if (count == 0 || divisor == 0) {
    std::fill_n(out, dim, T{});
  } else if (weights) {
    ReduceScalar<T, true>(rows, weights, count, readable, 0, dim, divisor, out);
  } else {
    ReduceScalar<T, false>(rows, weights, count, readable, 0, dim, divisor, out);
  }
}

#ifdef TFREC_X86

namespace avx2 {
#define TFREC_TARGET __attribute__((target("avx2,f16c")))
using Register = __m256;
constexpr int64_t kWidth = 8;

TFREC_TARGET inline Register Zero() { return _mm256_setzero_ps(); }
TFREC_TARGET inline Register Fill(float value) { return _mm256_set1_ps(value); }
TFREC_TARGET inline Register Add(Register a, Register b) { return _mm256_add_ps(a, b); }
TFREC_TARGET inline Register Multiply(Register a, Register b) { return _mm256_mul_ps(a, b); }
TFREC_TARGET inline Register Divide(Register a, Register b) { return _mm256_div_ps(a, b); }
TFREC_TARGET inline Register Load(const float* p) { return _mm256_loadu_ps(p); }
TFREC_TARGET inline Register Load(const Half* p) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
TFREC_TARGET inline Register Load(const BFloat16* p) {
  const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}
TFREC_TARGET inline void Store(Register value, float* p) { _mm256_storeu_ps(p, value); }
TFREC_TARGET inline void Store(Register value, Half* p) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                   _mm256_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
TFREC_TARGET inline void Store(Register value, BFloat16* p) {
  float lanes[kWidth];
  _mm256_storeu_ps(lanes, value);
  for (int64_t c = 0; c < kWidth; ++c) Narrow(lanes[c], p + c);
}

#include "custom_ops/gather_reduce/row_reducer_simd.inc"
#undef TFREC_TARGET
}  // namespace avx2

namespace avx512 {
#define TFREC_TARGET __attribute__((target("avx512f")))
using Register = __m512;
constexpr int64_t kWidth = 16;

TFREC_TARGET inline Register Zero() { return _mm512_setzero_ps(); }
TFREC_TARGET inline Register Fill(float value) { return _mm512_set1_ps(value); }
TFREC_TARGET inline Register Add(Register a, Register b) { return _mm512_add_ps(a, b); }
TFREC_TARGET inline Register Multiply(Register a, Register b) { return _mm512_mul_ps(a, b); }
TFREC_TARGET inline Register Divide(Register a, Register b) { return _mm512_div_ps(a, b); }
TFREC_TARGET inline Register Load(const float* p) { return _mm512_loadu_ps(p); }
TFREC_TARGET inline Register Load(const Half* p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
TFREC_TARGET inline Register Load(const BFloat16* p) {
  const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}
TFREC_TARGET inline void Store(Register value, float* p) { _mm512_storeu_ps(p, value); }
TFREC_TARGET inline void Store(Register value, Half* p) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                      _mm512_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
TFREC_TARGET inline void Store(Register value, BFloat16* p) {
  float lanes[kWidth];
  _mm512_storeu_ps(lanes, value);
  for (int64_t c = 0; c < kWidth; ++c) Narrow(lanes[c], p + c);
}

#include "custom_ops/gather_reduce/row_reducer_simd.inc"
#undef TFREC_TARGET
}  // namespace avx512

#endif  // TFREC_X86

}  // namespace

Isa BestIsa() {
#ifdef TFREC_X86
  if (__builtin_cpu_supports("avx512f")) return Isa::kAvx512;
  // Every processor with AVX2 also has F16C, for which clang 14 knows no name here.
  if (__builtin_cpu_supports("avx2")) return Isa::kAvx2;
#endif
  return Isa::kPortable;
}

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

template RowReducer<float> SelectRowReducer<float>(Isa);
template RowReducer<Half> SelectRowReducer<Half>(Isa);
template RowReducer<BFloat16> SelectRowReducer<BFloat16>(Isa);

}  // namespace tfrec
