#include "custom_ops/casting/casting.h"

#include <utility>

namespace tfrec {
namespace {

// Counters of this many bits stay in the L1 cache, and the ids of a table of four million rows are
// sorted in two passes.
constexpr int kDigitBits = 11;

}  // namespace

int SortPasses(int key_bits) { return (key_bits + kDigitBits - 1) / kDigitBits; }

void SortPairs(int64_t* from, int64_t* to, int64_t count, int payload_bits, int key_bits,
               const Parallel& parallel) {
  // Least significant digit first, with digits of equal size.
  const int passes = SortPasses(key_bits);
  if (passes == 0) return;
  const int digit_bits = (key_bits + passes - 1) / passes;
  const int64_t buckets = int64_t{1} << digit_bits;
  const int64_t blocks = parallel.Blocks(count, 16384);
  std::vector<int64_t> next(blocks * buckets);
  for (int pass = 0; pass < passes; ++pass) {
    const int shift = payload_bits + pass * digit_bits;
    const auto digit = [=](int64_t pair) { return (pair >> shift) & (buckets - 1); };
    parallel.Split(count, blocks, [&](int64_t block, int64_t begin, int64_t end) {
      int64_t* const counts = next.data() + block * buckets;
      std::fill(counts, counts + buckets, 0);
      for (int64_t i = begin; i < end; ++i) ++counts[digit(from[i])];
    });
    int64_t offset = 0;
    for (int64_t bucket = 0; bucket < buckets; ++bucket) {
      for (int64_t block = 0; block < blocks; ++block) {
        offset += std::exchange(next[block * buckets + bucket], offset);
      }
    }
    parallel.Split(count, blocks, [&](int64_t block, int64_t begin, int64_t end) {
      int64_t* const places = next.data() + block * buckets;
      for (int64_t i = begin; i < end; ++i) to[places[digit(from[i])]++] = from[i];
    });
    std::swap(from, to);
  }
}

}  // namespace tfrec
