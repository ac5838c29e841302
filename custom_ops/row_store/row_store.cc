#include "custom_ops/row_store/row_store.h"

#include <fcntl.h>

#include <algorithm>
#include <atomic>
#include <exception>
#include <mutex>
#include <shared_mutex>
#include <utility>
#include <vector>

#include "custom_ops/common/prefetch.h"
#include "custom_ops/row_store/row_file.h"
#include "custom_ops/row_store/row_log.h"
#include "custom_ops/row_store/row_set.h"
#include "custom_ops/row_store/store_text.h"

namespace tfrec {
namespace {

constexpr char kRows[] = "/rows.npy";
constexpr char kHeader[] = "/header.json";
constexpr char kNewHeader[] = "/header.json.new";
constexpr char kCommit[] = "/commit.json";
constexpr char kShadow[] = "/shadow_rows";
constexpr char kNewShadow[] = "/shadow_rows.new";
constexpr char kLock[] = "/lock";

// Where a row is to be read, in the place of whether it is there.
constexpr uint8_t kInMain = 2;
constexpr uint8_t kInShadow = 3;

// How many parts of the main file with data are looked at when it is opened.
constexpr int64_t kDataParts = int64_t{1} << 14;

// How many of the ids follow one another.
int64_t Run(const int64_t* ids, int64_t limit) {
  int64_t count = 1;
  while (count < limit && ids[count] == ids[0] + count) ++count;
  return count;
}

}  // namespace

class RowStore::Impl {
 public:
  explicit Impl(const std::string& folder)
      : folder_(folder, O_RDONLY | O_DIRECTORY), lock_(folder + kLock, O_RDWR | O_CREAT) {
    if (lock_.TryLock()) return;
    throw StoreError("`" + folder +
                     "` must be open once at a time. Received: a store that is open already, here, "
                     "in another process, or in one that was forked from such; `fuser " +
                     lock_.Path() + "` finds it");
  }

  void Create(int64_t rows, const std::vector<StoreColumn>& columns, const std::string& user) {
    RemoveRemains(columns);
    for (const char* name : {kRows, kHeader, kCommit}) {
      if (!Exists(PathOf(name))) continue;
      throw StoreError("`" + folder_.Path() +
                       "` must not hold a store, nor the remains of one. Received: `" +
                       PathOf(name) + "`");
    }
    header_ = {rows, columns, /*checkpoint=*/0, /*written_rows=*/0, user};
    main_ = RowFile(PathOf(kRows), O_RDWR | O_CREAT | O_EXCL, columns);
    try {
      ShapeMain();
      main_.Sync();
      WriteText(PathOf(kNewHeader), WriteStoreHeader(header_, ShadowSum()));
      Rename(PathOf(kNewHeader), PathOf(kHeader));
      folder_.Sync();
      StoreFile(PathOf("/.."), O_RDONLY | O_DIRECTORY).Sync();
    } catch (const StoreError&) {
      for (const char* name : {kHeader, kRows}) Remove(PathOf(name));
      throw;
    }
  }

  // A process that ended while it made this very store has left a file of rows without a header.
  // Where there is any data in it, it is something else, and stays.
  void RemoveRemains(const std::vector<StoreColumn>& columns) {
    if (!Exists(PathOf(kRows)) || Exists(PathOf(kHeader)) || Exists(PathOf(kCommit))) return;
    bool is_empty = false;
    {
      const RowFile remains(PathOf(kRows), O_RDWR, columns);  // whatever its columns were
      is_empty = !remains.HasData();
    }
    if (is_empty) Remove(PathOf(kRows));
  }

  void Open() {
    ShadowSum sum_before;
    header_ = ReadStoreHeader(PathOf(kHeader), ReadText(PathOf(kHeader)), &sum_before);
    main_ = RowFile(PathOf(kRows), O_RDWR, header_.columns);
    if (Exists(PathOf(kCommit))) {
      FindCommit();
    } else {
      main_.CheckSize({header_.rows});
      main_.CheckHeader(header_.rows);
      main_.Map(header_.rows);
      main_rows_ = header_.rows;
      OpenShadow();
      pending_ = Pending::kEmpty;
    }
    folder_.Sync();  // of a commit, before the files that it replaces change; of a new shadow
    Settle();
    Remove(PathOf(kNewShadow));
    main_.ForEachData(main_rows_, kDataParts,
                      [&](int64_t first, int64_t end) { in_main_.AddRange(first, end); });
  }

  int64_t Rows() const {
    const auto lock = Share();
    return rows_;
  }
  const std::vector<StoreColumn>& Columns() const { return main_.Columns(); }
  int64_t Width() const { return main_.Width(); }
  int64_t Checkpoints() const {
    const auto lock = Share();
    return header_.checkpoint;
  }
  std::string Header() const {
    const auto lock = Share();
    return header_.user;
  }

  void Read(const int64_t* ids, int64_t count, float* out, uint8_t* is_there) const {
    const auto lock = Share();
    CheckUsable();
    CheckIds(ids, count);
    const std::unique_ptr<int64_t[]> places(new int64_t[count]);
    bool any_in_main = false;
    bool any_in_shadow = false;
    for (int64_t k = 0; k < count; ++k) {
      if (k + kPrefetchDistance < count) shadow_->Index().Prefetch(ids[k + kPrefetchDistance]);
      places[k] = shadow_->Find(ids[k]);
      const bool in_shadow = places[k] != RowIndex::kNone;
      const bool in_main = !in_shadow && in_main_.Has(ids[k]);
      any_in_shadow |= in_shadow;
      any_in_main |= in_main;
      is_there[k] = in_shadow ? kInShadow : in_main ? kInMain : 0;
    }
    if (any_in_shadow) ReadFrom(*shadow_, kInShadow, places.get(), ids, count, out, is_there);
    if (any_in_main) ReadFrom(main_, kInMain, ids, ids, count, out, is_there);
  }

  void Write(const int64_t* ids, int64_t count, const float* rows) {
    const auto lock = ShareToWrite();
    CheckIds(ids, count);
    shadow_->Append(ids, count, rows);
  }

  void Grow(int64_t rows) {
    const auto lock = Exclude();
    Settle();
    if (rows < rows_) {
      throw StoreError("`rows` must be " + std::to_string(rows_) +
                       " or more, since a store only grows. Received: " + std::to_string(rows));
    }
    CheckRows(rows);
    shadow_->TrySize(main_.SizeFor(rows));  // or the next checkpoint could not be copied
    GrowSets(rows);
    rows_ = rows;
  }

  void Checkpoint(const std::string& user) {
    CheckUserHeader(user);
    const auto lock = Exclude();
    Settle();
    const ShadowSum sum = SumShadow();
    StoreHeader next = header_;
    next.rows = rows_;
    ++next.checkpoint;
    next.written_rows += CountNewRows();
    next.user = user;
    main_.Reserve(shadow_->Index());
    WriteText(PathOf(kNewHeader), WriteStoreHeader(next, sum));
    OrLost([&] {
      shadow_->Sync();
      Rename(PathOf(kNewHeader), PathOf(kCommit));
      folder_.Sync();
    });
    header_ = std::move(next);
    pending_ = Pending::kCopy;
    Settle();
  }

  void Verify() const {
    const auto lock = Exclude();
    CheckUsable();
    int64_t written_rows = 0;
    shadow_->ForEachPiece([](const int64_t*, int64_t, const float*) {});
    // Those that are yet to be copied count, and may be torn in the main file.
    if (pending_ == Pending::kCopy) written_rows = shadow_->Rows();
    main_.ForEachRecord(main_rows_, [&](int64_t id, const float* record) {
      if (pending_ == Pending::kCopy && shadow_->Find(id) != RowIndex::kNone) return;
      if (main_.IsBlank(record)) return;
      main_.Check(id, record);
      ++written_rows;
    });
    if (written_rows == header_.written_rows) return;
    throw StoreError(
        "`" + PathOf(kRows) + "` must hold " + std::to_string(header_.written_rows) +
        " rows that were written, as the header has it. Received: " + std::to_string(written_rows) +
        ". Rows were lost on the disk: bring the folder back from a copy");
  }

 private:
  // What is left to do of the last checkpoint: all from the copy on, or to empty the shadow.
  enum class Pending { kNothing, kCopy, kEmpty };

  std::string PathOf(const char* name) const { return folder_.Path() + name; }

  // ---- Locks.

  // All wait at the gate, or readers by turns could keep a checkpoint waiting for ever.
  std::shared_lock<std::shared_mutex> Share() const {
    const std::lock_guard<std::mutex> gate(gate_);
    return std::shared_lock<std::shared_mutex>(mutex_);
  }
  std::unique_lock<std::shared_mutex> Exclude() const {
    const std::lock_guard<std::mutex> gate(gate_);
    return std::unique_lock<std::shared_mutex>(mutex_);
  }
  std::shared_lock<std::shared_mutex> ShareToWrite() {
    for (;;) {
      std::shared_lock<std::shared_mutex> lock = Share();
      CheckUsable();
      if (pending_ == Pending::kNothing && !shadow_->IsLong()) return lock;
      lock.unlock();
      const auto alone = Exclude();
      Settle();
      CompactOrPutOff();
    }
  }

  // ---- Checks.

  void CheckUsable() const {
    if (!is_lost_) return;
    throw StoreError("`" + folder_.Path() +
                     "` must be opened again, at its last checkpoint. Received: a store with a "
                     "failure after which the disk may lack what was written");
  }
  void CheckIds(const int64_t* ids, int64_t count) const {
    for (int64_t k = 0; k < count; ++k) {
      if (ids[k] >= 0 && ids[k] < rows_) continue;
      throw StoreError("`ids` must be in `[0, " + std::to_string(rows_) + ")`. Received: `ids[" +
                       std::to_string(k) + "]=" + std::to_string(ids[k]) + "`");
    }
  }

  // ---- Reading.

  // Reads the rows that `is_there` has in this file, from their places in it.
  template <typename File>
  void ReadFrom(const File& file, uint8_t mark, const int64_t* places, const int64_t* ids,
                int64_t count, float* out, uint8_t* is_there) const {
    const std::unique_ptr<float[]> records(
        new float[std::min(count * file.NearRows(), file.PieceRows()) * file.Stride()]);
    int64_t ahead = 0;
    for (int64_t k = 0, end; k < count; k = end) {
      for (; ahead < std::min(count, k + kPrefetchDistance); ++ahead) {
        if (is_there[ahead] == mark) file.Prefetch(places[ahead]);
      }
      end = k + 1;
      if (is_there[k] != mark) continue;
      const int64_t first = places[k];
      int64_t last = first;
      for (; end < count; ++end) {
        if (is_there[end] != mark) continue;
        const int64_t place = places[end];
        if (place < last || place - last > file.NearRows() || place - first >= file.PieceRows()) {
          break;
        }
        last = place;
      }
      file.Read(first, last + 1 - first, records.get());
      for (int64_t i = k; i < end; ++i) {
        if (is_there[i] != mark) continue;
        const float* const record = records.get() + (places[i] - first) * file.Stride();
        is_there[i] = file.Take(ids[i], record, out + i * Width());
      }
    }
  }

  // ---- The shadow.

  void OpenShadow() {
    shadow_ = std::make_unique<RowLog>(folder_.Path(), PathOf(kShadow), WidthOf(header_.columns));
    rows_ = header_.rows;
    GrowSets(rows_);
  }
  void GrowSets(int64_t rows) {
    shadow_->Grow(rows);
    in_main_.Grow(rows);
  }

  // Where a record is damaged that counts no more, it is left behind.
  ShadowSum SumShadow() {
    ShadowSum sum;
    return shadow_->Sum(&sum) ? sum : Compact();
  }

  // Throws where a row of the shadow is damaged.
  ShadowSum Compact() {
    const int64_t records = shadow_->CopyTo(PathOf(kNewShadow));
    ShadowSum sum;
    OrLost([&] {
      Remove(PathOf(kShadow));  // or some file systems write the new one to the disk at once
      Rename(PathOf(kNewShadow), PathOf(kShadow));
      sum = shadow_->GoOnWith(records);
    });
    return sum;
  }
  // Where the disk has no room for two logs, the one that is there goes on.
  void CompactOrPutOff() {
    if (!shadow_->IsLong()) return;
    try {
      Compact();
    } catch (const StoreError&) {
      if (is_lost_) throw;
      shadow_->PutOff();
    }
  }

  // How many rows of the shadow were never written before.
  int64_t CountNewRows() const {
    int64_t new_rows = 0;
    const auto records = main_.NewRecords(main_.PieceRows());
    shadow_->Index().ForEachRun(main_.PieceRows(), [&](int64_t first, int64_t count) {
      // Rows that may be in the main file are read, those that follow one another together.
      for (int64_t id = first, n; id < first + count; id += n) {
        const int64_t end = first + count;
        n = 1;
        if (!in_main_.Has(id)) {
          ++new_rows;
          continue;
        }
        while (id + n < end && in_main_.Has(id + n)) ++n;
        main_.Read(id, n, records.get());
        for (int64_t i = 0; i < n; ++i)
          new_rows += main_.IsBlank(records.get() + i * main_.Stride());
      }
    });
    return new_rows;
  }

  // ---- Checkpoints.

  // A checkpoint was made and is not all in its place: finds its shadow, which must be whole.
  void FindCommit() {
    const std::string path = PathOf(kCommit);
    ShadowSum expected;
    StoreHeader next = ReadStoreHeader(path, ReadText(path), &expected);
    const int64_t ahead = next.checkpoint - header_.checkpoint;
    if (!(next.columns == header_.columns) || next.rows < header_.rows || ahead < 0 || ahead > 1) {
      throw StoreError("`" + path + "` must be the checkpoint of `header.json` or the next one. " +
                       "Received: checkpoint " + std::to_string(next.checkpoint) + " after " +
                       std::to_string(header_.checkpoint));
    }
    main_.CheckSize({header_.rows, next.rows});
    header_ = std::move(next);
    OpenShadow();
    const ShadowSum sum = shadow_->Replay(expected.rows);
    if (sum.rows != expected.rows || sum.checksum != expected.checksum) {
      throw StoreError("`" + PathOf(kShadow) + "` must hold " + std::to_string(expected.rows) +
                       " records with the checksum " + std::to_string(expected.checksum) +
                       ", as `" + path + "` has it. Received: " + std::to_string(sum.rows) +
                       " records with " + std::to_string(sum.checksum));
    }
    pending_ = Pending::kCopy;
  }

  // Does what is left to do of the last checkpoint.
  void Settle() {
    CheckUsable();
    if (pending_ == Pending::kCopy) {
      ShapeMain();
      shadow_->ForEachPiece([&](const int64_t* ids, int64_t count, const float* records) {
        for (int64_t k = 0, n; k < count; k += n) {
          n = Run(ids + k, count - k);
          main_.Write(ids[k], n, records + k * main_.Stride());
          in_main_.AddRange(ids[k], ids[k] + n);
        }
      });
      OrLost([&] {
        main_.Sync();
        Rename(PathOf(kCommit), PathOf(kHeader));
        folder_.Sync();  // or the commit could come back without its shadow
      });
      shadow_->Clear();
      pending_ = Pending::kEmpty;
    }
    if (pending_ == Pending::kEmpty) {
      shadow_->Empty();
      pending_ = Pending::kNothing;
    }
  }

  // Gives the main file the size of header_, and says so in it.
  void ShapeMain() {
    main_.Resize(header_.rows);
    main_.WriteHeader(header_.rows);
    main_rows_ = header_.rows;
  }

  // Where this fails, nobody knows what a process will find that opens the store. To try again is
  // no way out: what a failed sync leaves in memory passes for written the next time.
  template <typename Call>
  void OrLost(const Call& call) {
    try {
      call();
    } catch (const std::exception&) {
      is_lost_ = true;
      throw;
    }
  }

  const StoreFile folder_;
  StoreFile lock_;
  StoreHeader header_;  // of the last checkpoint
  RowFile main_;
  std::unique_ptr<RowLog> shadow_;
  RowSet in_main_;         // the rows that may be written in the main file: all others are not
  int64_t rows_ = 0;       // those that were added since the last checkpoint too
  int64_t main_rows_ = 0;  // without them
  Pending pending_ = Pending::kNothing;
  std::atomic<bool> is_lost_{false};
  mutable std::mutex gate_;
  mutable std::shared_mutex mutex_;
};

RowStore::RowStore(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
RowStore::~RowStore() = default;

std::unique_ptr<RowStore> RowStore::Create(const std::string& folder, int64_t rows,
                                           const std::vector<StoreColumn>& columns,
                                           const std::string& header) {
  CheckRows(rows);
  CheckColumns(columns);
  CheckUserHeader(header);
  MakeFolder(folder);
  auto impl = std::make_unique<Impl>(folder);
  impl->Create(rows, columns, header);
  impl->Open();
  return std::unique_ptr<RowStore>(new RowStore(std::move(impl)));
}

std::unique_ptr<RowStore> RowStore::Open(const std::string& folder) {
  if (!Exists(folder + kHeader)) {
    throw StoreError("`" + folder + "` must be the folder of a row store. Received: no file `" +
                     folder + kHeader + "`");
  }
  auto impl = std::make_unique<Impl>(folder);
  impl->Open();
  return std::unique_ptr<RowStore>(new RowStore(std::move(impl)));
}

int64_t RowStore::Rows() const { return impl_->Rows(); }
const std::vector<StoreColumn>& RowStore::Columns() const { return impl_->Columns(); }
int64_t RowStore::Width() const { return impl_->Width(); }
int64_t RowStore::Checkpoints() const { return impl_->Checkpoints(); }
std::string RowStore::Header() const { return impl_->Header(); }

void RowStore::Read(const int64_t* ids, int64_t count, float* out, uint8_t* is_there) const {
  impl_->Read(ids, count, out, is_there);
}
void RowStore::Write(const int64_t* ids, int64_t count, const float* rows) {
  impl_->Write(ids, count, rows);
}
void RowStore::Grow(int64_t rows) { impl_->Grow(rows); }
void RowStore::Checkpoint(const std::string& header) { impl_->Checkpoint(header); }
void RowStore::Verify() const { impl_->Verify(); }

}  // namespace tfrec
