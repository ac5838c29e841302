#include "custom_ops/row_update/row_update.h"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <numeric>
#include <set>
#include <vector>

#include "custom_ops/casting/casting.h"
#include "custom_ops/gather_reduce/row_reducer.h"
#include "custom_ops/gather_reduce/table_gradient.h"
#include "custom_ops/row_update/row_updater.h"
#include "tests/cc/check.h"
#include "tests/cc/random_lookups.h"
#include "tests/cc/random_rows.h"
#include "tests/cc/random_updates.h"

namespace tfrec {
namespace {

constexpr int64_t kRows = 700;

std::vector<TableProblem> ManyProblems() {
  Rng rng(1);
  std::vector<TableProblem> problems;
  for (const int64_t dim : {1, 5, 33}) {
    // The gradient of a row is a row of the incoming gradient, a sum of such, and a weighted one.
    const FeatureShape once{Combiner::kSum, false, false, false, 1};
    const FeatureShape pooled{Combiner::kSum, false, true, true, 5};
    problems.push_back(RandomTableProblem(&rng, {once}, 40, kRows, dim));
    problems.push_back(RandomTableProblem(&rng, {pooled}, 60, 200, dim));
    problems.push_back(
        RandomTableProblem(&rng, {RandomShape(&rng, 3), RandomShape(&rng, 7)}, 50, kRows, dim));
    // More than a chunk of 1024 pairs, and one id with more than that.
    problems.push_back(RandomTableProblem(&rng, {RandomShape(&rng, 4)}, 900, kRows, dim));
    problems.push_back(RandomTableProblem(&rng, {pooled}, 900, 3, dim));
    problems.push_back(RandomTableProblem(&rng, {once}, 0, kRows, dim));
  }
  return problems;
}

// The gradient of each row first, and then a step for each row of it, the last one first.
template <typename T, typename Id>
void UpdateNaively(const Casting& casting, const GradientRows<T>& gradient, const RuleInfo& info,
                   const Hyperparameters<Accumulator<T>>& hyper, Rounding rounding,
                   TableData<T>* data) {
  const TrainedTable<T> table = data->View();
  const int64_t segments = CountSegments(casting, 0, casting.count);
  std::vector<Id> ids(segments);
  std::vector<T> values(segments * table.dim);
  CoalescedGradient(casting, gradient, table.dim, SelectRowReducer<T>(Isa::kPortable), 0,
                    casting.count, ids.data(), values.data());
  for (int64_t s = segments; s-- > 0;) {
    Accumulator<T>* slots[kMaxSlots] = {};
    for (int slot = 0; slot < info.slots; ++slot) {
      slots[slot] = table.slots[slot] + ids[s] * table.slot_dim;
    }
    SelectRowUpdater<T>(info.rule, Isa::kPortable)(values.data() + s * table.dim, table.dim, hyper,
                                                   rounding, ids[s],
                                                   table.rows + ids[s] * table.dim, slots);
  }
}

// Rows of no lookup, and what the slots hold for them, are as they were; other rows are not.
template <typename T>
void CheckTouched(const TableProblem& problem, const TableData<T>& before,
                  const TableData<T>& after, const char* rule) {
  std::set<int64_t> touched;
  for (const FeatureData& data : problem.data) {
    for (size_t k = 0; k < data.ids.size(); ++k) {
      if (!data.IsPadding(k)) touched.insert(data.ids[k]);
    }
  }
  const auto same = [](const auto& a, const auto& b, int64_t row, int64_t dim) {
    return dim == 0 || std::memcmp(&a[row * dim], &b[row * dim], dim * sizeof a[0]) == 0;
  };
  int64_t changed = 0;
  for (int64_t row = 0; row < kRows; ++row) {
    bool row_is_same = same(before.rows, after.rows, row, before.dim);
    for (int s = 0; s < before.slot_count; ++s) {
      row_is_same &= same(before.slots[s], after.slots[s], row, before.slot_dim);
    }
    CHECK(row_is_same || touched.count(row), rule, row);
    changed += !row_is_same;
  }
  // A bag without a divisor, or a rate that is cut to zero, may leave a row as it was.
  CHECK(2 * changed >= static_cast<int64_t>(touched.size()), rule, changed, touched.size());
}

template <typename T, typename Id>
void CheckUpdates(Rng* rng, const TableProblem& untyped, const RuleInfo& info, Rounding rounding) {
  const Typed<T, Id> problem(untyped);
  const std::vector<int64_t> pairs = CastAll(problem.lookups());
  Casting casting;
  CHECK(IsCastingOf(problem.lookups(), pairs.data(), Parallel(), &casting));
  const GradientRows<T> gradient(problem.features(), problem.grads().data(), untyped.width,
                                 untyped.dim, Parallel());
  const auto hyper = Converted<Accumulator<T>>(RandomHyperparameters(rng, info.rule));
  const TableData<T> before(rng, info, kRows, untyped.dim);
  TableData<T> expected = before;
  UpdateNaively<T, Id>(casting, gradient, info, hyper, rounding, &expected);
  CheckTouched(problem.rounded(), before, expected, info.name);

  std::vector<std::vector<int64_t>> all_cuts = {{0, casting.count}, RandomCuts(rng, casting.count)};
  if (casting.count < 100) {  // one block for each pair
    all_cuts.emplace_back(casting.count + 1);
    std::iota(all_cuts.back().begin(), all_cuts.back().end(), int64_t{0});
  }
  for (const Isa isa : SupportedIsas()) {
    for (const std::vector<int64_t>& cuts : all_cuts) {
      TableData<T> actual = before;
      for (size_t i = cuts.size() - 1; i > 0; --i) {  // the last block first
        UpdateRows(casting, gradient, SelectRowReducer<T>(isa), SelectRowUpdater<T>(info.rule, isa),
                   hyper, rounding, actual.View(), cuts[i - 1], cuts[i]);
      }
      CHECK(actual.IsSame(expected), info.name, static_cast<int>(isa), cuts.size(), casting.count);
    }
  }
}

template <typename T, typename Id>
void TestUpdateRows(const std::vector<TableProblem>& problems) {
  Rng rng(2);
  for (const RuleInfo& info : kRules) {
    for (size_t i = 0; i < problems.size(); ++i) {
      CheckUpdates<T, Id>(&rng, problems[i], info, {i % 2 == 1, i});
    }
  }
}

}  // namespace
}  // namespace tfrec

int main() {
  const std::vector<tfrec::TableProblem> problems = tfrec::ManyProblems();
  // Types matter to what is called, which has its own tests; here, whether sums are as wide.
  tfrec::TestUpdateRows<float, int32_t>(problems);
  tfrec::TestUpdateRows<tfrec::BFloat16, int64_t>(problems);
  return 0;
}
