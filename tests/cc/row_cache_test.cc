#include "custom_ops/row_store/row_cache.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <deque>
#include <iterator>
#include <limits>
#include <list>
#include <map>
#include <numeric>
#include <optional>
#include <set>
#include <utility>
#include <vector>

#include "tests/cc/check.h"
#include "tests/cc/random_rows.h"
#include "tests/cc/slow_row_cache.h"

namespace tfrec {
namespace {

constexpr Policy kPolicies[] = {Policy::kLru, Policy::kLfu, Policy::kStatic};

// ---- All that two actors can do with a few ids.

bool HaveFewerLeases(const Pair& pair, const Ids& ids, int limit) {
  return std::all_of(ids.begin(), ids.end(), [&](int64_t id) {
    return pair.slow.rows.count(id) == 0 || pair.slow.rows.at(id).leases < limit;
  });
}

// Visits all states that can follow, each of them once, and returns how many there are. A row has
// at most so many leases, and changes where `may_change`.
size_t Explore(const Pair& start, const Ids& ids, int leases, bool may_change) {
  std::vector<Ids> batches;
  for (const int64_t a : ids) {
    batches.push_back({a});
    for (const int64_t b : ids) {
      if (a != b) batches.push_back({a, b});
    }
  }
  std::set<std::vector<int64_t>> seen = {start.slow.State()};
  std::deque<Pair> open = {start};
  int64_t visits = 0;
  const auto visit = [&](const Pair& pair) {
    const bool is_new = seen.insert(pair.slow.State()).second;
    if (is_new) open.push_back(pair);
    // The slow cache knows a state again, in which the fast one may differ for the first time.
    if (is_new || ++visits % 16 == 0) pair.CheckSame(ids);
  };
  for (; !open.empty(); open.pop_front()) {
    const Pair& from = open.front();
    for (const Ids& batch : batches) {
      if (!HaveFewerLeases(from, batch, leases)) continue;
      Pair next = from;
      if (next.Lease(batch)) {
        visit(next);
      } else {
        CHECK(Answers(from.cache, ids) == Answers(next.cache, ids));
      }
    }
    for (const int64_t id : ids) {
      const auto row = from.slow.rows.find(id);
      if (row != from.slow.rows.end() && row->second.leases > 0) {
        for (const bool is_dirty : {false, true}) {
          if (is_dirty && !may_change) continue;
          Pair next = from;
          next.Release({row->second.slot}, is_dirty);
          visit(next);
        }
      }
      Pair without = from;
      without.Drop(id);
      visit(without);
    }
    Pair clean = from;
    clean.TakeDirty(0, clean.cache.Slots());
    visit(clean);
  }
  return seen.size();
}

void TestAllInterleavings() {
  constexpr int64_t kLast = std::numeric_limits<int64_t>::max();
  const Ids ids = {0, 1, 2, 3};
  const Ids others = {kLast, kLast - 1, 7, int64_t{1} << 32};
  CHECK_EQ(Explore(Pair(2, Policy::kLru), ids, 2, true), 914u);
  CHECK_EQ(Explore(Pair(3, Policy::kLru), ids, 1, true), 10470u);
  CHECK_EQ(Explore(Pair(3, Policy::kLru), others, 2, false), 4614u);
  CHECK_EQ(Explore(Pair(1, Policy::kLfu), ids, 2, true), 1388u);
  CHECK_EQ(Explore(Pair(2, Policy::kLfu), {0, 1, 2}, 1, false), 56524u);
  // One of the first slots, which are filled for good, and the one that others share.
  Pair first(16, Policy::kStatic);
  Ids leased(14);
  std::iota(leased.begin(), leased.end(), int64_t{100});
  CHECK(first.Lease(leased).has_value());
  CHECK_EQ(Explore(first, ids, 2, true), 913u);
}

// ---- Long random runs.

Ids RandomIds(Rng* rng, const Ids& ids, int64_t count) {
  Ids some;
  std::sample(ids.begin(), ids.end(), std::back_inserter(some), count, *rng);
  std::shuffle(some.begin(), some.end(), *rng);
  return some;
}

void CheckAtRandom(Rng* rng, Policy policy, int64_t slots, int64_t steps) {
  Ids ids(1 + slots * (1 + Below(rng, 4)));
  std::iota(ids.begin(), ids.end(), Below(rng, 1000));
  if (Below(rng, 2) == 0) {
    for (int64_t& id : ids) id = static_cast<int64_t>((*rng)() >> 1);
  }
  Pair pair(slots, policy);
  std::vector<Slots> leases;
  int64_t failures = 0;
  for (int64_t step = 0; step < steps; ++step) {
    const int64_t count = Below(rng, std::max<int64_t>(2, slots / (1 + Below(rng, 4)) + 2));
    const Ids batch = RandomIds(rng, ids, count);
    switch (Below(rng, 7)) {
      case 0:
      case 1:
      case 2:
        if (const std::optional<Slots> slots_of_batch = pair.Lease(batch)) {
          leases.push_back(*slots_of_batch);
        } else {
          ++failures;
          pair.CheckSame(ids);
        }
        break;
      case 3:
      case 4:
      case 5:
        if (leases.empty()) break;
        std::swap(leases[Below(rng, leases.size())], leases.back());
        pair.Release(leases.back(), Below(rng, 2) == 0);
        leases.pop_back();
        break;
      default:
        pair.Drop(ids[Below(rng, ids.size())]);
        const int64_t begin = Below(rng, slots + 1);
        pair.TakeDirty(begin, begin + Below(rng, slots - begin + 1));
    }
    if (step % 16 == 0) pair.CheckSame(ids);
  }
  CHECK(failures > 0, slots);
}

void TestRandomRuns() {
  Rng rng(1);
  for (const Policy policy : kPolicies) {
    for (const int64_t slots : {1, 2, 3, 5, 16, 17, 33, 64})
      CheckAtRandom(&rng, policy, slots, 600);
    CheckAtRandom(&rng, policy, 400, 100);
  }
}

// Few ids are used often, and others after a while, so that frequencies differ when they age.
void TestFrequenciesAge() {
  Rng rng(6);
  Pair pair(20, Policy::kLfu);
  for (int64_t step = 0; step < 3000; ++step) {
    std::set<int64_t> batch;
    for (int k = 0; k < 4; ++k) {
      batch.insert(step / 300 * 10 + static_cast<int64_t>(60 * std::pow(Uniform(&rng, 0, 1), 3)));
    }
    const Ids ids(batch.begin(), batch.end());
    pair.Release(*pair.Lease(ids), false);
    if (step % 32 == 0) pair.CheckSame(ids);
  }
}

// So many that ids are found whose buckets cannot be told apart.
void TestManyRows() {
  Rng rng(7);
  constexpr int64_t kSlots = 1 << 17;
  RowCache cache(kSlots, Policy::kLru);
  Ids ids(kSlots + kSlots / 4);
  for (int64_t& id : ids) id = static_cast<int64_t>(rng() >> 1);
  Ids there(kSlots, -1);  // by slot
  for (int step = 0; step < 4; ++step) {
    std::shuffle(ids.begin(), ids.end(), rng);
    Slots slots(kSlots / 2);
    Moves moves;
    CHECK(cache.Lease(ids.data(), slots.size(), slots.data(), &moves));
    for (const Moves::Eviction& row : moves.evicted) CHECK_EQ(there[row.slot], row.id);
    for (const Moves::Fetch& row : moves.missing) there[row.slot] = row.id;
    for (size_t k = 0; k < slots.size(); ++k) CHECK_EQ(there[slots[k]], ids[k], k);
    cache.Release(slots.data(), slots.size(), false);
    int64_t found = 0;
    for (const int64_t id : ids) found += cache.Find(id) >= 0;
    CHECK_EQ(found, cache.Used());
    for (int32_t slot = 0; slot < cache.Used(); ++slot) CHECK_EQ(cache.Find(there[slot]), slot);
  }
}

// ---- What each policy promises.

void LeaseAndRelease(RowCache* cache, const Ids& ids, bool is_dirty, Slots* slots, Moves* moves) {
  slots->resize(ids.size());
  CHECK(cache->Lease(ids.data(), ids.size(), slots->data(), moves));
  cache->Release(slots->data(), slots->size(), is_dirty);
}

void TestLruIsExact() {
  Rng rng(2);
  RowCache cache(50, Policy::kLru);
  std::list<int64_t> order;  // oldest first
  Slots slots;
  Moves moves;
  for (int step = 0; step < 500; ++step) {
    Ids ids(120);
    std::iota(ids.begin(), ids.end(), int64_t{0});
    ids = RandomIds(&rng, ids, 1 + Below(&rng, 50));
    LeaseAndRelease(&cache, ids, false, &slots, &moves);
    for (const int64_t id : ids) order.remove(id);
    order.insert(order.end(), ids.begin(), ids.end());
    Ids evicted;
    for (; order.size() > 50; order.pop_front()) evicted.push_back(order.front());
    CHECK_EQ(moves.evicted.size(), evicted.size(), step);
    for (size_t k = 0; k < evicted.size(); ++k) CHECK_EQ(moves.evicted[k].id, evicted[k], step, k);
  }
}

void TestTheFirstRowsStay() {
  RowCache cache(64, Policy::kStatic);
  Slots slots;
  Moves moves;
  for (int64_t id = 0; id < 1000; ++id) LeaseAndRelease(&cache, {id}, false, &slots, &moves);
  for (int64_t id = 0; id < 60; ++id) CHECK_EQ(cache.Find(id), id);
  for (int64_t id = 996; id < 1000; ++id) CHECK(cache.Find(id) >= 60, id);
  // More than four rows at a time are possible.
  Ids many(10);
  std::iota(many.begin(), many.end(), int64_t{2000});
  LeaseAndRelease(&cache, many, false, &slots, &moves);
  for (int64_t id = 0; id < 60; ++id) CHECK_EQ(cache.Find(id), id < 6 ? -1 : id);
}

void TestAHotSetSurvivesAScan() {
  RowCache cache(100, Policy::kLfu);
  Slots slots;
  Moves moves;
  Ids hot(80);
  std::iota(hot.begin(), hot.end(), int64_t{0});
  LeaseAndRelease(&cache, hot, false, &slots, &moves);
  LeaseAndRelease(&cache, hot, false, &slots, &moves);
  for (int64_t id = 1000; id < 1900; ++id) LeaseAndRelease(&cache, {id}, false, &slots, &moves);
  for (const int64_t id : hot) CHECK(cache.Find(id) >= 0, id);
  // Frequencies age, so that rows do not stay for good.
  for (int64_t id = 2000; id < 9000; ++id) LeaseAndRelease(&cache, {id}, false, &slots, &moves);
  for (const int64_t id : hot) CHECK_EQ(cache.Find(id), -1, id);
}

// ---- Edges.

void TestCountsDoNotOverflow() {
  for (const Policy policy : kPolicies) {
    Pair pair(2, policy);
    for (int k = 0; k < RowCache::kMaxLeases; ++k) CHECK(pair.Lease({1}).has_value());
    CHECK(!pair.Lease({1}).has_value());
    CHECK(!pair.Lease({2, 1}).has_value());
    CHECK_EQ(pair.cache.Find(2), -1);
    pair.Release({0}, false);
    CHECK(pair.Lease({2, 1}).has_value());
    for (int k = 0; k < RowCache::kMaxLeases; ++k) pair.Release({0}, true);
    pair.Release({1}, false);
    pair.CheckSame({1, 2});
  }
}

void TestNoSlots() {
  for (const Policy policy : kPolicies) {
    Pair pair(0, policy);
    CHECK(!pair.Lease({3}).has_value());
    CHECK(pair.Lease({}).has_value());
    pair.TakeDirty(0, 0);
    pair.Drop(1);
    CHECK_EQ(pair.cache.Used(), 0);
  }
}

void TestBytes() {
  Rng rng(3);
  for (const Policy policy : kPolicies) {
    for (const int64_t slots : {0, 1, 15, 1000, 4097}) {
      RowCache cache(slots, policy);
      CHECK(cache.Bytes() <= 24 * slots + 512, cache.Bytes(), slots);
      const int64_t bytes = cache.Bytes();
      Slots of_batch;
      Moves moves;
      for (int step = 0; step < 20 && slots > 0; ++step) {
        Ids ids(1 + Below(&rng, slots));
        for (int64_t& id : ids) id = static_cast<int64_t>(rng() >> 1);
        LeaseAndRelease(&cache, ids, true, &of_batch, &moves);
      }
      CHECK_EQ(cache.Bytes(), bytes, slots);
    }
  }
}

// ---- Rows that are moved as the cache says.

class MovedTable {
 public:
  MovedTable(Rng* rng, int64_t rows, int64_t slots, Policy policy)
      : rng_(rng), cache_(slots, policy), slab_(slots, 0), ids_(rows) {
    for (int64_t id = 0; id < rows; ++id) file_.push_back(id);
    expected_ = file_;
    std::iota(ids_.begin(), ids_.end(), int64_t{0});
  }

  void Train() {
    const Ids batch = RandomIds(rng_, ids_, Below(rng_, cache_.Slots() + 1));
    Slots slots(batch.size());
    Moves moves;
    const bool is_leased = cache_.Lease(batch.data(), batch.size(), slots.data(), &moves);
    Move(moves);
    if (is_leased) leases_.push_back({batch, slots});
  }
  // Rows of several leases may change in turn.
  void Finish() {
    if (leases_.empty()) return;
    std::swap(leases_[Below(rng_, leases_.size())], leases_.back());
    const auto [batch, slots] = leases_.back();
    leases_.pop_back();
    const bool is_dirty = Below(rng_, 3) > 0;
    for (size_t k = 0; k < batch.size(); ++k) {
      CHECK_EQ(slab_[slots[k]], expected_[batch[k]], batch[k]);
      if (!is_dirty) continue;
      expected_[batch[k]] = expected_[batch[k]] * 3 + (*rng_)();
      slab_[slots[k]] = expected_[batch[k]];
    }
    cache_.Release(slots.data(), slots.size(), is_dirty);
  }
  void WriteBack(int64_t begin, int64_t end) {
    for (const Moves::Eviction& row : cache_.TakeDirty(begin, end)) file_[row.id] = slab_[row.slot];
  }
  // Changes since the row was written back are lost with it.
  void Drop(int64_t id) {
    if (cache_.Drop(id)) expected_[id] = file_[id];
  }
  void CheckAll() {
    while (!leases_.empty()) Finish();
    WriteBack(0, cache_.Slots() / 2);
    WriteBack(cache_.Slots() / 2, cache_.Slots());
    CHECK(file_ == expected_);
  }

 private:
  void Move(const Moves& moves) {
    for (const Moves::Eviction& row : moves.evicted) {
      if (row.is_dirty) file_[row.id] = slab_[row.slot];
      slab_[row.slot] = (*rng_)();
    }
    for (const Moves::Fetch& row : moves.missing) slab_[row.slot] = file_[row.id];
  }

  Rng* rng_;
  RowCache cache_;
  std::vector<uint64_t> slab_;
  std::vector<uint64_t> file_;
  std::vector<uint64_t> expected_;  // of a run without a cache
  std::vector<std::pair<Ids, Slots>> leases_;
  Ids ids_;
};

void TestMovesKeepTheTable() {
  Rng rng(4);
  for (const Policy policy : kPolicies) {
    for (const int64_t slots : {1, 4, 20, 48, 150}) {
      MovedTable table(&rng, 200, slots, policy);
      for (int step = 0; step < 600; ++step) {
        const int64_t action = Below(&rng, 12);
        if (action < 5) table.Train();
        if (action >= 5 && action < 10) table.Finish();
        if (action == 10) table.WriteBack(0, Below(&rng, slots + 1));
        if (action == 11) table.Drop(Below(&rng, 200));
        if (step % 100 == 99) table.CheckAll();
      }
    }
  }
}

// ---- Hit rates.

// Ids of a batch, each once, and how many lookups each of them has.
using Batch = std::vector<std::pair<int64_t, int64_t>>;

// The hottest `drift` ids become the coldest ones each four batches.
std::vector<Batch> ZipfTrace(Rng* rng, double exponent, int64_t drift) {
  constexpr int64_t kIds = 10000;
  constexpr int64_t kBatches = 400;
  constexpr int64_t kLookups = 300;
  std::vector<double> sums;
  for (int64_t rank = 1; rank <= kIds; ++rank) {
    sums.push_back((sums.empty() ? 0 : sums.back()) + std::pow(rank, -exponent));
  }
  Ids id_of_rank(kIds);
  std::iota(id_of_rank.begin(), id_of_rank.end(), int64_t{0});
  std::shuffle(id_of_rank.begin(), id_of_rank.end(), *rng);
  std::vector<Batch> trace;
  for (int64_t b = 0; b < kBatches; ++b) {
    std::map<int64_t, int64_t> counts;
    for (int64_t k = 0; k < kLookups; ++k) {
      const double sum = Uniform(rng, 0, sums.back());
      const int64_t rank = std::lower_bound(sums.begin(), sums.end(), sum) - sums.begin();
      ++counts[id_of_rank[(rank + b / 4 * drift) % kIds]];
    }
    trace.emplace_back(counts.begin(), counts.end());
    std::shuffle(trace.back().begin(), trace.back().end(), *rng);
  }
  return trace;
}

// Lookups in the second half of a trace whose rows are there.
int64_t HitsOf(const std::vector<Batch>& trace, int64_t slots, Policy policy) {
  RowCache cache(slots, policy);
  int64_t hits = 0;
  Slots of_batch;
  Moves moves;
  for (size_t b = 0; b < trace.size(); ++b) {
    Ids ids;
    for (const auto& [id, lookups] : trace[b]) {
      ids.push_back(id);
      if (2 * b >= trace.size() && cache.Find(id) >= 0) hits += lookups;
    }
    LeaseAndRelease(&cache, ids, true, &of_batch, &moves);
  }
  return hits;
}

// The most that is possible with all rows of a batch in memory at once: Belady's choice, by which
// the row goes that is needed last.
int64_t MostHits(const std::vector<Batch>& trace, int64_t slots) {
  std::map<int64_t, std::deque<int64_t>> uses;
  for (size_t b = 0; b < trace.size(); ++b) {
    for (const auto& [id, lookups] : trace[b]) uses[id].push_back(b);
  }
  std::set<std::pair<int64_t, int64_t>> there;  // the batch that needs a row next, and the id
  int64_t hits = 0;
  for (int64_t b = 0; b < static_cast<int64_t>(trace.size()); ++b) {
    for (const auto& [id, lookups] : trace[b]) {
      const bool is_hit = there.erase({b, id}) > 0;
      uses[id].pop_front();
      if (is_hit && 2 * b >= static_cast<int64_t>(trace.size())) hits += lookups;
    }
    while (static_cast<int64_t>(there.size() + trace[b].size()) > slots) {
      there.erase(std::prev(there.end()));
    }
    for (const auto& [id, lookups] : trace[b]) {
      there.insert({uses[id].empty() ? std::numeric_limits<int64_t>::max() : uses[id].front(), id});
    }
  }
  return hits;
}

void TestHitRates() {
  struct Case {
    int64_t drift;
    double of_most;
    double of_lru;
  };
  Rng rng(5);
  for (const double exponent : {1.05, 1.2}) {
    // In the last one a hot row stays hot for so short a time that the past says little.
    for (const auto [drift, of_most, of_lru] :
         {Case{0, 0.92, 1.02}, {1, 0.92, 1.02}, {5, 0.90, 1.01}, {20, 0.78, 0.9}}) {
      const std::vector<Batch> trace = ZipfTrace(&rng, exponent, drift);
      for (const int64_t slots : {500, 1000}) {
        const double most = MostHits(trace, slots);
        const double lru = HitsOf(trace, slots, Policy::kLru);
        const double lfu = HitsOf(trace, slots, Policy::kLfu);
        CHECK(lfu >= of_most * most, lfu, most, exponent, drift, slots);
        CHECK(lfu >= of_lru * lru, lfu, lru, exponent, drift, slots);
      }
    }
  }
}

}  // namespace
}  // namespace tfrec

int main() {
  tfrec::TestAllInterleavings();
  tfrec::TestRandomRuns();
  tfrec::TestFrequenciesAge();
  tfrec::TestManyRows();
  tfrec::TestLruIsExact();
  tfrec::TestTheFirstRowsStay();
  tfrec::TestAHotSetSurvivesAScan();
  tfrec::TestCountsDoNotOverflow();
  tfrec::TestNoSlots();
  tfrec::TestBytes();
  tfrec::TestMovesKeepTheTable();
  tfrec::TestHitRates();
  return 0;
}
