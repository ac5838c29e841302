// Which rows of a table lie in a slab of memory, and which one has to go when another is needed.
//
// The cache knows places only: rows are moved by its user, in the order that it is told. A row is
// in use while somebody holds a lease on it, and then neither leaves nor moves.
#ifndef TFREC_CUSTOM_OPS_ROW_STORE_ROW_CACHE_H_
#define TFREC_CUSTOM_OPS_ROW_STORE_ROW_CACHE_H_

#include <cstdint>
#include <vector>

namespace tfrec {

enum class Policy {
  kLru,  // the row goes that was used longest ago
  // The row goes that was used again least often, of late; among equals the one used longest ago.
  kLfu,
  // The first rows that come stay for good, and others share the last sixteenth of the slots, as in
  // kLru. Only where leases need more slots at a time than these, some of the first rows go.
  kStatic,
};

// Rows that have to be moved before the slots hold what they should: first the rows of `evicted`
// are written back, those that are dirty; then the `missing` ones are read to their slots.
struct Moves {
  struct Eviction {
    int64_t id;
    int32_t slot;
    bool is_dirty;
  };
  struct Fetch {
    int64_t id;
    int32_t slot;
  };
  std::vector<Eviction> evicted;
  std::vector<Fetch> missing;
};

// Takes 24 bytes a slot, whatever the ids. Not thread-safe: the user locks, and moves rows before
// it unlocks or lets anybody use the slots.
class RowCache {
 public:
  static constexpr int64_t kMaxSlots = int64_t{1} << 30;
  static constexpr int kMaxLeases = 2047;  // on one row at a time

  RowCache(int64_t slots, Policy policy);

  // Finds slots for ids, each of them once, and holds a lease on each row until Release(). This is
  // one use of each row, later ids after earlier ones. Overwrites `moves`.
  // Returns false, and changes nothing in the cache, where there are not so many slots that nobody
  // else uses, or where a row has kMaxLeases leases; `slots` then hold nothing of use.
  bool Lease(const int64_t* ids, int64_t count, int32_t* slots, Moves* moves);
  // Ends leases; `is_dirty` where the rows were changed.
  void Release(const int32_t* slots, int64_t count, bool is_dirty);

  // -1 where the row is not there. Does not count as a use.
  int32_t Find(int64_t id) const;
  // The rows in slots [begin, end) that were changed since they were written back; they count as
  // written. In pieces, so that a checkpoint needs neither memory for all nor a long lock.
  std::vector<Moves::Eviction> TakeDirty(int64_t begin, int64_t end);
  // Forgets a row, changed or not; its slot is free. Returns false, and changes nothing, where the
  // row is in use.
  bool Drop(int64_t id);

  int64_t Slots() const { return slots_; }
  int64_t Used() const { return used_; }
  int64_t Leased() const { return leased_; }  // rows that somebody uses
  int64_t Bytes() const;                      // of this bookkeeping

 private:
  // Rows of one list are in a ring, from the one used longest ago to the newest, and back to the
  // head of the list. Heads lie behind the slots.
  struct Row {
    int64_t id;
    int32_t older;
    int32_t newer;
  };
  struct State {
    uint16_t is_dirty : 1;
    uint16_t leases : 11;
    uint16_t repeats : 3;   // kLfu: uses after the first one, of late
    uint16_t is_fresh : 1;  // kLfu: used since frequencies aged
  };
  // Where the search for an id begins, and bits that tell most other ids apart without a look at
  // their rows: all those of a bucket that its slot leaves.
  struct Hash {
    int64_t home;
    uint32_t tag;
  };
  static_assert(sizeof(Row) == 16 && sizeof(State) == 2, "24 bytes a slot with 1.5 buckets");

  // Rows go from list 0 first. Those of kLru are all in list 0, and those of kLfu in the list of
  // their repeats. In kStatic, rows of the first slots are in list 1.
  static constexpr int kMaxRepeats = 4;
  static constexpr int kLists = kMaxRepeats + 1;
  static constexpr int kFree = kLists;

  int32_t Head(int list) const { return static_cast<int32_t>(slots_) + list; }
  int ListOf(int32_t slot) const { return slot < static_slots_ ? 1 : states_[slot].repeats; }
  void LinkBetween(int32_t older, int32_t slot, int32_t newer);
  void LinkNewest(int32_t slot, int list) {
    LinkBetween(rows_[Head(list)].older, slot, Head(list));
  }
  void Unlink(int32_t slot);
  // All rows of one list become the newest ones of another.
  void LinkAllNewest(int from, int to);

  Hash HashOf(int64_t id) const;
  int64_t After(int64_t bucket) const;
  // The first bucket with the tag, or the empty one that ends the search.
  int64_t LikelyBucket(const Hash& hash) const;
  // The bucket of a row, or the empty one that ends the search.
  int64_t BucketOf(int64_t id) const;
  int32_t SlotIn(int64_t bucket) const;
  void FindAll(const int64_t* ids, int64_t count, int32_t* slots) const;
  void PrefetchRowsFrom(int64_t bucket) const;
  void EraseBucket(int64_t id);

  void MakeRoom(int64_t wanted, Moves* moves);
  void UseAll(const int64_t* ids, int64_t count, int32_t* slots, Moves* moves);
  void Use(int32_t slot);
  void Place(int64_t id, int32_t slot);
  void Age();

  const int64_t slots_;
  const Policy policy_;
  const int64_t static_slots_;
  const uint32_t slot_mask_;  // never a slot itself, hence no entry looks like an empty bucket
  int64_t used_ = 0;
  int64_t leased_ = 0;  // rows
  int64_t weight_ = 0;  // of what happened since frequencies aged
  std::vector<Row> rows_;
  std::vector<State> states_;
  std::vector<uint32_t> buckets_;  // tag and slot, found by linear probing from the home of an id
};

}  // namespace tfrec

#endif  // TFREC_CUSTOM_OPS_ROW_STORE_ROW_CACHE_H_
