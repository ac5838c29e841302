#include "custom_ops/casting/casting.h"

#include <algorithm>
#include <cstdint>
#include <limits>
#include <numeric>
#include <optional>
#include <utility>
#include <vector>

#include "custom_ops/common/bags.h"
#include "custom_ops/common/parallel.h"
#include "tests/cc/check.h"
#include "tests/cc/random_lookups.h"
#include "tests/cc/random_rows.h"

namespace tfrec {
namespace {

constexpr int64_t kMax = std::numeric_limits<int64_t>::max();
constexpr int64_t kMin = std::numeric_limits<int64_t>::min();
constexpr int64_t kMostThreads = 4;

// ---------------------------------------------------------------------------------- parallel

void TestSplitCoversEverythingOnce() {
  for (const int64_t total : {0, 1, 5, 100}) {
    for (const int64_t blocks : {1, 2, 3, 7}) {
      std::vector<int64_t> block_of(total, -1);
      Backwards(blocks).Split(total, blocks, [&](int64_t block, int64_t begin, int64_t end) {
        CHECK(end - begin >= total / blocks && end - begin <= total / blocks + 1, total, blocks);
        for (int64_t i = begin; i < end; ++i) {
          CHECK_EQ(block_of[i], -1, total, blocks, block);
          block_of[i] = block;
        }
      });
      CHECK(std::find(block_of.begin(), block_of.end(), -1) == block_of.end(), total, blocks);
      CHECK(std::is_sorted(block_of.begin(), block_of.end()), total, blocks);
    }
  }
}

void TestBlocks() {
  const auto blocks = [](int64_t threads, int64_t total) {
    return Backwards(threads).Blocks(total, 100);
  };
  CHECK_EQ(blocks(4, 0), 1);
  CHECK_EQ(blocks(4, 199), 1);
  CHECK_EQ(blocks(4, 200), 2);
  CHECK_EQ(blocks(4, 399), 3);
  CHECK_EQ(blocks(4, 100000), 4);
  CHECK_EQ(blocks(1, 100000), 1);
}

// ------------------------------------------------------------------------------------- pairs

void TestBitsFor() {
  CHECK_EQ(BitsFor(0), 0);
  CHECK_EQ(BitsFor(1), 0);
  CHECK_EQ(BitsFor(2), 1);
  for (int bits = 1; bits < 64; ++bits) {
    const uint64_t count = uint64_t{1} << bits;
    CHECK_EQ(BitsFor(count), bits);
    CHECK_EQ(BitsFor(count + 1), bits + 1);
  }
  CHECK_EQ(BitsFor(std::numeric_limits<uint64_t>::max()), 64);
}

void TestSortPasses() {
  CHECK_EQ(SortPasses(0), 0);
  for (int key_bits = 1; key_bits <= 63; ++key_bits) {
    CHECK_EQ(SortPasses(key_bits), 1 + (key_bits - 1) / 11, key_bits);
  }
}

int64_t RandomBits(Rng* rng, int bits) { return bits == 0 ? 0 : (*rng)() >> (64 - bits); }

void CheckSort(Rng* rng, int64_t count, int key_bits, int payload_bits) {
  std::vector<int64_t> words(count);
  for (int64_t& word : words) word = RandomBits(rng, key_bits + payload_bits);
  std::vector<int64_t> expected = words;
  std::stable_sort(expected.begin(), expected.end(),
                   [&](int64_t a, int64_t b) { return a >> payload_bits < b >> payload_bits; });
  for (int64_t threads = 1; threads <= kMostThreads; ++threads) {
    std::vector<int64_t> from = words;
    std::vector<int64_t> to(count, -1);
    SortPairs(from.data(), to.data(), count, payload_bits, key_bits, Backwards(threads));
    CHECK((SortPasses(key_bits) % 2 == 0 ? from : to) == expected, count, key_bits, payload_bits,
          threads);
  }
}

void TestSort() {
  Rng rng(1);
  // Key bits below, at and above multiples of the digit of 11 bits.
  for (const int key_bits : {0, 1, 2, 10, 11, 12, 22, 23, 33, 40}) {
    for (const int payload_bits : {0, 1, 7, 23}) {
      for (const int64_t count : {0, 1, 2, 3, 100, 3000}) {
        CheckSort(&rng, count, key_bits, payload_bits);
      }
    }
  }
  CheckSort(&rng, 1000, 63, 0);
  CheckSort(&rng, 1000, 62, 1);
  // Several blocks, as many as threads and fewer.
  for (const int key_bits : {1, 11, 12, 23, 46}) {
    CheckSort(&rng, 40000, key_bits, 16);
    CheckSort(&rng, 70000, key_bits, 17);
  }
}

// ----------------------------------------------------------------------------------- lookups

// What casting looks at: ids, and which of them are padding.
struct Feature {
  std::vector<int64_t> ids;
  std::optional<int64_t> padding_id;

  bool IsPadding(size_t k) const { return padding_id && ids[k] == *padding_id; }
};
using Features = std::vector<Feature>;

int64_t Total(const Features& features) {
  int64_t total = 0;
  for (const Feature& feature : features) total += feature.ids.size();
  return total;
}

// The same with ids of another type.
template <typename Id>
class Lookups {
 public:
  explicit Lookups(const Features& features) {
    for (const Feature& feature : features) {
      ids_.emplace_back(feature.ids.begin(), feature.ids.end());
    }
    for (size_t f = 0; f < features.size(); ++f) {
      const int64_t size = ids_[f].size();
      const std::optional<int64_t>& padding_id = features[f].padding_id;
      view_.features.push_back(
          {ids_[f].data(), size, size, nullptr, 1, padding_id.has_value(), padding_id.value_or(0)});
    }
  }
  const TableLookups<Id>& view() const { return view_; }

 private:
  std::vector<std::vector<Id>> ids_;
  TableLookups<Id> view_;
};

bool FitInt32(const Features& features) {
  for (const Feature& feature : features) {
    for (const int64_t id : feature.ids) {
      if (id != static_cast<int32_t>(id)) return false;
    }
  }
  return true;
}

struct Pair {
  int64_t id;
  int64_t position;
};

// In the order of the lookups.
std::vector<Pair> NaivePairs(const Features& features) {
  std::vector<Pair> pairs;
  int64_t position = 0;
  for (const Feature& feature : features) {
    for (size_t k = 0; k < feature.ids.size(); ++k, ++position) {
      if (!feature.IsPadding(k)) pairs.push_back({feature.ids[k], position});
    }
  }
  return pairs;
}

std::vector<Pair> SortedPairs(const Features& features) {
  std::vector<Pair> pairs = NaivePairs(features);
  std::stable_sort(pairs.begin(), pairs.end(),
                   [](const Pair& a, const Pair& b) { return a.id < b.id; });
  return pairs;
}

std::vector<int64_t> NaiveCasting(const Features& features) {
  const int64_t total = Total(features);
  int64_t positions = 1;  // a power of two that positions are below
  while (positions < total) positions *= 2;
  std::vector<int64_t> casting;
  for (const Pair& pair : SortedPairs(features)) {
    casting.push_back(pair.id * positions + pair.position);
  }
  casting.resize(total, -1);
  return casting;
}

template <typename Id>
void CheckScan(const TableLookups<Id>& lookups, const std::vector<Pair>& pairs, int64_t blocks) {
  std::vector<int64_t> kept_in_block;
  const IdScan scan = ScanIds(lookups, Backwards(blocks), blocks, &kept_in_block);
  const int64_t total = lookups.Total();
  IdScan expected;
  expected.kept = pairs.size();
  std::vector<int64_t> expected_kept(blocks);
  int64_t block = 0;
  for (size_t i = 0; i < pairs.size(); ++i) {
    expected.largest = std::max(expected.largest, pairs[i].id);
    expected.negative |= pairs[i].id < 0;
    expected.rising &= i == 0 || pairs[i - 1].id < pairs[i].id;
    while (pairs[i].position >= total * (block + 1) / blocks) ++block;
    ++expected_kept[block];
  }
  CHECK_EQ(scan.kept, expected.kept, blocks);
  CHECK_EQ(scan.largest, expected.largest, blocks);
  CHECK_EQ(scan.negative, expected.negative, blocks);
  if (!expected.negative) CHECK_EQ(scan.rising, expected.rising, blocks, total);
  CHECK(kept_in_block == expected_kept, blocks, total);
}

template <typename Id>
void CheckCastingOfType(const Features& features) {
  const Lookups<Id> lookups(features);
  const int64_t total = Total(features);
  const std::vector<Pair> pairs = NaivePairs(features);
  const std::vector<int64_t> expected = NaiveCasting(features);
  for (int64_t threads = 1; threads <= kMostThreads; ++threads) {
    const Parallel parallel = Backwards(threads);
    // As the kernel cuts them, but for a few, which are cut until some blocks are empty.
    const int64_t blocks = total < 1000 ? threads : parallel.Blocks(total, 16384);
    CheckScan(lookups.view(), pairs, blocks);
    CHECK(CastAll(lookups.view(), parallel, blocks) == expected, total, threads);
    Casting casting;
    CHECK(IsCastingOf(lookups.view(), expected.data(), parallel, &casting), total, threads);
    CHECK(casting.pairs == expected.data());
    CHECK_EQ(casting.position_bits, BitsFor(total));
    CHECK_EQ(casting.count, static_cast<int64_t>(pairs.size()), total);
  }
}

void CheckCasting(const Features& features) {
  CheckCastingOfType<int64_t>(features);
  if (FitInt32(features)) CheckCastingOfType<int32_t>(features);
}

// The largest id that packs with so many positions.
int64_t LargestId(int64_t total) { return kMax >> BitsFor(total); }

enum class Pads { kNone, kSome, kAll };
constexpr Pads kPads[] = {Pads::kNone, Pads::kSome, Pads::kAll};

Feature RandomFeature(Rng* rng, int64_t size, int64_t largest, Pads pads, int64_t padding_id) {
  Feature feature;
  if (pads != Pads::kNone) feature.padding_id = padding_id;
  for (int64_t k = 0; k < size; ++k) {
    const bool pad = pads == Pads::kAll || (pads == Pads::kSome && Below(rng, 4) == 0);
    const int64_t id = std::uniform_int_distribution<int64_t>(0, largest)(*rng);
    feature.ids.push_back(pad ? padding_id : id);
  }
  return feature;
}

void TestCastings() {
  Rng rng(2);
  for (const int64_t size : {0, 1, 2, 3, 64, 100, 40000, 70000}) {
    for (const int64_t largest : {int64_t{1}, int64_t{5'000'000}, LargestId(size), int64_t{0},
                                  int64_t{1000}, int64_t{std::numeric_limits<int32_t>::max()}}) {
      for (const Pads pads : kPads) {
        // The padding of one feature is a row of the other.
        const int64_t first = Below(&rng, size + 1);
        CheckCasting({RandomFeature(&rng, first, largest, pads, 0),
                      {},
                      RandomFeature(&rng, size - first, largest, Pads::kSome, 1)});
        if (size < 1000) CheckCasting({RandomFeature(&rng, size, largest, pads, -1)});
      }
      if (size > 1000 && largest == LargestId(size)) break;
    }
  }
  CheckCasting({});
}

// Ids that rise need no sorting: they, and such as rise but for one place.
void TestRisingIds() {
  Rng rng(3);
  for (const int64_t size : {2, 100, 40000}) {
    for (const int64_t first : {int64_t{1}, LargestId(size) - 3 * size}) {
      std::vector<int64_t> rising;
      for (int64_t k = 0; k < size; ++k) rising.push_back(first + 3 * k);
      CheckCasting({{rising, {}}});
      const int64_t cut = size / 3;
      const Feature front{{rising.begin(), rising.begin() + cut}, {}};
      const Feature back{{rising.begin() + cut, rising.end()}, {}};
      CheckCasting({front, {}, back});
      CheckCasting({back, front});
      CheckCasting({{{rising.rbegin(), rising.rend()}, {}}});
      std::vector<int64_t> padded = rising;
      for (int64_t& id : padded) id = Below(&rng, 3) == 0 ? 5 : id;
      CheckCasting({{padded, 5}});
      // At the ends, inside and on both sides of where blocks meet.
      for (const int64_t k : {int64_t{1}, size / 2 - 1, size / 2, size / 2 + 1, size - 1}) {
        if (k < 1 || k >= size) continue;
        for (const int64_t lower : {0, 1}) {
          std::vector<int64_t> broken = rising;
          broken[k] = broken[k - 1] - lower;
          CheckCasting({{broken, {}}});
        }
      }
    }
  }
}

template <typename Id>
void TestNegativeIdsAreSeen() {
  for (const int64_t blocks : {1, 2, 3}) {
    for (const int64_t negative : {int64_t{-1}, int64_t{std::numeric_limits<Id>::min()}}) {
      for (int64_t k = 0; k < 4; ++k) {
        Features features = {{{1, 2, 3, 4}, {}}, {{5, 6}, -9}};
        features[0].ids[k] = negative;
        CheckScan(Lookups<Id>(features).view(), NaivePairs(features), blocks);
        features[1].padding_id = negative;  // of the other feature
        CheckScan(Lookups<Id>(features).view(), NaivePairs(features), blocks);
        features[0].padding_id = negative;
        CheckScan(Lookups<Id>(features).view(), NaivePairs(features), blocks);
      }
    }
  }
}

void TestAccessors() {
  Rng rng(4);
  for (const int64_t rows : {1, 5, 300}) {
    const Features features = {RandomFeature(&rng, 300, rows - 1, Pads::kSome, 0),
                               RandomFeature(&rng, 50, rows, Pads::kNone, 0)};
    const std::vector<Pair> expected = SortedPairs(features);
    const std::vector<int64_t> pairs = NaiveCasting(features);
    const int64_t count = expected.size();
    const Casting casting{pairs.data(), count, BitsFor(pairs.size())};
    int64_t next = count;
    for (int64_t i = count; i >= 0; --i) {
      if (i == 0 || i == count || expected[i - 1].id != expected[i].id) next = i;
      CHECK_EQ(casting.SegmentFrom(i), next, i, rows);
      if (i == count) continue;
      CHECK_EQ(casting.Id(i), expected[i].id, i);
      CHECK_EQ(casting.Position(i), expected[i].position, i);
    }
  }
}

// ---------------------------------------------------------------------------------- forgeries

// Lookups and their casting, before it is forged.
class Original {
 public:
  explicit Original(Features of)
      : features(std::move(of)),
        good(NaiveCasting(features)),
        total(good.size()),
        count(NaivePairs(features).size()),
        wide_(features),
        narrow_(features) {}

  void CheckRejected(const std::vector<int64_t>& forged, const char* what,
                     int64_t place = -1) const {
    CHECK_EQ(static_cast<int64_t>(forged.size()), total, what, place);
    CHECK(forged != good, what, place);
    for (const int64_t threads : {int64_t{1}, kMostThreads}) {
      Casting casting;
      CHECK(!IsCastingOf(wide_.view(), forged.data(), Backwards(threads), &casting), what, place,
            threads, total);
      CHECK(!IsCastingOf(narrow_.view(), forged.data(), Backwards(threads), &casting), what, place,
            threads, total);
    }
  }
  void CheckWordRejected(int64_t i, int64_t word, const char* what) const {
    std::vector<int64_t> forged = good;
    forged[i] = word;
    CheckRejected(forged, what, i);
  }

  const Features features;
  const std::vector<int64_t> good;
  const int64_t total;
  const int64_t count;

 private:
  const Lookups<int64_t> wide_;
  const Lookups<int32_t> narrow_;
};

// All that can be done wrong at pair `i`, which is followed by another one.
void CheckForgeriesAt(const Original& original, int64_t i) {
  const std::vector<int64_t>& good = original.good;
  const int64_t positions = int64_t{1} << BitsFor(original.total);
  original.CheckWordRejected(i, good[i] + positions, "the next id");
  if (good[i] >= positions) original.CheckWordRejected(i, good[i] - positions, "the id before");
  original.CheckWordRejected(i, good[i] ^ 1, "another position");
  original.CheckWordRejected(i, good[i] ^ (positions - 1), "a far position");
  original.CheckWordRejected(i, good[i + 1], "a duplicate of the next pair");
  original.CheckWordRejected(i + 1, good[i], "a duplicate of the pair before");
  original.CheckWordRejected(i, kNoPair, "padding among the pairs");
  for (const int64_t word : {kMin, kMin + 1, int64_t{-2}, kMax, kMax - 1, good[i] | kMin}) {
    original.CheckWordRejected(i, word, "garbage");
    original.CheckWordRejected(original.count - 1, word, "garbage at the end");
    if (original.count == original.total) continue;
    original.CheckWordRejected(original.count, word, "garbage as fill");
  }

  std::vector<int64_t> forged = good;
  std::swap(forged[i], forged[i + 1]);
  original.CheckRejected(forged, "swapped pairs", i);
  forged = good;
  const int64_t apart = (forged[i] ^ forged[i + 1]) & (positions - 1);
  forged[i] ^= apart;
  forged[i + 1] ^= apart;
  original.CheckRejected(forged, "swapped positions", i);
  forged = good;
  forged.erase(forged.begin() + i);
  forged.push_back(kNoPair);
  original.CheckRejected(forged, "a missing pair", i);
  if (original.count == original.total) return;
  forged = good;
  forged.pop_back();
  forged.insert(forged.begin() + i, kNoPair);
  original.CheckRejected(forged, "padding moved", i);
}

void CheckWholeForgeries(Rng* rng, const Original& original) {
  const std::vector<int64_t>& good = original.good;
  original.CheckRejected(std::vector<int64_t>(good.size(), kNoPair), "no pairs");
  original.CheckRejected(std::vector<int64_t>(good.size(), 0), "zeros");
  original.CheckRejected(std::vector<int64_t>(good.rbegin(), good.rend()), "backwards");
  std::vector<int64_t> forged(good.size());
  std::iota(forged.begin(), forged.end(), int64_t{0});
  original.CheckRejected(forged, "one id");
  for (int64_t& word : forged) word = static_cast<int64_t>((*rng)());
  original.CheckRejected(forged, "random words");
  std::sort(forged.begin(), forged.end());
  original.CheckRejected(forged, "random words that rise");
  for (int64_t& word : forged) word = static_cast<int64_t>((*rng)() >> 1);
  std::sort(forged.begin(), forged.end());
  original.CheckRejected(forged, "random pairs that rise");

  // Castings, but of other lookups.
  for (size_t f = 0; f < original.features.size(); ++f) {
    Features others = original.features;
    int64_t* const last = &others[f].ids.back();
    *last = *last == 9 ? 8 : 9;
    original.CheckRejected(NaiveCasting(others), "another id", f);
    others = original.features;
    others[f].padding_id = others[f].padding_id ? std::optional<int64_t>() : others[f].ids[0];
    original.CheckRejected(NaiveCasting(others), "other padding", f);
  }
}

void TestForgeriesAreRejected() {
  Rng rng(5);
  for (const int64_t size : {64, 90, 70000}) {
    for (const int64_t features_count : {1, 2}) {
      Features features;
      for (int64_t f = 0; f < features_count; ++f) {
        const Pads pads = f == 0 && size % 4 == 0 ? Pads::kNone : Pads::kSome;
        features.push_back(
            RandomFeature(&rng, size / features_count, size / 3, pads, f == 0 ? 0 : 4));
      }
      features[0].ids[0] = 3;  // TestForgedPairOfZero() has the pair of id 0 and position 0
      const Original original(features);
      CheckWholeForgeries(&rng, original);
      if (size < 100) {
        for (int64_t i = 0; i + 1 < original.count; ++i) CheckForgeriesAt(original, i);
      } else {
        for (const int64_t i : {int64_t{0}, size / 4 - 1, size / 2, original.count - 2}) {
          CheckForgeriesAt(original, i);
        }
      }
    }
  }
  // Without pairs there is one casting only.
  const Original padding({Feature{{6, 6, 6, 6, 6}, 6}});
  for (const int64_t word : {kMin, int64_t{-2}, int64_t{1}, int64_t{6 << 3}, kMax}) {
    padding.CheckWordRejected(0, word, "a pair of padding");
  }
  const Original single({Feature{{4}, {}}});
  for (const int64_t word : {kMin, int64_t{-1}, int64_t{3}, int64_t{5}, kMax}) {
    single.CheckWordRejected(0, word, "another single id");
  }
}

// A pair where there is padding, which makes one more of them.
void TestPaddingIsNoPair() {
  Rng rng(6);
  Features features = {RandomFeature(&rng, 100, 20, Pads::kSome, 5)};
  features[0].ids[0] = 3;
  const Original original(features);
  CHECK(original.count < original.total);
  for (int64_t k = 0; k < original.total; ++k) {
    if (!features[0].IsPadding(k)) continue;
    std::vector<int64_t> forged = original.good;
    forged[original.count] = 5 * 128 + k;
    std::sort(forged.begin(), forged.begin() + original.count + 1);
    original.CheckRejected(forged, "a pair of padding", k);
  }
}

// The pair of id 0 and position 0 is the word 0, which a sum must not overlook.
void TestForgedPairOfZero() {
  Original({Feature{{0, 4, 2}, {}}}).CheckRejected({2 * 4 + 2, 4 * 4 + 1, -1}, "without the zero");
  Original({Feature{{0}, {}}}).CheckRejected({-1}, "without the zero");
  Original({Feature{{0, 4, 2}, 0}}).CheckRejected({0, 2 * 4 + 2, 4 * 4 + 1}, "with a zero");
}

// Ids whose upper bits do not fit a word have no casting, least of all that of their lower bits.
void TestIdsThatDoNotPack() {
  const auto accepted = [](const auto& lookups, const std::vector<int64_t>& forged) {
    Casting casting;
    return IsCastingOf(lookups.view(), forged.data(), Parallel(), &casting);
  };
  for (const int32_t id : {-1, std::numeric_limits<int32_t>::min()}) {
    const Features features = {{{id, 3}, {}}};
    for (const int64_t word : {int64_t{0}, int64_t{id} * 2, kMax - 1}) {
      CHECK(!accepted(Lookups<int32_t>(features), {word, 3 * 2 + 1}), id, word);
      CHECK(!accepted(Lookups<int64_t>(features), {word, 3 * 2 + 1}), id, word);
    }
  }
  for (const int64_t shift : {int64_t{1} << 61, int64_t{1} << 62, kMin, -(int64_t{1} << 61)}) {
    Features features = {{{9, 3, 7, 1, 4, 4, 6, 3}, {}}};
    const std::vector<int64_t> forged = NaiveCasting(features);
    for (int64_t& id : features[0].ids) id += shift;
    CHECK(!accepted(Lookups<int64_t>(features), forged), shift);
  }
}

}  // namespace
}  // namespace tfrec

int main() {
  tfrec::TestSplitCoversEverythingOnce();
  tfrec::TestBlocks();
  tfrec::TestBitsFor();
  tfrec::TestSortPasses();
  tfrec::TestSort();
  tfrec::TestCastings();
  tfrec::TestRisingIds();
  tfrec::TestNegativeIdsAreSeen<int32_t>();
  tfrec::TestNegativeIdsAreSeen<int64_t>();
  tfrec::TestAccessors();
  tfrec::TestForgeriesAreRejected();
  tfrec::TestPaddingIsNoPair();
  tfrec::TestForgedPairOfZero();
  tfrec::TestIdsThatDoNotPack();
  return 0;
}
