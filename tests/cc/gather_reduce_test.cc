#include "custom_ops/gather_reduce/gather_reduce.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <type_traits>
#include <vector>

#include "custom_ops/common/bags.h"
#include "custom_ops/common/narrow_float.h"
#include "custom_ops/gather_reduce/row_reducer.h"
#include "tests/cc/check.h"
#include "tests/cc/random_rows.h"

namespace tfrec {
namespace {

// -------------------------------------------------------------------------------------- bags

enum class Layout { kDense, kRagged };
// A padding id outside of the table, one that would be a row of it, and none.
enum class Padding { kNone, kOutside, kRow };

template <typename T, typename Id>
struct Problem {
  using Weight = Accumulator<T>;

  int64_t rows;
  int64_t dim;
  int64_t count;
  int64_t hotness = 0;
  Padding padding;
  std::vector<T> values;
  std::vector<float> scales;  // of int8 rows, or empty
  std::vector<Id> ids;
  std::vector<Weight> weights;
  std::vector<int64_t> row_splits;  // empty for the dense layout

  Table<T> table() const {
    return {values.data(), rows, dim, scales.empty() ? nullptr : scales.data()};
  }
  Bags<Id> bags() const {
    return {ids.data(), static_cast<int64_t>(ids.size()),
            count,      row_splits.empty() ? nullptr : row_splits.data(),
            hotness,    padding != Padding::kNone,
            PaddingId()};
  }
  // Without padding, an id that occurs and must be taken for a row.
  int64_t PaddingId() const { return padding == Padding::kOutside ? -1 : 1; }
};

// Weights are positive, and NaN at padding, where nobody may look at them.
template <typename T, typename Id>
Problem<T, Id> RandomProblem(Rng* rng, const std::vector<int64_t>& bag_sizes, Layout layout,
                             Padding padding, int64_t dim) {
  Problem<T, Id> problem{};
  problem.rows = 23;
  problem.dim = dim;
  problem.count = bag_sizes.size();
  problem.padding = padding;
  problem.values = RandomValues<T>(rng, problem.rows * dim);
  if (std::is_same_v<T, int8_t> && Below(rng, 3) != 0) {
    problem.scales = RandomValues<float>(rng, problem.rows);
  }
  if (layout == Layout::kDense) problem.hotness = bag_sizes.empty() ? 3 : bag_sizes[0];
  if (layout == Layout::kRagged) problem.row_splits = {0};
  for (const int64_t size : bag_sizes) {
    for (int64_t k = 0; k < size; ++k) {
      const bool pad = padding != Padding::kNone && Below(rng, 4) == 0;
      const int64_t id = pad ? problem.PaddingId() : Below(rng, problem.rows);
      const bool is_padding = padding != Padding::kNone && id == problem.PaddingId();
      problem.ids.push_back(static_cast<Id>(id));
      problem.weights.push_back(
          static_cast<Accumulator<T>>(is_padding ? kNan : Uniform(rng, 0.25, 2)));
    }
    if (layout == Layout::kRagged) problem.row_splits.push_back(problem.ids.size());
  }
  return problem;
}

std::vector<int64_t> RandomBagSizes(Rng* rng, Layout layout, int64_t count, int64_t limit) {
  std::vector<int64_t> sizes(count, Below(rng, limit));
  if (layout == Layout::kDense) return sizes;
  for (int64_t& size : sizes) size = Below(rng, 3) == 0 ? 0 : Below(rng, limit);
  return sizes;
}

// A row of a feature lies between columns of others, which are NaN here.
int64_t Width(int64_t dim) { return dim + 5; }
constexpr int64_t kColumn = 3;

template <typename T>
std::vector<T> SpreadOut(const std::vector<T>& rows, int64_t count, int64_t dim) {
  auto spread = Unwritten<T>(count * Width(dim));
  for (int64_t row = 0; row < count; ++row) {
    std::copy_n(&rows[row * dim], dim, &spread[row * Width(dim) + kColumn]);
  }
  return spread;
}

template <typename T>
std::vector<T> PulledTogether(const std::vector<T>& spread, int64_t count, int64_t dim) {
  std::vector<T> rows;
  for (int64_t i = 0; i < count * Width(dim); ++i) {
    const int64_t column = i % Width(dim) - kColumn;
    if (column >= 0 && column < dim) {
      rows.push_back(spread[i]);
    } else {
      CHECK(std::isnan(Widen(spread[i])), i, dim);
    }
  }
  return rows;
}

// Calls run(first, last, out) for each two neighbours of `cuts`, which must succeed.
template <typename T, typename Id, typename Run>
std::vector<Pooled<T>> RunForBags(const Problem<T, Id>& problem, const std::vector<int64_t>& cuts,
                                  const Run& run) {
  auto out = Unwritten<Pooled<T>>(problem.count * Width(problem.dim));
  for (size_t i = 0; i + 1 < cuts.size(); ++i) {
    CHECK(run(cuts[i], cuts[i + 1], out.data() + kColumn), i);
  }
  return PulledTogether(out, problem.count, problem.dim);
}

template <typename T, typename Id>
std::vector<Pooled<T>> RunForward(const Problem<T, Id>& problem, bool weighted, Combiner combiner,
                                  Isa isa, const std::vector<int64_t>& cuts) {
  return RunForBags(problem, cuts, [&](int64_t first, int64_t last, Pooled<T>* out) {
    return GatherReduce(problem.table(), problem.bags(),
                        weighted ? problem.weights.data() : nullptr, combiner,
                        SelectRowReducer<T>(isa), first, last, Width(problem.dim), out);
  });
}
template <typename T, typename Id>
std::vector<Pooled<T>> RunForward(const Problem<T, Id>& problem, bool weighted, Combiner combiner) {
  return RunForward(problem, weighted, combiner, BestIsa(), {0, problem.count});
}

template <typename T, typename Id>
std::vector<Pooled<T>> RunPlain(const Problem<T, Id>& problem, Combiner combiner, Isa isa,
                                const std::vector<int64_t>& cuts) {
  return RunForBags(problem, cuts, [&](int64_t first, int64_t last, Pooled<T>* out) {
    return GatherReducePlain(problem.table(), problem.bags(), combiner, SelectIdReducer<T, Id>(isa),
                             first, last, Width(problem.dim), out);
  });
}

// The lookups of a bag that exist, in double.
struct NaiveBag {
  std::vector<int64_t> positions;
  std::vector<int64_t> ids;
  std::vector<double> weights;

  double Divisor(Combiner combiner) const {
    double sum = 0;
    for (const double w : weights) sum += combiner == Combiner::kSqrtn ? w * w : w;
    if (combiner == Combiner::kSum) return 1;
    return combiner == Combiner::kMean ? sum : std::sqrt(sum);
  }
};

template <typename T, typename Id>
NaiveBag MakeNaiveBag(const Problem<T, Id>& problem, bool weighted, int64_t bag) {
  const bool ragged = !problem.row_splits.empty();
  const int64_t begin = ragged ? problem.row_splits[bag] : bag * problem.hotness;
  const int64_t end = ragged ? problem.row_splits[bag + 1] : (bag + 1) * problem.hotness;
  NaiveBag naive;
  for (int64_t k = begin; k < end; ++k) {
    if (problem.padding != Padding::kNone && problem.ids[k] == problem.PaddingId()) continue;
    naive.positions.push_back(k);
    naive.ids.push_back(problem.ids[k]);
    naive.weights.push_back(weighted ? problem.weights[k] : 1);
  }
  return naive;
}

template <typename T, typename Id>
void CheckForwardNearNaive(const Problem<T, Id>& problem, bool weighted, Combiner combiner,
                           const std::vector<Pooled<T>>& actual) {
  for (int64_t bag = 0; bag < problem.count; ++bag) {
    const NaiveBag naive = MakeNaiveBag(problem, weighted, bag);
    const double divisor = naive.ids.empty() ? 1 : naive.Divisor(combiner);
    for (int64_t c = 0; c < problem.dim; ++c) {
      double sum = 0;
      double magnitude = 0;
      for (size_t k = 0; k < naive.ids.size(); ++k) {
        const double scale = problem.scales.empty() ? 1 : problem.scales[naive.ids[k]];
        const double term =
            naive.weights[k] * scale * Widen(problem.values[naive.ids[k] * problem.dim + c]);
        sum += term;
        magnitude += std::abs(term);
      }
      CHECK_NEAR(Widen(actual[bag * problem.dim + c]), sum / divisor,
                 Tolerance<Pooled<T>>(naive.ids.size(), magnitude / divisor), bag, c,
                 naive.ids.size(), weighted, static_cast<int>(combiner));
    }
  }
}

template <typename T, typename Id>
void CheckForward(Rng* rng, const Problem<T, Id>& problem) {
  for (const Combiner combiner : kCombiners) {
    for (const bool weighted : {false, true}) {
      const auto whole = RunForward(problem, weighted, combiner);
      CheckForwardNearNaive(problem, weighted, combiner, whole);
      const bool plain = !weighted && problem.padding == Padding::kNone && problem.scales.empty();
      for (const Isa isa : SupportedIsas()) {
        const std::vector<int64_t> cuts = RandomCuts(rng, problem.count);
        CHECK(SameBits(RunForward(problem, weighted, combiner, isa, cuts), whole),
              static_cast<int>(isa), weighted, static_cast<int>(combiner));
        if (!plain) continue;
        CHECK(SameBits(RunPlain(problem, combiner, isa, cuts), whole), static_cast<int>(isa),
              static_cast<int>(combiner));
      }
    }
  }
}

template <typename T, typename Id>
void TestForward() {
  Rng rng(3);
  for (const Layout layout : {Layout::kDense, Layout::kRagged}) {
    for (const Padding padding : {Padding::kNone, Padding::kOutside, Padding::kRow}) {
      for (const int64_t dim : {1, 8, 37}) {
        for (const int64_t count : {0, 1, 2, 40}) {
          const auto sizes = RandomBagSizes(&rng, layout, count, 12);
          CheckForward(&rng, RandomProblem<T, Id>(&rng, sizes, layout, padding, dim));
        }
      }
    }
  }
}

// A chunk of lookups ends at 4096: just before, at and after it, in a bag longer than it, and many
// times in one call.
template <typename T, typename Id>
void TestForwardChunks() {
  Rng rng(4);
  const std::vector<std::vector<int64_t>> ragged = {
      {4095, 1, 1}, {4096, 1}, {4097}, {1, 4095, 0, 2}, {1, 4096}, {0, 9000, 0, 5, 4090, 6}};
  for (const Padding padding : {Padding::kNone, Padding::kOutside}) {
    for (const std::vector<int64_t>& sizes : ragged) {
      CheckForward(&rng, RandomProblem<T, Id>(&rng, sizes, Layout::kRagged, padding, 3));
    }
    const std::vector<int64_t> dense(1000, 10);
    CheckForward(&rng, RandomProblem<T, Id>(&rng, dense, Layout::kDense, padding, 3));
  }
}

template <typename T>
void CheckZeros(const std::vector<T>& actual) {
  CHECK(SameBits(actual, std::vector<T>(actual.size(), T{})));
}

template <typename T, typename Id>
void TestForwardZeroRows() {
  Rng rng(5);
  // Weights that cancel leave a mean without a divisor; for sqrtn it takes weights of zero.
  Problem<T, Id> problem = RandomProblem<T, Id>(&rng, {2, 2}, Layout::kDense, Padding::kNone, 19);
  problem.ids = {0, 2, 4, 4};
  problem.weights = {1.5, -1.5, 0, 0};
  CheckZeros(RunForward(problem, true, Combiner::kMean));
  const auto sqrtn = RunForward(problem, true, Combiner::kSqrtn);
  CheckZeros(std::vector<Pooled<T>>(sqrtn.begin() + problem.dim, sqrtn.end()));
  CHECK(Widen(sqrtn[0]) != 0);

  // A table without rows serves bags without lookups.
  problem.rows = 0;
  problem.values.clear();
  problem.padding = Padding::kOutside;
  problem.ids = {-1, -1, -1, -1};
  for (const Combiner combiner : kCombiners) {
    CheckZeros(RunForward(problem, true, combiner));
    CheckZeros(RunForward(problem, false, combiner));
  }
}

void TestDivisors() {
  const std::vector<int32_t> ids = {5, 9, 5, 9, 9, 5};
  const std::vector<int64_t> row_splits = {0, 3, 5, 5, 6};
  const std::vector<float> weights = {3, static_cast<float>(kNan), 4, 1, 1, -2};
  const Bags<int32_t> bags{ids.data(), 6, 4, row_splits.data(), 0, true, 9};
  const auto check = [&](const float* bag_weights, Combiner combiner,
                         const std::vector<float>& expected) {
    for (int64_t bag = 0; bag < bags.count; ++bag) {
      CHECK_EQ(BagDivisor(bags, bag_weights, combiner, bag), expected[bag], bag);
    }
  };
  check(weights.data(), Combiner::kSum, {1, 1, 1, 1});
  check(weights.data(), Combiner::kMean, {7, 0, 0, -2});
  check(weights.data(), Combiner::kSqrtn, {5, 0, 0, 2});
  check(nullptr, Combiner::kMean, {2, 0, 0, 1});
  check(nullptr, Combiner::kSqrtn, {std::sqrt(2.0f), 0, 0, 1});
}

// ------------------------------------------------------------------------------------ faults

void CheckFault(const Fault& fault, Fault::Kind kind, int64_t position) {
  CHECK_EQ(static_cast<int>(fault.kind), static_cast<int>(kind), position);
  CHECK_EQ(fault.position, position);
}

void TestRowSplits() {
  const std::vector<int32_t> ids(5);
  const auto check = [&](const std::vector<int64_t>& row_splits, Fault::Kind kind,
                         int64_t position) {
    const int64_t count = static_cast<int64_t>(row_splits.size()) - 1;
    CheckFault(CheckRowSplits(Bags<int32_t>{ids.data(), 5, count, row_splits.data(), 0, false, 0}),
               kind, position);
  };
  constexpr int64_t kMax = std::numeric_limits<int64_t>::max();
  check({0, 5}, Fault::kNone, -1);
  check({0, 0, 2, 2, 5, 5}, Fault::kNone, -1);
  check({1, 5}, Fault::kRowSplits, 0);
  check({-1, 5}, Fault::kRowSplits, 0);
  check({0, 3, 2, 5}, Fault::kRowSplits, 2);
  check({0, -1, 5}, Fault::kRowSplits, 1);
  check({0, kMax, 5}, Fault::kRowSplits, 2);
  check({0, 2, 4}, Fault::kRowSplits, 2);
  check({0, 2, 6}, Fault::kRowSplits, 2);
  check({0, kMax}, Fault::kRowSplits, 1);
  check({0}, Fault::kRowSplits, 0);  // no bags, and yet ids
  CheckFault(CheckRowSplits(Bags<int32_t>{ids.data(), 5, 1, nullptr, 5, false, 0}), Fault::kNone,
             -1);
  const int64_t no_bags = 0;
  CheckFault(CheckRowSplits(Bags<int32_t>{nullptr, 0, 0, &no_bags, 0, false, 0}), Fault::kNone, -1);
}

// All passes over the bags [first, last) notice, or all do not.
template <typename T, typename Id>
void CheckAccepted(const Problem<T, Id>& problem, int64_t first, int64_t last, bool accepted) {
  for (const Combiner combiner : kCombiners) {
    auto out = Unwritten<Pooled<T>>(problem.count * problem.dim);
    CHECK_EQ(GatherReduce(problem.table(), problem.bags(), problem.weights.data(), combiner,
                          SelectRowReducer<T>(BestIsa()), first, last, problem.dim, out.data()),
             accepted, first, last);
    std::vector<Accumulator<T>> weight_grads(problem.ids.size());
    CHECK_EQ(GatherReduceWeightGrad(problem.table(), problem.bags(), problem.weights.data(),
                                    combiner, problem.values.data(), problem.dim, first, last,
                                    weight_grads.data()),
             accepted, first, last);
  }
}

template <typename T, typename Id>
void CheckPlainAccepted(const Problem<T, Id>& problem, int64_t first, int64_t last, bool accepted) {
  auto out = Unwritten<Pooled<T>>(problem.count * problem.dim);
  CHECK_EQ(
      GatherReducePlain(problem.table(), problem.bags(), Combiner::kMean,
                        SelectIdReducer<T, Id>(BestIsa()), first, last, problem.dim, out.data()),
      accepted, first, last);
}

template <typename T, typename Id>
void TestFaults() {
  Rng rng(6);
  constexpr int64_t kHotness = 4;
  constexpr int64_t kCount = 9;
  const Problem<T, Id> good = RandomProblem<T, Id>(&rng, std::vector<int64_t>(kCount, kHotness),
                                                   Layout::kDense, Padding::kRow, 5);
  const auto find = [](const Problem<T, Id>& problem) {
    return FindFault(problem.bags(), problem.rows, problem.weights.data());
  };
  CheckFault(find(good), Fault::kNone, -1);
  CheckAccepted(good, 0, kCount, true);

  const auto check = [&](const Problem<T, Id>& bad, Fault::Kind kind, int64_t position) {
    const int64_t bag = position / kHotness;
    CheckFault(find(bad), kind, position);
    CheckAccepted(bad, 0, kCount, false);
    CheckAccepted(bad, bag, bag + 1, false);
    CheckAccepted(bad, 0, bag, true);
    CheckAccepted(bad, bag + 1, kCount, true);
    if (kind != Fault::kIds) return;
    Problem<T, Id> plain = bad;
    for (Id& id : plain.ids) id = plain.PaddingId() == id ? Id{0} : id;
    plain.padding = Padding::kNone;
    CheckPlainAccepted(plain, 0, kCount, false);
    CheckPlainAccepted(plain, bag, bag + 1, false);
    CheckPlainAccepted(plain, 0, bag, true);
    CheckPlainAccepted(plain, bag + 1, kCount, true);
  };
  using IdLimits = std::numeric_limits<Id>;
  for (const int64_t position : {int64_t{0}, int64_t{17}, kCount * kHotness - 1}) {
    for (const Id id : {Id{-1}, static_cast<Id>(good.rows), IdLimits::min(), IdLimits::max()}) {
      Problem<T, Id> bad = good;
      bad.ids[position] = id;
      check(bad, Fault::kIds, position);
    }
    for (const double weight : {kNan, kInfinity, -kInfinity}) {
      Problem<T, Id> bad = good;
      bad.ids[position] = 0;
      bad.weights[position] = static_cast<Accumulator<T>>(weight);
      check(bad, Fault::kWeights, position);
      CheckFault(FindFault<Id, Accumulator<T>>(bad.bags(), bad.rows, nullptr), Fault::kNone, -1);
      RunForward(bad, false, Combiner::kMean);
      bad.ids[position] = static_cast<Id>(bad.PaddingId());
      CheckFault(find(bad), Fault::kNone, -1);
      CheckAccepted(bad, 0, kCount, true);
    }
  }

  // The first of several, and any id before the first weight.
  Problem<T, Id> bad = good;
  bad.ids[3] = bad.ids[20] = bad.ids[21] = 0;
  bad.weights[3] = bad.weights[20] = static_cast<Accumulator<T>>(kNan);
  CheckFault(find(bad), Fault::kWeights, 3);
  bad.ids[21] = bad.ids[30] = -7;
  CheckFault(find(bad), Fault::kIds, 21);
}

template <typename Id>
void TestAreRows() {
  constexpr int64_t kMax = std::numeric_limits<Id>::max();
  const auto check = [](Id id, int64_t rows, bool expected) {
    std::vector<Id> ids(70, 0);
    if (rows > 0) CHECK(AreRows(ids.data(), 0, 70, rows), rows);
    for (const int64_t k : {0, 1, 34, 69}) {
      ids.assign(70, 0);
      ids[k] = id;
      CHECK_EQ(AreRows(ids.data(), k, k + 1, rows), expected, id, rows);
      CHECK_EQ(AreRows(ids.data(), 0, 70, rows), expected && rows > 0, id, rows);
      CHECK(AreRows(ids.data(), k, k, rows), id, rows);
      if (rows == 0) continue;
      CHECK(AreRows(ids.data(), 0, k, rows) && AreRows(ids.data(), k + 1, 70, rows), id, rows);
    }
  };
  // Tables of more rows than 32 bits can count, where every id of that type is a row.
  for (const int64_t rows : {int64_t{0}, int64_t{1}, int64_t{5}, int64_t{1} << 31,
                             (int64_t{1} << 31) + 1, (int64_t{1} << 32) + 3, int64_t{1} << 40,
                             kMax - 1, kMax, std::numeric_limits<int64_t>::max()}) {
    for (const int64_t id : {int64_t{-1}, int64_t{-5}, int64_t{std::numeric_limits<Id>::min()}}) {
      check(static_cast<Id>(id), rows, false);
    }
    for (const int64_t id : {int64_t{0}, int64_t{4}, int64_t{5}, kMax - 2, kMax - 1, kMax}) {
      check(static_cast<Id>(id), rows, id < rows);
    }
  }
}

// ----------------------------------------------------------------------- gradient of weights

template <typename T, typename Id>
std::vector<Accumulator<T>> RunWeightGrad(const Problem<T, Id>& problem, Combiner combiner,
                                          const std::vector<T>& grads,
                                          const std::vector<int64_t>& cuts) {
  auto out = Unwritten<Accumulator<T>>(problem.ids.size());
  const std::vector<T> spread = SpreadOut(grads, problem.count, problem.dim);
  for (size_t i = 0; i + 1 < cuts.size(); ++i) {
    CHECK(GatherReduceWeightGrad(problem.table(), problem.bags(), problem.weights.data(), combiner,
                                 spread.data() + kColumn, Width(problem.dim), cuts[i], cuts[i + 1],
                                 out.data()),
          i);
  }
  return out;
}

template <typename T, typename Id>
std::vector<Accumulator<T>> RunWeightGrad(const Problem<T, Id>& problem, Combiner combiner,
                                          const std::vector<T>& grads) {
  return RunWeightGrad(problem, combiner, grads, {0, problem.count});
}

// The slope of sum(output * grads) along the weight at `position`.
template <typename Id>
double FiniteDifference(Problem<double, Id> problem, Combiner combiner,
                        const std::vector<double>& grads, int64_t position) {
  constexpr double kStep = 1e-5;
  const double weight = problem.weights[position];
  const auto loss_at = [&](double moved) {
    problem.weights[position] = moved;
    const std::vector<double> out = RunForward(problem, true, combiner);
    return std::inner_product(out.begin(), out.end(), grads.begin(), 0.0);
  };
  return (loss_at(weight + kStep) - loss_at(weight - kStep)) / (2 * kStep);
}

template <typename Id>
void TestWeightGradIsSlope() {
  Rng rng(7);
  for (const Layout layout : {Layout::kDense, Layout::kRagged}) {
    for (const Padding padding : {Padding::kNone, Padding::kOutside, Padding::kRow}) {
      for (const Combiner combiner : kCombiners) {
        const auto sizes = RandomBagSizes(&rng, layout, 8, 7);
        const auto problem = RandomProblem<double, Id>(&rng, sizes, layout, padding, 18);
        const auto grads = RandomValues<double>(&rng, problem.count * problem.dim);
        const auto actual = RunWeightGrad(problem, combiner, grads);
        for (size_t k = 0; k < actual.size(); ++k) {
          const bool is_padding = std::isnan(problem.weights[k]);
          const double slope = is_padding ? 0 : FiniteDifference(problem, combiner, grads, k);
          CHECK_NEAR(actual[k], slope, is_padding ? 0 : 1e-7, k, static_cast<int>(combiner));
        }
      }
    }
  }
}

template <typename T>
std::vector<double> Widened(const std::vector<T>& values) {
  std::vector<double> wide;
  for (const T value : values) wide.push_back(Widen(value));
  return wide;
}

// The narrower types follow double, on every length of the vectorised dot product and its rest.
template <typename T, typename Id>
void TestWeightGradFollowsDouble() {
  Rng rng(8);
  for (const int64_t dim : {1, 15, 16, 17, 31, 33, 64, 100}) {
    for (const Padding padding : {Padding::kNone, Padding::kOutside}) {
      const auto sizes = RandomBagSizes(&rng, Layout::kRagged, 20, 9);
      const auto problem = RandomProblem<T, Id>(&rng, sizes, Layout::kRagged, padding, dim);
      const std::vector<T> grads = RandomValues<T>(&rng, problem.count * dim);
      Problem<double, Id> wide{};
      wide.rows = problem.rows;
      wide.dim = dim;
      wide.count = problem.count;
      wide.padding = padding;
      wide.values = Widened(problem.values);
      wide.ids = problem.ids;
      wide.weights = Widened(problem.weights);
      wide.row_splits = problem.row_splits;
      for (const Combiner combiner : kCombiners) {
        const auto actual = RunWeightGrad(problem, combiner, grads);
        const auto expected = RunWeightGrad(wide, combiner, Widened(grads));
        for (size_t k = 0; k < actual.size(); ++k) {
          CHECK_NEAR(actual[k], expected[k], 1e-4, k, dim, static_cast<int>(combiner));
        }
        const std::vector<int64_t> cuts = RandomCuts(&rng, problem.count);
        CHECK(SameBits(RunWeightGrad(problem, combiner, grads, cuts), actual), dim);
      }
    }
  }
}

template <typename T, typename Id>
void TestWeightGradWithoutDivisor() {
  Rng rng(9);
  Problem<T, Id> problem =
      RandomProblem<T, Id>(&rng, {3, 3}, Layout::kDense, Padding::kOutside, 20);
  problem.ids = {0, -1, 2, -1, -1, -1};
  const std::vector<T> grads = RandomValues<T>(&rng, problem.count * problem.dim);
  problem.weights = {2, 9, -2, 9, 9, 9};
  CheckZeros(RunWeightGrad(problem, Combiner::kMean, grads));
  problem.weights = {0, 9, 0, 9, 9, 9};
  CheckZeros(RunWeightGrad(problem, Combiner::kSqrtn, grads));
  CHECK(RunWeightGrad(problem, Combiner::kSum, grads)[0] != 0);
}

template <typename T, typename Id>
void TestForwardPass() {
  TestForward<T, Id>();
  TestForwardChunks<T, Id>();
  TestForwardZeroRows<T, Id>();
}

template <typename T, typename Id>
void TestBothPasses() {
  TestForwardPass<T, Id>();
  TestWeightGradFollowsDouble<T, Id>();
  TestWeightGradWithoutDivisor<T, Id>();
}

}  // namespace
}  // namespace tfrec

int main() {
  tfrec::TestDivisors();
  tfrec::TestRowSplits();
  tfrec::TestAreRows<int32_t>();
  tfrec::TestAreRows<int64_t>();
  // Types of rows and of ids do not interact: each one once is enough.
  tfrec::TestBothPasses<float, int32_t>();
  tfrec::TestBothPasses<double, int64_t>();
  tfrec::TestBothPasses<tfrec::Half, int64_t>();
  tfrec::TestBothPasses<tfrec::BFloat16, int32_t>();
  tfrec::TestForwardPass<int8_t, int64_t>();
  tfrec::TestFaults<float, int32_t>();
  tfrec::TestFaults<tfrec::BFloat16, int64_t>();
  tfrec::TestWeightGradIsSlope<int64_t>();
  return 0;
}
