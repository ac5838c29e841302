// Storage types narrower than float, and the types in which each table type is summed and pooled.
#ifndef TFREC_CUSTOM_OPS_COMMON_NARROW_FLOAT_H_
#define TFREC_CUSTOM_OPS_COMMON_NARROW_FLOAT_H_

#include <cstdint>
#include <cstring>

namespace tfrec {

// IEEE 754 binary16 and bfloat16 as they lie in memory. They are storage only: every sum is taken
// in float, so the types have no arithmetic of their own.
struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

template <typename T>
struct AccumulatorOf {
  using Type = float;
};
template <>
struct AccumulatorOf<double> {
  using Type = double;
};
template <typename T>
using Accumulator = typename AccumulatorOf<T>::Type;

// What a sum of rows is returned in: the type of the table, except that rows of int8 have a scale.
template <typename T>
struct PooledOf {
  using Type = T;
};
template <>
struct PooledOf<int8_t> {
  using Type = float;
};
template <typename T>
using Pooled = typename PooledOf<T>::Type;

namespace internal {
inline uint32_t FloatBits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}
inline float BitsFloat(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}
}  // namespace internal

inline float Widen(int8_t value) { return value; }
inline float Widen(float value) { return value; }
inline double Widen(double value) { return value; }
inline float Widen(BFloat16 value) {
  return internal::BitsFloat(static_cast<uint32_t>(value.bits) << 16);
}
inline float Widen(Half value) {
  const uint32_t sign = static_cast<uint32_t>(value.bits & 0x8000u) << 16;
  const uint32_t magnitude = value.bits & 0x7fffu;
  if (magnitude >= 0x7c00u) {  // infinity and NaN
    return internal::BitsFloat(sign | 0x7f800000u | ((magnitude & 0x3ffu) << 13));
  }
  if (magnitude < 0x0400u) {  // zero and subnormals: magnitude * 2^-24 is exact in float
    const float value_abs = static_cast<float>(magnitude) * 5.9604644775390625e-8f;
    return internal::BitsFloat(sign | internal::FloatBits(value_abs));
  }
  return internal::BitsFloat(sign | ((magnitude << 13) + 0x38000000u));
}

// Narrow() rounds to nearest, ties to even, as the hardware conversions do.
inline void Narrow(float value, float* out) { *out = value; }
inline void Narrow(double value, double* out) { *out = value; }
inline void Narrow(float value, BFloat16* out) {
  const uint32_t bits = internal::FloatBits(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) {  // NaN: rounding could turn it into infinity
    out->bits = static_cast<uint16_t>((bits >> 16) | 0x0040u);
    return;
  }
  out->bits = static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}
inline void Narrow(float value, Half* out) {
  const uint32_t bits = internal::FloatBits(value);
  const uint16_t sign = static_cast<uint16_t>((bits >> 16) & 0x8000u);
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude >= 0x47800000u) {                 // 65536 and above, infinity, NaN
    const bool is_nan = magnitude > 0x7f800000u;  // made quiet, and keeps its payload
    out->bits =
        sign | static_cast<uint16_t>(is_nan ? 0x7e00u | ((magnitude >> 13) & 0x3ffu) : 0x7c00u);
    return;
  }
  if (magnitude < 0x38800000u) {  // below the smallest normal, 2^-14: let the FPU round at 2^-24
    const float shifted = internal::BitsFloat(magnitude) + 0.5f;
    out->bits = static_cast<uint16_t>(sign | (internal::FloatBits(shifted) - 0x3f000000u));
    return;
  }
  const uint32_t rounded = magnitude + 0x0fffu + ((magnitude >> 13) & 1u);
  out->bits = static_cast<uint16_t>(sign | ((rounded - 0x38000000u) >> 13));
}

// Rounds to one of the two neighbours of `value`, to the nearer one more often, so that the mean
// over all values of `random` is `value`: updates smaller than half a unit of T are not lost.
inline void NarrowAtRandom(float value, uint32_t random, BFloat16* out) {
  const uint32_t bits = internal::FloatBits(value);
  if ((bits & 0x7fffffffu) >= 0x7f7f0000u) return Narrow(value, out);  // no finite neighbour above
  out->bits = static_cast<uint16_t>((bits + (random & 0xffffu)) >> 16);
}
inline void NarrowAtRandom(float value, uint32_t random, Half* out) {
  const uint32_t bits = internal::FloatBits(value);
  const uint16_t sign = static_cast<uint16_t>((bits >> 16) & 0x8000u);
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude >= 0x477fe000u) return Narrow(value, out);  // 65504, the largest half, and above
  if (magnitude >= 0x38800000u) {
    const uint32_t rounded = (magnitude + (random & 0x1fffu)) >> 13;
    out->bits = static_cast<uint16_t>(sign | (rounded - 0x1c000u));
    return;
  }
  // Below the smallest normal, 2^-14, neighbours are 2^-24 apart.
  const float units = internal::BitsFloat(magnitude) * 16777216.0f;
  const uint32_t whole = static_cast<uint32_t>(units);
  const bool up = static_cast<float>(random >> 8) * 5.9604644775390625e-8f < units - whole;
  out->bits = static_cast<uint16_t>(sign | (whole + up));
}
inline void NarrowAtRandom(float value, uint32_t, float* out) { *out = value; }
inline void NarrowAtRandom(double value, uint32_t, double* out) { *out = value; }

}  // namespace tfrec

#endif  // TFREC_CUSTOM_OPS_COMMON_NARROW_FLOAT_H_
