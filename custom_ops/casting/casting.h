// Tensor Casting (Kwon, Lee and Rhu, HPCA 2021, section IV-A): the gradient of a gather-reduce is
// itself a gather-reduce, once the lookups are sorted by id.
//
// Casting looks at ids only. It gives one pair (id, position) for each lookup that is not padding,
// packed into a word with the position in the low bits, in rising order. Equal ids stand side by
// side as one segment, which is one row of the coalesced gradient, in the order of their lookups.
#ifndef TFREC_CUSTOM_OPS_CASTING_CASTING_H_
#define TFREC_CUSTOM_OPS_CASTING_CASTING_H_

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <vector>

#include "custom_ops/common/bags.h"
#include "custom_ops/common/parallel.h"

namespace tfrec {

// Fills up a casting that has fewer pairs than lookups. Never a pair: pairs are not negative.
inline constexpr int64_t kNoPair = -1;

// Bits needed to write every value in [0, count).
inline int BitsFor(uint64_t count) {
  int bits = 0;
  while (bits < 64 && (count > (uint64_t{1} << bits))) ++bits;
  return bits;
}

struct Casting {
  const int64_t* pairs = nullptr;
  int64_t count = 0;  // without the fill at the end
  int position_bits = 0;

  int64_t Id(int64_t i) const { return pairs[i] >> position_bits; }
  int64_t Position(int64_t i) const { return pairs[i] & ((int64_t{1} << position_bits) - 1); }
  // The first segment that begins at or behind pair `i`.
  int64_t SegmentFrom(int64_t i) const {
    while (i > 0 && i < count && Id(i) == Id(i - 1)) ++i;
    return i;
  }
};

// The lookups of all features of one table, one feature behind the other. Positions count on.
template <typename Id>
struct TableLookups {
  std::vector<Bags<Id>> features;

  int64_t Total() const {
    int64_t total = 0;
    for (const Bags<Id>& bags : features) total += bags.lookups;
    return total;
  }
  // visit(bags, k, position) for the positions [begin, end).
  template <typename Visit>
  void ForEach(int64_t begin, int64_t end, const Visit& visit) const {
    int64_t start = 0;
    for (const Bags<Id>& bags : features) {
      const int64_t last = std::min(end - start, bags.lookups);
      for (int64_t k = std::max<int64_t>(0, begin - start); k < last; ++k) {
        visit(bags, k, start + k);
      }
      start += bags.lookups;
    }
  }
};

// What has to be known before lookups can be cast.
struct IdScan {
  int64_t kept = 0;      // lookups that are not padding
  int64_t largest = -1;  // id of such a lookup
  bool rising = true;    // each id is larger than the one before it
  bool negative = false;
};

template <typename Id>
IdScan ScanIds(const TableLookups<Id>& lookups, const Parallel& parallel, int64_t blocks,
               std::vector<int64_t>* kept_in_block) {
  std::vector<IdScan> scans(blocks);
  std::vector<int64_t> smallest(blocks, -1);
  parallel.Split(lookups.Total(), blocks, [&](int64_t block, int64_t begin, int64_t end) {
    IdScan scan;
    lookups.ForEach(begin, end, [&](const Bags<Id>& bags, int64_t k, int64_t) {
      if (bags.IsPadding(k)) return;
      const int64_t id = bags.ids[k];
      if (scan.kept++ == 0) smallest[block] = id;
      scan.rising &= id > scan.largest;
      scan.negative |= id < 0;
      scan.largest = std::max(scan.largest, id);
    });
    scans[block] = scan;
  });
  IdScan all;
  for (int64_t block = 0; block < blocks; ++block) {
    const IdScan& scan = scans[block];
    kept_in_block->push_back(scan.kept);
    if (scan.kept == 0) continue;
    all.rising &= scan.rising && smallest[block] > all.largest;
    all.negative |= scan.negative;
    all.kept += scan.kept;
    all.largest = std::max(all.largest, scan.largest);
  }
  return all;
}

// Sorts `count` words by the `key_bits` above the lowest `payload_bits`, and keeps the order of
// equal keys. The words begin in `from`; the result is in `pairs`, which is one of `from` and `to`.
void SortPairs(int64_t* from, int64_t* to, int64_t count, int payload_bits, int key_bits,
               const Parallel& parallel);
// How often SortPairs() carries the words from one buffer to the other.
int SortPasses(int key_bits);

// Casts into `pairs`. Both buffers are as large as all lookups. The scan must have seen no negative
// id, and ids and positions must fit 63 bits; `position_bits` is BitsFor(lookups).
template <typename Id>
void Cast(const TableLookups<Id>& lookups, const IdScan& scan,
          const std::vector<int64_t>& kept_in_block, const Parallel& parallel, int64_t* scratch,
          int64_t* pairs) {
  const int64_t total = lookups.Total();
  const int64_t blocks = kept_in_block.size();
  const int position_bits = BitsFor(static_cast<uint64_t>(total));
  const int key_bits = scan.rising ? 0 : BitsFor(static_cast<uint64_t>(scan.largest) + 1);
  int64_t* const packed = SortPasses(key_bits) % 2 == 0 ? pairs : scratch;
  parallel.Split(total, blocks, [&](int64_t block, int64_t begin, int64_t end) {
    int64_t* out = packed;
    for (int64_t before = 0; before < block; ++before) out += kept_in_block[before];
    lookups.ForEach(begin, end, [&](const Bags<Id>& bags, int64_t k, int64_t position) {
      if (bags.IsPadding(k)) return;
      *out++ = static_cast<int64_t>(bags.ids[k]) << position_bits | position;
    });
  });
  SortPairs(packed, packed == pairs ? scratch : pairs, scan.kept, position_bits, key_bits,
            parallel);
  std::fill(pairs + scan.kept, pairs + total, kNoPair);
}

// Differs, but for chance, where two sets of pairs do: sums of it do not depend on the order.
inline uint64_t Fingerprint(uint64_t pair) {
  uint64_t bits = (pair + 1) * 0x9e3779b97f4a7c15u;  // no pair, not even the first, counts nothing
  bits = (bits ^ (bits >> 32)) * 0xd6e8feb86659fd93u;
  return bits ^ (bits >> 32);
}

// Whether `pairs`, one word for each lookup, is what Cast() makes of these lookups. A casting comes
// from outside, and what it says becomes addresses: that pairs rise and positions exist is certain
// afterwards, that they are those of the lookups is as sure as a fingerprint of 64 bits.
template <typename Id>
bool IsCastingOf(const TableLookups<Id>& lookups, const int64_t* pairs, const Parallel& parallel,
                 Casting* casting) {
  const int64_t total = lookups.Total();
  int64_t count = total;
  while (count > 0 && pairs[count - 1] == kNoPair) --count;
  *casting = {pairs, count, BitsFor(static_cast<uint64_t>(total))};
  const int64_t blocks = parallel.Blocks(total, 16384);
  std::vector<uint64_t> difference(blocks);  // of the fingerprints of lookups and pairs
  std::vector<char> good(blocks);
  parallel.Split(total, blocks, [&](int64_t block, int64_t first, int64_t last) {
    uint64_t sum = 0;
    bool rising = true;
    lookups.ForEach(first, last, [&](const Bags<Id>& bags, int64_t k, int64_t position) {
      if (bags.IsPadding(k)) return;
      // Unsigned: an id from outside may be negative, or too large for its word.
      const uint64_t pair = static_cast<uint64_t>(bags.ids[k]) << casting->position_bits | position;
      rising &= static_cast<int64_t>(pair) >> casting->position_bits == bags.ids[k];
      sum += Fingerprint(pair);
    });
    int64_t previous = first == 0 ? kNoPair : pairs[first - 1];
    for (int64_t i = first; i < std::min(last, count); ++i) {
      rising &= pairs[i] > previous && casting->Position(i) < total;
      previous = pairs[i];
      sum -= Fingerprint(previous);
    }
    difference[block] = sum;
    good[block] = rising;
  });
  return std::accumulate(difference.begin(), difference.end(), uint64_t{0}) == 0 &&
         std::find(good.begin(), good.end(), false) == good.end();
}

}  // namespace tfrec

#endif  // TFREC_CUSTOM_OPS_CASTING_CASTING_H_
