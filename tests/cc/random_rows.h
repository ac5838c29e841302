// What the tests of the cores share: random rows, and how far a sum of them may be off.
#ifndef TFREC_TESTS_CC_RANDOM_ROWS_H_
#define TFREC_TESTS_CC_RANDOM_ROWS_H_

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <random>
#include <type_traits>
#include <vector>

#include "custom_ops/common/bags.h"
#include "custom_ops/common/narrow_float.h"
#include "custom_ops/gather_reduce/row_reducer.h"

namespace tfrec {

using Rng = std::mt19937_64;

inline constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
inline constexpr double kInfinity = std::numeric_limits<double>::infinity();

inline constexpr Combiner kCombiners[] = {Combiner::kSum, Combiner::kMean, Combiner::kSqrtn};

inline std::vector<Isa> SupportedIsas() {
  std::vector<Isa> isas;
  for (const Isa isa : {Isa::kPortable, Isa::kAvx2, Isa::kAvx512}) {
    if (isa <= BestIsa()) isas.push_back(isa);
  }
  return isas;
}

// Relative error of rounding once to T.
template <typename T>
inline constexpr double kRoundoff = std::numeric_limits<T>::epsilon() / 2;
template <>
inline constexpr double kRoundoff<Half> = 0x1p-11;
template <>
inline constexpr double kRoundoff<BFloat16> = 0x1p-8;

// How far a sum of `count` terms may be from the exact one, where `magnitude` is the sum of their
// absolute values. Rounding errors go either way, hence the square root.
template <typename T>
double Tolerance(int64_t count, double magnitude) {
  constexpr double kSubnormalHalf = 0x1p-25;
  return (kRoundoff<Accumulator<T>> * (4 * std::sqrt(count) + 4) + kRoundoff<T>)*magnitude +
         (sizeof(T) == 2 ? kSubnormalHalf : 0);
}

template <typename T>
T Narrowed(double value) {
  T out;
  Narrow(static_cast<Accumulator<T>>(value), &out);
  return out;
}

inline double Uniform(Rng* rng, double low, double high) {
  return std::uniform_real_distribution<double>(low, high)(*rng);
}
inline int64_t Below(Rng* rng, int64_t count) {
  return std::uniform_int_distribution<int64_t>(0, count - 1)(*rng);
}

template <typename T>
std::vector<T> RandomValues(Rng* rng, int64_t count) {
  std::vector<T> values(count);
  for (T& value : values) {
    if constexpr (std::is_same_v<T, int8_t>) {
      value = static_cast<int8_t>(Below(rng, 256) - 128);
    } else {
      value = Narrowed<T>(Uniform(rng, -2, 2));
    }
  }
  return values;
}

// Any finite pattern: huge, tiny, subnormal, negative zero.
template <typename T>
std::vector<T> RandomPatterns(Rng* rng, int64_t count) {
  std::vector<T> values(count);
  for (T& value : values) {
    do {
      const uint64_t bits = (*rng)();
      std::memcpy(&value, &bits, sizeof value);
    } while (!std::isfinite(Widen(value)));
  }
  return values;
}

template <typename T>
bool SameBits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() &&
         (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0);
}

// Ends of ranges that together are [0, count), some of them empty.
inline std::vector<int64_t> RandomCuts(Rng* rng, int64_t count) {
  std::vector<int64_t> cuts = {0, count};
  for (int i = 0; i < 4; ++i) cuts.push_back(Below(rng, count + 1));
  std::sort(cuts.begin(), cuts.end());
  return cuts;
}

// An output no entry of which was written yet, or rightly could be.
template <typename T>
std::vector<T> Unwritten(int64_t count) {
  return std::vector<T>(count, Narrowed<T>(kNan));
}

}  // namespace tfrec

#endif  // TFREC_TESTS_CC_RANDOM_ROWS_H_
