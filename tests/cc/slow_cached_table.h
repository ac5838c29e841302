// What the tests of cached tables compare them with: a table all of whose rows lie in memory.
#ifndef TFREC_TESTS_CC_SLOW_CACHED_TABLE_H_
#define TFREC_TESTS_CC_SLOW_CACHED_TABLE_H_

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <functional>
#include <iterator>
#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "custom_ops/row_store/cached_table.h"
#include "tests/cc/check.h"
#include "tests/cc/random_rows.h"
#include "tests/cc/store_folder.h"

namespace tfrec {

using Ids = std::vector<int64_t>;
using Floats = std::vector<float>;
using Padding = CachedTable::Padding;

// A slab in memory with a lock of its own, as a variable has one. Nothing is in it at first.
class MemorySlab final : public Slab {
 public:
  std::function<void()> on_move;  // called before rows are moved

  MemorySlab(int64_t slots, int64_t width)
      : width_(width), rows_(slots * width, static_cast<float>(kNan)) {}

  void Read(const int32_t* slots, int64_t count, int64_t stride, float* rows) override {
    Begin(count, stride);
    const std::lock_guard<std::mutex> lock(mutex_);
    for (int64_t k = 0; k < count; ++k) std::copy_n(Row(slots[k]), width_, rows + k * stride);
  }
  void Write(const int32_t* slots, int64_t count, int64_t stride, const float* rows) override {
    Begin(count, stride);
    const std::lock_guard<std::mutex> lock(mutex_);
    for (int64_t k = 0; k < count; ++k) std::copy_n(rows + k * stride, width_, Row(slots[k]));
  }

  std::mutex& Mutex() { return mutex_; }
  float* Row(int32_t slot) {  // with the lock, where there are threads
    CHECK(slot >= 0 && (slot + 1) * width_ <= static_cast<int64_t>(rows_.size()), slot);
    return &rows_[slot * width_];
  }
  void Clear() { std::fill(rows_.begin(), rows_.end(), static_cast<float>(kNan)); }

 private:
  void Begin(int64_t count, int64_t stride) const {
    CHECK(count > 0 && stride == width_ + CachedTable::kOwnColumns, count, stride);
    if (on_move) on_move();
  }

  const int64_t width_;
  std::mutex mutex_;
  Floats rows_;
};

// Thrown by a TablePair where a call of the table failed because of a file.
struct FileFault {
  bool is_of_read;
};

// The cached table and the slow one, which must not differ in anything that can be seen: each call
// checks it. The first weight of a row tells which one it is, and is never trained.
class TablePair {
 public:
  std::string fault;        // set by a hook that lets a call of a file fail
  bool has_commit = false;  // set by one that sees a checkpoint made

  TablePair(int64_t rows, int64_t slots, int64_t width, Policy policy, uint64_t seed = 1)
      : slots_(slots),
        policy_(policy),
        initial_{InitialRows::Kind::kNormal, 0, 1, seed, width - 3, {0.25F, 0, 0}},
        slab_(slots, width - CachedTable::kOwnColumns) {
    std::unique_ptr<RowStore> store;
    saved_ = files_ = StoreModel::Create(folder_.Path(), rows, width, &store);
    Name(0, rows);
    Open(std::move(store));
  }

  int64_t Rows() const { return files_.rows; }
  int64_t Slots() const { return slots_; }
  const std::string Folder() const { return folder_.Path(); }
  CachedTable* Table() { return table_.get(); }
  MemorySlab* GetSlab() { return &slab_; }
  const CachedTable::Stats& Stats() const { return stats_; }

  struct Announced {
    int64_t stream;
    Padding padding;
    Ids ids;
    std::map<int64_t, float> counts;
  };
  const std::list<Announced>& Coming() const { return announced_; }
  bool IsIdle(int actor) const { return in_use_.count(actor) == 0; }
  bool IsTrained(int actor) const { return in_use_.at(actor).is_trained; }

  // ---- What actors do. One has a batch, or is idle.

  // Returns whether there is room for the rows.
  bool Lookup(int actor, const Ids& ids, Padding padding = {}) {
    const std::map<int64_t, float> counts = Count(ids, padding);
    std::list<Announced> left = announced_;
    const auto found = std::find_if(left.begin(), left.end(), [&](const Announced& batch) {
      return batch.ids == ids && batch.padding.is_there == padding.is_there &&
             batch.padding.id == padding.id;
    });
    const bool is_awaited = found != left.end();
    bool has_room = true;
    if (is_awaited) {
      const int64_t stream = found->stream;
      for (auto batch = left.begin(); batch != found;) {
        batch = batch->stream == stream ? left.erase(batch) : std::next(batch);
      }
      left.erase(found);
    } else {
      while (RowsHeld(left, counts) > slots_ && !left.empty()) left.pop_back();
      has_room = RowsHeld(left, counts) <= slots_;
    }
    const Ids before = InMemory();
    const int64_t stall = table_->GetStats().stall_nanoseconds;
    std::vector<int32_t> slots(ids.size(), -7);
    InUse batch;
    const std::string words = Try([&] {
      batch.lease = table_->Lookup(ids.data(), ids.size(), padding, &slab_, slots.data());
    });
    CHECK_EQ(words.empty(), has_room, words);
    if (!has_room) {  // and nothing changed
      CHECK(Contains(words, "`cache_rows` must be so many that"), words);
      CheckAfter(before, {});
      return false;
    }
    announced_ = left;
    if (is_awaited) CHECK_EQ(table_->GetStats().stall_nanoseconds, stall);
    for (const auto& [id, count] : counts) {
      stats_.lookups += static_cast<int64_t>(count);
      if (Has(before, id)) stats_.hits += static_cast<int64_t>(count);
      CHECK(!is_awaited || Has(before, id), id);
    }
    stats_.awaited += is_awaited;
    stats_.largest_batch = std::max<int64_t>(stats_.largest_batch, counts.size());
    std::set<int32_t> taken;
    for (size_t k = 0; k < ids.size(); ++k) {
      if (counts.count(ids[k]) == 0) {
        CHECK_EQ(slots[k], CachedTable::kPadding, k);
        continue;
      }
      const auto [row, is_new] = batch.rows.insert({ids[k], {slots[k], counts.at(ids[k])}});
      CHECK_EQ(row->second.slot, slots[k], ids[k]);
      CHECK(!is_new || taken.insert(slots[k]).second, ids[k], slots[k]);
    }
    CHECK(in_use_.insert({actor, std::move(batch)}).second, actor);
    CheckAfter(before, counts);
    return true;
  }
  // Changes the rows of the batch, which has to finish dirty then.
  void Train(int actor) {
    in_use_.at(actor).is_trained = true;
    for (const auto& [id, row] : in_use_.at(actor).rows) {
      Floats* const now = Now(id);
      float* const there = slab_.Row(row.slot);
      const int64_t width = now->size() - CachedTable::kOwnColumns;
      for (int64_t c = 1; c < width; ++c) {
        there[c] = there[c] * 0.5F + static_cast<float>(++clock_ % 1000);
        (*now)[c] = there[c];
      }
    }
    CheckHeld();
  }
  void Finish(int actor, bool is_dirty) {
    CHECK(is_dirty || !IsTrained(actor));
    InUse batch = std::move(in_use_.at(actor));
    in_use_.erase(actor);
    for (const auto& [id, row] : batch.rows) {
      if (!is_dirty) continue;
      Floats* const now = Now(id);
      (*now)[now->size() - CachedTable::kOwnColumns] += row.lookups;
      unwritten_.insert(id);
    }
    // A lease that is dropped ends clean, and one that ended does not end again.
    if (is_dirty || ++clock_ % 2) batch.lease->End(is_dirty);
    if (is_dirty && ++clock_ % 2) batch.lease->End(true);
    batch.lease.reset();
    CheckHeld();
  }

  void Prefetch(int64_t stream, const Ids& ids, Padding padding = {}) {
    std::map<int64_t, float> counts = Count(ids, padding);
    const bool has_room = RowsHeld(announced_, counts) <= slots_;
    const Ids before = InMemory();
    CHECK_EQ(Try([&] { table_->Prefetch(stream, ids.data(), ids.size(), padding, &slab_); }), "");
    if (has_room) {
      announced_.push_back({stream, padding, ids, counts});
      ++stats_.announced;
      stats_.largest_batch = std::max<int64_t>(stats_.largest_batch, counts.size());
    } else {
      counts.clear();
    }
    CheckAfter(before, counts);
  }
  void Forget(int64_t stream) {
    table_->Forget(stream);
    announced_.remove_if([&](const Announced& batch) { return batch.stream == stream; });
    CheckHeld();
  }

  void Checkpoint() {
    const Ids before = InMemory();
    for (const int64_t id : unwritten_) files_.written[id] = WithCheckpoint(*Now(id));
    next_ = files_;
    ++next_.checkpoint;
    next_.header = "{\"step\": " + std::to_string(++clock_) + "}";
    CHECK_EQ(Try([&] { table_->Checkpoint(next_.header, &slab_); }), "");
    stats_.rows_written += unwritten_.size();
    unwritten_.clear();
    saved_ = files_ = next_;
    has_commit = false;
    CHECK_EQ(table_->Store().Checkpoints(), saved_.checkpoint);
    CHECK_EQ(table_->Store().Header(), saved_.header);
    CheckAfter(before, {});
  }
  void Read(const Ids& ids) {
    const Ids before = InMemory();
    const int64_t width = files_.width;
    Floats rows(ids.size() * width, static_cast<float>(kNan));
    is_reading_ = true;
    CHECK_EQ(Try([&] { table_->Read(ids.data(), ids.size(), &slab_, rows.data()); }), "");
    is_reading_ = false;
    for (size_t k = 0; k < ids.size(); ++k) {
      Floats expected = *Now(ids[k]);
      const auto written = files_.written.find(ids[k]);
      expected.back() = written == files_.written.end() ? 0 : written->second.back();
      // A row that is in no file yet may have the number with which it will be.
      const float last = rows[(k + 1) * width - 1];
      const Floats later = WithCheckpoint(expected);
      if (unwritten_.count(ids[k]) > 0 && last == later.back()) expected = later;
      CHECK(std::memcmp(&rows[k * width], expected.data(), width * sizeof last) == 0, k, ids[k]);
    }
    CheckAfter(before, {});
  }
  void Reset(const Ids& ids) {
    announced_.clear();
    const Ids all = AllIds();
    const auto used =
        std::count_if(all.begin(), all.end(), [&](int64_t id) { return IsInUse(id); });
    const std::string words = Try([&] { table_->Reset(ids.data(), ids.size()); });
    CHECK_EQ(words.empty(), used == 0, words);
    if (used > 0) {
      CHECK(Contains(words, "with " + std::to_string(used) + " rows"), words);
      return CheckAfter(InMemory(), {});
    }
    for (const int64_t id : ids) {
      for (int32_t slot = 0; slot < slots_; ++slot) {
        if (IdIn(slot) == id) slab_.Row(slot)[0] = static_cast<float>(kNan);
      }
      unwritten_.erase(id);
      now_[id] = files_.written[id] = WithCheckpoint(Initial(id));
    }
    CheckAfter(InMemory(), {});
  }
  void Grow(int64_t rows) {
    const int64_t before = files_.rows;
    CHECK_EQ(Try([&] { table_->Grow(rows); }), "");
    if (rows > before) files_.rows = std::max(rows, 2 * before);
    CHECK_EQ(table_->Store().Rows(), files_.rows);
    Name(before, files_.rows);
  }

  // ---- The table as a whole.

  Ids AllIds() const {
    Ids ids(files_.rows);
    for (int64_t id = 0; id < files_.rows; ++id) ids[id] = id;
    return ids;
  }
  void CheckAll() { Read(AllIds()); }
  void FinishAll() {
    while (!in_use_.empty()) Finish(in_use_.begin()->first, IsTrained(in_use_.begin()->first));
  }
  // As after the end of the process, in whatever call that was.
  void Reopen() {
    in_use_.clear();
    table_.reset();
    slab_.Clear();
    if (has_commit) saved_ = next_;
    files_ = saved_;
    Name(0, files_.rows);
    for (const auto& [id, row] : files_.written) now_[id] = row;
    announced_.clear();
    unwritten_.clear();
    stats_ = {};
    fault.clear();
    has_commit = is_reading_ = false;
    auto store = RowStore::Open(folder_.Path());
    CHECK_EQ(store->Checkpoints(), saved_.checkpoint);
    CHECK(StoreModel::Of(*store) == saved_);
    store->Verify();
    Open(std::move(store));
  }

  // The rows in memory, as the slab shows.
  Ids InMemory() {
    Ids ids;
    ids.reserve(slots_);
    for (int32_t slot = 0; slot < slots_; ++slot) {
      const int64_t id = IdIn(slot);
      if (id >= 0) ids.push_back(id);
    }
    std::sort(ids.begin(), ids.end());
    CHECK(std::adjacent_find(ids.begin(), ids.end()) == ids.end());
    return ids;
  }

 private:
  struct InUse {
    struct Row {
      int32_t slot;
      float lookups;
    };
    std::map<int64_t, Row> rows;
    std::unique_ptr<CachedTable::Lease> lease;
    bool is_trained = false;
  };

  void Open(std::unique_ptr<RowStore> store) {
    table_ = std::make_shared<CachedTable>(std::move(store), slots_, policy_, initial_);
  }
  // The words of the error of a call that fails for other reasons than a file.
  template <typename Call>
  std::string Try(const Call& call) {
    const std::string words = ErrorOf(call);
    if (fault.empty()) return words;
    CHECK(!words.empty(), fault);
    throw FileFault{is_reading_};
  }

  // ---- Rows of the slow table.

  Floats Initial(int64_t id) const {
    Floats row(files_.width);
    initial_.Fill(id, row.data());
    return row;
  }
  // But for the last column.
  Floats* Now(int64_t id) { return &now_[id]; }
  Floats WithCheckpoint(Floats row) const {
    row.back() = static_cast<float>(saved_.checkpoint + 1);
    return row;
  }
  void Name(int64_t begin, int64_t end) {
    now_.resize(end);
    for (int64_t id = begin; id < end; ++id) {
      now_[id] = Initial(id);
      const int64_t named = id_of_.insert({now_[id][0], id}).first->second;
      CHECK_EQ(named, id);  // which may be so from before the table was opened again
    }
  }
  int64_t IdIn(int32_t slot) {
    const float name = slab_.Row(slot)[0];
    if (name != name) return -1;
    const auto found = id_of_.find(name);
    CHECK(found != id_of_.end(), slot, name);
    return found->second;
  }

  // ---- Which rows have to be where.

  static bool Has(const Ids& sorted, int64_t id) {
    return std::binary_search(sorted.begin(), sorted.end(), id);
  }
  static std::map<int64_t, float> Count(const Ids& ids, Padding padding) {
    std::map<int64_t, float> counts;
    for (const int64_t id : ids) {
      if (!padding.is_there || id != padding.id) ++counts[id];
    }
    return counts;
  }
  int64_t RowsHeld(const std::list<Announced>& announced,
                   const std::map<int64_t, float>& more) const {
    Ids ids;
    ids.reserve(slots_ + more.size());
    for (const auto& [actor, batch] : in_use_) {
      for (const auto& [id, row] : batch.rows) ids.push_back(id);
    }
    for (const Announced& batch : announced) {
      for (const auto& [id, count] : batch.counts) ids.push_back(id);
    }
    for (const auto& [id, count] : more) ids.push_back(id);
    std::sort(ids.begin(), ids.end());
    return std::unique(ids.begin(), ids.end()) - ids.begin();
  }
  bool IsInUse(int64_t id) const {
    return std::any_of(in_use_.begin(), in_use_.end(),
                       [&](const auto& batch) { return batch.second.rows.count(id) > 0; });
  }

  // Rows in use are where they were, and what they should be; those that will be are there.
  void CheckHeld() {
    for (const auto& [actor, batch] : in_use_) {
      for (const auto& [id, row] : batch.rows) {
        const Floats& expected = *Now(id);
        const int64_t bytes = (files_.width - CachedTable::kOwnColumns) * sizeof(float);
        CHECK(std::memcmp(slab_.Row(row.slot), expected.data(), bytes) == 0, actor, id);
      }
    }
    const Ids there = InMemory();
    for (const Announced& batch : announced_) {
      for (const auto& [id, count] : batch.counts) CHECK(Has(there, id), id);
    }
  }
  // What a call did with the rows that were in memory before, where these came.
  void CheckAfter(const Ids& before, const std::map<int64_t, float>& came) {
    const Ids after = InMemory();
    for (const auto& [id, count] : came) stats_.rows_read += !Has(before, id);
    for (const int64_t id : after) CHECK(Has(before, id) || came.count(id) > 0, id);
    for (const int64_t id : before) {
      CHECK(Has(after, id) || !came.empty(), id);
      if (Has(after, id) || unwritten_.erase(id) == 0) continue;
      files_.written[id] = WithCheckpoint(*Now(id));
      ++stats_.rows_written;
    }
    CheckHeld();
    const CachedTable::Stats actual = table_->GetStats();
    CHECK_EQ(actual.lookups, stats_.lookups);
    CHECK_EQ(actual.hits, stats_.hits);
    CHECK_EQ(actual.rows_read, stats_.rows_read);
    CHECK_EQ(actual.rows_written, stats_.rows_written);
    CHECK_EQ(actual.announced, stats_.announced);
    CHECK_EQ(actual.awaited, stats_.awaited);
    CHECK_EQ(actual.used_slots, static_cast<int64_t>(after.size()));
    CHECK_EQ(actual.largest_batch, stats_.largest_batch);
  }

  const int64_t slots_;
  const Policy policy_;
  const InitialRows initial_;
  StoreFolder folder_;
  MemorySlab slab_;
  std::shared_ptr<CachedTable> table_;
  CachedTable::Stats stats_{};

  std::map<float, int64_t> id_of_;  // by the first weight
  std::vector<Floats> now_;         // rows, but for their last column
  StoreModel files_;                // what is in the files
  StoreModel saved_;                // and would be, were they opened again
  StoreModel next_;                 // the checkpoint that is being made
  std::set<int64_t> unwritten_;     // rows that changed since they were in the files
  std::map<int, InUse> in_use_;     // by actor
  std::list<Announced> announced_;
  bool is_reading_ = false;
  int64_t clock_ = 0;
};

}  // namespace tfrec

#endif  // TFREC_TESTS_CC_SLOW_CACHED_TABLE_H_
