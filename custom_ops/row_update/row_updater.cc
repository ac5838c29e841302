#include "custom_ops/row_update/row_updater.h"

#include <algorithm>
#include <cmath>

namespace tfrec {
namespace {

// Partial sums of squares, so many that every instruction set adds in one order.
constexpr int64_t kSquares = 16;

// Random bits that depend on the seed, the row and the column, and on nothing else: which thread
// updates the row makes no difference.
struct Rounder {
  Rounder(const Rounding& rounding, int64_t id) : at_random(rounding.at_random) {
    if (!at_random) return;
    uint64_t bits = rounding.seed ^ (static_cast<uint64_t>(id) * 0x9e3779b97f4a7c15u);
    bits = (bits ^ (bits >> 30)) * 0xbf58476d1ce4e5b9u;  // the mixer of SplitMix64
    bits = (bits ^ (bits >> 27)) * 0x94d049bb133111ebu;
    row_bits = static_cast<uint32_t>(bits >> 32);
  }
  template <typename Real, typename T>
  void Round(Real value, int64_t column, T* out) const {
    uint32_t bits = row_bits + static_cast<uint32_t>(column) * 0x9e3779b9u;
    bits = (bits ^ (bits >> 16)) * 0x85ebca6bu;  // the mixer of MurmurHash3
    bits = (bits ^ (bits >> 13)) * 0xc2b2ae35u;
    NarrowAtRandom(value, bits ^ (bits >> 16), out);
  }

  bool at_random;
  uint32_t row_bits = 0;
};

template <typename T>
RowUpdater<T> SelectFtrl();

// One number at a time, which leaves no rest.
#define TFREC_TARGET
#define TFREC_SCALAR_REGISTER(REAL)                                                          \
  using Register = REAL;                                                                     \
  constexpr int64_t kWidth = 1;                                                              \
  inline Register Fill(Register value) { return value; }                                     \
  inline Register Sqrt(Register value) { return std::sqrt(value); }                          \
  inline Register Max(Register a, Register b) { return a > b ? a : b; }                      \
  template <typename T>                                                                      \
  inline Register Load(const T* p) {                                                         \
    return Widen(*p);                                                                        \
  }                                                                                          \
  template <typename T>                                                                      \
  inline void Store(Register value, T* p) {                                                  \
    Narrow(value, p);                                                                        \
  }                                                                                          \
  template <typename T, Rule kRule, int kSlots>                                              \
  inline void UpdateRest(const T*, int64_t, int64_t, const Hyperparameters<Accumulator<T>>&, \
                         const Rounder&, T*, Accumulator<T>* const*) {}

namespace scalar {
TFREC_SCALAR_REGISTER(float)
#include "custom_ops/row_update/row_updater_simd.inc"
}  // namespace scalar

namespace scalar_double {
TFREC_SCALAR_REGISTER(double)
#include "custom_ops/row_update/row_updater_simd.inc"
}  // namespace scalar_double
#undef TFREC_TARGET

// Alone in needing pow(), so it is written for numbers only.
template <typename T>
void UpdateFtrl(const T* gradient, int64_t dim, const Hyperparameters<Accumulator<T>>& h,
                Rounding rounding, int64_t id, T* row, Accumulator<T>* const* slots) {
  using Real = Accumulator<T>;
  const Rounder rounder(rounding, id);
  const auto power = [&](Real value) {
    return h.learning_rate_power == Real{-0.5} ? std::sqrt(value)
                                               : std::pow(value, -h.learning_rate_power);
  };
  Real* const accumulators = slots[0];
  Real* const linears = slots[1];
  for (int64_t c = 0; c < dim; ++c) {
    const Real g = Widen(gradient[c]);
    Real w = Widen(row[c]);
    w = w - w * h.decay;
    const Real old_power = power(accumulators[c]);
    accumulators[c] += g * g;
    const Real new_power = power(accumulators[c]);
    linears[c] += g + 2 * h.l2_shrinkage * w - (new_power - old_power) / h.learning_rate * w;
    const Real quadratic = new_power / h.learning_rate + 2 * h.l2;
    w = (std::clamp(linears[c], -h.l1, h.l1) - linears[c]) / quadratic;
    if (rounder.at_random) {
      rounder.Round(w, c, row + c);
    } else {
      Narrow(w, row + c);
    }
  }
}

template <typename T>
RowUpdater<T> SelectFtrl() {
  return UpdateFtrl<T>;
}

}  // namespace

#ifdef TFREC_X86

namespace avx2 {
template <typename T, Rule kRule, int kSlots>
void UpdateRest(const T* gradient, int64_t column, int64_t dim, const Hyperparameters<float>& hyper,
                const Rounder& rounder, T* row, float* const* slots) {
  scalar::UpdateColumns<T, kRule, kSlots>(gradient, column, dim, hyper, rounder, row, slots);
}
#define TFREC_TARGET TFREC_AVX2
#include "custom_ops/row_update/row_updater_simd.inc"
#undef TFREC_TARGET
}  // namespace avx2

namespace avx512 {
template <typename T, Rule kRule, int kSlots>
TFREC_AVX512 void UpdateRest(const T* gradient, int64_t column, int64_t dim,
                             const Hyperparameters<float>& hyper, const Rounder& rounder, T* row,
                             float* const* slots) {
  avx2::UpdateColumns<T, kRule, kSlots>(gradient, column, dim, hyper, rounder, row, slots);
}
#define TFREC_TARGET TFREC_AVX512
#include "custom_ops/row_update/row_updater_simd.inc"
#undef TFREC_TARGET
}  // namespace avx512

#endif  // TFREC_X86

template <typename T>
RowUpdater<T> SelectRowUpdater(Rule rule, Isa isa) {
#ifdef TFREC_X86
  if (isa == Isa::kAvx512) return avx512::Select<T>(rule);
  if (isa == Isa::kAvx2) return avx2::Select<T>(rule);
#endif
  return scalar::Select<T>(rule);
}

// Double is for tests and exact references, not for speed.
template <>
RowUpdater<double> SelectRowUpdater<double>(Rule rule, Isa) {
  return scalar_double::Select<double>(rule);
}

template RowUpdater<float> SelectRowUpdater<float>(Rule, Isa);
template RowUpdater<Half> SelectRowUpdater<Half>(Rule, Isa);
template RowUpdater<BFloat16> SelectRowUpdater<BFloat16>(Rule, Isa);

}  // namespace tfrec
