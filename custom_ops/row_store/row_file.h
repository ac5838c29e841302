// A file with a place for each row: an array of NumPy, of records.
#ifndef TFREC_CUSTOM_OPS_ROW_STORE_ROW_FILE_H_
#define TFREC_CUSTOM_OPS_ROW_STORE_ROW_FILE_H_

#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <string>
#include <vector>

#include "custom_ops/row_store/mapped_records.h"
#include "custom_ops/row_store/row_index.h"
#include "custom_ops/row_store/store_file.h"
#include "custom_ops/row_store/store_text.h"

namespace tfrec {

class RowFile {
 public:
  RowFile() = default;
  // The flags of open().
  RowFile(const std::string& path, int flags, const std::vector<StoreColumn>& columns);

  const std::vector<StoreColumn>& Columns() const { return columns_; }
  int64_t Width() const { return width_; }

  // The file begins with a page for a header of NumPy.
  void WriteHeader(int64_t rows);
  void CheckHeader(int64_t rows) const;
  void CheckSize(std::initializer_list<int64_t> rows) const;  // one of these
  // The file has so many rows: those that are read alone are copied from memory.
  void Map(int64_t rows) { mapped_->Map(file_, rows); }
  void Resize(int64_t rows);            // and maps them; never to fewer
  int64_t SizeFor(int64_t rows) const;  // bytes
  void Reserve(const RowIndex& rows);   // as StoreFile does
  void Sync() const;

  // Records are those of row_record.h. They lie side by side, in memory as in the file.
  int64_t Stride() const { return width_ + 1; }
  void Read(int64_t first, int64_t count, float* records) const;
  void Prefetch(int64_t id) const { mapped_->Prefetch(id); }
  void Write(int64_t first, int64_t count, const float* records);
  // How many records are worth one call, and memory for so many of them, or for fewer.
  int64_t PieceRows() const;
  std::unique_ptr<float[]> NewRecords(int64_t most) const;
  // Rows so many ids apart are read with one call. It reads no page that holds none of them.
  int64_t NearRows() const;

  // Whether all bytes are 0, as they are where the row was never written.
  bool IsBlank(const float* record) const;
  // Throws where a row that was written is not what was written.
  void Check(int64_t id, const float* record) const;
  // Copies the row out of its record; false where it was never written. Throws as Check() does.
  bool Take(int64_t id, const float* record, float* row) const;

  // Whether anything but the header may lie in no hole.
  bool HasData() const { return file_.NextData(kDataBegin) < file_.Size(); }
  // Calls work(first, end) for all rows but such as lie in holes; for all behind the first `limit`
  // parts of the file with data at once, since each takes a call of the system.
  template <typename Work>
  void ForEachData(int64_t rows, int64_t limit, const Work& work) const {
    for (int64_t id = 0, end = 0; FindData(rows, &id, &end); id = end) {
      if (limit-- == 0) end = rows;
      work(id, end);
    }
  }
  // Calls work(id, record) for the first so many rows, without most of those that lie in holes.
  template <typename Work>
  void ForEachRecord(int64_t rows, const Work& work) const {
    const auto records = NewRecords(PieceRows());
    ForEachData(rows, rows, [&](int64_t first, int64_t end) {
      for (int64_t id = first, count; id < end; id += count) {
        count = std::min(end - id, PieceRows());
        Read(id, count, records.get());
        for (int64_t i = 0; i < count; ++i) work(id + i, records.get() + i * Stride());
      }
    });
  }

 private:
  int64_t RecordBytes() const { return Stride() * static_cast<int64_t>(sizeof(float)); }
  int64_t Place(int64_t id) const { return SizeFor(id); }
  // Moves [id, end) from `id` on to the first rows that may lie in no hole; false without any.
  bool FindData(int64_t rows, int64_t* id, int64_t* end) const;

  StoreFile file_;
  std::vector<StoreColumn> columns_;
  int64_t width_ = 0;
  std::unique_ptr<MappedRecords> mapped_;
};

}  // namespace tfrec

#endif  // TFREC_CUSTOM_OPS_ROW_STORE_ROW_FILE_H_
