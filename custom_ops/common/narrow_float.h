// 16-bit floating point storage types, and the type in which each table type is summed.
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

}  // namespace tfrec

#endif  // TFREC_CUSTOM_OPS_COMMON_NARROW_FLOAT_H_
