// CRC-32C, and the checksums of rows that are made of it.
#ifndef TFREC_CUSTOM_OPS_ROW_STORE_CHECKSUM_H_
#define TFREC_CUSTOM_OPS_ROW_STORE_CHECKSUM_H_

#include <cstddef>
#include <cstdint>

namespace tfrec {

// The checksum of what had the checksum `crc`, or 0 where that was nothing, and of more bytes.
uint32_t Crc32c(uint32_t crc, const void* data, size_t bytes);
// The same, without the instruction that not all processors have.
uint32_t PortableCrc32c(uint32_t crc, const void* data, size_t bytes);

// That of a row and its id, so that a row in the place of another one is noticed. Never 0.
uint32_t RowChecksum(int64_t id, const float* row, int64_t width);

}  // namespace tfrec

#endif  // TFREC_CUSTOM_OPS_ROW_STORE_CHECKSUM_H_
