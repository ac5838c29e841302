#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <map>
#include <set>
#include <vector>

#include "custom_ops/casting/casting.h"
#include "custom_ops/gather_reduce/gather_reduce.h"
#include "custom_ops/pim/grouped_reducer.h"
#include "custom_ops/pim/partial_sums.h"
#include "custom_ops/pim/placement.h"
#include "custom_ops/pim/rank_events.h"
#include "tests/cc/check.h"
#include "tests/cc/random_lookups.h"
#include "tests/cc/random_rows.h"

namespace tfrec {
namespace {

constexpr int64_t kRows = 50;

std::vector<Placement> ManyPlacements(const std::vector<int64_t>& hot) {
  std::vector<Placement> placements;
  for (const int64_t groups : {1, 2, 3, 8}) {
    for (const bool by_table : {false, true}) {
      for (const bool copies : {false, true}) {
        placements.emplace_back(groups, groups - 1, by_table, copies ? hot.data() : nullptr,
                                copies ? hot.size() : 0);
      }
    }
  }
  return placements;
}

void TestEachRowLiesWhereItsNumberSays() {
  const Placement rows(4, 3, false);
  CHECK_EQ(rows.HomeOf(0), 3);
  CHECK_EQ(rows.HomeOf(1), 0);
  CHECK_EQ(rows.HomeOf(6), 1);
  CHECK_EQ(rows.LocalRow(6), 1);
  const Placement table(4, 3, true);
  CHECK_EQ(table.HomeOf(6), 3);
  CHECK_EQ(table.LocalRow(6), 6);
  const std::vector<int64_t> hot = {2, 6};
  const Placement copied(4, 0, false, hot.data(), hot.size());
  CHECK(copied.IsHot(6) && !copied.IsHot(5) && !copied.IsHot(7));
  CHECK_EQ(copied.LocalRow(6), 1);
  CHECK_EQ(copied.LocalRow(7), 3);  // behind the copies
  CHECK_EQ(copied.GroupOf(6, 9), 1);
  CHECK_EQ(copied.GroupOf(7, 9), 3);
}

void TestNoTwoRowsOfAGroupShareAPlace() {
  const std::vector<int64_t> hot = {0, 7, 8, 31};
  for (const Placement& placement : ManyPlacements(hot)) {
    std::set<std::pair<int64_t, int64_t>> places;
    for (int64_t id = 0; id < kRows; ++id) {
      const bool fresh = places.insert({placement.HomeOf(id), placement.LocalRow(id)}).second;
      CHECK(fresh || placement.IsHot(id), id, placement.groups());
    }
  }
}

// Sums of groups one lookup at a time, in the type of sums.
template <typename T, typename Id>
std::vector<T> SlowSums(const std::vector<T>& table, int64_t dim, const Feature<T, Id>& feature,
                        const Placement& placement) {
  using Real = Accumulator<T>;
  const Bags<Id>& bags = feature.bags;
  std::vector<T> out(bags.count * dim);
  for (int64_t bag = 0; bag < bags.count; ++bag) {
    std::vector<int64_t> order;
    std::map<int64_t, std::vector<Real>> partials;
    for (int64_t k = bags.Begin(bag); k < bags.End(bag); ++k) {
      if (bags.IsPadding(k)) continue;
      const int64_t group = placement.GroupOf(bags.ids[k], k);
      if (!partials.count(group)) {
        order.push_back(group);
        partials[group].resize(dim);
      }
      const Real weight = feature.weights ? feature.weights[k] : Real{1};
      for (int64_t c = 0; c < dim; ++c) {
        partials[group][c] += weight * Widen(table[bags.ids[k] * dim + c]);
      }
    }
    const Real divisor = BagDivisor(bags, feature.weights, feature.combiner, bag);
    for (int64_t c = 0; c < dim; ++c) {
      Real sum = 0;
      for (const int64_t group : order) sum += partials[group][c];
      Narrow(order.empty() || divisor == 0 ? Real{0} : sum / divisor, &out[bag * dim + c]);
    }
  }
  return out;
}

template <typename T, typename Id>
void TestSumsAreThoseOfTheGroups() {
  Rng rng(3);
  const std::vector<int64_t> hot = {1, 7, 30};
  for (const int64_t dim : {1, 16, 33, 75}) {
    for (int trial = 0; trial < 4; ++trial) {
      const Typed<T, Id> problem(RandomTableProblem(&rng, {RandomShape(&rng, 6)}, 20, kRows, dim));
      const Feature<T, Id>& feature = problem.features()[0];
      if (feature.bags.lookups == 0) continue;
      std::vector<T> data;
      for (int64_t i = 0; i < kRows * dim; ++i) data.push_back(Narrowed<T>(Uniform(&rng, -2, 2)));
      const Table<T> table{data.data(), kRows, dim};
      for (const Placement& placement : ManyPlacements(hot)) {
        const std::vector<T> expected = SlowSums(data, dim, feature, placement);
        for (const Isa isa : SupportedIsas()) {
          std::vector<T> actual(expected.size());
          const int64_t cut = feature.bags.count / 3;
          for (const auto& [first, last] : {std::pair<int64_t, int64_t>{cut, feature.bags.count},
                                            std::pair<int64_t, int64_t>{0, cut}}) {
            CHECK(SumByGroups(table, feature.bags, feature.weights, feature.combiner, placement,
                              SelectGroupedReducer<T>(isa), first, last, actual.data()));
          }
          CHECK(std::memcmp(actual.data(), expected.data(), expected.size() * sizeof(T)) == 0, dim,
                placement.groups(), static_cast<int>(isa));
        }
      }
    }
  }
}

void TestFaultsEndTheSum() {
  const std::vector<float> data(4);
  const Table<float> table{data.data(), 4, 1};
  const std::vector<float> nan = {1, static_cast<float>(kNan)};
  for (const auto& [ids, weights] :
       {std::pair<std::vector<int64_t>, const float*>{{1, 4}, nullptr},
        std::pair<std::vector<int64_t>, const float*>{{-1, 1}, nullptr},
        std::pair<std::vector<int64_t>, const float*>{{1, 1}, nan.data()}}) {
    const Bags<int64_t> bags{ids.data(), 2, 1, nullptr, 2, false, 0};
    float out;
    CHECK(!SumByGroups(table, bags, weights, Combiner::kSum, Placement(2, 0, false),
                       SelectGroupedReducer<float>(Isa::kPortable), 0, 1, &out));
  }
}

void TestPagesStayOpenUntilAnotherOfTheBankIsNeeded() {
  OpenPages pages(RankMemory{4, 1, 2, 0});
  CHECK_EQ(pages.Open(0), 1);  // page 0 in bank 0
  CHECK_EQ(pages.Open(3), 0);
  CHECK_EQ(pages.Open(4), 1);  // page 1 in bank 1
  CHECK_EQ(pages.Open(1), 0);
  CHECK_EQ(pages.Open(8), 1);  // page 2 closes page 0
  CHECK_EQ(pages.Open(0), 1);
  OpenPages wide(RankMemory{1, 3, 2, 0});
  CHECK_EQ(wide.Open(0), 3);
  CHECK_EQ(wide.Open(0), 0);
}

void TestARowHasOnePlaceInTheCache() {
  OpenPages pages(RankMemory{1, 1, 1, 4});
  CHECK(!pages.IsCached(1));
  CHECK(pages.IsCached(1));
  CHECK(!pages.IsCached(5));  // in the place of 1
  CHECK(!pages.IsCached(1));
  OpenPages none(RankMemory{1, 1, 1, 0});
  CHECK(!none.IsCached(1));
  CHECK(!none.IsCached(1));
}

void TestPlacesAreHeldOnlyWhereTheyAreUsed() {
  const int64_t vast = int64_t{1} << 62;
  OpenPages pages(RankMemory{1, 1, vast, vast});
  const int64_t rows[] = {0, 1, 0, vast - 1, vast - 1};
  const bool known[] = {false, false, true, false, true};
  for (int i = 0; i < 5; ++i) {
    CHECK_EQ(pages.IsCached(rows[i]), known[i]);
    CHECK_EQ(pages.Open(rows[i]), known[i] ? 0 : 1);
  }
  // As an array has them.
  OpenPages array(RankMemory{2, 1, 3, 5}), used(RankMemory{2, 1, 3, 5}, int64_t{1} << 22);
  Rng rng(9);
  for (int i = 0; i < 1000; ++i) {
    const int64_t row = Below(&rng, 40);
    CHECK_EQ(array.IsCached(row), used.IsCached(row));
    CHECK_EQ(array.Open(row), used.Open(row));
  }
}

template <typename Id>
void TestEventsAddUpToTheLookups() {
  Rng rng(5);
  const std::vector<int64_t> hot = {1, 7, 30};
  for (int trial = 0; trial < 20; ++trial) {
    const Typed<float, Id> problem(RandomTableProblem(&rng, {RandomShape(&rng, 6)}, 20, kRows, 1));
    const Bags<Id>& bags = problem.features()[0].bags;
    const std::vector<int64_t> pairs = CastAll(problem.lookups());
    Casting casting;
    CHECK(IsCastingOf(problem.lookups(), pairs.data(), Parallel(), &casting));
    for (const Placement& placement : ManyPlacements(hot)) {
      const RankMemory memory{4, 1, 3, trial % 2 ? 5 : 0};
      std::vector<RankEvents> events(placement.groups());
      CountForward(bags, placement, memory, events.data());
      CountBackward(bags, casting, placement, memory, events.data());
      RankEvents sum;
      for (const RankEvents& of_group : events) {
        sum.lookups += of_group.lookups;
        sum.rows += of_group.rows;
        sum.home_rows += of_group.home_rows;
        sum.gradient_lookups += of_group.gradient_lookups;
        CHECK(of_group.bags <= of_group.lookups);
        CHECK(of_group.cache_hits + of_group.activations <= of_group.lookups);
        CHECK(of_group.gradient_cache_hits + of_group.gradient_activations <=
              of_group.gradient_lookups);
        CHECK(of_group.row_activations <= of_group.rows);
        CHECK(memory.cached_rows > 0 || of_group.cache_hits == 0);
      }
      int64_t copies = 0, rows = 0, unique = 0;
      for (int64_t i = 0; i < casting.count; ++i) {
        const int64_t everywhere = placement.IsHot(casting.Id(i)) ? placement.groups() : 1;
        copies += everywhere;
        if (i == 0 || casting.Id(i) != casting.Id(i - 1)) {
          rows += everywhere;
          ++unique;
        }
      }
      CHECK_EQ(sum.lookups, casting.count);
      CHECK_EQ(sum.gradient_lookups, copies);
      CHECK_EQ(sum.rows, rows);
      CHECK_EQ(sum.home_rows, unique);
    }
  }
}

}  // namespace
}  // namespace tfrec

int main() {
  tfrec::TestEachRowLiesWhereItsNumberSays();
  tfrec::TestNoTwoRowsOfAGroupShareAPlace();
  tfrec::TestSumsAreThoseOfTheGroups<float, int64_t>();
  tfrec::TestSumsAreThoseOfTheGroups<double, int32_t>();
  tfrec::TestSumsAreThoseOfTheGroups<tfrec::Half, int64_t>();
  tfrec::TestSumsAreThoseOfTheGroups<tfrec::BFloat16, int32_t>();
  tfrec::TestFaultsEndTheSum();
  tfrec::TestPagesStayOpenUntilAnotherOfTheBankIsNeeded();
  tfrec::TestARowHasOnePlaceInTheCache();
  tfrec::TestPlacesAreHeldOnlyWhereTheyAreUsed();
  tfrec::TestEventsAddUpToTheLookups<int64_t>();
  tfrec::TestEventsAddUpToTheLookups<int32_t>();
}
