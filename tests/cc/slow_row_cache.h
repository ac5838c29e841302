// What the tests of the row cache compare it with: a cache that looks at all rows for each
// question.
#ifndef TFREC_TESTS_CC_SLOW_ROW_CACHE_H_
#define TFREC_TESTS_CC_SLOW_ROW_CACHE_H_

#include <algorithm>
#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <tuple>
#include <utility>
#include <vector>

#include "custom_ops/row_store/row_cache.h"
#include "tests/cc/check.h"

namespace tfrec {

using Ids = std::vector<int64_t>;
using Slots = std::vector<int32_t>;

inline bool operator==(const Moves::Eviction& a, const Moves::Eviction& b) {
  return a.id == b.id && a.slot == b.slot && a.is_dirty == b.is_dirty;
}
inline bool operator==(const Moves::Fetch& a, const Moves::Fetch& b) {
  return a.id == b.id && a.slot == b.slot;
}
inline bool operator==(const Moves& a, const Moves& b) {
  return a.evicted == b.evicted && a.missing == b.missing;
}

class SlowRowCache {
 public:
  struct Row {
    int32_t slot;
    int64_t last_use;
    int leases = 1;
    bool is_dirty = false;
    int repeats = 0;
    bool is_fresh = true;
  };
  std::map<int64_t, Row> rows;

  SlowRowCache(int64_t slots, Policy policy) : slots_(slots), policy_(policy) {
    for (int32_t slot = 0; slot < slots; ++slot) free_.push_back(slot);
  }

  bool Lease(const int64_t* ids, int64_t count, int32_t* slots, Moves* moves) {
    *moves = {};
    const std::set<int64_t> batch(ids, ids + count);
    int64_t needed = count;
    for (const auto& [id, row] : rows) {
      if (batch.count(id) > 0 && row.leases == RowCache::kMaxLeases) return false;
      needed += batch.count(id) == 0 && row.leases > 0;
    }
    if (needed > slots_) return false;
    for (const int64_t id : batch) {
      if (rows.count(id) > 0) ++rows[id].leases;
    }
    for (int64_t k = 0; k < count; ++k) {
      if (rows.count(ids[k]) > 0) {
        Use(&rows[ids[k]]);
      } else {
        Place(ids[k], moves);
      }
      slots[k] = rows[ids[k]].slot;
    }
    Age();
    return true;
  }

  void Release(const int32_t* slots, int64_t count, bool is_dirty) {
    for (auto& [id, row] : rows) {
      if (std::count(slots, slots + count, row.slot) == 0) continue;
      --row.leases;
      row.is_dirty |= is_dirty;
    }
  }

  int32_t Find(int64_t id) const { return rows.count(id) > 0 ? rows.at(id).slot : -1; }
  std::vector<Moves::Eviction> TakeDirty(int64_t begin, int64_t end) {
    std::vector<Moves::Eviction> dirty;
    for (auto& [id, row] : rows) {
      if (!row.is_dirty || row.slot < begin || row.slot >= end) continue;
      dirty.push_back({id, row.slot, true});
      row.is_dirty = false;
    }
    std::sort(dirty.begin(), dirty.end(),
              [](const auto& a, const auto& b) { return a.slot < b.slot; });
    return dirty;
  }
  bool Drop(int64_t id) {
    if (rows.count(id) == 0) return true;
    const Row row = rows[id];
    if (row.leases > 0) return false;
    rows.erase(id);
    free_.insert(Stays(row.slot) ? free_.begin() : free_.end(), row.slot);
    return true;
  }
  int64_t Slots() const { return slots_; }
  int64_t Used() const { return rows.size(); }

  // Equal for two caches from which nothing different can follow. Times count by their order only.
  std::vector<int64_t> State() const {
    std::vector<int64_t> state = {policy_ == Policy::kLfu ? weight_ : 0};
    state.insert(state.end(), free_.begin(), free_.end());
    state.push_back(-1);
    for (const auto& [id, row] : rows) {
      int64_t newer = 0;
      for (const auto& [other_id, other] : rows) newer += other.last_use > row.last_use;
      state.insert(state.end(),
                   {id, row.slot, row.leases, row.is_dirty, row.repeats, row.is_fresh, newer});
    }
    return state;
  }

 private:
  bool Stays(int32_t slot) const {
    return policy_ == Policy::kStatic && slot < slots_ - slots_ / 16;
  }

  int32_t TakeSlot(Moves* moves) {
    if (!free_.empty()) {
      const int32_t slot = free_.front();
      free_.erase(free_.begin());
      return slot;
    }
    const auto rank = [&](const Row& row) {
      return std::tuple(row.leases > 0, Stays(row.slot), row.repeats, row.last_use);
    };
    const auto [id, row] = *std::min_element(
        rows.begin(), rows.end(),
        [&](const auto& a, const auto& b) { return rank(a.second) < rank(b.second); });
    moves->evicted.push_back({id, row.slot, row.is_dirty});
    rows.erase(id);
    return row.slot;
  }

  void Place(int64_t id, Moves* moves) {
    const int32_t slot = TakeSlot(moves);
    moves->missing.push_back({id, slot});
    rows[id] = {slot, ++clock_};
    ++weight_;
  }

  void Use(Row* row) {
    row->last_use = ++clock_;
    row->is_fresh = true;
    if (policy_ != Policy::kLfu) return;
    row->repeats = std::min(row->repeats + 1, 4);
    weight_ += 2;
  }

  // Rows that were not used since the last time lose their frequency, and go first. Among others
  // whose frequencies become the same, those that were used more often go later.
  void Age() {
    if (policy_ != Policy::kLfu || weight_ < 16 * slots_) return;
    weight_ = 0;
    std::vector<Row*> order;
    for (auto& [id, row] : rows) order.push_back(&row);
    std::sort(order.begin(), order.end(), [](const Row* a, const Row* b) {
      return std::tuple(a->is_fresh, a->repeats, a->last_use) <
             std::tuple(b->is_fresh, b->repeats, b->last_use);
    });
    for (Row* const row : order) {
      row->repeats = row->is_fresh ? row->repeats / 2 : 0;
      row->is_fresh = false;
      row->last_use = ++clock_;
    }
  }

  int64_t slots_;
  Policy policy_;
  std::vector<int32_t> free_;
  int64_t clock_ = 0;
  int64_t weight_ = 0;
};

// What a cache answers until it is full of other rows, all of them leased: what is there, what is
// dirty, in which order rows go, and how many are in use.
template <typename Cache>
std::vector<int64_t> Answers(Cache cache, const Ids& ids) {
  std::vector<int64_t> answers = {cache.Used()};
  for (const int64_t id : ids) answers.push_back(cache.Find(id));
  for (const Moves::Eviction& row : cache.TakeDirty(0, cache.Slots())) {
    answers.insert(answers.end(), {row.id, row.slot});
  }
  Moves moves;
  int32_t slot;
  for (int64_t id = int64_t{1} << 40; cache.Lease(&id, 1, &slot, &moves); ++id) {
    answers.push_back(slot);
    for (const Moves::Eviction& row : moves.evicted) answers.push_back(row.id);
  }
  return answers;
}

// The cache and the slow one, which must not differ in any answer.
struct Pair {
  RowCache cache;
  SlowRowCache slow;

  Pair(int64_t slots, Policy policy) : cache(slots, policy), slow(slots, policy) {}

  // The slots, or none where the lease fails.
  std::optional<Slots> Lease(const Ids& ids) {
    const std::map<int64_t, SlowRowCache::Row> before = slow.rows;
    Slots slots(ids.size());
    Slots slow_slots(ids.size());
    Moves moves;
    Moves slow_moves;
    const bool is_leased = cache.Lease(ids.data(), ids.size(), slots.data(), &moves);
    CHECK_EQ(slow.Lease(ids.data(), ids.size(), slow_slots.data(), &slow_moves), is_leased);
    CHECK(moves == slow_moves);
    if (!is_leased) return std::nullopt;
    CHECK(slots == slow_slots);
    CheckKept(before);
    return slots;
  }
  void Release(const Slots& slots, bool is_dirty) {
    cache.Release(slots.data(), slots.size(), is_dirty);
    slow.Release(slots.data(), slots.size(), is_dirty);
  }
  void TakeDirty(int64_t begin, int64_t end) {
    CHECK(cache.TakeDirty(begin, end) == slow.TakeDirty(begin, end), begin, end);
  }
  void Drop(int64_t id) { CHECK_EQ(cache.Drop(id), slow.Drop(id), id); }

  // Rows in use stay where they are.
  void CheckKept(const std::map<int64_t, SlowRowCache::Row>& before) const {
    for (const auto& [id, row] : before) {
      if (row.leases > 0) CHECK_EQ(cache.Find(id), row.slot, id);
    }
  }
  // No difference will ever show, and no two rows have one slot.
  void CheckSame(const Ids& ids) const {
    CHECK(Answers(cache, ids) == Answers(slow, ids));
    std::set<int32_t> slots;
    for (const int64_t id : ids) {
      const int32_t slot = cache.Find(id);
      CHECK(slot == -1 || slots.insert(slot).second, id, slot);
    }
  }
};

}  // namespace tfrec

#endif  // TFREC_TESTS_CC_SLOW_ROW_CACHE_H_
