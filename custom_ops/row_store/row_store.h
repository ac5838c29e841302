// Rows in files: the home of a table that is larger than memory.
//
// A store is a folder. `rows.npy` holds all rows as they were at the last checkpoint, and is a
// plain array of NumPy, of records: the columns of a row, and a checksum. `header.json` says what
// they are. Rows that are written after a checkpoint go to a shadow of that file, a log to whose
// end they are written in the order in which they come, and come into it at the next checkpoint
// only. So whenever a process ends, the next one finds the last checkpoint, whole:
//
//   1. the shadow is verified, space for its rows is taken in the array, and the shadow is synced;
//   2. `commit.json` is written, with the new header, and the length and a checksum of the shadow:
//      synced under another name, renamed, and the folder synced, with which the new checkpoint is
//      the last one;
//   3. the last record of each row in the shadow is copied to the array, which is synced; and
//   4. `commit.json` is renamed to `header.json`, and once that is synced, the shadow emptied.
//
// Open() repeats 3 and 4 where a commit lies, and drops a shadow without one. Where rows are
// written again and again, the shadow is compacted: the records that count are copied to a new one,
// which takes its name. No commit lies then.
//
// The checksum of a row is that of its bytes and its id. It is verified when the row is read. In
// the array it is written with the row by one call, of which it is the end: where that call is cut
// short, the shadow still holds the row. A record of zeros stands for a row that was never written,
// and takes no space where the file system knows holes. How many rows were written is in the
// header, by which Verify() finds it out where the disk gives zeros for them.
//
// Memory: a bit for each row that may be written, and what the kernel can put on the disk, which is
// four bytes for each row of the table once rows near it are written (row_index.h). Rows that are
// read alone are copied from mappings of both files, which are page cache too (mapped_records.h).
#ifndef TFREC_CUSTOM_OPS_ROW_STORE_ROW_STORE_H_
#define TFREC_CUSTOM_OPS_ROW_STORE_ROW_STORE_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "custom_ops/row_store/store_file.h"
#include "custom_ops/row_store/store_text.h"

namespace tfrec {

// Threads may call all of it at once. Those that read and write rows do so together; the others
// wait for them, and keep them waiting. Everything throws a StoreError where it fails.
class RowStore {
 public:
  // Makes a store of `rows` rows with these columns, none of them written. The folder must not hold
  // one; where it is missing it is made, in a folder that is there. `header` is any JSON object,
  // which is the caller's, and comes back from Header().
  static std::unique_ptr<RowStore> Create(const std::string& folder, int64_t rows,
                                          const std::vector<StoreColumn>& columns,
                                          const std::string& header);
  // Opens one for reading and writing, at its last checkpoint. Nobody else may have it open.
  static std::unique_ptr<RowStore> Open(const std::string& folder);
  ~RowStore();  // what was written after the last checkpoint is dropped

  int64_t Rows() const;
  const std::vector<StoreColumn>& Columns() const;
  int64_t Width() const;  // of a row: all columns together
  // Of the last checkpoint: its number, which is 0 after Create(), and its header.
  int64_t Checkpoints() const;
  std::string Header() const;

  // Reads rows into out[k * width]. `is_there[k]` says whether a row was ever written; where not,
  // its place in `out` is left alone. Ids that rise are fast, the more the smaller their gaps are,
  // and so are rows in the order in which they were written.
  // No thread may read or write a row that another one writes.
  void Read(const int64_t* ids, int64_t count, float* out, uint8_t* is_there) const;
  // Where this fails, each row holds what it did, or what was written. At times this compacts the
  // shadow, which takes as long as it did to write it, and which reads wait for.
  void Write(const int64_t* ids, int64_t count, const float* rows);
  // More rows, none of them written. They are there for good with the next checkpoint.
  void Grow(int64_t rows);

  // Makes all that was written the last checkpoint, with a new header. Where this fails, either the
  // last one stays the last and what was written is there still, or the new one is made and cannot
  // all be put in its place: Checkpoints() tells. Then another call, of Write() or Grow() too,
  // first does what is missing. After a failed sync nothing can be known of the disk, and every
  // call is an error until the store is opened again.
  void Checkpoint(const std::string& header);
  // Reads all rows that were written, and throws for the first that is not what was written.
  void Verify() const;

 private:
  class Impl;
  explicit RowStore(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace tfrec

#endif  // TFREC_CUSTOM_OPS_ROW_STORE_ROW_STORE_H_
