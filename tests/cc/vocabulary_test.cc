#include "custom_ops/row_store/vocabulary/vocabulary.h"

#include <algorithm>
#include <cstdint>
#include <ctime>
#include <limits>
#include <map>
#include <numeric>
#include <random>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "custom_ops/row_store/store_file.h"
#include "tests/cc/check.h"

namespace tfrec {
namespace {

using Numbers = std::vector<int64_t>;
using Rng = std::mt19937_64;

constexpr int64_t kLeast = std::numeric_limits<int64_t>::min();
constexpr int64_t kMost = std::numeric_limits<int64_t>::max();

// Of what is saved; spelled out here, since files of today must be read by tomorrow's code.
constexpr int64_t kMagic = 0x636f766365726674;
constexpr size_t kHeader = 7;
constexpr size_t kFields = 4;
enum At { kMagicAt, kVersionAt, kMinCountAt, kMaxAgeAt, kMaxRowsAt, kRowsAt, kKeysAt };

// By which shards and homes are chosen, and keys are ordered in what is saved; and its inverse.
constexpr uint64_t kFactors[] = {0xff51afd7ed558ccd, 0xc4ceb9fe1a85ec53};
constexpr uint64_t kInverses[] = {0x9cb4b2f8129337db, 0x4f74430c22a54005};
uint64_t HashOf(int64_t key) {
  uint64_t bits = static_cast<uint64_t>(key);
  for (const uint64_t factor : kFactors) bits = (bits ^ (bits >> 33)) * factor;
  return bits ^ (bits >> 33);
}
int64_t KeyOf(uint64_t bits) {
  for (const uint64_t inverse : kInverses) bits = (bits ^ (bits >> 33)) * inverse;
  return static_cast<int64_t>(bits ^ (bits >> 33));
}

int64_t Below(Rng* rng, int64_t count) {
  return std::uniform_int_distribution<int64_t>(0, count - 1)(*rng);
}

Numbers Train(Vocabulary* vocabulary, const Numbers& keys, int64_t step) {
  Numbers rows(keys.size(), -7);
  vocabulary->Train(keys.data(), keys.size(), step, rows.data());
  return rows;
}
Numbers Find(const Vocabulary& vocabulary, const Numbers& keys) {
  Numbers rows(keys.size(), -7);
  vocabulary.Find(keys.data(), keys.size(), rows.data());
  return rows;
}
Vocabulary Load(const Numbers& values) {
  return Vocabulary::Load(values.data(), values.size(), "words.npy");
}

// ---- A slow one, to compare with.

class SlowVocabulary {
 public:
  SlowVocabulary(int64_t min_count, int64_t max_age, int64_t max_rows)
      : min_count_(min_count), max_age_(max_age), max_rows_(max_rows) {}

  Numbers Train(const Numbers& keys, int64_t step) {
    for (const int64_t key : keys) {
      Seen& seen = seen_[key];
      ++seen.count;
      seen.last = step;
      if (seen.row > 0 || seen.count < min_count_) continue;
      if (!free_.empty()) {
        seen.row = *free_.begin();
        free_.erase(free_.begin());
      } else if (max_rows_ == 0 || rows_ < max_rows_) {
        seen.row = rows_++;
      }
    }
    return Find(keys);
  }
  Numbers Find(const Numbers& keys) const {
    Numbers rows;
    for (const int64_t key : keys) {
      const auto seen = seen_.find(key);
      rows.push_back(seen == seen_.end() ? 0 : seen->second.row);
    }
    return rows;
  }
  Numbers Expire(int64_t step) {
    std::set<int64_t> freed;
    for (auto at = seen_.begin(); at != seen_.end();) {
      const bool is_old = max_age_ > 0 && step - at->second.last > max_age_;
      if (is_old && at->second.row > 0) freed.insert(at->second.row);
      at = is_old ? seen_.erase(at) : std::next(at);
    }
    free_.insert(freed.begin(), freed.end());
    return Numbers(freed.begin(), freed.end());
  }
  int64_t Rows() const { return rows_; }
  std::map<int64_t, int64_t> KeysByRow() const {
    std::map<int64_t, int64_t> keys;
    for (const auto& [key, seen] : seen_) {
      if (seen.row > 0) keys[seen.row] = key;
    }
    return keys;
  }
  Numbers Save() const {
    Numbers values = {
        kMagic, 1, min_count_, max_age_, max_rows_, rows_, static_cast<int64_t>(seen_.size())};
    std::map<uint64_t, int64_t> keys;
    for (const auto& [key, seen] : seen_) keys[HashOf(key)] = key;
    for (const auto& [hash, key] : keys) {
      const Seen& seen = seen_.at(key);
      values.push_back(key);
      values.push_back(seen.row > 0 ? seen.row : -1);
      values.push_back(std::min(seen.count, min_count_));
      values.push_back(seen.last);
    }
    return values;
  }

 private:
  struct Seen {
    int64_t row = 0;
    int64_t count = 0;
    int64_t last = 0;
  };
  const int64_t min_count_;
  const int64_t max_age_;
  const int64_t max_rows_;
  int64_t rows_ = 1;
  std::map<int64_t, Seen> seen_;
  std::set<int64_t> free_;
};

void CheckSame(const Vocabulary& fast, const SlowVocabulary& slow, const Numbers& keys) {
  CHECK(Find(fast, keys) == slow.Find(keys));
  CHECK(fast.Save() == slow.Save());
  CHECK_EQ(fast.Rows(), slow.Rows());
  const std::map<int64_t, int64_t> keys_by_row = slow.KeysByRow();
  CHECK_EQ(fast.Keys(), static_cast<int64_t>(keys_by_row.size()));
  Numbers exported = {1, 2, 3};
  Numbers rows = {4, 5};
  fast.Export(&exported, &rows);
  CHECK_EQ(exported.size(), keys_by_row.size());
  CHECK_EQ(rows.size(), keys_by_row.size());
  size_t at = 0;
  for (const auto& [row, key] : keys_by_row) {
    CHECK_EQ(rows[at], row);
    CHECK_EQ(exported[at++], key);
  }
}

// Any numbers, some of them far apart, alike in their lower bits, or next to one another.
Numbers RandomKeys(Rng* rng, int64_t count) {
  std::set<int64_t> keys = {kLeast, kLeast + 1, -1, 0, 1, kMost - 1, kMost};
  while (static_cast<int64_t>(keys.size()) < count) {
    const int64_t small = Below(rng, 2 * count);
    const int64_t choices[] = {small, -small, small * (int64_t{1} << 32),
                               static_cast<int64_t>((*rng)())};
    keys.insert(choices[Below(rng, 4)]);
  }
  return Numbers(keys.begin(), keys.end());
}

struct Parameters {
  int64_t min_count;
  int64_t max_age;
  int64_t max_rows;
};

void CheckAtRandom(Rng* rng, const Parameters& of, int64_t key_count, int64_t batches, bool saves) {
  const Numbers keys = RandomKeys(rng, key_count);
  Vocabulary fast(of.min_count, of.max_age, of.max_rows);
  SlowVocabulary slow(of.min_count, of.max_age, of.max_rows);
  int64_t step = Below(rng, 3);
  for (int64_t batch = 0; batch < batches; ++batch) {
    // Most of them from a part of the keys that moves, so that others come of age.
    const int64_t first = Below(rng, keys.size());
    const int64_t width = 1 + Below(rng, keys.size());
    Numbers some(Below(rng, 150));
    for (int64_t& key : some) key = keys[(first + Below(rng, width)) % keys.size()];
    CHECK(Train(&fast, some, step) == slow.Train(some, step), batch, step);
    if (Below(rng, 3) == 0) CHECK(fast.Expire(step) == slow.Expire(step), batch, step);
    if (saves && Below(rng, 4) == 0) fast = Load(fast.Save());
    if (batch % 8 == 0) CheckSame(fast, slow, keys);
    // Now and then several calls are of one step, and now and then time goes back.
    step = std::max<int64_t>(0, step + Below(rng, 4) - (Below(rng, 10) == 0 ? 5 : 0));
  }
  CheckSame(fast, slow, keys);
}

void TestRandomRuns() {
  for (const uint64_t seed : {1, 2, 3}) {
    Rng rng(seed);
    for (const int64_t min_count : {1, 2, 5}) {
      for (const int64_t max_age : {0, 1, 4, 30}) {
        for (const int64_t max_rows : {0, 1, 2, 20}) {
          for (const bool saves : {false, true}) {
            CheckAtRandom(&rng, {min_count, max_age, max_rows}, 10 + Below(&rng, 60), 24, saves);
          }
        }
      }
    }
    CheckAtRandom(&rng, {3, 50, 3000}, 8000, 400, false);
    CheckAtRandom(&rng, {1, 20, 0}, 4000, 300, true);
  }
}

// So many that shards grow over and over, and are crowded at their ends.
void TestManyKeys() {
  Rng rng(4);
  Vocabulary fast(2, 1, 0);
  SlowVocabulary slow(2, 1, 0);
  for (int64_t step = 0; step < 4; ++step) {
    Numbers keys(20000);
    for (int64_t& key : keys) key = static_cast<int64_t>(rng());
    for (size_t k = 0; k < keys.size(); k += 2) keys.push_back(keys[k]);
    CHECK(Train(&fast, keys, step) == slow.Train(keys, step), step);
    CheckSame(fast, slow, keys);
    CHECK(fast.Expire(step) == slow.Expire(step), step);
    CheckSame(Load(fast.Save()), slow, keys);
  }
}

// ---- By hand.

void TestAnExample() {
  Vocabulary vocabulary(2, 10, 0);
  CHECK_EQ(vocabulary.Rows(), 1);
  CHECK_EQ(vocabulary.Keys(), 0);
  CHECK(Train(&vocabulary, {70, 80}, 0) == Numbers({0, 0}));
  CHECK(Train(&vocabulary, {90, 80, 70}, 1) == Numbers({0, 1, 2}));
  // 90 is counted at its first place and gets row 3 at its last; both places get it.
  CHECK(Train(&vocabulary, {60, 90, 80, 50, 50, 50}, 5) == Numbers({0, 3, 1, 4, 4, 4}));
  CHECK(Find(vocabulary, {50, 60, 70, 80, 90, 55}) == Numbers({4, 0, 2, 1, 3, 0}));
  CHECK_EQ(vocabulary.Rows(), 5);
  CHECK_EQ(vocabulary.Keys(), 4);
  CHECK(vocabulary.Save() == Numbers({kMagic, 1,  2, 10, 0, 5, 5,  // and in the order of hashes
                                      80,     1,  2, 5,            //
                                      90,     3,  2, 5,            //
                                      60,     -1, 1, 5,            //
                                      70,     2,  2, 1,            //
                                      50,     4,  2, 5}));
  CHECK(vocabulary.Expire(11).empty());  // 70 was last seen ten steps before
  CHECK(vocabulary.Expire(12) == Numbers({2}));
  CHECK(Find(vocabulary, {70, 80}) == Numbers({0, 1}));
  CHECK(vocabulary.Expire(16) == Numbers({1, 3, 4}));
  CHECK_EQ(vocabulary.Rows(), 5);
  CHECK_EQ(vocabulary.Keys(), 0);
  // Counts begin again: that of 60 too, which had no row. The lowest freed rows come first.
  CHECK(Train(&vocabulary, {60, 80, 90}, 17) == Numbers({0, 0, 0}));
  CHECK(Train(&vocabulary, {90, 60, 1, 1, 2, 2, 3, 3}, 18) == Numbers({1, 2, 3, 3, 4, 4, 5, 5}));
  CHECK_EQ(vocabulary.Rows(), 6);
  Numbers keys, rows;
  vocabulary.Export(&keys, &rows);
  CHECK(keys == Numbers({90, 60, 1, 2, 3}));
  CHECK(rows == Numbers({1, 2, 3, 4, 5}));
}

void TestRowsThatWereFreedTwice() {
  Vocabulary vocabulary(1, 1, 0);
  Train(&vocabulary, {1, 2, 3, 4, 5, 6}, 0);
  Train(&vocabulary, {2, 4, 5}, 2);
  CHECK(vocabulary.Expire(2) == Numbers({1, 3, 6}));
  Train(&vocabulary, {2}, 4);
  CHECK(vocabulary.Expire(4) == Numbers({4, 5}));
  CHECK(Train(&vocabulary, {11, 13, 14, 15, 16, 17}, 4) == Numbers({1, 3, 4, 5, 6, 7}));
}

void TestFullTables() {
  Vocabulary none(1, 0, 1);
  CHECK(Train(&none, {5, 6, 5}, 0) == Numbers({0, 0, 0}));
  CHECK_EQ(none.Rows(), 1);
  Vocabulary two(2, 3, 3);  // rows 1 and 2, and row 0
  CHECK(Train(&two, {1, 1, 2, 2, 3, 3, 3}, 0) == Numbers({1, 1, 2, 2, 0, 0, 0}));
  CHECK_EQ(two.Rows(), 3);
  Train(&two, {1, 3}, 3);
  CHECK(two.Expire(4) == Numbers({2}));
  // 3 waits for a row, and gets it when it is seen.
  CHECK(Find(two, {3}) == Numbers({0}));
  CHECK(Train(&two, {4, 3, 4}, 4) == Numbers({0, 2, 0}));
  CHECK_EQ(two.Rows(), 3);
}

void TestExtremes() {
  const Numbers keys = {kLeast, -1, 0, kMost, 1, kLeast + 1};
  Vocabulary vocabulary(1, kMost, 0);
  CHECK(Find(vocabulary, keys) == Numbers(6, 0));
  CHECK(Train(&vocabulary, keys, kMost) == Numbers({1, 2, 3, 4, 5, 6}));
  CHECK(vocabulary.Expire(kMost).empty());
  CHECK(Train(&vocabulary, keys, 0) == Numbers({1, 2, 3, 4, 5, 6}));
  CHECK(vocabulary.Expire(kMost).empty());
  CHECK(Find(Load(vocabulary.Save()), keys) == Numbers({1, 2, 3, 4, 5, 6}));
  Vocabulary young(kMost, 1, Vocabulary::kMaxRows);
  CHECK(Train(&young, keys, 0) == Numbers(6, 0));
  CHECK(young.Expire(1).empty());
  CHECK_EQ(young.Save().size(), kHeader + 6 * kFields);
  CHECK(young.Expire(2).empty());  // which had no rows
  CHECK_EQ(young.Save().size(), kHeader);
  CHECK(Train(&young, {}, 3).empty());
}

template <typename Call>
void CheckRefused(const std::string& error, const Call& call) {
  std::string what = "nothing";
  try {
    call();
  } catch (const StoreError& caught) {
    what = caught.what();
  }
  CHECK_EQ(what, error);
}

void TestArguments() {
  CheckRefused("`min_count` must be 1 or more. Received: 0", [] { Vocabulary(0, 0, 0); });
  CheckRefused("`max_age` must be 0 or more. Received: -1", [] { Vocabulary(1, -1, 0); });
  CheckRefused("`max_rows` must be in `[0, 1099511627776]`. Received: -1",
               [] { Vocabulary(1, 0, -1); });
  CheckRefused("`max_rows` must be in `[0, 1099511627776]`. Received: 1099511627777",
               [] { Vocabulary(1, 0, Vocabulary::kMaxRows + 1); });
  Vocabulary vocabulary(1, 1, 0);
  CheckRefused("`step` must be 0 or more. Received: -1", [&] { Train(&vocabulary, {1}, -1); });
  CheckRefused("`step` must be 0 or more. Received: -2", [&] { vocabulary.Expire(-2); });
  CHECK_EQ(vocabulary.Rows(), 1);
}

// ---- What is saved.

// With rows 1, 4 and 5, two freed ones, and keys without a row.
Vocabulary ASmallOne() {
  Vocabulary vocabulary(3, 10, 9);
  Train(&vocabulary, {5, 5, 5, 6, 6, 6, 7, 7, 7}, 0);
  Train(&vocabulary, {5, 8, 8, 8, 9, 9, 9, kLeast, -1, -1}, 9);
  CHECK(vocabulary.Expire(11) == Numbers({2, 3}));
  return vocabulary;
}

void TestDamageIsRefused() {
  const Numbers saved = ASmallOne().Save();
  const auto refuses = [&](const std::string& error, size_t at, int64_t value) {
    Numbers values = saved;
    values[at] = value;
    CheckRefused(error, [&] { Load(values); });
  };
  size_t waits = kHeader;  // a key with no row, and one with a row
  size_t has = kHeader;
  while (saved[waits + 1] != -1) waits += kFields;
  while (saved[has + 1] == -1) has += kFields;
  const auto number = [](size_t key) { return std::to_string((key - kHeader) / kFields); };
  refuses(
      "The first number of `words.npy` must be 7165075701445584500, as in a saved vocabulary. "
      "Received: 3",
      kMagicAt, 3);
  refuses(
      "The version of `words.npy` must be 1, which is the one that this library knows. Received: 2",
      kVersionAt, 2);
  refuses("`min_count` of `words.npy` must be 1 or more. Received: 0", kMinCountAt, 0);
  refuses("`max_age` of `words.npy` must be 0 or more. Received: -3", kMaxAgeAt, -3);
  refuses("`max_rows` of `words.npy` must be in `[0, 1099511627776]`. Received: -1", kMaxRowsAt,
          -1);
  refuses("`rows` of `words.npy` must be in `[1, 5]`. Received: 6", kMaxRowsAt, 5);
  refuses("`rows` of `words.npy` must be in `[1, 9]`. Received: 0", kRowsAt, 0);
  refuses("The size of `words.npy` must be 7, and 4 more for each of its 6 keys. Received: 27",
          kKeysAt, 6);
  for (const int64_t row : {int64_t{0}, int64_t{-2}, int64_t{6}, kMost, kLeast}) {
    refuses("The row of key number " + number(has) +
                " of `words.npy` must be -1, or in `[1, 6)`. Received: " + std::to_string(row),
            has + 1, row);
  }
  for (const int64_t count : {0, 4, -1}) {
    refuses("The count of key number " + number(waits) +
                " of `words.npy` must be in `[1, 3]`. Received: " + std::to_string(count),
            waits + 2, count);
  }
  refuses(
      "The count of key number " + number(has) + " of `words.npy` must be in `[3, 3]`. Received: 2",
      has + 2, 2);
  refuses("The last step of key number 1 of `words.npy` must be 0 or more. Received: -1",
          kHeader + kFields + 3, -1);
  const int64_t first = saved[kHeader];
  refuses("The hash of key number 1 of `words.npy` must be above that of the key before. " +
              ("Received: " + std::to_string(first)),
          kHeader + kFields, first);
  Numbers twice = saved;
  for (size_t at = kHeader; at < saved.size(); at += kFields) {
    if (saved[at + 1] == 1) twice[at + 1] = 4;
  }
  CheckRefused("Each row of `words.npy` must be that of one key. Received: 4",
               [&] { Load(twice); });
  for (size_t size = 0; size < saved.size(); ++size) {
    const Numbers part(saved.begin(), saved.begin() + size);
    const std::string rule = size < kHeader ? "7 or more" : "7, and 4 more for each of its 5 keys";
    CheckRefused("The size of `words.npy` must be " + rule + ". Received: " + std::to_string(size),
                 [&] { Load(part); });
  }
}

// What a change of one bit leaves is refused, or a vocabulary that might have been. The latter are
// changes of `max_age`; of `max_rows` and `rows`, where they go up; of a key that stays between its
// neighbours; of a row to one that no key has; of a count of a key that waits; and of a step.
void TestEachBit() {
  const Numbers saved = ASmallOne().Save();
  std::map<size_t, int> unseen;  // by place in the header, or behind it by field
  for (size_t at = 0; at < saved.size(); ++at) {
    for (int bit = 0; bit < 64; ++bit) {
      Numbers values = saved;
      values[at] = static_cast<int64_t>(static_cast<uint64_t>(values[at]) ^ (uint64_t{1} << bit));
      try {
        Vocabulary loaded = Load(values);
        ++unseen[at < kHeader ? at : kHeader + (at - kHeader) % kFields];
        CHECK(loaded.Save() == values, at, bit);
        Train(&loaded, {5, 100, 100, 100, 101, 101, 101}, 12);
        Numbers keys, rows;
        loaded.Export(&keys, &rows);
        CHECK(Find(loaded, keys) == rows, at, bit);
        CHECK_EQ(loaded.Keys(), static_cast<int64_t>(keys.size()), at, bit);
        CHECK(std::adjacent_find(rows.begin(), rows.end()) == rows.end(), at, bit);
        CHECK(rows.front() >= 1 && rows.back() < loaded.Rows(), at, bit);
      } catch (const StoreError&) {
      }
    }
  }
  for (const size_t at : {kMagicAt, kVersionAt, kMinCountAt, kKeysAt}) CHECK_EQ(unseen[at], 0, at);
  CHECK_EQ(unseen[kMaxAgeAt], 63);
  CHECK_EQ(unseen[kHeader + 3], 5 * 63);
}

void TestAlikeSaveAlike() {
  Rng rng(5);
  Vocabulary one(2, 5, 0);
  Numbers keys(300);
  for (int64_t& key : keys) key = static_cast<int64_t>(rng());
  Train(&one, keys, 8);
  Train(&one, keys, 8);
  // Another one meets them in another order, among many others, which it forgets.
  Vocabulary other(2, 5, 0);
  for (int64_t step = 0; step < 3; ++step) {
    Numbers others(3000);
    for (int64_t& key : others) key = static_cast<int64_t>(rng());
    Train(&other, others, step);
  }
  Numbers backwards(keys.rbegin(), keys.rend());
  Train(&other, backwards, 3);
  Train(&other, keys, 8);
  other.Expire(8);
  CHECK(one.Save() == other.Save());
}

// ---- Memory and time.

void TestBytes() {
  Rng rng(6);
  for (const bool in_one_shard : {false, true}) {
    Vocabulary vocabulary(1, 1, 0);
    const int64_t empty = vocabulary.Bytes();
    CHECK(empty < 120000, empty);
    for (int64_t step = 0; step < 20; ++step) {
      Numbers keys(10000);
      for (int64_t& key : keys) key = KeyOf(in_one_shard ? rng() >> 10 : rng());
      Train(&vocabulary, keys, 0);
      const int64_t bytes = vocabulary.Bytes();
      CHECK(bytes - empty <= 40 * vocabulary.Keys(), in_one_shard, step, bytes);
      // One of six homes is always free, so that no search is long.
      CHECK(bytes >= 28 * vocabulary.Keys(), in_one_shard, step, bytes);
    }
    CHECK_EQ(vocabulary.Expire(9).size(), 200000u);
    CHECK(vocabulary.Bytes() < empty + 300, vocabulary.Bytes());  // one range of free rows
  }
}

double Seconds() { return static_cast<double>(std::clock()) / CLOCKS_PER_SEC; }

double SecondsToTrain(const Numbers& keys) {
  const double begin = Seconds();
  Vocabulary vocabulary(1, 0, 0);
  Train(&vocabulary, keys, 0);
  const double seconds = Seconds() - begin;
  Numbers rows(keys.size());
  std::iota(rows.begin(), rows.end(), int64_t{1});
  CHECK(Find(vocabulary, keys) == rows);
  return seconds;
}

// Where bits are not mixed well, or a shard does not use its homes, keys take hundreds of times as
// long.
void TestPatternsAreFast() {
  Rng rng(7);
  constexpr int64_t kCount = 50000;
  Numbers keys(kCount);
  for (int64_t& key : keys) key = static_cast<int64_t>(rng());
  const double limit = 10 * (SecondsToTrain(keys) + 0.01);
  for (const int shift : {0, 1, 16, 32, 47}) {
    for (const int64_t offset : {int64_t{0}, kLeast}) {
      for (int64_t k = 0; k < kCount; ++k) {
        keys[k] = static_cast<int64_t>(static_cast<uint64_t>(k) << shift ^ offset);
      }
      const double seconds = SecondsToTrain(keys);
      CHECK(seconds < limit, seconds, limit, shift, offset);
    }
  }
  for (int64_t& key : keys) key = KeyOf(rng() >> 10);  // all in one shard
  const double seconds = SecondsToTrain(keys);
  CHECK(seconds < limit, seconds, limit);
}

// Chosen by somebody who knows how bits are mixed. All want the last home, or the first one.
void TestCrowds() {
  Rng rng(8);
  for (const uint64_t upper : {uint64_t{0}, ~uint64_t{0}, uint64_t{0x123456789ab}}) {
    Numbers keys(1000);
    for (uint64_t k = 0; k < keys.size(); ++k) keys[k] = KeyOf(upper << 20 | k);
    std::shuffle(keys.begin(), keys.end(), rng);
    Vocabulary fast(1, 1, 0);
    SlowVocabulary slow(1, 1, 0);
    CHECK(Train(&fast, keys, 0) == slow.Train(keys, 0));
    CheckSame(fast, slow, keys);
    const Numbers some(keys.begin(), keys.begin() + 500);
    CHECK(Train(&fast, some, 2) == slow.Train(some, 2));
    CHECK(fast.Expire(2) == slow.Expire(2));
    CheckSame(fast, slow, keys);
    CHECK(fast.Bytes() < 200000, fast.Bytes());
  }
}

}  // namespace
}  // namespace tfrec

int main() {
  tfrec::TestAnExample();
  tfrec::TestRowsThatWereFreedTwice();
  tfrec::TestFullTables();
  tfrec::TestExtremes();
  tfrec::TestArguments();
  tfrec::TestDamageIsRefused();
  tfrec::TestEachBit();
  tfrec::TestAlikeSaveAlike();
  tfrec::TestBytes();
  tfrec::TestPatternsAreFast();
  tfrec::TestCrowds();
  tfrec::TestManyKeys();
  tfrec::TestRandomRuns();
}
