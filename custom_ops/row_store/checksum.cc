#include "custom_ops/row_store/checksum.h"

#include <array>
#include <cstring>

#if defined(__x86_64__)
#include <nmmintrin.h>
#define TFREC_SSE42 __attribute__((target("sse4.2")))
#endif

namespace tfrec {
namespace {

constexpr uint32_t kPolynomial = 0x82f63b78;  // bits reversed, as the processor has it

// tables[k][b] is what byte b becomes when k more bytes follow it.
using Tables = std::array<std::array<uint32_t, 256>, 8>;

constexpr Tables MakeTables() {
  Tables tables{};
  for (uint32_t byte = 0; byte < 256; ++byte) {
    uint32_t crc = byte;
    for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ (crc & 1 ? kPolynomial : 0);
    tables[0][byte] = crc;
  }
  for (int k = 1; k < 8; ++k) {
    for (uint32_t byte = 0; byte < 256; ++byte) {
      const uint32_t crc = tables[k - 1][byte];
      tables[k][byte] = (crc >> 8) ^ tables[0][crc & 0xff];
    }
  }
  return tables;
}

constexpr Tables kTables = MakeTables();

#ifdef TFREC_SSE42
TFREC_SSE42 uint32_t Sse42Crc32c(uint32_t crc, const void* data, size_t bytes) {
  const unsigned char* byte = static_cast<const unsigned char*>(data);
  uint64_t state = ~crc;
  for (; bytes >= 8; byte += 8, bytes -= 8) {
    uint64_t word;
    std::memcpy(&word, byte, sizeof word);
    state = _mm_crc32_u64(state, word);
  }
  uint32_t rest = static_cast<uint32_t>(state);
  for (; bytes > 0; ++byte, --bytes) rest = _mm_crc32_u8(rest, *byte);
  return ~rest;
}
#endif

}  // namespace

uint32_t PortableCrc32c(uint32_t crc, const void* data, size_t bytes) {
  const unsigned char* byte = static_cast<const unsigned char*>(data);
  crc = ~crc;
  for (; bytes >= 8; byte += 8, bytes -= 8) {
    uint32_t next = 0;
    for (int k = 0; k < 4; ++k) {
      next ^= kTables[7 - k][((crc >> (8 * k)) & 0xff) ^ byte[k]] ^ kTables[3 - k][byte[4 + k]];
    }
    crc = next;
  }
  for (; bytes > 0; ++byte, --bytes) crc = (crc >> 8) ^ kTables[0][(crc & 0xff) ^ *byte];
  return ~crc;
}

uint32_t Crc32c(uint32_t crc, const void* data, size_t bytes) {
#ifdef TFREC_SSE42
  if (__builtin_cpu_supports("sse4.2")) return Sse42Crc32c(crc, data, bytes);
#endif
  return PortableCrc32c(crc, data, bytes);
}

uint32_t RowChecksum(int64_t id, const float* row, int64_t width) {
  const uint32_t crc = Crc32c(Crc32c(0, &id, sizeof id), row, width * sizeof *row);
  return crc != 0 ? crc : 1;
}

}  // namespace tfrec
