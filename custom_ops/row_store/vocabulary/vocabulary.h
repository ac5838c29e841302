// Which row of an embedding table a key has, while keys come and go.
//
// A key is any 64-bit number: a raw id, or the hash of a string. Row 0 is the row of all keys that
// have no row of their own: those never seen, not seen often enough, or forgotten. Rows from 1 on
// belong to one key each.
#ifndef TFREC_CUSTOM_OPS_ROW_STORE_VOCABULARY_VOCABULARY_H_
#define TFREC_CUSTOM_OPS_ROW_STORE_VOCABULARY_VOCABULARY_H_

#include <cstdint>
#include <string>
#include <vector>

namespace tfrec {

// Takes 110 KB, and 29 to 37 bytes for each key that it counts, with or without a row. Keys without
// a row are forgotten by nothing but Expire(): who has more keys than memory sets a `max_age` and
// calls it from time to time, most of all with a `min_count` above 1 or with `max_rows`.
//
// No call stops to move all keys, except Expire(): they are spread over shards, each of which grows
// alone. Keys may have any pattern; but they are not to be chosen by somebody who wants the search
// to be slow, and knows how bits are mixed here.
//
// Steps are what the user counts time in, and are not negative. They need not ascend.
//
// Not thread-safe: the user locks.
class Vocabulary {
 public:
  static constexpr int64_t kMaxRows = int64_t{1} << 40;  // as in a row store

  // A key gets a row when it was counted `min_count` times, from 1 on, since it was forgotten last.
  // It is forgotten when it was not seen for more than `max_age` steps; 0 is for never. The table
  // has `max_rows` rows at most, row 0 among them, and 0 is for no limit but kMaxRows; when all are
  // taken, keys wait: they get a row when they are seen after one was freed.
  Vocabulary(int64_t min_count, int64_t max_age, int64_t max_rows);

  // Counts keys in their order, as seen at this step, and gives rows to those that are due. What
  // comes out depends on the keys and their order alone. All occurrences of a key in one call get
  // the row that it has at the END of the call, so that no batch trains two rows for one key.
  void Train(const int64_t* keys, int64_t count, int64_t step, int64_t* rows);
  // Counts nothing. Threads may call this at once, as all that is const.
  void Find(const int64_t* keys, int64_t count, int64_t* rows) const;
  // Forgets keys not seen for more than `max_age` steps, with or without a row. Looks at all keys.
  // Returns the freed rows, which ascend. They are given out again, the lowest first, before any
  // new one: the caller resets them, so that no key starts with what another one learned.
  std::vector<int64_t> Expire(int64_t step);

  // One more than the largest row ever given: so many rows must the table have.
  int64_t Rows() const { return rows_; }
  int64_t Keys() const { return keys_; }  // that have a row
  int64_t Bytes() const;                  // of this bookkeeping
  // All keys that have a row, and these rows, which ascend. Overwrites both.
  void Export(std::vector<int64_t>* keys, std::vector<int64_t>* rows) const;

  // All that there is to know, as numbers for a file. Vocabularies that are alike save the same
  // numbers, whatever became of them before. A loaded one goes on just as the saved one would.
  std::vector<int64_t> Save() const;
  // Errors call the numbers `name`. What could not have been saved is refused; a change that leaves
  // what might have been is not seen, hence the caller keeps a checksum.
  static Vocabulary Load(const int64_t* values, int64_t size, const std::string& name);

 private:
  // `row` is negative for a key that has none: minus how often it was counted, up to `min_count`.
  // It is 0 where there is no key.
  struct Entry {
    uint64_t hash;  // of the key, which can be told from it
    int64_t row;
    int64_t last_seen;
  };
  // Keys whose hashes have the same upper bits. Hashes ascend, and none lies before its home. Homes
  // ascend with hashes, so that entries keep their order when a shard grows, and a search ends
  // early where the key is not there. The last entry is never taken: each search ends there.
  struct Shard {
    std::vector<Entry> entries;
    int64_t homes = 0;
    int64_t keys = 0;
  };
  struct RowRange {
    int64_t begin;
    int64_t end;
  };
  static_assert(sizeof(Entry) == 24, "30 bytes a key where 5 of 6 homes are taken");

  static int64_t HomeOf(const Shard& shard, uint64_t hash);
  // The entry of a hash, or the one before which it belongs.
  static int64_t Search(const Shard& shard, uint64_t hash);
  // Lays the shard out anew with room for so many keys, without those last seen before `oldest`.
  static void Rebuild(Shard* shard, int64_t keys, int64_t oldest);

  template <typename Work>
  void ForEach(const int64_t* keys, int64_t count, const Work& work) const;
  Entry* FindOrAdd(uint64_t hash);
  int64_t RowOf(uint64_t hash) const;
  int64_t TakeRow();  // 0 where there is none
  int64_t RowLimit() const { return max_rows_ == 0 ? kMaxRows : max_rows_; }

  int64_t min_count_;
  int64_t max_age_;
  int64_t max_rows_;
  int64_t rows_ = 1;
  int64_t keys_ = 0;
  std::vector<Shard> shards_;
  std::vector<RowRange> free_;  // the lowest one is the last one; need not be joined
};

}  // namespace tfrec

#endif  // TFREC_CUSTOM_OPS_ROW_STORE_VOCABULARY_VOCABULARY_H_
