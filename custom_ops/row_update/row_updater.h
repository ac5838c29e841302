// One step of an optimizer on one row of a table, and on the rows of its slots.
#ifndef TFREC_CUSTOM_OPS_ROW_UPDATE_ROW_UPDATER_H_
#define TFREC_CUSTOM_OPS_ROW_UPDATE_ROW_UPDATER_H_

#include <cstdint>

#include "custom_ops/common/narrow_float.h"
#include "custom_ops/common/vector_isa.h"

namespace tfrec {

// The formulas are those of Keras, for the row that the gradient belongs to. All first subtract
// decay * w from w. With g the gradient:
enum class Rule {
  kSgd,             // w -= learning_rate * g
  kMomentum,        // m = momentum * m - learning_rate * g; w += m
  kNesterov,        // m as above; w += momentum * m - learning_rate * g
  kAdagrad,         // a += g^2; w -= learning_rate * g / sqrt(a + epsilon)
  kRowwiseAdagrad,  // a += mean(g^2), one a for the row; w as above
  kAdam,            // m += (1 - beta_1) * (g - m); v += (1 - beta_2) * (g^2 - v);
                    // w -= alpha * m / (sqrt(v) + epsilon)
  kAmsgrad,         // m, v as above; u = max(u, v); w with u instead of v
  kFtrl,            // McMahan et al., "Ad Click Prediction", KDD 2013, algorithm 1
};

inline constexpr int kMaxSlots = 3;
inline constexpr int kHyperparameters = 7;

// Values of a slot for each row of the table.
enum class SlotShape { kRow, kScalar };
struct RuleInfo {
  const char* name;
  Rule rule;
  int slots;
  SlotShape slot_shape;
};
inline constexpr RuleInfo kRules[] = {
    {"sgd", Rule::kSgd, 0, SlotShape::kRow},
    {"momentum", Rule::kMomentum, 1, SlotShape::kRow},
    {"nesterov", Rule::kNesterov, 1, SlotShape::kRow},
    {"adagrad", Rule::kAdagrad, 1, SlotShape::kRow},
    {"rowwise_adagrad", Rule::kRowwiseAdagrad, 1, SlotShape::kScalar},
    {"adam", Rule::kAdam, 2, SlotShape::kRow},
    {"amsgrad", Rule::kAmsgrad, 3, SlotShape::kRow},
    {"ftrl", Rule::kFtrl, 2, SlotShape::kRow},
};

// What a rule needs besides the rows, by the names that the rule gives them.
template <typename Real>
struct Hyperparameters {
  Real learning_rate;
  Real decay;
  union {
    struct {
      Real momentum;
    };
    struct {
      Real epsilon, one_minus_beta_1, one_minus_beta_2, alpha;
    };
    struct {
      Real learning_rate_power, l1, l2, l2_shrinkage;
    };
    Real rule[kHyperparameters - 2];
  };
};

// How a row narrower than float takes its new values.
struct Rounding {
  bool at_random = false;
  uint64_t seed = 0;
};

// `row` and the slots are those of row number `id`. Slots are as wide as sums are.
template <typename T>
using RowUpdater = void (*)(const T* gradient, int64_t dim,
                            const Hyperparameters<Accumulator<T>>& hyper, Rounding rounding,
                            int64_t id, T* row, Accumulator<T>* const* slots);

// T is float, double, Half or BFloat16.
template <typename T>
RowUpdater<T> SelectRowUpdater(Rule rule, Isa isa);

}  // namespace tfrec

#endif  // TFREC_CUSTOM_OPS_ROW_UPDATE_ROW_UPDATER_H_
