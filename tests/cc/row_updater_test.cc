#include "custom_ops/row_update/row_updater.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "custom_ops/common/narrow_float.h"
#include "tests/cc/check.h"
#include "tests/cc/random_rows.h"
#include "tests/cc/random_updates.h"

namespace tfrec {
namespace {

// Up to several registers of each instruction set at once, with every rest.
std::vector<int64_t> Dims() {
  std::vector<int64_t> dims = {64, 65, 100, 127, 144};
  for (int64_t dim = 1; dim <= 40; ++dim) dims.push_back(dim);
  return dims;
}

// One row, before or after a step, in any type.
struct Row {
  std::vector<double> gradient;
  std::vector<double> w;
  std::vector<double> slots[kMaxSlots];
};

Row RandomRow(Rng* rng, const RuleInfo& info, int64_t dim) {
  Row row{RandomValues<double>(rng, dim), RandomValues<double>(rng, dim), {}};
  for (int s = 0; s < info.slots; ++s) row.slots[s] = RandomSlot(rng, info, s, SlotDim(info, dim));
  return row;
}

// A row in the types that the cores take. Nothing is larger than it needs to be, so that the
// sanitizer sees any access past the end.
template <typename T>
struct TypedRow {
  using Real = Accumulator<T>;

  explicit TypedRow(const Row& row) {
    for (const double value : row.gradient) gradient.push_back(Narrowed<T>(value));
    for (const double value : row.w) w.push_back(Narrowed<T>(value));
    for (int s = 0; s < kMaxSlots; ++s) slots[s].assign(row.slots[s].begin(), row.slots[s].end());
  }
  Row Widened() const {
    Row row;
    for (const T value : gradient) row.gradient.push_back(Widen(value));
    for (const T value : w) row.w.push_back(Widen(value));
    for (int s = 0; s < kMaxSlots; ++s) row.slots[s].assign(slots[s].begin(), slots[s].end());
    return row;
  }
  TypedRow Updated(Rule rule, Isa isa, const Hyperparameters<double>& hyper, Rounding rounding = {},
                   int64_t id = 0) const {
    TypedRow after = *this;
    Real* const pointers[] = {after.slots[0].data(), after.slots[1].data(), after.slots[2].data()};
    SelectRowUpdater<T>(rule, isa)(after.gradient.data(), after.gradient.size(),
                                   Converted<Real>(hyper), rounding, id, after.w.data(), pointers);
    return after;
  }

  std::vector<T> gradient;
  std::vector<T> w;
  std::vector<Real> slots[kMaxSlots];
};

template <typename T>
bool SameRow(const TypedRow<T>& a, const TypedRow<T>& b) {
  return SameBits(a.gradient, b.gradient) && SameBits(a.w, b.w) &&
         SameBits(a.slots[0], b.slots[0]) && SameBits(a.slots[1], b.slots[1]) &&
         SameBits(a.slots[2], b.slots[2]);
}

// ---------------------------------------------------------------------------------- formulas

// A sum, and the sum of the absolute values of what was added, which bounds its error.
struct Sum {
  double value = 0;
  double magnitude = 0;
  void Add(double term) { Add(term, std::abs(term)); }
  void Add(double term, double magnitude_of_term) {
    value += term;
    magnitude += magnitude_of_term;
  }
};

struct Column {
  Sum w;
  Sum slots[kMaxSlots];
};

// `mean_square` is that of the gradient of the whole row.
Column NaiveStep(Rule rule, const Hyperparameters<double>& h, double g, double mean_square,
                 double old_w, const double* slots) {
  Column after;
  after.w.Add(old_w);
  after.w.Add(-h.decay * old_w);
  const double w = after.w.value;
  Sum& first = after.slots[0];
  Sum& second = after.slots[1];
  switch (rule) {
    case Rule::kSgd:
      after.w.Add(-h.learning_rate * g);
      break;
    case Rule::kMomentum:
    case Rule::kNesterov:
      first.Add(h.momentum * slots[0]);
      first.Add(-h.learning_rate * g);
      if (rule == Rule::kMomentum) {
        after.w.Add(first.value, first.magnitude);
      } else {
        after.w.Add(h.momentum * first.value, first.magnitude);
        after.w.Add(-h.learning_rate * g);
      }
      break;
    case Rule::kAdagrad:
    case Rule::kRowwiseAdagrad:
      first.Add(slots[0]);
      first.Add(rule == Rule::kAdagrad ? g * g : mean_square);
      after.w.Add(-h.learning_rate * g / std::sqrt(first.value + h.epsilon));
      break;
    case Rule::kAdam:
    case Rule::kAmsgrad: {
      first.Add((1 - h.one_minus_beta_1) * slots[0]);
      first.Add(h.one_minus_beta_1 * g);
      second.Add((1 - h.one_minus_beta_2) * slots[1]);
      second.Add(h.one_minus_beta_2 * g * g);
      if (rule == Rule::kAmsgrad) after.slots[2].Add(std::max(slots[2], second.value));
      const double v = rule == Rule::kAmsgrad ? after.slots[2].value : second.value;
      const double scale = h.alpha / (std::sqrt(v) + h.epsilon);
      after.w.Add(-scale * first.value, scale * first.magnitude);
      break;
    }
    case Rule::kFtrl: {
      const double p = -h.learning_rate_power;
      first.Add(slots[0]);
      first.Add(g * g);
      const double rate = std::pow(first.value, p) / h.learning_rate;
      const double old_rate = std::pow(slots[0], p) / h.learning_rate;
      second.Add(slots[1]);
      second.Add(g);
      second.Add(2 * h.l2_shrinkage * w);
      second.Add(-(rate - old_rate) * w, (rate + old_rate) * std::abs(w));
      const double z = second.value;
      after.w.value = std::abs(z) <= h.l1 ? 0 : -(z - std::copysign(h.l1, z)) / (rate + 2 * h.l2);
      after.w.magnitude = (second.magnitude + h.l1) / (rate + 2 * h.l2);
      break;
    }
  }
  return after;
}

// `real` and `stored` are the errors of rounding once to the type of slots and that of the row.
void CheckNearNaive(const RuleInfo& info, const Hyperparameters<double>& hyper, const Row& before,
                    const Row& after, double real, double stored) {
  const int64_t dim = before.w.size();
  double mean_square = 0;
  for (const double g : before.gradient) mean_square += g * g / dim;
  for (int64_t c = 0; c < dim; ++c) {
    double slots[kMaxSlots] = {};
    const int64_t slot_column = info.slot_shape == SlotShape::kScalar ? 0 : c;
    for (int s = 0; s < info.slots; ++s) slots[s] = before.slots[s][slot_column];
    const Column expected =
        NaiveStep(info.rule, hyper, before.gradient[c], mean_square, before.w[c], slots);
    CHECK_NEAR(after.w[c], expected.w.value,
               32 * real * expected.w.magnitude + stored * std::abs(expected.w.value), info.name, c,
               dim, hyper.decay);
    for (int s = 0; s < info.slots; ++s) {
      CHECK_NEAR(after.slots[s][slot_column], expected.slots[s].value,
                 32 * real * expected.slots[s].magnitude, info.name, s, c, dim, hyper.decay);
    }
  }
}

template <typename T>
void TestRulesFollowTheirFormulas() {
  Rng rng(1);
  for (const RuleInfo& info : kRules) {
    for (const int64_t dim : Dims()) {
      for (int i = 0; i < 4; ++i) {
        // As the core sees them, or rounding them would count as an error.
        const auto hyper =
            Converted<double>(Converted<Accumulator<T>>(RandomHyperparameters(&rng, info.rule)));
        const TypedRow<T> before(RandomRow(&rng, info, dim));
        const TypedRow<T> after = before.Updated(info.rule, Isa::kPortable, hyper);
        CheckNearNaive(info, hyper, before.Widened(), after.Widened(), kRoundoff<Accumulator<T>>,
                       kRoundoff<T>);
        CHECK(SameBits(after.gradient, before.gradient), info.name, dim);
        for (const Isa isa : SupportedIsas()) {
          CHECK(SameRow(before.Updated(info.rule, isa, hyper), after), info.name, dim,
                static_cast<int>(isa));
        }
      }
    }
  }
}

// Narrow rows are computed in float to the last bit, and so are their slots.
template <typename T>
void TestNarrowRowsFollowFloat() {
  Rng rng(2);
  for (const RuleInfo& info : kRules) {
    for (const int64_t dim : {1, 7, 24, 100}) {
      const Hyperparameters<double> hyper = RandomHyperparameters(&rng, info.rule);
      const TypedRow<T> before(RandomRow(&rng, info, dim));
      const auto expected =
          TypedRow<float>(before.Widened()).Updated(info.rule, Isa::kPortable, hyper);
      const TypedRow<T> after = before.Updated(info.rule, BestIsa(), hyper);
      for (int64_t c = 0; c < dim; ++c) {
        CHECK_EQ(Widen(after.w[c]), Widen(Narrowed<T>(expected.w[c])), info.name, c, dim);
      }
      for (int s = 0; s < kMaxSlots; ++s) {
        CHECK(SameBits(after.slots[s], expected.slots[s]), info.name, s, dim);
      }
    }
  }
}

void TestHyperparametersHaveTheirPlaces() {
  Hyperparameters<float> hyper{};
  for (int i = 0; i < kHyperparameters - 2; ++i) hyper.rule[i] = static_cast<float>(i);
  CHECK_EQ(hyper.momentum, 0);
  CHECK_EQ(hyper.epsilon, 0);
  CHECK_EQ(hyper.one_minus_beta_1, 1);
  CHECK_EQ(hyper.one_minus_beta_2, 2);
  CHECK_EQ(hyper.alpha, 3);
  CHECK_EQ(hyper.learning_rate_power, 0);
  CHECK_EQ(hyper.l1, 1);
  CHECK_EQ(hyper.l2, 2);
  CHECK_EQ(hyper.l2_shrinkage, 3);
}

// ----------------------------------------------------------------------------- random rounding

// The two neighbours of a value, the one nearer to zero first; equal where it is representable.
template <typename T>
struct Neighbours {
  explicit Neighbours(float value) : low(Narrowed<T>(value)), high(low) {
    if (std::abs(Widen(low)) > std::abs(value)) --low.bits;
    if (std::abs(Widen(high)) < std::abs(value)) ++high.bits;
  }
  double Unit() const { return std::abs(double{Widen(high)} - Widen(low)); }

  T low;
  T high;
};

template <typename T>
void TestRandomRoundingGivesNeighbours() {
  Rng rng(3);
  for (const RuleInfo& info : kRules) {
    int64_t count = 0;
    int64_t farther = 0;
    for (const int64_t dim : {1, 7, 24, 144}) {
      for (uint64_t seed = 0; seed < 20; ++seed) {
        const int64_t id = Below(&rng, 1000);
        const Rounding rounding{true, seed};
        const Hyperparameters<double> hyper = RandomHyperparameters(&rng, info.rule);
        const TypedRow<T> before(RandomRow(&rng, info, dim));
        const auto exact =
            TypedRow<float>(before.Widened()).Updated(info.rule, Isa::kPortable, hyper);
        const auto after = before.Updated(info.rule, Isa::kPortable, hyper, rounding, id);
        for (int64_t c = 0; c < dim; ++c) {
          const Neighbours<T> neighbours(exact.w[c]);
          const bool is_low = after.w[c].bits == neighbours.low.bits;
          const bool is_high = after.w[c].bits == neighbours.high.bits;
          CHECK(is_low || is_high, info.name, exact.w[c], Widen(after.w[c]), c);
          ++count;
          farther += after.w[c].bits != Narrowed<T>(exact.w[c]).bits;
        }
        for (int s = 0; s < kMaxSlots; ++s) {
          CHECK(SameBits(after.slots[s], exact.slots[s]), info.name, s, dim);
        }
        for (const Isa isa : SupportedIsas()) {
          CHECK(SameRow(before.Updated(info.rule, isa, hyper, rounding, id), after), info.name,
                static_cast<int>(isa), dim);
        }
      }
    }
    // A quarter of them, but for those of FTRL that are zero.
    CHECK(farther > count / 8, info.name, farther, count);
  }
}

// Rows of one value, so that columns can be told apart by their random bits only.
template <typename T>
TypedRow<T> ConstantRow(int64_t dim, double w) {
  Row row;
  row.gradient.assign(dim, 1);
  row.w.assign(dim, w);
  return TypedRow<T>(row);
}

// Subtracts `step`, which may be far less than a row or a gradient can hold.
template <typename T>
TypedRow<T> Minus(const TypedRow<T>& row, double step, Rounding rounding, int64_t id) {
  Hyperparameters<double> hyper{};
  hyper.learning_rate = step;
  return row.Updated(Rule::kSgd, BestIsa(), hyper, rounding, id);
}

template <typename T>
void TestRandomBitsHangOnSeedRowAndColumn() {
  constexpr int64_t kDim = 200;
  const TypedRow<T> before = ConstantRow<T>(kDim, 1);
  const auto differences = [](const TypedRow<T>& a, const TypedRow<T>& b) {
    int64_t count = 0;
    for (int64_t c = 0; c < kDim; ++c) count += a.w[c].bits != b.w[c].bits;
    return count;
  };
  const auto run = [&](uint64_t seed, int64_t id) {
    // To the middle between two neighbours.
    return Minus(before, kRoundoff<T> / 2, {true, seed}, id);
  };
  for (const uint64_t seed : {uint64_t{0}, uint64_t{7}, ~uint64_t{0}}) {
    for (const int64_t id : {int64_t{0}, int64_t{5}, int64_t{1} << 40}) {
      CHECK(SameRow(run(seed, id), run(seed, id)), seed, id);
      for (const uint64_t bit : {uint64_t{1}, uint64_t{1} << 33, uint64_t{1} << 63}) {
        CHECK(differences(run(seed, id), run(seed ^ bit, id)) > 50, seed, id, bit);
        CHECK(differences(run(seed, id), run(seed, id ^ static_cast<int64_t>(bit))) > 50, seed, id,
              bit);
      }
      TypedRow<T> shifted = run(seed, id);
      std::rotate(shifted.w.begin(), shifted.w.begin() + 1, shifted.w.end());
      CHECK(differences(run(seed, id), shifted) > 50, seed, id);
    }
  }
}

template <typename T>
void CheckUnbiased(double w, double step) {
  constexpr int64_t kDim = 8;
  constexpr int64_t kDraws = 4000;
  const TypedRow<T> before = ConstantRow<T>(kDim, w);
  const float exact = Minus(TypedRow<float>(before.Widened()), step, {}, 0).w[0];
  const Neighbours<T> neighbours(exact);
  CHECK(neighbours.Unit() > 0, w, step);
  // Five standard deviations, where they are largest.
  const double tolerance = 5 * 0.5 / std::sqrt(kDraws) * neighbours.Unit();
  double over_seeds[kDim] = {};
  double over_ids[kDim] = {};
  for (int64_t draw = 0; draw < kDraws; ++draw) {
    const uint64_t seed = draw;
    const auto of_seed = Minus(before, step, {true, seed}, 3);
    const auto of_id = Minus(before, step, {true, 3}, draw);
    for (int64_t c = 0; c < kDim; ++c) {
      over_seeds[c] += double{Widen(of_seed.w[c])} / kDraws;
      over_ids[c] += double{Widen(of_id.w[c])} / kDraws;
    }
  }
  for (int64_t c = 0; c < kDim; ++c) {
    CHECK_NEAR(over_seeds[c], exact, tolerance, w, c);
    CHECK_NEAR(over_ids[c], exact, tolerance, w, c);
  }
  double over_columns = 0;
  const TypedRow<T> wide = ConstantRow<T>(kDraws, w);
  for (const T value : Minus(wide, step, {true, 3}, 3).w) {
    over_columns += double{Widen(value)} / kDraws;
  }
  CHECK_NEAR(over_columns, exact, tolerance, w);
}

template <typename T>
void TestRandomRoundingIsUnbiased(double smallest_normal) {
  for (const double sign : {-1.0, 1.0}) {
    CheckUnbiased<T>(sign, sign * 1e-4);  // a step far smaller than a unit
    CheckUnbiased<T>(sign * 0.75, sign * 1.9371e-3);
    CheckUnbiased<T>(sign * 1000, sign * 0.0625);
    CheckUnbiased<T>(sign * 1.5 * smallest_normal, sign * 1e-4 * smallest_normal);
    CheckUnbiased<T>(sign * 0.9 * smallest_normal, sign * 1.03e-3 * smallest_normal);
    CheckUnbiased<T>(0, sign * 3e-4 * smallest_normal);
  }
}

template <typename T>
void TestFloatIsNotRoundedAtRandom() {
  Rng rng(4);
  for (const RuleInfo& info : kRules) {
    for (const int64_t dim : {1, 24, 100}) {
      const Hyperparameters<double> hyper = RandomHyperparameters(&rng, info.rule);
      const TypedRow<T> before(RandomRow(&rng, info, dim));
      for (const Isa isa : SupportedIsas()) {
        CHECK(SameRow(before.Updated(info.rule, isa, hyper, {true, 7}, 5),
                      before.Updated(info.rule, isa, hyper)),
              info.name, dim);
      }
    }
  }
}

// ------------------------------------------------------------------------------- any patterns

template <typename T>
bool SameBitsOrNan(const std::vector<T>& a, const std::vector<T>& b) {
  for (size_t i = 0; i < a.size(); ++i) {
    // Which NaN it is hangs on the order of operands, which is the compiler's choice.
    if (std::isnan(Widen(a[i])) ? !std::isnan(Widen(b[i]))
                                : std::memcmp(&a[i], &b[i], sizeof(T)) != 0) {
      return false;
    }
  }
  return true;
}

template <typename T>
std::vector<T> PatternsOfAllKinds(Rng* rng, int64_t count) {
  std::vector<T> values = RandomPatterns<T>(rng, count);
  for (T& value : values) {
    const double special[] = {kNan, kInfinity, -kInfinity, 0};
    if (Below(rng, 4) == 0) value = Narrowed<T>(special[Below(rng, 4)]);
  }
  return values;
}

template <typename T>
void TestIsasAgreeOnAnyPattern() {
  Rng rng(5);
  for (const RuleInfo& info : kRules) {
    for (const int64_t dim : {5, 16, 24, 100}) {
      for (int i = 0; i < 20; ++i) {
        const Hyperparameters<double> hyper = RandomHyperparameters(&rng, info.rule);
        TypedRow<T> before(RandomRow(&rng, info, dim));
        before.gradient = PatternsOfAllKinds<T>(&rng, dim);
        before.w = PatternsOfAllKinds<T>(&rng, dim);
        if (i % 2 == 0) {
          for (int s = 0; s < info.slots; ++s) {
            before.slots[s] = PatternsOfAllKinds<Accumulator<T>>(&rng, SlotDim(info, dim));
          }
        }
        const Rounding rounding{i % 4 < 2, 9};
        const auto portable = before.Updated(info.rule, Isa::kPortable, hyper, rounding);
        for (const Isa isa : SupportedIsas()) {
          const auto after = before.Updated(info.rule, isa, hyper, rounding);
          CHECK(SameBitsOrNan(after.w, portable.w), info.name, dim, static_cast<int>(isa));
          for (int s = 0; s < kMaxSlots; ++s) {
            CHECK(SameBitsOrNan(after.slots[s], portable.slots[s]), info.name, s, dim,
                  static_cast<int>(isa));
          }
        }
      }
    }
  }
}

template <typename T>
void TestNarrowType(double smallest_normal) {
  TestRulesFollowTheirFormulas<T>();
  TestNarrowRowsFollowFloat<T>();
  TestRandomRoundingGivesNeighbours<T>();
  TestRandomBitsHangOnSeedRowAndColumn<T>();
  TestRandomRoundingIsUnbiased<T>(smallest_normal);
}

}  // namespace
}  // namespace tfrec

int main() {
  tfrec::TestHyperparametersHaveTheirPlaces();
  tfrec::TestRulesFollowTheirFormulas<float>();
  tfrec::TestRulesFollowTheirFormulas<double>();
  tfrec::TestFloatIsNotRoundedAtRandom<float>();
  tfrec::TestFloatIsNotRoundedAtRandom<double>();
  tfrec::TestNarrowType<tfrec::Half>(0x1p-14);
  tfrec::TestNarrowType<tfrec::BFloat16>(0x1p-126);
  tfrec::TestIsasAgreeOnAnyPattern<float>();
  tfrec::TestIsasAgreeOnAnyPattern<tfrec::Half>();
  tfrec::TestIsasAgreeOnAnyPattern<tfrec::BFloat16>();
  return 0;
}
