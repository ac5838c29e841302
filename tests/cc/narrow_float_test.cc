#include "custom_ops/common/narrow_float.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <vector>

#include "tests/cc/check.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace tfrec {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

template <typename T>
struct Format;
template <>
struct Format<Half> {
  static constexpr int kFractionBits = 10;
  static constexpr int kBias = 15;
  static constexpr int kInfinityBits = 0x7c00;
};
template <>
struct Format<BFloat16> {
  static constexpr int kFractionBits = 7;
  static constexpr int kBias = 127;
  static constexpr int kInfinityBits = 0x7f80;
};

template <typename T>
T FromBits(int bits) {
  return T{static_cast<uint16_t>(bits)};
}

template <typename T>
bool IsNan(T value) {
  return (value.bits & 0x7fff) > Format<T>::kInfinityBits;
}

template <typename T>
T Narrowed(float value) {
  T out;
  Narrow(value, &out);
  return out;
}

// The value of a pattern without its sign bit. Infinity gets the value that the next finite number
// would have, which is where rounding to it begins.
template <typename T>
double Magnitude(int bits) {
  const int fraction = bits & ((1 << Format<T>::kFractionBits) - 1);
  const int exponent = bits >> Format<T>::kFractionBits;
  const int hidden = exponent == 0 ? 0 : 1 << Format<T>::kFractionBits;
  return std::ldexp(fraction + hidden,
                    std::max(exponent, 1) - Format<T>::kBias - Format<T>::kFractionBits);
}

template <typename T>
std::vector<double> Magnitudes() {
  std::vector<double> magnitudes;
  for (int bits = 0; bits <= Format<T>::kInfinityBits; ++bits) {
    magnitudes.push_back(Magnitude<T>(bits));
  }
  return magnitudes;
}

// The pattern nearest to a value that is not NaN, the even one of two that are as near.
template <typename T>
int NearestBits(const std::vector<double>& magnitudes, float value) {
  const int sign = std::signbit(value) ? 0x8000 : 0;
  const double magnitude = std::abs(static_cast<double>(value));
  const auto above = std::upper_bound(magnitudes.begin(), magnitudes.end(), magnitude);
  if (above == magnitudes.end()) return sign | Format<T>::kInfinityBits;
  const int low = static_cast<int>(above - magnitudes.begin()) - 1;
  const double past_low = magnitude - magnitudes[low];
  const double to_high = *above - magnitude;
  const bool up = past_low > to_high || (past_low == to_high && low % 2 == 1);
  return sign | (up ? low + 1 : low);
}

template <typename T>
void TestWiden() {
  for (int bits = 0; bits <= 0xffff; ++bits) {
    const T value = FromBits<T>(bits);
    const float widened = Widen(value);
    CHECK_EQ(std::signbit(widened), bits > 0x7fff, bits);
    if (IsNan(value)) {
      CHECK(std::isnan(widened), bits);
      CHECK(IsNan(Narrowed<T>(widened)), bits);
      continue;
    }
    const int unsigned_bits = bits & 0x7fff;
    const double magnitude =
        unsigned_bits == Format<T>::kInfinityBits ? kInfinity : Magnitude<T>(unsigned_bits);
    CHECK_EQ(std::abs(widened), magnitude, bits);
    CHECK_EQ(Narrowed<T>(widened).bits, bits);
  }
}

template <typename T>
void CheckNarrow(const std::vector<double>& magnitudes, float value) {
  for (const float signed_value : {value, -value}) {
    const T narrowed = Narrowed<T>(signed_value);
    if (std::isnan(value)) {
      CHECK(IsNan(narrowed), internal::FloatBits(signed_value), narrowed.bits);
    } else {
      CHECK_EQ(narrowed.bits, NearestBits<T>(magnitudes, signed_value), signed_value);
    }
  }
}

// Random bits seldom fall in the range of a narrow format; these do, and a little outside of it.
template <typename T>
float RandomInRange(std::mt19937_64* rng) {
  std::uniform_real_distribution<float> mantissa(1, 2);
  std::uniform_int_distribution<int> exponent(-Format<T>::kBias - Format<T>::kFractionBits - 2,
                                              Format<T>::kBias + 1);
  return std::ldexp(mantissa(*rng), exponent(*rng));
}

template <typename T>
void TestNarrow() {
  const std::vector<double> magnitudes = Magnitudes<T>();
  using Limits = std::numeric_limits<float>;
  for (const float value : {0.0f, Limits::denorm_min(), Limits::min(), Limits::max(), kInfinity}) {
    CheckNarrow<T>(magnitudes, value);
  }
  // NaNs whose payload is in the bits that are cut off, in those that stay, quiet and signalling.
  for (const uint32_t nan : {0x7f800001u, 0x7fbfffffu, 0x7fc00000u, 0x7fffffffu}) {
    CheckNarrow<T>(magnitudes, internal::BitsFloat(nan));
  }
  // Every tie, among the subnormals and at the step to infinity too, and its two neighbours.
  for (size_t low = 0; low + 1 < magnitudes.size(); ++low) {
    const float tie = static_cast<float>((magnitudes[low] + magnitudes[low + 1]) / 2);
    for (const float value : {tie, std::nextafter(tie, 0.0f), std::nextafter(tie, kInfinity)}) {
      CheckNarrow<T>(magnitudes, value);
    }
  }
  std::mt19937_64 rng(1);
  for (int i = 0; i < 300000; ++i) {
    CheckNarrow<T>(magnitudes, internal::BitsFloat(static_cast<uint32_t>(rng())));
    CheckNarrow<T>(magnitudes, RandomInRange<T>(&rng));
  }
}

void TestFloatsPassThrough() {
  for (const double value : {0.0, 1.1, -3e30}) {
    double wide;
    Narrow(Widen(value), &wide);
    CHECK_EQ(wide, value);
    float single;
    Narrow(Widen(static_cast<float>(value)), &single);
    CHECK_EQ(single, static_cast<float>(value));
    NarrowAtRandom(-value, 0xffffffff, &wide);
    CHECK_EQ(wide, -value);
    NarrowAtRandom(-static_cast<float>(value), 0xffffffff, &single);
    CHECK_EQ(single, -static_cast<float>(value));
  }
}

template <typename T>
T NarrowedAtRandom(float value, uint32_t random) {
  T out;
  NarrowAtRandom(value, random, &out);
  return out;
}

// Over random words of which both halves take every value once, a value is rounded away from zero
// as often as it is near to the neighbour there.
template <typename T>
void CheckNarrowIsUnbiased(const std::vector<double>& magnitudes, float value) {
  constexpr uint32_t kDraws = 0x10000;
  const int sign = std::signbit(value) ? 0x8000 : 0;
  const double magnitude = std::abs(static_cast<double>(value));
  const auto above = std::upper_bound(magnitudes.begin(), magnitudes.end(), magnitude);
  const int low = static_cast<int>(above - magnitudes.begin()) - 1;
  const double part = (magnitude - magnitudes[low]) / (magnitudes[low + 1] - magnitudes[low]);
  uint32_t ups = 0;
  for (uint32_t draw = 0; draw < kDraws; ++draw) {
    const int bits = NarrowedAtRandom<T>(value, (kDraws - 1 - draw) << 16 | draw).bits;
    CHECK(bits == (sign | low) || bits == (sign | (low + 1)), value, draw, bits);
    ups += bits != (sign | low);
  }
  CHECK_NEAR(ups, part * kDraws, part == 0 ? 0 : 1, value);
}

template <typename T>
void TestNarrowAtRandom() {
  const std::vector<double> magnitudes = Magnitudes<T>();
  const int infinity = Format<T>::kInfinityBits;
  const uint32_t words[] = {0, 1, 0xffff, 0x10000, 0x12345678, 0x7fffffff, 0xffff0000, 0xffffffff};
  for (const uint32_t random : words) {
    // What a format can hold stays what it is.
    for (int bits = 0; bits <= 0xffff; ++bits) {
      const T value = FromBits<T>(bits);
      const T narrowed = NarrowedAtRandom<T>(Widen(value), random);
      if (IsNan(value)) {
        CHECK(IsNan(narrowed), bits, random);
      } else {
        CHECK_EQ(narrowed.bits, bits, random);
      }
    }
    // Beyond its largest number there is no second neighbour to take.
    const double largest = magnitudes[infinity - 1];
    const double unit = largest - magnitudes[infinity - 2];
    for (const double beyond : {0.01, 0.49, 0.5, 0.51, 0.99, 1.0, 1.5, 100.0}) {
      for (const double sign : {-1.0, 1.0}) {
        const float value = static_cast<float>(sign * (largest + beyond * unit));
        CHECK_EQ(NarrowedAtRandom<T>(value, random).bits, Narrowed<T>(value).bits, value, random);
      }
    }
    for (const float value : {kInfinity, std::numeric_limits<float>::max()}) {
      CHECK_EQ(NarrowedAtRandom<T>(value, random).bits, infinity, random);
      CHECK_EQ(NarrowedAtRandom<T>(-value, random).bits, infinity | 0x8000, random);
    }
    for (const uint32_t nan : {0x7f800001u, 0x7fbfffffu, 0x7fc00000u, 0xffffffffu}) {
      CHECK(IsNan(NarrowedAtRandom<T>(internal::BitsFloat(nan), random)), nan, random);
    }
  }
  // Around the smallest subnormal, the smallest normal, one, and the largest number.
  std::mt19937_64 rng(3);
  std::uniform_real_distribution<double> uniform(0, 1);
  const int one = Format<T>::kBias << Format<T>::kFractionBits;
  const int smallest_normal = 1 << Format<T>::kFractionBits;
  for (const int low : {0, 1, 37, smallest_normal - 1, smallest_normal, smallest_normal + 5,
                        one - 1, one, infinity - 2}) {
    for (const double part : {0.0, 0.25, 0.5, 0.999, uniform(rng)}) {
      const double value = magnitudes[low] + part * (magnitudes[low + 1] - magnitudes[low]);
      CheckNarrowIsUnbiased<T>(magnitudes, static_cast<float>(value));
      CheckNarrowIsUnbiased<T>(magnitudes, static_cast<float>(-value));
    }
  }
  for (int i = 0; i < 300000; ++i) {
    const float value = RandomInRange<T>(&rng);
    const T narrowed = NarrowedAtRandom<T>(value, static_cast<uint32_t>(rng()));
    // Nearer than the next number but one, on either side.
    const double up = Magnitude<T>((narrowed.bits & 0x7fff) + 1);
    const double down = narrowed.bits == 0 ? -1 : Magnitude<T>(narrowed.bits - 1);
    CHECK(narrowed.bits == infinity || (down < value && value < up), value, narrowed.bits);
  }
}

#if defined(__x86_64__)
#define TFREC_F16C __attribute__((target("avx2,f16c")))

TFREC_F16C uint16_t HardwareNarrow(float value) {
  return _cvtss_sh(value, _MM_FROUND_TO_NEAREST_INT);
}
TFREC_F16C float HardwareWiden(Half value) { return _cvtsh_ss(value.bits); }

void CheckNarrowIsHardware(float value) {
  const Half hardware{HardwareNarrow(value)};
  const Half narrowed = Narrowed<Half>(value);
  CHECK_EQ(narrowed.bits, hardware.bits, value, internal::FloatBits(value));
}

void TestHalfIsHardware() {
  if (!__builtin_cpu_supports("avx2")) return;
  for (int bits = 0; bits <= 0xffff; ++bits) {
    const Half value = FromBits<Half>(bits);
    const float hardware = HardwareWiden(value);
    CHECK_EQ(std::isnan(Widen(value)), std::isnan(hardware), bits);
    if (!std::isnan(hardware)) {
      CHECK_EQ(internal::FloatBits(Widen(value)), internal::FloatBits(hardware), bits);
    }
  }
  std::mt19937_64 rng(2);
  for (int i = 0; i < 1000000; ++i) {
    CheckNarrowIsHardware(internal::BitsFloat(static_cast<uint32_t>(rng())));
    CheckNarrowIsHardware(RandomInRange<Half>(&rng));
  }
}
#else
void TestHalfIsHardware() {}
#endif

}  // namespace
}  // namespace tfrec

int main() {
  tfrec::TestWiden<tfrec::Half>();
  tfrec::TestWiden<tfrec::BFloat16>();
  tfrec::TestNarrow<tfrec::Half>();
  tfrec::TestNarrow<tfrec::BFloat16>();
  tfrec::TestNarrowAtRandom<tfrec::Half>();
  tfrec::TestNarrowAtRandom<tfrec::BFloat16>();
  tfrec::TestFloatsPassThrough();
  tfrec::TestHalfIsHardware();
  return 0;
}
