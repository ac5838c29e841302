#include "custom_ops/row_store/row_log.h"

#include <fcntl.h>

#include <algorithm>
#include <cstring>
#include <exception>

#include "custom_ops/row_store/checksum.h"
#include "custom_ops/row_store/row_record.h"

namespace tfrec {
namespace {

// What one call reads or writes: it stays in a cache of the processor.
constexpr int64_t kPieceBytes = int64_t{1} << 16;
// Rows of one piece in the order of ids: from all over the log, in runs as long as they were
// written in that order.
constexpr int64_t kGatherBytes = int64_t{1} << 23;
// A log of fewer bytes is not worth compacting.
constexpr int64_t kLongBytes = int64_t{1} << 20;
constexpr int64_t kPage = 4096;

int64_t IdOf(const float* record) {
  int64_t id;
  std::memcpy(&id, record, sizeof id);
  return id;
}

}  // namespace

RowLog::RowLog(const std::string& folder, const std::string& path, int64_t width)
    : file_(path, O_RDWR | O_CREAT),
      width_(width),
      mapped_(0, RecordBytes()),
      index_(folder),
      longest_(LongRecords()) {
  file_.ExpectRandomAccess();
}

int64_t RowLog::PieceRows() const { return std::max<int64_t>(kPieceBytes / RecordBytes(), 1); }
int64_t RowLog::NearRows() const { return 1 + (kPage - 1) / RecordBytes(); }
int64_t RowLog::LongRecords() const { return kLongBytes / RecordBytes(); }
int64_t RowLog::GatherRows() const {
  return std::clamp<int64_t>(kGatherBytes / RecordBytes(), 1, std::max<int64_t>(rows_, 1));
}
std::unique_ptr<float[]> RowLog::NewRecords(int64_t most) const {
  return std::unique_ptr<float[]>(new float[std::min(most, PieceRows()) * Stride()]);
}

// ---- Writing.

void RowLog::Append(const int64_t* ids, int64_t count, const float* rows) {
  const auto records = NewRecords(count);
  for (int64_t k = 0, n; k < count; k += n) {
    n = std::min(count - k, PieceRows());
    for (int64_t i = 0; i < n; ++i) {
      float* const record = records.get() + i * Stride();
      index_.Prefetch(ids[k + i]);
      std::memcpy(record, ids + k + i, sizeof *ids);
      FillRecord(ids[k + i], rows + (k + i) * width_, width_, record + kIdFloats);
    }
    const std::lock_guard<std::mutex> lock(end_);
    if (records_ + n > RowIndex::kPlaces) {
      throw StoreError(
          "`" + file_.Path() + "` must have " + std::to_string(RowIndex::kPlaces) +
          " records or fewer: make a checkpoint first. Received: " + std::to_string(records_ + n));
    }
    // All that can fail comes before the first row has a new place. What lies behind the end then
    // is of no account, and is written over.
    for (int64_t i = 0; i < n; ++i) index_.Reserve(ids[k + i]);
    mapped_.Map(file_, records_ + n);
    file_.Write(records.get(), n * RecordBytes(), records_ * RecordBytes());
    for (int64_t i = 0; i < n; ++i) rows_ += index_.Set(ids[k + i], records_++);
  }
}

bool RowLog::IsLong() const {
  const std::lock_guard<std::mutex> lock(end_);
  return records_ > std::max(longest_, 2 * rows_);
}

// ---- Reading.

// Many together take one call, which brings all of their pages at once.
void RowLog::Read(int64_t first, int64_t count, float* records) const {
  if (count == 1 && mapped_.Copy(first, records)) return;
  file_.Read(records, count * RecordBytes(), first * RecordBytes());
}

void RowLog::Check(int64_t id, const float* record) const {
  if (IdOf(record) != id) {
    throw StoreError("Row " + std::to_string(id) + " of `" + file_.Path() +
                     "` must have its id in its record. Received: " + std::to_string(IdOf(record)) +
                     ". The row is damaged: write it again, or open the last checkpoint");
  }
  CheckRecord(file_.Path(), id, record + kIdFloats, width_);
}

bool RowLog::Take(int64_t id, const float* record, float* row) const {
  Check(id, record);
  std::copy_n(record + kIdFloats, width_, row);
  return true;
}

void RowLog::Gather(std::vector<Place>* places, float* records) const {
  std::sort(places->begin(), places->end(),
            [](const Place& a, const Place& b) { return a.place < b.place; });
  const auto read = NewRecords(PieceRows());
  for (auto row = places->begin(); row != places->end();) {
    const int64_t first = row->place;
    auto end = row + 1;
    while (end != places->end() && end->place - (end - 1)->place <= NearRows() &&
           end->place - first < PieceRows()) {
      ++end;
    }
    Read(first, (end - 1)->place + 1 - first, read.get());
    for (; row != end; ++row) {
      const float* const record = read.get() + (row->place - first) * Stride();
      Check(row->id, record);
      std::copy_n(record + kIdFloats, width_ + 1, records + row->rank * (width_ + 1));
    }
  }
}

template <typename Work>
void RowLog::ForEachRecord(int64_t records, const Work& work) const {
  const auto read = NewRecords(PieceRows());
  for (int64_t place = 0, count; place < records; place += count) {
    count = std::min(records - place, PieceRows());
    Read(place, count, read.get());
    for (int64_t i = 0; i < count; ++i) {
      const int64_t id = IdOf(read.get() + i * Stride());
      if (IsOfTable(id)) index_.Prefetch(id);
    }
    for (int64_t i = 0; i < count; ++i) {
      const float* const record = read.get() + i * Stride();
      work(place + i, IdOf(record), record);
    }
  }
}

bool RowLog::Sum(ShadowSum* sum) const {
  bool is_sound = true;
  int64_t rows = 0;
  ForEachRecord(records_, [&](int64_t place, int64_t id, const float* record) {
    const uint32_t checksum = ChecksumOf(record + kIdFloats, width_);
    is_sound &= IsOfTable(id) && checksum == RowChecksum(id, record + kIdFloats, width_);
    if (!is_sound) return;
    rows += Find(id) == place;
    sum->Add(id, checksum);
  });
  return is_sound && rows == rows_;
}

// ---- The whole log.

void RowLog::Grow(int64_t rows) {
  index_.Grow(rows);
  table_rows_ = rows;  // last: memory may lack
}

ShadowSum RowLog::Replay(int64_t records) {
  if (records > RowIndex::kPlaces || file_.Size() / RecordBytes() < records) {
    throw StoreError("`" + file_.Path() + "` must have " + std::to_string(records) +
                     " records of " + std::to_string(RecordBytes()) +
                     " bytes. Received: " + std::to_string(file_.Size()) + " bytes");
  }
  mapped_.Map(file_, records);
  ShadowSum sum;
  ForEachRecord(records, [&](int64_t place, int64_t id, const float* record) {
    Check(id, record);
    if (!IsOfTable(id)) {
      throw StoreError("`" + file_.Path() + "` must have ids in `[0, " +
                       std::to_string(table_rows_) + ")`. Received: " + std::to_string(id));
    }
    sum.Add(id, ChecksumOf(record + kIdFloats, width_));
    index_.Reserve(id);
    rows_ += index_.Set(id, place);
  });
  records_ = records;
  return sum;
}

int64_t RowLog::CopyTo(const std::string& path) const {
  StoreFile file(path, O_RDWR | O_CREAT | O_TRUNC);
  try {
    const auto copied = NewRecords(PieceRows());
    int64_t records = 0;
    int64_t count = 0;
    const auto flush = [&] {
      file.Write(copied.get(), count * RecordBytes(), records * RecordBytes());
      records += count;
      count = 0;
    };
    ForEachRecord(records_, [&](int64_t place, int64_t id, const float* record) {
      if (!IsOfTable(id) || Find(id) != place) return;  // or it is damaged, and will be missed
      Check(id, record);
      std::copy_n(record, Stride(), copied.get() + count++ * Stride());
      if (count == PieceRows()) flush();
    });
    flush();
    if (records == rows_) return records;
    ForEachPiece([](const int64_t*, int64_t, const float*) {});  // finds the one that is damaged
    throw StoreError("`" + file_.Path() + "` must have the last records of " +
                     std::to_string(rows_) + " rows. Received: " + std::to_string(records));
  } catch (const std::exception&) {
    Remove(path);
    throw;
  }
}

ShadowSum RowLog::GoOnWith(int64_t records) {
  mapped_.Clear();
  file_ = StoreFile(file_.Path(), O_RDWR);
  file_.ExpectRandomAccess();
  longest_ = LongRecords();
  return Replay(records);  // the rows are the same ones
}

void RowLog::Clear() {
  index_.Clear();
  mapped_.Clear();
  records_ = rows_ = 0;
  longest_ = LongRecords();
}

// Nothing behind the last record is of any account, nor read where it is mapped.
void RowLog::TrySize(int64_t bytes) {
  const int64_t end = records_ * RecordBytes();
  if (bytes <= end) return;
  file_.Resize(bytes);
  file_.Resize(end);
}

}  // namespace tfrec
