#include "custom_ops/row_store/cached_table.h"

#include <algorithm>
#include <chrono>
#include <exception>
#include <utility>

#include "custom_ops/common/prefetch.h"

namespace tfrec {
namespace {

// Rows that are moved with one call, some hundred kilobytes.
constexpr int64_t kPieceFloats = int64_t{1} << 16;

[[noreturn]] void FailOnId(int64_t id, int64_t k, int64_t rows) {
  throw StoreError("`ids` must be in `[0, " + std::to_string(rows) + ")`. Received: `ids[" +
                   std::to_string(k) + "]=" + std::to_string(id) + "`");
}

// Calls work(first, count) for pieces of a list of rows.
template <typename Work>
void ForEachPiece(int64_t count, int64_t width, const Work& work) {
  const int64_t piece = std::max<int64_t>(1, kPieceFloats / width);
  for (int64_t first = 0; first < count; first += piece) {
    work(first, std::min(piece, count - first));
  }
}

}  // namespace

CachedTable::CachedTable(std::unique_ptr<RowStore> store, int64_t slots, Policy policy,
                         InitialRows initial)
    : store_(std::move(store)),
      initial_(std::move(initial)),
      width_(store_->Width()),
      cache_(slots, policy),
      uses_(slots) {}

// ---- Batches.

CachedTable::Batch CachedTable::Distinct(const int64_t* ids, int64_t count, Padding padding) const {
  const int64_t rows = store_->Rows();
  int64_t buckets = 16;
  while (buckets < 2 * count) buckets *= 2;
  Batch batch;
  batch.index.resize(count);
  std::vector<int32_t> places(buckets, -1);
  const auto home = [&](int64_t id) {
    return static_cast<int64_t>((static_cast<uint64_t>(id) * 0x9e3779b97f4a7c15u) >> 20) &
           (buckets - 1);
  };
  for (int64_t k = 0; k < count; ++k) {
    if (k + kPrefetchDistance < count) {
      tfrec::Prefetch(&places[home(ids[k + kPrefetchDistance])], 1);
    }
    const int64_t id = ids[k];
    if (padding.is_there && id == padding.id) {
      batch.index[k] = kPadding;
      continue;
    }
    if (id < 0 || id >= rows) FailOnId(id, k, rows);
    int64_t bucket = home(id);
    while (places[bucket] >= 0 && batch.ids[places[bucket]] != id) {
      bucket = (bucket + 1) & (buckets - 1);
    }
    if (places[bucket] < 0) {
      places[bucket] = static_cast<int32_t>(batch.ids.size());
      batch.ids.push_back(id);
      batch.lookups.push_back(0);
    }
    batch.index[k] = places[bucket];
    ++batch.lookups[places[bucket]];
    ++batch.total;
  }
  return batch;
}

// Slots of lookups, from those of rows.
void FillSlots(const std::vector<int32_t>& index, const std::vector<int32_t>& of_rows,
               int32_t* slots) {
  for (size_t k = 0; k < index.size(); ++k) {
    slots[k] = index[k] < 0 ? CachedTable::kPadding : of_rows[index[k]];
  }
}

std::unique_ptr<CachedTable::Lease> CachedTable::Lookup(const int64_t* ids, int64_t count,
                                                        Padding padding, Slab* slab,
                                                        int32_t* slots) {
  Held held;
  if (!TakeAnnounced(ids, count, padding, slots, &held)) {
    const auto begun = std::chrono::steady_clock::now();
    const Batch batch = Distinct(ids, count, padding);
    const std::lock_guard<std::mutex> transfer(transfer_);
    // The batch that was waited for may have been this very one, which is announced now.
    if (!TakeAnnounced(ids, count, padding, slots, &held)) {
      Moves moves;
      if (!LeaseRows(batch, /*for_lookup=*/true, &held, &moves)) {
        throw StoreError(
            "`cache_rows` must be so many that the rows of all batches in use fit. "
            "Received: " +
            std::to_string(batch.ids.size()) + " rows of one batch for " +
            std::to_string(cache_.Slots()) + " slots, of which others may be in use");
      }
      Transfer(&moves, slab);
      FillSlots(batch.index, held.slots, slots);
    }
    const std::chrono::nanoseconds stall = std::chrono::steady_clock::now() - begun;
    const std::lock_guard<std::mutex> lock(mutex_);
    stats_.stall_nanoseconds += stall.count();
  }
  return std::make_unique<Lease>(shared_from_this(), std::move(held));
}

void CachedTable::Prefetch(int64_t stream, const int64_t* ids, int64_t count, Padding padding,
                           Slab* slab) {
  const Batch batch = Distinct(ids, count, padding);
  Announcement announcement{stream, padding, {ids, ids + count}, {}, {}, batch.total};
  const std::lock_guard<std::mutex> transfer(transfer_);
  Moves moves;
  if (!LeaseRows(batch, /*for_lookup=*/false, &announcement.held, &moves)) return;
  Transfer(&moves, slab);
  announcement.slots.resize(count);
  FillSlots(batch.index, announcement.held.slots, announcement.slots.data());
  const std::lock_guard<std::mutex> lock(mutex_);
  ++stats_.announced;
  announced_.push_back(std::move(announcement));
}

bool CachedTable::TakeAnnounced(const int64_t* ids, int64_t count, Padding padding, int32_t* slots,
                                Held* held) {
  std::list<Announcement> taken;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    CheckUsable();
    const auto found = std::find_if(announced_.begin(), announced_.end(), [&](const auto& batch) {
      return static_cast<int64_t>(batch.ids.size()) == count &&
             batch.padding.is_there == padding.is_there && batch.padding.id == padding.id &&
             std::equal(batch.ids.begin(), batch.ids.end(), ids);
    });
    if (found == announced_.end()) return false;
    // Batches of the stream that should have come before were dropped on their way.
    for (auto batch = announced_.begin(); batch != found;) {
      const auto next = std::next(batch);
      if (batch->stream == found->stream) DropAnnounced(batch);
      batch = next;
    }
    taken.splice(taken.end(), announced_, found);
    stats_.lookups += taken.front().total;
    stats_.hits += taken.front().total;
    ++stats_.awaited;
  }
  std::copy_n(taken.front().slots.data(), count, slots);
  *held = std::move(taken.front().held);
  return true;
}

void CachedTable::DropAnnounced(std::list<Announcement>::iterator batch) {
  cache_.Release(batch->held.slots.data(), batch->held.slots.size(), /*is_dirty=*/false);
  announced_.erase(batch);
}

void CachedTable::Forget(int64_t stream) {
  const std::lock_guard<std::mutex> lock(mutex_);
  for (auto batch = announced_.begin(); batch != announced_.end();) {
    const auto next = std::next(batch);
    if (batch->stream == stream) DropAnnounced(batch);
    batch = next;
  }
}

// Where there is no room for a lookup, announced batches give up theirs, those last that come
// first. Where that is in vain, they hold it again, with all rows still there.
bool CachedTable::LeaseRows(const Batch& batch, bool for_lookup, Held* held, Moves* moves) {
  const std::lock_guard<std::mutex> lock(mutex_);
  CheckUsable();
  const int64_t count = batch.ids.size();
  held->slots.resize(count);
  std::list<Announcement> without;
  while (!cache_.Lease(batch.ids.data(), count, held->slots.data(), moves)) {
    if (for_lookup && !announced_.empty()) {
      const std::vector<int32_t>& rows = announced_.back().held.slots;
      cache_.Release(rows.data(), rows.size(), /*is_dirty=*/false);
      without.splice(without.begin(), announced_, std::prev(announced_.end()));
      continue;
    }
    for (Announcement& other : without) {
      const Batch again = Distinct(other.ids.data(), other.ids.size(), other.padding);
      cache_.Lease(again.ids.data(), again.ids.size(), other.held.slots.data(), moves);
    }
    announced_.splice(announced_.end(), without);
    return false;
  }
  held->lookups = batch.lookups;
  stats_.largest_batch = std::max(stats_.largest_batch, count);
  if (for_lookup) {
    stats_.lookups += batch.total;
    stats_.hits += batch.total;
    // Rows that are missing are in the order of the batch.
    int64_t k = 0;
    for (const Moves::Fetch& row : moves->missing) {
      while (batch.ids[k] != row.id) ++k;
      stats_.hits -= static_cast<int64_t>(batch.lookups[k]);
    }
  }
  return true;
}

void CachedTable::Release(const Held& held, bool is_dirty) {
  const std::lock_guard<std::mutex> lock(mutex_);
  cache_.Release(held.slots.data(), held.slots.size(), is_dirty);
  if (!is_dirty) return;
  for (size_t k = 0; k < held.slots.size(); ++k) uses_[held.slots[k]] += held.lookups[k];
}

void CachedTable::Lease::End(bool is_dirty) {
  if (!table_) return;
  table_->Release(held_, is_dirty);
  table_.reset();
}

// ---- Rows that come and go.

template <typename Work>
void CachedTable::OrFail(const Work& work) {
  try {
    work();
  } catch (const std::exception& error) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (failure_.empty()) failure_ = error.what();
    throw;
  }
}

void CachedTable::CheckUsable() const {
  if (failure_.empty()) return;
  throw StoreError(
      "The table must be opened again, at its last checkpoint. Received: a failure "
      "after which rows that changed since may be lost: " +
      failure_);
}

// Nobody else uses the slots: the batch that leased them has not begun.
void CachedTable::Transfer(Moves* moves, Slab* slab) {
  if (moves->missing.empty()) return;
  OrFail([&] {
    WriteBack(&moves->evicted, slab);
    std::vector<Moves::Fetch>& rows = moves->missing;
    std::sort(rows.begin(), rows.end(), [](const auto& a, const auto& b) { return a.id < b.id; });
    ForEachPiece(rows.size(), width_, [&](int64_t first, int64_t count) {
      std::vector<int64_t> ids(count);
      std::vector<int32_t> slots(count);
      for (int64_t k = 0; k < count; ++k) {
        ids[k] = rows[first + k].id;
        slots[k] = rows[first + k].slot;
      }
      const std::unique_ptr<float[]> values(new float[count * width_]);
      ReadStore(ids.data(), count, values.get());
      slab->Write(slots.data(), count, width_, values.get());
      for (int64_t k = 0; k < count; ++k) uses_[slots[k]] = values[(k + 1) * width_ - kOwnColumns];
    });
    const std::lock_guard<std::mutex> lock(mutex_);
    stats_.rows_read += rows.size();
  });
}

void CachedTable::ReadStore(const int64_t* ids, int64_t count, float* rows) const {
  std::vector<uint8_t> is_there(count);
  store_->Read(ids, count, rows, is_there.data());
  for (int64_t k = 0; k < count; ++k) {
    if (!is_there[k]) initial_.Fill(ids[k], rows + k * width_);
  }
}

void CachedTable::WriteBack(std::vector<Moves::Eviction>* rows, Slab* slab) {
  const auto is_clean = [](const Moves::Eviction& row) { return !row.is_dirty; };
  rows->erase(std::remove_if(rows->begin(), rows->end(), is_clean), rows->end());
  std::sort(rows->begin(), rows->end(), [](const auto& a, const auto& b) { return a.id < b.id; });
  const auto checkpoint = static_cast<float>(store_->Checkpoints() + 1);
  ForEachPiece(rows->size(), width_, [&](int64_t first, int64_t count) {
    std::vector<int64_t> ids(count);
    std::vector<int32_t> slots(count);
    for (int64_t k = 0; k < count; ++k) {
      ids[k] = (*rows)[first + k].id;
      slots[k] = (*rows)[first + k].slot;
    }
    const std::unique_ptr<float[]> values(new float[count * width_]);
    slab->Read(slots.data(), count, width_, values.get());
    {
      const std::lock_guard<std::mutex> lock(mutex_);  // rows may be in use in a checkpoint
      for (int64_t k = 0; k < count; ++k) {
        float* const own = &values[(k + 1) * width_ - kOwnColumns];
        own[0] = uses_[slots[k]];
        own[1] = checkpoint;
      }
    }
    store_->Write(ids.data(), count, values.get());
  });
  const std::lock_guard<std::mutex> lock(mutex_);
  stats_.rows_written += rows->size();
}

// ---- The whole table.

void CachedTable::Checkpoint(const std::string& header, Slab* slab) {
  const std::lock_guard<std::mutex> transfer(transfer_);
  OrFail([&] {
    constexpr int64_t kSlots = int64_t{1} << 16;
    for (int64_t begin = 0; begin < cache_.Slots(); begin += kSlots) {
      std::vector<Moves::Eviction> dirty;
      {
        const std::lock_guard<std::mutex> lock(mutex_);
        CheckUsable();
        dirty = cache_.TakeDirty(begin, std::min(begin + kSlots, cache_.Slots()));
      }
      WriteBack(&dirty, slab);
    }
    store_->Checkpoint(header);
  });
}

void CachedTable::Read(const int64_t* ids, int64_t count, Slab* slab, float* rows) {
  const std::lock_guard<std::mutex> transfer(transfer_);
  ReadStore(ids, count, rows);
  std::vector<int32_t> slots;
  std::vector<int64_t> places;
  std::vector<float> uses;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    CheckUsable();
    for (int64_t k = 0; k < count; ++k) {
      const int32_t slot = cache_.Find(ids[k]);
      if (slot < 0) continue;
      slots.push_back(slot);
      places.push_back(k);
      uses.push_back(uses_[slot]);
    }
  }
  for (size_t k = 0; k < slots.size(); ++k) {
    float* const row = rows + places[k] * width_;
    slab->Read(&slots[k], 1, width_, row);
    row[width_ - kOwnColumns] = uses[k];
  }
}

void CachedTable::Reset(const int64_t* ids, int64_t count) {
  const std::lock_guard<std::mutex> transfer(transfer_);
  const int64_t rows = store_->Rows();
  for (int64_t k = 0; k < count; ++k) {
    if (ids[k] < 0 || ids[k] >= rows) FailOnId(ids[k], k, rows);
  }
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    CheckUsable();
    while (!announced_.empty()) DropAnnounced(announced_.begin());
    if (cache_.Leased() > 0) {
      throw StoreError(
          "No batch must be in use where rows are reset. Received: one or more, with " +
          std::to_string(cache_.Leased()) + " rows");
    }
    for (int64_t k = 0; k < count; ++k) cache_.Drop(ids[k]);
  }
  OrFail([&] {
    std::vector<float> row(width_);
    for (int64_t k = 0; k < count; ++k) {
      initial_.Fill(ids[k], row.data());
      row[width_ - 1] = static_cast<float>(store_->Checkpoints() + 1);
      store_->Write(ids + k, 1, row.data());
    }
  });
}

void CachedTable::Grow(int64_t rows) {
  if (rows <= store_->Rows()) return;
  const std::lock_guard<std::mutex> transfer(transfer_);
  OrFail([&] {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      CheckUsable();
    }
    const int64_t before = store_->Rows();  // another thread may have been first
    if (rows > before) store_->Grow(std::max(rows, 2 * before));
  });
}

CachedTable::Stats CachedTable::GetStats() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  Stats stats = stats_;
  stats.used_slots = cache_.Used();
  stats.bytes = cache_.Bytes() + uses_.capacity() * sizeof(float);
  return stats;
}

}  // namespace tfrec
