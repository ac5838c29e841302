#include "custom_ops/gather_reduce/casting.h"

#include <cstring>
#include <utility>

namespace tfrec {

void SortPairs(PackedPairs* pairs, uint64_t* scratch) {
  // Least significant digit first. A digit of 11 bits keeps its counters in the L1 cache and sorts
  // the ids of a table of four million rows in two passes.
  constexpr int kDigitBits = 11;
  constexpr int kBuckets = 1 << kDigitBits;
  uint64_t* from = pairs->data;
  uint64_t* to = scratch;
  const int last_bit = pairs->payload_bits + pairs->key_bits;
  for (int bit = pairs->payload_bits; bit < last_bit; bit += kDigitBits) {
    int64_t next[kBuckets] = {};
    for (int64_t i = 0; i < pairs->count; ++i) ++next[(from[i] >> bit) & (kBuckets - 1)];
    int64_t offset = 0;
    for (int bucket = 0; bucket < kBuckets; ++bucket) {
      offset += std::exchange(next[bucket], offset);
    }
    for (int64_t i = 0; i < pairs->count; ++i) {
      to[next[(from[i] >> bit) & (kBuckets - 1)]++] = from[i];
    }
    std::swap(from, to);
  }
  pairs->data = from;
}

int64_t FindSegments(const PackedPairs& pairs, int64_t* starts) {
  int64_t segments = 0;
  for (int64_t i = 0; i < pairs.count; ++i) {
    if (i == 0 || pairs.Key(i) != pairs.Key(i - 1)) starts[segments++] = i;
  }
  starts[segments] = pairs.count;
  return segments;
}

}  // namespace tfrec
