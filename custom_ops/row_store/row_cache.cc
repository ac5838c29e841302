#include "custom_ops/row_store/row_cache.h"

#include <algorithm>

#include "custom_ops/common/prefetch.h"

namespace tfrec {
namespace {

constexpr int32_t kNone = -1;  // in place of a slot
constexpr int64_t kNoId = -1;
constexpr uint32_t kEmpty = ~uint32_t{0};

// In kLfu, frequencies age each time that so much has happened for each slot. A row that comes
// weighs less than one that is used again, so that a long scan does not make the cache forget what
// it holds; but not much less, or frequencies hardly age where a hot set moves fast and the cache
// holds little that is used again. On traces of zipf(1.05) and zipf(1.2), an age twice as long
// gains up to 0.3 points where ids keep their ranks, and costs up to 7 where they drift by three
// ranks a batch. A sketch of the frequencies of rows that are not there gained less than a point
// with one more byte for each slot, and nothing with half of one.
constexpr int64_t kWeightOfPlace = 1;
constexpr int64_t kWeightOfRepeat = 2;
constexpr int64_t kWeightOfAge = 8 * kWeightOfRepeat;

// The least number 2^n - 1 that is not a slot.
uint32_t SlotMask(int64_t slots) {
  uint32_t mask = 0;
  while (mask < slots) mask = 2 * mask + 1;
  return mask;
}

}  // namespace

RowCache::RowCache(int64_t slots, Policy policy)
    : slots_(slots),
      policy_(policy),
      static_slots_(policy == Policy::kStatic ? slots - slots / 16 : 0),
      slot_mask_(SlotMask(slots)),
      rows_(slots + kLists + 1),
      states_(slots),
      buckets_(slots + slots / 2 + 1, kEmpty) {
  for (int list = 0; list <= kFree; ++list) rows_[Head(list)] = {kNoId, Head(list), Head(list)};
  for (int32_t slot = 0; slot < slots_; ++slot) LinkNewest(slot, kFree);
}

// ---- Lists.

void RowCache::LinkBetween(int32_t older, int32_t slot, int32_t newer) {
  rows_[slot].older = older;
  rows_[slot].newer = newer;
  rows_[older].newer = slot;
  rows_[newer].older = slot;
}

void RowCache::Unlink(int32_t slot) {
  const Row& row = rows_[slot];
  rows_[row.older].newer = row.newer;
  rows_[row.newer].older = row.older;
}

void RowCache::LinkAllNewest(int from, int to) {
  Row* const source = &rows_[Head(from)];
  if (source->newer == Head(from)) return;
  Row* const target = &rows_[Head(to)];
  rows_[target->older].newer = source->newer;
  rows_[source->newer].older = target->older;
  rows_[source->older].newer = Head(to);
  target->older = source->older;
  source->older = source->newer = Head(from);
}

// ---- From ids to slots.

RowCache::Hash RowCache::HashOf(int64_t id) const {
  uint64_t bits = (static_cast<uint64_t>(id) + 1) * 0x9e3779b97f4a7c15u;
  bits = (bits ^ (bits >> 32)) * 0xd6e8feb86659fd93u;
  const uint64_t home = (bits >> 32) * buckets_.size() >> 32;
  return {static_cast<int64_t>(home), static_cast<uint32_t>(bits) & ~slot_mask_};
}

int64_t RowCache::After(int64_t bucket) const {
  return bucket + 1 == static_cast<int64_t>(buckets_.size()) ? 0 : bucket + 1;
}

int64_t RowCache::LikelyBucket(const Hash& hash) const {
  int64_t bucket = hash.home;
  while (buckets_[bucket] != kEmpty && (buckets_[bucket] & ~slot_mask_) != hash.tag) {
    bucket = After(bucket);
  }
  return bucket;
}

int64_t RowCache::BucketOf(int64_t id) const {
  Hash hash = HashOf(id);
  for (;;) {
    const int64_t bucket = LikelyBucket(hash);
    const int32_t slot = SlotIn(bucket);
    if (slot == kNone || rows_[slot].id == id) return bucket;
    hash.home = After(bucket);
  }
}

int32_t RowCache::SlotIn(int64_t bucket) const {
  const uint32_t entry = buckets_[bucket];
  return entry == kEmpty ? kNone : static_cast<int32_t>(entry & slot_mask_);
}

int32_t RowCache::Find(int64_t id) const { return SlotIn(BucketOf(id)); }

void RowCache::FindAll(const int64_t* ids, int64_t count, int32_t* slots) const {
  for (int64_t begin = 0; begin < count; begin += kPrefetchDistance) {
    const int64_t end = std::min(begin + kPrefetchDistance, count);
    for (int64_t k = begin; k < end; ++k) Prefetch(&buckets_[HashOf(ids[k]).home], 1);
    for (int64_t k = begin; k < end; ++k) {
      slots[k] = SlotIn(LikelyBucket(HashOf(ids[k])));
      if (slots[k] == kNone) continue;
      Prefetch(&rows_[slots[k]], 1);
      Prefetch(&states_[slots[k]], 1);
    }
    for (int64_t k = begin; k < end; ++k) {
      if (slots[k] != kNone && rows_[slots[k]].id != ids[k]) slots[k] = Find(ids[k]);
    }
  }
}

// The rows that EraseBucket() will look at.
void RowCache::PrefetchRowsFrom(int64_t bucket) const {
  for (; buckets_[bucket] != kEmpty; bucket = After(bucket)) Prefetch(&rows_[SlotIn(bucket)], 1);
}

// Rows behind the empty bucket move up, unless they would come before their home.
void RowCache::EraseBucket(int64_t id) {
  const auto distance = [&](int64_t from, int64_t to) {
    return to >= from ? to - from : to - from + static_cast<int64_t>(buckets_.size());
  };
  int64_t empty = BucketOf(id);
  for (int64_t bucket = After(empty); buckets_[bucket] != kEmpty; bucket = After(bucket)) {
    const int64_t home = HashOf(rows_[SlotIn(bucket)].id).home;
    if (distance(home, bucket) < distance(empty, bucket)) continue;
    buckets_[empty] = buckets_[bucket];
    empty = bucket;
  }
  buckets_[empty] = kEmpty;
}

// ---- Rows that come, are used, and go.

// Adds slots to `moves->missing`, for rows that are named later. So many slots are free, or hold
// rows that nobody uses.
void RowCache::MakeRoom(int64_t wanted, Moves* moves) {
  const auto is_done = [&] { return static_cast<int64_t>(moves->missing.size()) == wanted; };
  for (; used_ < slots_ && !is_done(); ++used_) {
    const int32_t slot = rows_[Head(kFree)].newer;
    Unlink(slot);
    moves->missing.push_back({kNoId, slot});
  }
  for (int list = 0; list < kLists; ++list) {
    int32_t slot = rows_[Head(list)].newer;
    for (; slot != Head(list) && !is_done(); slot = rows_[slot].newer) {
      if (states_[slot].leases > 0) continue;
      moves->evicted.push_back({rows_[slot].id, slot, states_[slot].is_dirty != 0});
      moves->missing.push_back({kNoId, slot});
      Unlink(slot);  // from here the links of the row itself still lead on
    }
  }
  const int64_t count = moves->evicted.size();
  for (int64_t k = 0; k < count; ++k) {
    const int64_t soon = k + kPrefetchDistance;
    const int64_t later = soon + kPrefetchDistance;
    if (later < count) Prefetch(&buckets_[HashOf(moves->evicted[later].id).home], 1);
    if (soon < count) PrefetchRowsFrom(HashOf(moves->evicted[soon].id).home);
    EraseBucket(moves->evicted[k].id);
  }
}

// In the order of the ids: uses the rows that are there, and gives the slots of `moves->missing` to
// others.
void RowCache::UseAll(const int64_t* ids, int64_t count, int32_t* slots, Moves* moves) {
  auto room = moves->missing.begin();
  for (int64_t k = 0; k < count; ++k) {
    // Not in a function of its own: see prefetch.h.
    const int64_t soon = k + kPrefetchDistance;
    const int64_t later = soon + kPrefetchDistance;
    if (later < count && slots[later] != kNone) Prefetch(&rows_[slots[later]], 1);
    if (soon < count && slots[soon] != kNone) {
      Prefetch(&rows_[rows_[slots[soon]].older], 1);
      Prefetch(&rows_[rows_[slots[soon]].newer], 1);
      Prefetch(&states_[slots[soon]], 1);
    }
    if (soon < count && slots[soon] == kNone) Prefetch(&buckets_[HashOf(ids[soon]).home], 1);
    if (slots[k] != kNone) {
      Use(slots[k]);
    } else {
      room->id = ids[k];
      slots[k] = room->slot;
      Place(ids[k], room->slot);
      ++room;
    }
  }
  if (policy_ == Policy::kLfu && weight_ >= kWeightOfAge * slots_) Age();
}

void RowCache::Use(int32_t slot) {
  Unlink(slot);
  if (policy_ == Policy::kLfu) {
    State* const state = &states_[slot];
    state->is_fresh = true;
    state->repeats = std::min(state->repeats + 1, kMaxRepeats);
    weight_ += kWeightOfRepeat;
  }
  LinkNewest(slot, ListOf(slot));
}

// The row comes with its first lease.
void RowCache::Place(int64_t id, int32_t slot) {
  rows_[slot].id = id;
  states_[slot] = {};
  states_[slot].leases = 1;
  states_[slot].is_fresh = true;
  weight_ += kWeightOfPlace;
  const Hash hash = HashOf(id);
  int64_t bucket = hash.home;
  while (buckets_[bucket] != kEmpty) bucket = After(bucket);
  buckets_[bucket] = hash.tag | static_cast<uint32_t>(slot);
  LinkNewest(slot, ListOf(slot));
}

// Halves frequencies; those of rows that were not used since the last time become zero, or a hot
// set that is hot no more would stay for several times. In each list such rows are the oldest ones.
// They are the first to go now; among others whose frequencies become the same, those go later that
// were used more often.
void RowCache::Age() {
  weight_ = 0;
  int32_t last = Head(0);  // of those that go first
  for (int list = 0; list < kLists; ++list) {
    int32_t slot = rows_[Head(list)].newer;
    while (slot != Head(list) && !states_[slot].is_fresh) {
      const int32_t next = rows_[slot].newer;
      states_[slot].repeats = 0;
      Unlink(slot);
      LinkBetween(last, slot, rows_[last].newer);
      last = slot;
      slot = next;
    }
  }
  for (int list = 1; list < kLists; ++list) LinkAllNewest(list, list / 2);
  for (State& state : states_) {
    state.is_fresh = false;
    state.repeats /= 2;
  }
}

// ---- What users call.

bool RowCache::Lease(const int64_t* ids, int64_t count, int32_t* slots, Moves* moves) {
  moves->evicted.clear();
  moves->missing.clear();
  FindAll(ids, count, slots);
  int64_t missing = 0;
  int64_t idle = 0;  // rows that are there, and that nobody else uses
  for (int64_t k = 0; k < count; ++k) {
    if (slots[k] == kNone) {
      ++missing;
      continue;
    }
    if (states_[slots[k]].leases == kMaxLeases) return false;
    idle += states_[slots[k]].leases == 0;
  }
  if (leased_ + idle + missing > slots_) return false;
  leased_ += idle + missing;
  // Before room is made, so that none of these rows has to go.
  for (int64_t k = 0; k < count; ++k) {
    if (slots[k] != kNone) ++states_[slots[k]].leases;
  }
  MakeRoom(missing, moves);
  UseAll(ids, count, slots, moves);
  return true;
}

void RowCache::Release(const int32_t* slots, int64_t count, bool is_dirty) {
  for (int64_t k = 0; k < count; ++k) {
    if (k + kPrefetchDistance < count) Prefetch(&states_[slots[k + kPrefetchDistance]], 1);
    State* const state = &states_[slots[k]];
    leased_ -= --state->leases == 0;
    state->is_dirty |= is_dirty;
  }
}

std::vector<Moves::Eviction> RowCache::TakeDirty(int64_t begin, int64_t end) {
  std::vector<Moves::Eviction> dirty;
  for (int32_t slot = static_cast<int32_t>(begin); slot < end; ++slot) {
    if (!states_[slot].is_dirty) continue;
    dirty.push_back({rows_[slot].id, slot, true});
    states_[slot].is_dirty = false;
  }
  return dirty;
}

bool RowCache::Drop(int64_t id) {
  const int32_t slot = Find(id);
  if (slot == kNone) return true;
  if (states_[slot].leases > 0) return false;
  EraseBucket(id);
  Unlink(slot);
  states_[slot] = {};
  // The first slots of kStatic are to be filled first.
  if (slot < static_slots_) {
    LinkBetween(Head(kFree), slot, rows_[Head(kFree)].newer);
  } else {
    LinkNewest(slot, kFree);
  }
  --used_;
  return true;
}

int64_t RowCache::Bytes() const {
  return sizeof *this + rows_.capacity() * sizeof(Row) + states_.capacity() * sizeof(State) +
         buckets_.capacity() * sizeof(uint32_t);
}

}  // namespace tfrec
