// The instruction sets, and registers of floats in each of them.
//
// All of them compute in the same order and never fuse a multiplication with an addition, so code
// written once over `Register` returns the same bits in every one.
#ifndef TFREC_CUSTOM_OPS_COMMON_VECTOR_ISA_H_
#define TFREC_CUSTOM_OPS_COMMON_VECTOR_ISA_H_

#include <cstdint>

#include "custom_ops/common/narrow_float.h"

#if defined(__x86_64__)
#include <immintrin.h>
#define TFREC_X86 1
#define TFREC_AVX2 __attribute__((target("avx2,f16c")))
#define TFREC_AVX512 __attribute__((target("avx512f")))
#endif

namespace tfrec {

// Weakest first.
enum class Isa { kPortable, kAvx2, kAvx512 };

// The best one that this processor and operating system can run.
inline Isa BestIsa() {
#ifdef TFREC_X86
  if (__builtin_cpu_supports("avx512f")) return Isa::kAvx512;
  // Every processor with AVX2 also has F16C, for which clang 14 knows no name here.
  if (__builtin_cpu_supports("avx2")) return Isa::kAvx2;
#endif
  return Isa::kPortable;
}

#ifdef TFREC_X86

namespace avx2 {
using Register = __m256;
constexpr int64_t kWidth = 8;

TFREC_AVX2 inline Register Zero() { return _mm256_setzero_ps(); }
TFREC_AVX2 inline Register Fill(float value) { return _mm256_set1_ps(value); }
TFREC_AVX2 inline Register Add(Register a, Register b) { return _mm256_add_ps(a, b); }
TFREC_AVX2 inline Register Multiply(Register a, Register b) { return _mm256_mul_ps(a, b); }
TFREC_AVX2 inline Register Divide(Register a, Register b) { return _mm256_div_ps(a, b); }
TFREC_AVX2 inline Register Sqrt(Register a) { return _mm256_sqrt_ps(a); }
TFREC_AVX2 inline Register Max(Register a, Register b) { return _mm256_max_ps(a, b); }
TFREC_AVX2 inline Register Load(const float* p) { return _mm256_loadu_ps(p); }
TFREC_AVX2 inline Register Load(const Half* p) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
TFREC_AVX2 inline Register Load(const BFloat16* p) {
  const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}
TFREC_AVX2 inline Register Load(const int8_t* p) {
  const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes));
}
TFREC_AVX2 inline void Store(Register value, float* p) { _mm256_storeu_ps(p, value); }
TFREC_AVX2 inline void Store(Register value, Half* p) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                   _mm256_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
TFREC_AVX2 inline void Store(Register value, BFloat16* p) {
  float lanes[kWidth];
  _mm256_storeu_ps(lanes, value);
  for (int64_t c = 0; c < kWidth; ++c) Narrow(lanes[c], p + c);
}
}  // namespace avx2

namespace avx512 {
using Register = __m512;
constexpr int64_t kWidth = 16;

TFREC_AVX512 inline Register Zero() { return _mm512_setzero_ps(); }
TFREC_AVX512 inline Register Fill(float value) { return _mm512_set1_ps(value); }
TFREC_AVX512 inline Register Add(Register a, Register b) { return _mm512_add_ps(a, b); }
TFREC_AVX512 inline Register Multiply(Register a, Register b) { return _mm512_mul_ps(a, b); }
TFREC_AVX512 inline Register Divide(Register a, Register b) { return _mm512_div_ps(a, b); }
TFREC_AVX512 inline Register Sqrt(Register a) { return _mm512_sqrt_ps(a); }
TFREC_AVX512 inline Register Max(Register a, Register b) { return _mm512_max_ps(a, b); }
TFREC_AVX512 inline Register Load(const float* p) { return _mm512_loadu_ps(p); }
TFREC_AVX512 inline Register Load(const Half* p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
TFREC_AVX512 inline Register Load(const BFloat16* p) {
  const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}
TFREC_AVX512 inline Register Load(const int8_t* p) {
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes));
}
TFREC_AVX512 inline void Store(Register value, float* p) { _mm512_storeu_ps(p, value); }
TFREC_AVX512 inline void Store(Register value, Half* p) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                      _mm512_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
TFREC_AVX512 inline void Store(Register value, BFloat16* p) {
  float lanes[kWidth];
  _mm512_storeu_ps(lanes, value);
  for (int64_t c = 0; c < kWidth; ++c) Narrow(lanes[c], p + c);
}
}  // namespace avx512

#endif  // TFREC_X86

}  // namespace tfrec

#endif  // TFREC_CUSTOM_OPS_COMMON_VECTOR_ISA_H_
