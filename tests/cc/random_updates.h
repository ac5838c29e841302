// What the tests of row updates share: random hyperparameters and tables with slots.
#ifndef TFREC_TESTS_CC_RANDOM_UPDATES_H_
#define TFREC_TESTS_CC_RANDOM_UPDATES_H_

#include <cmath>
#include <cstdint>
#include <vector>

#include "custom_ops/row_update/row_update.h"
#include "custom_ops/row_update/row_updater.h"
#include "tests/cc/random_rows.h"

namespace tfrec {

inline int64_t SlotDim(const RuleInfo& info, int64_t dim) {
  return info.slot_shape == SlotShape::kScalar ? 1 : dim;
}

// Slots that are squares, or under a root, are positive; the others are not.
inline bool IsPositive(Rule rule, int slot) {
  switch (rule) {
    case Rule::kAdagrad:
    case Rule::kRowwiseAdagrad:
      return true;
    case Rule::kAdam:
    case Rule::kAmsgrad:
      return slot > 0;
    case Rule::kFtrl:
      return slot == 0;
    default:
      return false;
  }
}

inline std::vector<double> RandomSlot(Rng* rng, const RuleInfo& info, int slot, int64_t count) {
  std::vector<double> values = RandomValues<double>(rng, count);
  for (double& value : values) {
    if (IsPositive(info.rule, slot)) value = std::abs(value) + 0.01;
  }
  return values;
}

// Of a size at which each of them, and where it stands, makes a difference.
inline Hyperparameters<double> RandomHyperparameters(Rng* rng, Rule rule) {
  Hyperparameters<double> hyper{};
  hyper.learning_rate = Uniform(rng, 0.05, 0.5);
  hyper.decay = Below(rng, 2) == 0 ? 0 : Uniform(rng, 0.05, 0.3);
  if (rule == Rule::kMomentum || rule == Rule::kNesterov) {
    hyper.momentum = Uniform(rng, 0.5, 0.99);
  } else if (rule == Rule::kFtrl) {
    const double powers[] = {-0.5, -0.5, 0, -0.25, -0.7, -1};
    hyper.learning_rate_power = powers[Below(rng, 6)];
    hyper.l1 = Below(rng, 3) == 0 ? 0 : Uniform(rng, 0.05, 2);
    hyper.l2 = Uniform(rng, 0, 0.5);
    hyper.l2_shrinkage = Below(rng, 3) == 0 ? 0 : Uniform(rng, 0.05, 0.5);
  } else {
    hyper.epsilon = Uniform(rng, 0.05, 0.5);
    hyper.one_minus_beta_1 = Uniform(rng, 0.05, 0.4);
    hyper.one_minus_beta_2 = Uniform(rng, 0.05, 0.4);
    hyper.alpha = Uniform(rng, 0.05, 0.5);
  }
  return hyper;
}

template <typename Real, typename From>
Hyperparameters<Real> Converted(const Hyperparameters<From>& hyper) {
  Hyperparameters<Real> out{};
  out.learning_rate = static_cast<Real>(hyper.learning_rate);
  out.decay = static_cast<Real>(hyper.decay);
  for (int i = 0; i < kHyperparameters - 2; ++i) out.rule[i] = static_cast<Real>(hyper.rule[i]);
  return out;
}

// A table in training, with what its slots hold.
template <typename T>
struct TableData {
  using Real = Accumulator<T>;

  TableData(Rng* rng, const RuleInfo& info, int64_t row_count, int64_t width)
      : dim(width),
        slot_dim(SlotDim(info, width)),
        slot_count(info.slots),
        rows(RandomValues<T>(rng, row_count * width)) {
    for (int s = 0; s < slot_count; ++s) {
      const std::vector<double> slot = RandomSlot(rng, info, s, row_count * slot_dim);
      slots[s].assign(slot.begin(), slot.end());
    }
  }
  TrainedTable<T> View() {
    return {rows.data(),
            dim,
            slot_count,
            slot_dim,
            {slots[0].data(), slots[1].data(), slots[2].data()}};
  }
  bool IsSame(const TableData& other) const {
    return SameBits(rows, other.rows) && SameBits(slots[0], other.slots[0]) &&
           SameBits(slots[1], other.slots[1]) && SameBits(slots[2], other.slots[2]);
  }

  int64_t dim;
  int64_t slot_dim;
  int slot_count;
  std::vector<T> rows;
  std::vector<Real> slots[kMaxSlots];
};

}  // namespace tfrec

#endif  // TFREC_TESTS_CC_RANDOM_UPDATES_H_
