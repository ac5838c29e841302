#include "custom_ops/row_store/checksum.h"

#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "tests/cc/check.h"
#include "tests/cc/random_rows.h"

namespace tfrec {
namespace {

uint32_t BitwiseCrc32c(const std::string& text) {
  uint32_t crc = 0xffffffff;
  for (const char c : text) {
    crc ^= static_cast<unsigned char>(c);
    for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ (crc & 1 ? 0x82f63b78 : 0);
  }
  return ~crc;
}

void TestCrc32c() {
  for (const auto crc32c : {Crc32c, PortableCrc32c}) {
    CHECK_EQ(crc32c(0, "123456789", 9), 0xe3069283u);  // the published check value
    CHECK_EQ(crc32c(0, "", 0), 0u);
    Rng rng(1);
    std::string text(100, '\0');
    for (char& c : text) c = static_cast<char>(rng());
    for (size_t begin = 0; begin < 9; ++begin) {
      for (size_t bytes = 0; begin + bytes <= text.size(); ++bytes) {
        const uint32_t expected = BitwiseCrc32c(text.substr(begin, bytes));
        CHECK_EQ(crc32c(0, text.data() + begin, bytes), expected, begin, bytes);
        const size_t half = bytes / 3;
        const uint32_t first = crc32c(0, text.data() + begin, half);
        CHECK_EQ(crc32c(first, text.data() + begin + half, bytes - half), expected, begin, bytes);
      }
    }
  }
}

void TestRowChecksum() {
  const std::vector<float> row = {1, 2, 3};
  std::string bytes(8, '\0');
  bytes[1] = 1;  // id 256
  bytes.append(reinterpret_cast<const char*>(row.data()), 12);
  CHECK_EQ(RowChecksum(256, row.data(), 3), BitwiseCrc32c(bytes));
  CHECK(RowChecksum(255, row.data(), 3) != BitwiseCrc32c(bytes));

  // 32 bits behind anything can give it every checksum, 0 among them; this stands for "never
  // written". Bits are undone from the last one back to find those four bytes.
  uint32_t wanted = 0xffffffff;  // a checksum of 0
  for (int bit = 0; bit < 32; ++bit) {
    wanted = wanted & 0x80000000 ? ((wanted ^ 0x82f63b78) << 1) | 1 : wanted << 1;
  }
  const uint32_t prefix = ~BitwiseCrc32c(bytes);
  const uint32_t last = prefix ^ wanted;
  std::vector<float> forged = row;
  forged.emplace_back();
  std::memcpy(&forged[3], &last, 4);
  CHECK_EQ(BitwiseCrc32c(bytes + std::string(reinterpret_cast<const char*>(&last), 4)), 0u);
  CHECK_EQ(RowChecksum(256, forged.data(), 4), 1u);
}

}  // namespace
}  // namespace tfrec

int main() {
  tfrec::TestCrc32c();
  tfrec::TestRowChecksum();
  return 0;
}
