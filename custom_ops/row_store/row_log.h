// The rows that were written after a checkpoint, in the order in which they were: a file to which
// records are appended, and an index of the last one of each row. A record is the id of a row, in
// the place of two floats, and what row_record.h says.
//
// A row that is written again leaves its record before to waste. A log of which half is such is to
// be compacted: those that count are copied to another file, in their order, from the beginning to
// the end. So a row is copied once for each that is written, or less, and all files of a log
// together are no longer than three times its rows.
#ifndef TFREC_CUSTOM_OPS_ROW_STORE_ROW_LOG_H_
#define TFREC_CUSTOM_OPS_ROW_STORE_ROW_LOG_H_

#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "custom_ops/row_store/mapped_records.h"
#include "custom_ops/row_store/row_index.h"
#include "custom_ops/row_store/store_file.h"
#include "custom_ops/row_store/store_text.h"

namespace tfrec {

class RowLog {
 public:
  // Opens a file, or makes one where there is none. It holds nothing until Replay() finds it.
  RowLog(const std::string& folder, const std::string& path, int64_t width);

  // ---- Threads may call these at once. None may look for a row that another one appends.

  // Where this fails, each row has its record before, or the new one.
  void Append(const int64_t* ids, int64_t count, const float* rows);
  // Whether it is to be compacted.
  bool IsLong() const;
  // The place of the last record of a row, or RowIndex::kNone.
  int64_t Find(int64_t id) const { return index_.Find(id); }

  // As of a RowFile, by place.
  int64_t Stride() const { return kIdFloats + width_ + 1; }
  void Read(int64_t first, int64_t count, float* records) const;
  void Prefetch(int64_t place) const { mapped_.Prefetch(place); }
  int64_t PieceRows() const;
  int64_t NearRows() const;
  // Copies the row out of its record. Throws where it is not what was written.
  bool Take(int64_t id, const float* record, float* row) const;

  // ---- While one of those below is called, no other thread may call anything.

  int64_t Rows() const { return rows_; }
  void Grow(int64_t rows);  // of the table
  const RowIndex& Index() const { return index_; }
  // Reads all records, also those that count no more. False where one of them is damaged, or is not
  // the one that was written there.
  bool Sum(ShadowSum* sum) const;
  // Calls work(ids, count, records) for pieces of the rows, in the order of their ids. They are
  // verified, and the records like those of a RowFile.
  template <typename Work>
  void ForEachPiece(const Work& work) const;

  // Finds so many records in the file, and returns their sum. The last record of a row counts.
  ShadowSum Replay(int64_t records);
  // Copies the records that count to a file of another name, and returns how many they are. Where
  // this fails, the other file is removed.
  int64_t CopyTo(const std::string& path) const;
  // Goes on with so many records in a file that was copied to, and has the name of this one now.
  // Returns their sum.
  ShadowSum GoOnWith(int64_t records);
  // Compacting was tried in vain: it is worth another trial when the log is twice as long.
  void PutOff() { longest_ = 2 * records_; }
  // Forgets all. The file keeps its space until Empty().
  void Clear();
  void Empty() { file_.Resize(0); }
  // Throws where the file system has no files of so many bytes.
  void TrySize(int64_t bytes);
  void Sync() const { file_.Sync(); }

 private:
  static constexpr int64_t kIdFloats = 2;

  struct Place {
    int64_t id;
    int64_t place;
    int64_t rank;  // of the id, among those of a piece
  };

  int64_t RecordBytes() const { return Stride() * static_cast<int64_t>(sizeof(float)); }
  std::unique_ptr<float[]> NewRecords(int64_t most) const;
  void Check(int64_t id, const float* record) const;
  // Reads records like those of a RowFile, verified, to the ranks of their rows.
  void Gather(std::vector<Place>* places, float* records) const;
  bool IsOfTable(int64_t id) const { return id >= 0 && id < table_rows_; }
  int64_t LongRecords() const;
  // How many rows ForEachPiece() takes at once.
  int64_t GatherRows() const;
  // Calls work(place, id, record) for the first so many records of the file.
  template <typename Work>
  void ForEachRecord(int64_t records, const Work& work) const;

  StoreFile file_;
  const int64_t width_;
  MappedRecords mapped_;
  RowIndex index_;
  int64_t table_rows_ = 0;
  mutable std::mutex end_;  // of those that append
  int64_t records_ = 0;
  int64_t rows_ = 0;
  int64_t longest_;  // records, of which nothing is worth compacting
};

template <typename Work>
void RowLog::ForEachPiece(const Work& work) const {
  std::vector<Place> places;
  std::vector<int64_t> ids;
  std::vector<float> records(GatherRows() * (width_ + 1));
  const auto flush = [&] {
    Gather(&places, records.data());
    work(ids.data(), static_cast<int64_t>(ids.size()), records.data());
    places.clear();
    ids.clear();
  };
  index_.ForEach([&](int64_t id, int64_t place) {
    places.push_back({id, place, static_cast<int64_t>(ids.size())});
    ids.push_back(id);
    if (static_cast<int64_t>(ids.size()) == GatherRows()) flush();
  });
  if (!ids.empty()) flush();
}

}  // namespace tfrec

#endif  // TFREC_CUSTOM_OPS_ROW_STORE_ROW_LOG_H_
