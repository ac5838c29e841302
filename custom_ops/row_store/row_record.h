// How a row lies in files: its floats, and in the place of one more the bits of a checksum of them
// and of its id.
#ifndef TFREC_CUSTOM_OPS_ROW_STORE_ROW_RECORD_H_
#define TFREC_CUSTOM_OPS_ROW_STORE_ROW_RECORD_H_

#include <cstdint>
#include <string>

namespace tfrec {

void FillRecord(int64_t id, const float* row, int64_t width, float* record);
// 0 where the row was never written.
uint32_t ChecksumOf(const float* record, int64_t width);
// Throws where a row that was written is not what was written. `path` is the file that it is of.
void CheckRecord(const std::string& path, int64_t id, const float* record, int64_t width);

}  // namespace tfrec

#endif  // TFREC_CUSTOM_OPS_ROW_STORE_ROW_RECORD_H_
