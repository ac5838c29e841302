// Where the rows of a log lie: four bytes for each row of the table, in a scratch file without a
// name that is mapped, so that they are page cache, which the system can put on the disk, and not
// memory of the process. Space is taken in chunks, where rows are: hundreds of millions of rows
// cost next to nothing until some of them are set.
//
// A page of a mapped file that finds no space on the disk ends the process. So a chunk is mapped
// when its space is taken; where that is refused, or means little, it is plain memory.
#ifndef TFREC_CUSTOM_OPS_ROW_STORE_ROW_INDEX_H_
#define TFREC_CUSTOM_OPS_ROW_STORE_ROW_INDEX_H_

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <deque>
#include <limits>
#include <string>

#include "custom_ops/row_store/store_file.h"

namespace tfrec {

class RowIndex {
 public:
  static constexpr int64_t kNone = -1;
  static constexpr int64_t kPlaces = std::numeric_limits<uint32_t>::max();  // all lie below it

  explicit RowIndex(const std::string& folder);  // where the file is to be
  ~RowIndex();
  RowIndex(const RowIndex&) = delete;
  RowIndex& operator=(const RowIndex&) = delete;

  // Threads may call this at any time, for rows that are not being set.
  int64_t Find(int64_t id) const {
    const uint32_t* chunk = chunks_[id / kChunkRows].chunk.load(std::memory_order_acquire);
    return chunk ? int64_t{chunk[id % kChunkRows]} - 1 : kNone;
  }

  // Brings what is said of a row near, for a call that follows.
  void Prefetch(int64_t id) const {
    const uint32_t* chunk = chunks_[id / kChunkRows].chunk.load(std::memory_order_acquire);
    if (chunk) __builtin_prefetch(chunk + id % kChunkRows);
  }

  // One thread at a time. Set() takes a row for which space was taken, and cannot fail; it returns
  // whether the row had no place before.
  void Reserve(int64_t id) {
    if (!chunks_[id / kChunkRows].chunk.load(std::memory_order_relaxed)) {
      AddChunk(id / kChunkRows);
    }
  }
  bool Set(int64_t id, int64_t place) {
    uint32_t* chunk = chunks_[id / kChunkRows].chunk.load(std::memory_order_relaxed);
    const bool is_new = chunk[id % kChunkRows] == 0;
    chunk[id % kChunkRows] = static_cast<uint32_t>(place + 1);
    return is_new;
  }

  // While one of those below is called, no other thread may call anything.

  // Room for ids in [0, rows), which may only become more.
  void Grow(int64_t rows) { chunks_.resize((rows + kChunkRows - 1) / kChunkRows); }
  void Clear();
  // Calls work(id, place) for all rows that have one, in the order of their ids.
  template <typename Work>
  void ForEach(const Work& work) const {
    for (size_t n = 0; n < chunks_.size(); ++n) {
      const uint32_t* chunk = chunks_[n].chunk.load(std::memory_order_relaxed);
      if (!chunk) continue;
      for (int64_t i = 0; i < kChunkRows; ++i) {
        if (chunk[i] != 0) work(static_cast<int64_t>(n) * kChunkRows + i, int64_t{chunk[i]} - 1);
      }
    }
  }
  // Calls work(first, count) for rows that follow one another, `limit` of them at most.
  template <typename Work>
  void ForEachRun(int64_t limit, const Work& work) const {
    int64_t first = 0;
    int64_t count = 0;
    ForEach([&](int64_t id, int64_t) {
      if (id == first + count && count < limit) {
        ++count;
        return;
      }
      if (count > 0) work(first, count);
      first = id;
      count = 1;
    });
    if (count > 0) work(first, count);
  }

 private:
  static constexpr int64_t kChunkRows = int64_t{1} << 18;
  static constexpr int64_t kChunkBytes = kChunkRows * static_cast<int64_t>(sizeof(uint32_t));
  struct Slot {
    std::atomic<uint32_t*> chunk{nullptr};  // of places + 1; 0 is none
  };

  void AddChunk(int64_t n);
  void Unmap();

  const std::string folder_;
  StoreFile file_;           // none where all is plain memory
  std::deque<Slot> chunks_;  // which grows without moving atomics
};

}  // namespace tfrec

#endif  // TFREC_CUSTOM_OPS_ROW_STORE_ROW_INDEX_H_
