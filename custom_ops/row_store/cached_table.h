// A table in files whose hot rows lie in a slab of memory.
//
// A batch holds a lease on its rows from the moment it looks them up until it has updated them, and
// one that is announced ahead holds it from then on: no row in use ever moves. Rows come and go in
// one transfer at a time: rows that have to leave are written back before those that come are read,
// so that no row is read before its last update is in the files. A batch whose rows were all
// announced waits for no transfer.
#ifndef TFREC_CUSTOM_OPS_ROW_STORE_CACHED_TABLE_H_
#define TFREC_CUSTOM_OPS_ROW_STORE_CACHED_TABLE_H_

#include <cstdint>
#include <list>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "custom_ops/row_store/initial_rows.h"
#include "custom_ops/row_store/row_cache.h"
#include "custom_ops/row_store/row_store.h"

namespace tfrec {

// The memory of the rows, which is the user's: slots of all columns but the last two. Threads may
// call both at once, for slots of their own.
class Slab {
 public:
  virtual ~Slab() = default;
  // Rows are `stride` floats apart in `rows`.
  virtual void Read(const int32_t* slots, int64_t count, int64_t stride, float* rows) = 0;
  virtual void Write(const int32_t* slots, int64_t count, int64_t stride, const float* rows) = 0;
};

// Threads may call all of it at once. Everything throws a StoreError where it fails. Where that is
// in a transfer, rows may be lost that were changed after the last checkpoint, and every later call
// is an error too: the table has to be opened again, at that checkpoint.
class CachedTable : public std::enable_shared_from_this<CachedTable> {
 public:
  // The last two columns of a row in the files: how many trained lookups it had, and the number of
  // the checkpoint that first holds it as it is.
  static constexpr int64_t kOwnColumns = 2;
  static constexpr int32_t kPadding = -1;  // the slot of a lookup that is none

  struct Padding {
    bool is_there = false;
    int64_t id = 0;
  };
  struct Stats {
    int64_t lookups;            // by batches
    int64_t hits;               // of those, whose row was in memory when the batch came
    int64_t rows_read;          // from the files
    int64_t rows_written;       // to the files
    int64_t stall_nanoseconds;  // that batches waited for rows
    int64_t announced;          // batches
    int64_t awaited;            // batches that came as announced
    int64_t used_slots;
    int64_t bytes;          // of memory besides the slab
    int64_t largest_batch;  // rows
  };
  class Lease;

  // `initial` has a column for each of the store.
  CachedTable(std::unique_ptr<RowStore> store, int64_t slots, Policy policy, InitialRows initial);

  // Finds the slots of lookups, whose rows stay there until the lease ends.
  std::unique_ptr<Lease> Lookup(const int64_t* ids, int64_t count, Padding padding, Slab* slab,
                                int32_t* slots);
  // Brings rows to memory for a batch that will come, with these very ids, and holds them for it.
  // Does nothing where batches that came or were announced before hold too many of the slots.
  void Prefetch(int64_t stream, const int64_t* ids, int64_t count, Padding padding, Slab* slab);
  // Batches of a stream that did not come yet never will.
  void Forget(int64_t stream);

  // Makes all that was changed the last checkpoint.
  void Checkpoint(const std::string& header, Slab* slab);
  // Rows as they are now, all columns, whether in memory or not. They do not come to memory.
  void Read(const int64_t* ids, int64_t count, Slab* slab, float* rows);
  // Gives rows their initial values again. That a batch is in use is an error, and changes no row.
  // No batch is announced then.
  void Reset(const int64_t* ids, int64_t count);
  // At least so many rows. Makes twice as many as there are, so that growing is rare.
  void Grow(int64_t rows);

  const RowStore& Store() const { return *store_; }
  int64_t Slots() const { return cache_.Slots(); }
  Stats GetStats() const;

 private:
  // Rows of a batch, each once, and the lookups of each.
  struct Held {
    std::vector<int32_t> slots;
    std::vector<float> lookups;
  };
  struct Announcement {
    int64_t stream;
    Padding padding;
    std::vector<int64_t> ids;
    std::vector<int32_t> slots;
    Held held;
    int64_t total;
  };
  // The lookups of a batch by row.
  struct Batch {
    std::vector<int64_t> ids;    // each once
    std::vector<int32_t> index;  // of each lookup in `ids`, or kPadding
    std::vector<float> lookups;
    int64_t total = 0;
  };

  Batch Distinct(const int64_t* ids, int64_t count, Padding padding) const;
  bool TakeAnnounced(const int64_t* ids, int64_t count, Padding padding, int32_t* slots,
                     Held* held);
  bool LeaseRows(const Batch& batch, bool for_lookup, Held* held, Moves* moves);
  void Transfer(Moves* moves, Slab* slab);
  void WriteBack(std::vector<Moves::Eviction>* rows, Slab* slab);
  void DropAnnounced(std::list<Announcement>::iterator batch);
  void ReadStore(const int64_t* ids, int64_t count, float* rows) const;
  void Release(const Held& held, bool is_dirty);
  template <typename Work>
  void OrFail(const Work& work);
  void CheckUsable() const;

  const std::unique_ptr<RowStore> store_;
  const InitialRows initial_;
  const int64_t width_;
  std::mutex transfer_;       // held while rows come and go; taken before the other one
  mutable std::mutex mutex_;  // of all that follows
  RowCache cache_;
  std::vector<float> uses_;  // trained lookups by slot
  std::list<Announcement> announced_;
  std::string failure_;
  Stats stats_{};
};

// Ends with its life, at the latest.
class CachedTable::Lease {
 public:
  Lease(std::shared_ptr<CachedTable> table, Held held)
      : table_(std::move(table)), held_(std::move(held)) {}
  ~Lease() { End(/*is_dirty=*/false); }
  Lease(const Lease&) = delete;
  Lease& operator=(const Lease&) = delete;

  // `is_dirty` where the rows were changed.
  void End(bool is_dirty);

 private:
  std::shared_ptr<CachedTable> table_;
  Held held_;
};

}  // namespace tfrec

#endif  // TFREC_CUSTOM_OPS_ROW_STORE_CACHED_TABLE_H_
