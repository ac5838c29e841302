#include "custom_ops/neighbourhood/points.h"

#include <algorithm>
#include <cmath>
#include <utility>

namespace tfrec {
namespace {

// A component of 1 in 16 bits. The square of a row's length stays below 2^31.
constexpr double kOne = 32767;

// What rounding makes of the similarity of opposite rows is less.
constexpr float kLeastThreshold = 1e-12f;

// Sums in double, so many that every compiler may keep them in registers.
constexpr int64_t kSums = 8;

double Dot(const float* a, const float* b, int64_t dim) {
  double sums[kSums] = {};
  int64_t c = 0;
  for (; c + kSums <= dim; c += kSums) {
    for (int64_t s = 0; s < kSums; ++s) {
      sums[s] += static_cast<double>(a[c + s]) * static_cast<double>(b[c + s]);
    }
  }
  for (; c < dim; ++c) sums[0] += static_cast<double>(a[c]) * static_cast<double>(b[c]);
  return ((sums[0] + sums[1]) + (sums[2] + sums[3])) + ((sums[4] + sums[5]) + (sums[6] + sums[7]));
}

// Any processor: registers are arrays, which compilers turn into what there is.
#define TFREC_TARGET
namespace scan_portable {
constexpr int64_t kWidth = 8;
constexpr int64_t kQueries = 2;
struct Register {
  int32_t lanes[kWidth];
};
inline Register Zero() { return Register{}; }
inline Register Load(const int16_t* p) {
  Register r;
  __builtin_memcpy(&r, p, sizeof(r));
  return r;
}
inline Register Broadcast(const int16_t* p) {
  Register r;
  for (int64_t k = 0; k < kWidth; ++k) __builtin_memcpy(&r.lanes[k], p, sizeof(int32_t));
  return r;
}
// Adds the products of the two halves of each lane.
inline Register MultiplyAdd(Register a, Register b, Register sum) {
  int16_t x[2 * kWidth], y[2 * kWidth];
  __builtin_memcpy(x, &a, sizeof(a));
  __builtin_memcpy(y, &b, sizeof(b));
  for (int64_t k = 0; k < kWidth; ++k) {
    sum.lanes[k] += int32_t{x[2 * k]} * y[2 * k] + int32_t{x[2 * k + 1]} * y[2 * k + 1];
  }
  return sum;
}
inline uint32_t Above(Register a, int32_t limit) {
  uint32_t mask = 0;
  for (int64_t k = 0; k < kWidth; ++k) mask |= uint32_t{a.lanes[k] > limit} << k;
  return mask;
}
#include "custom_ops/neighbourhood/points_simd.inc"
}  // namespace scan_portable
#undef TFREC_TARGET

#ifdef TFREC_X86

#define TFREC_TARGET TFREC_AVX2
namespace scan_avx2 {
constexpr int64_t kWidth = 8;
constexpr int64_t kQueries = 3;
using Register = __m256i;
TFREC_TARGET inline Register Zero() { return _mm256_setzero_si256(); }
TFREC_TARGET inline Register Load(const int16_t* p) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
}
TFREC_TARGET inline Register Broadcast(const int16_t* p) {
  int32_t pair;
  __builtin_memcpy(&pair, p, sizeof(pair));
  return _mm256_set1_epi32(pair);
}
TFREC_TARGET inline Register MultiplyAdd(Register a, Register b, Register sum) {
  return _mm256_add_epi32(sum, _mm256_madd_epi16(a, b));
}
TFREC_TARGET inline uint32_t Above(Register a, int32_t limit) {
  const __m256i above = _mm256_cmpgt_epi32(a, _mm256_set1_epi32(limit));
  return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_castsi256_ps(above)));
}
#include "custom_ops/neighbourhood/points_simd.inc"
}  // namespace scan_avx2
#undef TFREC_TARGET

#define TFREC_TARGET __attribute__((target("avx512f,avx512bw")))
namespace scan_avx512 {
constexpr int64_t kWidth = 16;
constexpr int64_t kQueries = 6;
using Register = __m512i;
TFREC_TARGET inline Register Zero() { return _mm512_setzero_si512(); }
TFREC_TARGET inline Register Load(const int16_t* p) { return _mm512_loadu_si512(p); }
TFREC_TARGET inline Register Broadcast(const int16_t* p) {
  int32_t pair;
  __builtin_memcpy(&pair, p, sizeof(pair));
  return _mm512_set1_epi32(pair);
}
TFREC_TARGET inline Register MultiplyAdd(Register a, Register b, Register sum) {
  return _mm512_add_epi32(sum, _mm512_madd_epi16(a, b));
}
TFREC_TARGET inline uint32_t Above(Register a, int32_t limit) {
  return _mm512_cmpgt_epi32_mask(a, _mm512_set1_epi32(limit));
}
#include "custom_ops/neighbourhood/points_simd.inc"
}  // namespace scan_avx512
#undef TFREC_TARGET

#endif  // TFREC_X86

}  // namespace

Scan SelectScan(Isa isa) {
#ifdef TFREC_X86
  // Of the processors with AVX-512, only the first has no instructions for 16-bit integers.
  if (isa == Isa::kAvx512 && __builtin_cpu_supports("avx512bw")) {
    return {scan_avx512::kQueries, scan_avx512::Run};
  }
  if (isa != Isa::kPortable) return {scan_avx2::kQueries, scan_avx2::Run};
#endif
  return {scan_portable::kQueries, scan_portable::Run};
}

Points::Points(const float* rows, int64_t count, int64_t dim, float threshold, Isa isa,
               const Parallel& parallel)
    : rows_(rows),
      count_(count),
      dim_(dim),
      pairs_((dim + 1) / 2),
      threshold_(std::max(threshold, kLeastThreshold)),
      isa_(isa),
      scan_(SelectScan(isa)),
      inverse_norms_(count),
      packed_(Tiles() * kTile * pairs_ * 2) {
  // Each component is rounded by at most a half. By Cauchy and Schwarz, the product of two rounded
  // rows is then off by at most their lengths times sqrt(dim) / 2, twice, and dim / 4.
  const double error = kOne * std::sqrt(static_cast<double>(dim)) + 0.25 * dim;
  const double cosine = 2.0 * threshold - 1.0 - 1e-6;  // rounding a similarity to float is less
  least_ = static_cast<int32_t>(
      std::max(std::floor(kOne * kOne * cosine - error), static_cast<double>(INT32_MIN) + 1));
  parallel.Split(Tiles(), parallel.Blocks(Tiles(), 64), [&](int64_t, int64_t begin, int64_t end) {
    for (int64_t point = begin * kTile; point < std::min(end * kTile, count_); ++point) {
      const float* const row = rows_ + point * dim_;
      inverse_norms_[point] = 1.0 / std::sqrt(Dot(row, row, dim_));
      Pack(point, packed_.data() + (point / kTile * pairs_ * kTile + point % kTile) * 2, kTile);
    }
  });
}

void Points::Pack(int64_t point, int16_t* out, int64_t stride) const {
  const float* const row = rows_ + point * dim_;
  const double factor = kOne * inverse_norms_[point];
  for (int64_t c = 0; c < dim_; ++c) {
    const double value = std::clamp(row[c] * factor, -kOne, kOne);
    out[c / 2 * stride * 2 + c % 2] = static_cast<int16_t>(std::lrint(value));
  }
}

float Points::Similarity(int64_t a, int64_t b) const {
  const double dot = Dot(rows_ + a * dim_, rows_ + b * dim_, dim_);
  return static_cast<float>(0.5 + 0.5 * (dot * (inverse_norms_[a] * inverse_norms_[b])));
}

Points::Queries Points::MakeQueries(std::vector<int64_t> points) const {
  Queries queries{std::move(points), {}};
  const int64_t total = queries.points.size();
  const int64_t groups = (total + scan_.queries - 1) / scan_.queries;
  const int64_t group_size = scan_.queries * pairs_ * 2;
  queries.groups.resize(groups * group_size);
  for (int64_t q = 0; q < total; ++q) {
    Pack(queries.points[q],
         queries.groups.data() + q / scan_.queries * group_size + q % scan_.queries * 2,
         scan_.queries);
  }
  return queries;
}

}  // namespace tfrec
