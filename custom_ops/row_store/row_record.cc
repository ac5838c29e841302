#include "custom_ops/row_store/row_record.h"

#include <algorithm>
#include <cstring>

#include "custom_ops/row_store/checksum.h"
#include "custom_ops/row_store/store_file.h"

namespace tfrec {

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the files are little-endian");

void FillRecord(int64_t id, const float* row, int64_t width, float* record) {
  const uint32_t checksum = RowChecksum(id, row, width);
  std::copy_n(row, width, record);
  std::memcpy(record + width, &checksum, sizeof checksum);
}

uint32_t ChecksumOf(const float* record, int64_t width) {
  uint32_t checksum;
  std::memcpy(&checksum, record + width, sizeof checksum);
  return checksum;
}

void CheckRecord(const std::string& path, int64_t id, const float* record, int64_t width) {
  const uint32_t expected = ChecksumOf(record, width);
  const uint32_t actual = RowChecksum(id, record, width);
  if (actual == expected) return;
  throw StoreError("Row " + std::to_string(id) + " of `" + path + "` must have the checksum " +
                   std::to_string(expected) +
                   ", which its record ends with. Received: " + std::to_string(actual) +
                   ". The row is damaged: write it again, or bring the folder back from a copy");
}

}  // namespace tfrec
