#include "custom_ops/row_store/row_file.h"

#include <cstring>

#include "custom_ops/row_store/row_record.h"

namespace tfrec {
namespace {

constexpr int64_t kPieceBytes = int64_t{1} << 16;
// File systems take space in units of this, or of less, and keep it in memory so.
constexpr int64_t kPage = 4096;

}  // namespace

RowFile::RowFile(const std::string& path, int flags, const std::vector<StoreColumn>& columns)
    : file_(path, flags),
      columns_(columns),
      width_(WidthOf(columns)),
      mapped_(std::make_unique<MappedRecords>(kDataBegin, RecordBytes())) {
  file_.ExpectRandomAccess();
}

// ---- The file.

int64_t RowFile::SizeFor(int64_t rows) const { return kDataBegin + rows * RecordBytes(); }

void RowFile::WriteHeader(int64_t rows) {
  file_.Write(NpyHeader(rows, columns_).data(), kDataBegin, 0);
}

void RowFile::CheckHeader(int64_t rows) const {
  const std::string expected = NpyHeader(rows, columns_);
  std::string actual(kDataBegin, '\0');
  file_.Read(actual.data(), kDataBegin, 0);
  const auto other = std::mismatch(actual.begin(), actual.end(), expected.begin()).first;
  if (other == actual.end()) return;
  throw StoreError("`" + file_.Path() + "` must begin as an .npy file with the header `" +
                   expected.substr(10, expected.rfind('}') - 9) +
                   "`. Received: another byte at offset " + std::to_string(other - actual.begin()));
}

void RowFile::CheckSize(std::initializer_list<int64_t> rows) const {
  const int64_t size = file_.Size();
  for (const int64_t count : rows) {
    if (size == Place(count)) return;
  }
  throw StoreError("`" + file_.Path() + "` must have " + std::to_string(Place(*rows.begin())) +
                   " bytes, for " + std::to_string(*rows.begin()) +
                   " rows. Received: " + std::to_string(size));
}

void RowFile::Resize(int64_t rows) {
  file_.Resize(Place(rows));
  Map(rows);
}
void RowFile::Sync() const { file_.Sync(); }

// Pages that several rows share are taken once.
void RowFile::Reserve(const RowIndex& rows) {
  int64_t begin = 0;
  int64_t end = 0;
  const auto reserve = [&] {
    if (end > begin) file_.Reserve(begin, end - begin);
  };
  rows.ForEach([&](int64_t id, int64_t) {
    const int64_t from = Place(id) / kPage * kPage;
    if (from > end) {
      reserve();
      begin = from;
    }
    end = (Place(id + 1) + kPage - 1) / kPage * kPage;
  });
  reserve();
}

bool RowFile::FindData(int64_t rows, int64_t* id, int64_t* end) const {
  if (*id >= rows) return false;
  const int64_t data = file_.NextData(Place(*id));
  *id = (data - kDataBegin) / RecordBytes();
  if (*id >= rows) return false;
  const int64_t hole = file_.NextHole(data);
  *end = std::min(rows, (hole - kDataBegin + RecordBytes() - 1) / RecordBytes());
  return true;
}

// ---- Records.

// Many together take one call, which brings all of their pages at once.
void RowFile::Read(int64_t first, int64_t count, float* records) const {
  if (count == 1 && mapped_->Copy(first, records)) return;
  file_.Read(records, count * RecordBytes(), Place(first));
}
void RowFile::Write(int64_t first, int64_t count, const float* records) {
  file_.Write(records, count * RecordBytes(), Place(first));
}

int64_t RowFile::PieceRows() const { return std::max<int64_t>(kPieceBytes / RecordBytes(), 1); }
std::unique_ptr<float[]> RowFile::NewRecords(int64_t most) const {
  return std::unique_ptr<float[]>(new float[std::min(most, PieceRows()) * Stride()]);
}
int64_t RowFile::NearRows() const { return 1 + (kPage - 1) / RecordBytes(); }

// Each four bytes are like those behind them, of which the last are 0.
bool RowFile::IsBlank(const float* record) const {
  return ChecksumOf(record, width_) == 0 &&
         std::memcmp(record, record + 1, width_ * sizeof *record) == 0;
}

void RowFile::Check(int64_t id, const float* record) const {
  CheckRecord(file_.Path(), id, record, width_);
}

bool RowFile::Take(int64_t id, const float* record, float* row) const {
  if (IsBlank(record)) return false;
  Check(id, record);
  std::copy_n(record, width_, row);
  return true;
}

}  // namespace tfrec
