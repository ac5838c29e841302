#include "custom_ops/row_store/vocabulary/vocabulary.h"

#include <algorithm>
#include <utility>

#include "custom_ops/common/prefetch.h"
#include "custom_ops/row_store/store_file.h"

namespace tfrec {
namespace {

// Of 10 million keys a shard has some 350 KB, and grows within a tenth of a millisecond, or half of
// one where all of its pages have to come from the system.
constexpr int kShardBits = 10;
// Three cache lines, where most searches end; with one, keys took half as long again.
constexpr int64_t kPrefetchedEntries = 6;

// What Save() writes: this header, then four numbers for each key, by ascending hashes.
enum Header { kMagicAt, kVersionAt, kMinCountAt, kMaxAgeAt, kMaxRowsAt, kRowsAt, kKeysAt, kHeader };
enum Field { kKeyAt, kRowAt, kCountAt, kLastSeenAt, kFields };
constexpr int64_t kMagic = 0x636f766365726674;  // "tfrecvoc"
constexpr int64_t kVersion = 1;
constexpr int64_t kNoRow = -1;  // in what is saved

// The finalizer of MurmurHash3: each bit of the key changes each bit of the hash about half of the
// time. A change of it is a new version of what is saved.
constexpr uint64_t kFactors[] = {0xff51afd7ed558ccd, 0xc4ceb9fe1a85ec53};

// Of an odd number, modulo 2^64. Each round doubles the lower bits that are right, from 3 on.
constexpr uint64_t Inverse(uint64_t factor) {
  uint64_t inverse = factor;
  for (int round = 0; round < 5; ++round) inverse *= 2 - factor * inverse;
  return inverse;
}
// Its own inverse.
constexpr uint64_t Fold(uint64_t bits) { return bits ^ (bits >> 33); }
uint64_t HashOf(int64_t key) {
  return Fold(Fold(Fold(static_cast<uint64_t>(key)) * kFactors[0]) * kFactors[1]);
}
int64_t KeyOf(uint64_t hash) {
  return static_cast<int64_t>(Fold(Fold(Fold(hash) * Inverse(kFactors[1])) * Inverse(kFactors[0])));
}
size_t ShardOf(uint64_t hash) { return hash >> (64 - kShardBits); }

[[noreturn]] void Fail(const std::string& what, const std::string& rule, int64_t value) {
  throw StoreError(what + " must be " + rule + ". Received: " + std::to_string(value));
}

void CheckParameters(const std::string& of, int64_t min_count, int64_t max_age, int64_t max_rows) {
  if (min_count < 1) Fail("`min_count`" + of, "1 or more", min_count);
  if (max_age < 0) Fail("`max_age`" + of, "0 or more", max_age);
  if (max_rows < 0 || max_rows > Vocabulary::kMaxRows) {
    Fail("`max_rows`" + of, "in `[0, " + std::to_string(Vocabulary::kMaxRows) + "]`", max_rows);
  }
}

void CheckKeys(const int64_t* values, int64_t count, int64_t min_count, int64_t rows,
               const std::string& of) {
  for (int64_t k = 0; k < count; ++k) {
    const int64_t* const fields = values + k * kFields;
    const auto field = [&](const char* what) {
      return std::string("The ") + what + " of key number " + std::to_string(k) + of;
    };
    if (k > 0 && HashOf(fields[kKeyAt]) <= HashOf(fields[kKeyAt - kFields])) {
      Fail(field("hash"), "above that of the key before", fields[kKeyAt]);
    }
    const bool has_row = fields[kRowAt] != kNoRow;
    if (has_row && (fields[kRowAt] < 1 || fields[kRowAt] >= rows)) {
      Fail(field("row"), "-1, or in `[1, " + std::to_string(rows) + ")`", fields[kRowAt]);
    }
    const int64_t least = has_row ? min_count : 1;
    if (fields[kCountAt] < least || fields[kCountAt] > min_count) {
      Fail(field("count"),
           "in `[" + std::to_string(least) + ", " + std::to_string(min_count) + "]`",
           fields[kCountAt]);
    }
    if (fields[kLastSeenAt] < 0) Fail(field("last step"), "0 or more", fields[kLastSeenAt]);
  }
}

void CheckStep(int64_t step) {
  if (step < 0) Fail("`step`", "0 or more", step);
}

}  // namespace

Vocabulary::Vocabulary(int64_t min_count, int64_t max_age, int64_t max_rows)
    : min_count_(min_count),
      max_age_(max_age),
      max_rows_(max_rows),
      shards_(size_t{1} << kShardBits) {
  CheckParameters("", min_count, max_age, max_rows);
  for (Shard& shard : shards_) Rebuild(&shard, 0, 0);
}

// ---- One shard.

int64_t Vocabulary::HomeOf(const Shard& shard, uint64_t hash) {
  return static_cast<int64_t>((hash << kShardBits >> 32) * shard.homes >> 32);
}

int64_t Vocabulary::Search(const Shard& shard, uint64_t hash) {
  const Entry* const entries = shard.entries.data();
  int64_t at = HomeOf(shard, hash);
  while (entries[at].row != 0 && entries[at].hash < hash) ++at;
  return at;
}

// Two of three homes are taken afterwards. FindOrAdd() lets it become five of six, where a search
// looks at three or four entries: each time the shard grows by a quarter, since twice as many homes
// would be 24 bytes for each key that nothing uses for long.
void Vocabulary::Rebuild(Shard* shard, int64_t keys, int64_t oldest) {
  const int64_t homes = keys + keys / 2 + 1;
  const int64_t spare = 2 + homes / 32;  // behind the homes, for those that find theirs taken
  std::vector<Entry> entries;
  entries.reserve(homes + spare);
  shard->homes = homes;
  shard->keys = 0;
  for (const Entry& entry : shard->entries) {
    if (entry.row == 0 || entry.last_seen < oldest) continue;
    const size_t home = HomeOf(*shard, entry.hash);
    if (home > entries.size()) entries.resize(home);
    entries.push_back(entry);
    ++shard->keys;
  }
  entries.resize(std::max<size_t>(entries.size(), homes) + spare);
  entries.shrink_to_fit();  // where there was a crowd at the last homes
  shard->entries = std::move(entries);
}

// ---- All shards.

// Calls work(k, hash of keys[k]), for each key in its order, when its entry is likely at hand.
template <typename Work>
void Vocabulary::ForEach(const int64_t* keys, int64_t count, const Work& work) const {
  uint64_t hashes[kPrefetchDistance];
  for (int64_t soon = 0; soon < count + kPrefetchDistance; ++soon) {
    uint64_t* const hash = &hashes[soon % kPrefetchDistance];
    if (soon >= kPrefetchDistance) work(soon - kPrefetchDistance, *hash);
    if (soon >= count) continue;
    *hash = HashOf(keys[soon]);
    const Shard& shard = shards_[ShardOf(*hash)];
    Prefetch(&shard.entries[HomeOf(shard, *hash)], kPrefetchedEntries);
  }
}

// The entry of a key that was not there has row 0, which the caller has to change.
Vocabulary::Entry* Vocabulary::FindOrAdd(uint64_t hash) {
  Shard* const shard = &shards_[ShardOf(hash)];
  const int64_t at = Search(*shard, hash);
  Entry* const entry = &shard->entries[at];
  if (entry->row != 0 && entry->hash == hash) return entry;
  Entry* empty = entry;
  while (empty->row != 0) ++empty;
  if (6 * (shard->keys + 1) > 5 * shard->homes || empty == &shard->entries.back()) {
    Rebuild(shard, shard->keys + 1, 0);
    return FindOrAdd(hash);
  }
  std::move_backward(entry, empty, empty + 1);
  *entry = {hash, 0, 0};
  ++shard->keys;
  return entry;
}

int64_t Vocabulary::RowOf(uint64_t hash) const {
  const Shard& shard = shards_[ShardOf(hash)];
  const Entry& entry = shard.entries[Search(shard, hash)];
  return entry.hash == hash ? std::max<int64_t>(entry.row, 0) : 0;
}

int64_t Vocabulary::TakeRow() {
  if (!free_.empty()) {
    const int64_t row = free_.back().begin++;
    if (free_.back().begin == free_.back().end) free_.pop_back();
    return row;
  }
  return rows_ < RowLimit() ? rows_++ : 0;
}

// ---- What users call.

void Vocabulary::Train(const int64_t* keys, int64_t count, int64_t step, int64_t* rows) {
  CheckStep(step);
  // An occurrence before this one may have got row 0 when its key has a row by now.
  int64_t last_late = 0;
  ForEach(keys, count, [&](int64_t k, uint64_t hash) {
    Entry* const entry = FindOrAdd(hash);
    if (entry->row <= 0) {
      // A key that was not seen at this step did not occur in this call.
      const bool is_late = entry->row < 0 && entry->last_seen == step;
      if (-entry->row < min_count_) --entry->row;
      const int64_t row = -entry->row == min_count_ ? TakeRow() : 0;
      if (row > 0) {
        entry->row = row;
        ++keys_;
        if (is_late) last_late = k;
      }
    }
    entry->last_seen = step;
    rows[k] = std::max<int64_t>(entry->row, 0);
  });
  ForEach(keys, last_late, [&](int64_t k, uint64_t hash) {
    if (rows[k] == 0) rows[k] = RowOf(hash);
  });
}

void Vocabulary::Find(const int64_t* keys, int64_t count, int64_t* rows) const {
  ForEach(keys, count, [&](int64_t k, uint64_t hash) { rows[k] = RowOf(hash); });
}

std::vector<int64_t> Vocabulary::Expire(int64_t step) {
  CheckStep(step);
  std::vector<int64_t> freed;
  const int64_t oldest = step - max_age_;
  if (max_age_ == 0 || oldest <= 0) return freed;
  for (Shard& shard : shards_) {
    int64_t old = 0;
    for (const Entry& entry : shard.entries) {
      if (entry.row == 0 || entry.last_seen >= oldest) continue;
      ++old;
      if (entry.row > 0) freed.push_back(entry.row);
    }
    if (old > 0) Rebuild(&shard, shard.keys - old, oldest);
  }
  keys_ -= freed.size();
  std::sort(freed.begin(), freed.end());
  const size_t before = free_.size();
  for (auto row = freed.rbegin(); row != freed.rend(); ++row) {
    if (free_.size() > before && free_.back().begin == *row + 1) {
      --free_.back().begin;
    } else {
      free_.push_back({*row, *row + 1});
    }
  }
  std::inplace_merge(free_.begin(), free_.begin() + before, free_.end(),
                     [](const RowRange& a, const RowRange& b) { return a.begin > b.begin; });
  return freed;
}

int64_t Vocabulary::Bytes() const {
  int64_t bytes = sizeof *this + shards_.capacity() * sizeof(Shard);
  for (const Shard& shard : shards_) bytes += shard.entries.capacity() * sizeof(Entry);
  return bytes + free_.capacity() * sizeof(RowRange);
}

void Vocabulary::Export(std::vector<int64_t>* keys, std::vector<int64_t>* rows) const {
  std::vector<std::pair<int64_t, int64_t>> found;  // row and key
  found.reserve(keys_);
  for (const Shard& shard : shards_) {
    for (const Entry& entry : shard.entries) {
      if (entry.row > 0) found.emplace_back(entry.row, KeyOf(entry.hash));
    }
  }
  std::sort(found.begin(), found.end());
  keys->clear();
  rows->clear();
  for (const auto& [row, key] : found) {
    keys->push_back(key);
    rows->push_back(row);
  }
}

// ---- Files.

std::vector<int64_t> Vocabulary::Save() const {
  int64_t counted = 0;
  for (const Shard& shard : shards_) counted += shard.keys;
  std::vector<int64_t> values = {kMagic, kVersion, min_count_, max_age_, max_rows_, rows_, counted};
  values.reserve(kHeader + counted * kFields);
  for (const Shard& shard : shards_) {
    for (const Entry& entry : shard.entries) {
      if (entry.row == 0) continue;
      const bool has_row = entry.row > 0;
      values.push_back(KeyOf(entry.hash));
      values.push_back(has_row ? entry.row : kNoRow);
      values.push_back(has_row ? min_count_ : -entry.row);
      values.push_back(entry.last_seen);
    }
  }
  return values;
}

Vocabulary Vocabulary::Load(const int64_t* values, int64_t size, const std::string& name) {
  const std::string of = " of `" + name + "`";
  if (size < kHeader) Fail("The size" + of, std::to_string(kHeader) + " or more", size);
  if (values[kMagicAt] != kMagic) {
    Fail("The first number" + of, std::to_string(kMagic) + ", as in a saved vocabulary", values[0]);
  }
  if (values[kVersionAt] != kVersion) {
    Fail("The version" + of,
         std::to_string(kVersion) + ", which is the one that this library knows",
         values[kVersionAt]);
  }
  CheckParameters(of, values[kMinCountAt], values[kMaxAgeAt], values[kMaxRowsAt]);
  Vocabulary loaded(values[kMinCountAt], values[kMaxAgeAt], values[kMaxRowsAt]);
  loaded.rows_ = values[kRowsAt];
  if (loaded.rows_ < 1 || loaded.rows_ > loaded.RowLimit()) {
    Fail("`rows`" + of, "in `[1, " + std::to_string(loaded.RowLimit()) + "]`", loaded.rows_);
  }
  const int64_t count = (size - kHeader) / kFields;
  if (values[kKeysAt] != count || size != kHeader + count * kFields) {
    Fail("The size" + of,
         std::to_string(kHeader) + ", and " + std::to_string(kFields) + " more for each of its " +
             std::to_string(values[kKeysAt]) + " keys",
         size);
  }
  values += kHeader;
  CheckKeys(values, count, loaded.min_count_, loaded.rows_, of);

  std::vector<int64_t> given;
  int64_t next = 0;
  for (size_t number = 0; number < loaded.shards_.size(); ++number) {
    std::vector<Entry>* const entries = &loaded.shards_[number].entries;
    entries->clear();
    for (; next < count; ++next) {
      const int64_t* const fields = values + next * kFields;
      const uint64_t hash = HashOf(fields[kKeyAt]);
      if (ShardOf(hash) != number) break;
      const bool has_row = fields[kRowAt] != kNoRow;
      if (has_row) given.push_back(fields[kRowAt]);
      entries->push_back({hash, has_row ? fields[kRowAt] : -fields[kCountAt], fields[kLastSeenAt]});
    }
    Rebuild(&loaded.shards_[number], entries->size(), 0);
  }
  loaded.keys_ = given.size();

  // Freed rows are all those below `rows_` that no key has.
  std::sort(given.begin(), given.end());
  int64_t end = loaded.rows_;
  for (auto row = given.rbegin(); row != given.rend(); ++row) {
    if (*row == end) Fail("Each row" + of, "that of one key", *row);
    if (*row + 1 < end) loaded.free_.push_back({*row + 1, end});
    end = *row;
  }
  if (end > 1) loaded.free_.push_back({1, end});
  return loaded;
}

}  // namespace tfrec
