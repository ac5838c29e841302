// The log of the rows of a store that were written after its last checkpoint.
#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "custom_ops/row_store/row_store.h"
#include "tests/cc/check.h"
#include "tests/cc/random_rows.h"
#include "tests/cc/store_folder.h"

namespace tfrec {
namespace {

namespace fs = std::filesystem;

// ---- Calls of the system.

bool IsMapOfRows(const std::string& call, const std::string& path) {
  return call == "mmap" && (EndsWith(path, "/shadow_rows") || EndsWith(path, "/rows.npy"));
}

// Refuses mappings of files of rows while `work` runs.
template <typename Work>
void MaybeMapped(bool is_mapped, const Work& work) {
  const Hooked hooked([&](const char* call, const std::string& path, size_t*) {
    return !is_mapped && IsMapOfRows(call, path) ? ENODEV : 0;
  });
  work();
}

// The bytes of each call of `work` that reads or writes rows. Where files of rows are not mapped,
// those read alone take a call too.
template <typename Work>
std::vector<size_t> CallsOf(const Work& work, bool is_mapped = true) {
  std::vector<size_t> calls;
  const Hooked hooked([&](const char* call, const std::string& path, size_t* bytes) {
    if (*bytes > 0) {
      calls.push_back(*bytes);
      return 0;
    }
    // Space for the index, and the rows themselves.
    CHECK(call == std::string("fallocate") || call == std::string("mmap"), call);
    return !is_mapped && IsMapOfRows(call, path) ? ENODEV : 0;
  });
  work();
  return calls;
}

void TestCallsOfReadsAndWrites(bool is_mapped) {
  const StoreFolder folder;
  constexpr size_t kRecord = 524;
  constexpr size_t kLogged = kRecord + 8;
  std::unique_ptr<RowStore> store;
  MaybeMapped(is_mapped,
              [&] { store = RowStore::Create(folder.Path(), 10000, ColumnsOf(130), "{}"); });
  std::vector<float> rows(400 * 130, 1);
  std::vector<uint8_t> is_there(400);
  using Calls = std::vector<size_t>;
  const auto read = [&](const std::vector<int64_t>& ids) {
    return CallsOf([&] { store->Read(ids.data(), ids.size(), rows.data(), is_there.data()); });
  };
  const auto write = [&](const std::vector<int64_t>& ids) {
    return CallsOf([&] { store->Write(ids.data(), ids.size(), rows.data()); }, is_mapped);
  };
  const auto checkpoint = [&] { MaybeMapped(is_mapped, [&] { store->Checkpoint("{}"); }); };
  const auto alone = [&](size_t calls, size_t bytes) {
    return Calls(is_mapped ? 0 : calls, bytes);
  };
  CHECK(write({5, 90, 400}) == Calls({3 * kLogged}));
  CHECK(write({5, 7, 8, 9, 8}) == Calls({5 * kLogged}));
  // Rows that were written side by side are read so, and those that never were are not read.
  CHECK(read({5, 90, 400, 2000, 5}) ==
        (is_mapped ? Calls({3 * kLogged}) : Calls({kLogged, 3 * kLogged})));
  CHECK(read({0, 1, 10, 91}) == Calls());
  CHECK(write({100, 108, 116, 125, 131}) == Calls({5 * kLogged}));
  checkpoint();
  CHECK(read({5, 90, 400, 2000}) == alone(3, kRecord));
  // Up to 4095 bytes between them are read along.
  CHECK(read({100, 108, 108, 116, 125, 131}) == Calls({17 * kRecord, 7 * kRecord}));
  // Each row comes from its own file, and those of one file together.
  CHECK(write({5, 9}) == Calls({2 * kLogged}));
  CHECK(read({4, 5, 6, 7, 8, 9, 10}) == Calls({2 * kLogged, 2 * kRecord}));
  std::vector<int64_t> ids(400);
  for (int64_t k = 0; k < 400; ++k) ids[k] = 1000 + k;
  const auto pieces = [](size_t record) {
    const size_t piece = 65536 / record;
    return Calls({piece * record, piece * record, piece * record, (400 - 3 * piece) * record});
  };
  CHECK(write(ids) == pieces(kLogged));
  CHECK(read(ids) == pieces(kLogged));
  checkpoint();
  CHECK(read(ids) == pieces(kRecord));
}

// Parts of the file without data are known to hold no rows, if those with data are not too many.
void TestHolesAreNotRead() {
  const StoreFolder folder;
  constexpr int64_t kGap = 1024;  // rows, of two pages
  constexpr int64_t kCount = (int64_t{1} << 14) + 300;
  auto store = RowStore::Create(folder.Path(), kCount * kGap, ColumnsOf(1), "{}");
  std::vector<int64_t> ids(kCount);
  std::vector<float> rows(kCount);
  for (int64_t k = 0; k < kCount; ++k) rows[k] = ids[k] = k * kGap;
  store->Write(ids.data(), kCount, rows.data());
  store->Checkpoint("{}");
  store.reset();
  // Each row that is looked for takes a call then.
  MaybeMapped(false, [&] { store = RowStore::Open(folder.Path()); });
  std::vector<float> out(kCount);
  std::vector<uint8_t> is_there(kCount);
  store->Read(ids.data(), kCount, out.data(), is_there.data());
  CHECK(out == rows);
  CHECK_EQ(std::count(is_there.begin(), is_there.end(), 1), kCount);
  const auto calls_for = [&](int64_t id) {
    return CallsOf([&] { store->Read(&id, 1, out.data(), is_there.data()); }).size();
  };
  CHECK_EQ(calls_for(kGap + 1), size_t{1});  // on a page of another row
  CHECK_EQ(calls_for(kGap + kGap / 2), size_t{0});
  CHECK_EQ(calls_for((int64_t{1} << 14) * kGap - 1), size_t{0});
  CHECK_EQ(calls_for(kCount * kGap - 1), size_t{1});
  store->Grow(kCount * kGap + 10);
  CHECK_EQ(calls_for(kCount * kGap), size_t{0});
}

// Whether files are mapped that have no name any more, of which the disk therefore keeps the space.
// Indexes are not meant.
bool IsRemovedLogMapped() {
  const std::string maps = ReadBytes("/proc/self/maps");
  return Contains(maps, "shadow_rows (deleted)") || Contains(maps, "shadow_rows.new (deleted)");
}

// Rows that are written again and again; long ones are not mapped.
void TestLogsAreCompacted(int64_t width, int64_t at_once) {
  const StoreFolder folder;
  Rng rng(15);
  std::unique_ptr<RowStore> store;
  StoreModel model = StoreModel::Create(folder.Path(), 2 * at_once, width, &store);
  const uint64_t most_written = 8 * at_once;
  const uint64_t record = (width + 3) * 4;
  const uint64_t megabyte = (1 << 20) / record;
  const auto records = [&] { return fs::file_size(folder.File("shadow_rows")) / record; };
  const auto write = [&](int times) {
    uint64_t most = 0;
    for (int i = 0; i < times; ++i) {
      model.Write(&rng, at_once, store.get());
      TestReads(&rng, *store, model);
      most = std::max<uint64_t>(most, records());
    }
    CHECK(!IsRemovedLogMapped());
    return most;
  };
  const uint64_t most = write(60);
  CHECK(most > megabyte && most <= megabyte + most_written, most);  // and the last write
  model.Checkpoint(store.get());
  CHECK_EQ(records(), uint64_t{0});
  CHECK(!Contains(ReadBytes("/proc/self/maps"), folder.File("shadow_rows")));
  {
    const Hooked hooked([&](const char* call, const std::string& path, size_t*) {
      return call == std::string("pwrite") && Contains(path, ".new") ? ENOSPC : 0;
    });
    CHECK(write(40) > 4 * megabyte);  // without room for another log
    CHECK(!fs::exists(folder.File("shadow_rows.new")));
  }
  write(60);
  CHECK(records() <= megabyte + most_written, records());
  store->Verify();
  model.Checkpoint(store.get());
  store.reset();
  CHECK(StoreModel::Of(*RowStore::Open(folder.Path())) == model);
}

// Files of rows that are mapped now and then, and else read.
void TestRowsWithoutAMapping() {
  Rng refuse(17);
  for (const bool is_always : {true, false}) {
    const Hooked hooked([&](const char* call, const std::string& path, size_t*) {
      return IsMapOfRows(call, path) && (is_always || refuse() % 2) ? ENOMEM : 0;
    });
    TestRandomOperations(StoreFolder(), 18, 50, 3, 100);
  }
}

// What is not to be had of the file of an index is memory.
void TestIndexesWithoutAFile() {
  for (const char* refused : {"open", "fstatfs", "fallocate", "mmap"}) {
    const StoreFolder folder;
    bool was_refused = false;
    std::string before;
    const Hooked hooked([&](const char* call, const std::string& path, size_t*) {
      const std::string last = std::exchange(before, call);
      // The folder itself is opened behind these.
      const bool is_index = path == folder.Path() && last != "stat" && last != "mkdir";
      if (!is_index || call != std::string(refused)) return 0;
      was_refused = true;
      return EOPNOTSUPP;
    });
    TestRandomOperations(folder, 16, 50, 3, 50);
    CHECK(was_refused, refused);
  }
}

// A row of the shadow is never taken for one that was not written, nor for that of the checkpoint.
void TestDamageToTheShadow() {
  const StoreFolder folder;
  const auto store = RowStore::Create(folder.Path(), 9, ColumnsOf(3), "{}");
  const int64_t ids[] = {4, 5};
  const float rows[] = {1, 2, 3, 4, 5, 6};
  store->Write(ids, 2, rows);
  const std::string bytes = ReadBytes(folder.File("shadow_rows"));
  const auto check = [&](size_t part) {
    float out[6];
    uint8_t is_there[2];
    const auto words = [&] {
      CHECK(Contains(ErrorOf([&] { store->Checkpoint("{}"); }), "Row 4 of `"), part);
      CHECK(Contains(ErrorOf([&] { store->Verify(); }), "Row 4 of `"), part);
      return ErrorOf([&] { store->Read(ids, 2, out, is_there); });
    };
    CHECK(Contains(words(), "Row 4 of `" + folder.File("shadow_rows") + "` must have"), part);
    store->Read(ids + 1, 1, out, is_there);
    CHECK(is_there[0] && std::equal(out, out + 3, rows + 3), part);
  };
  for (size_t part = 1; part <= 24; ++part) {
    std::string damaged = bytes;
    damaged.replace(24 - part, part, part, '\0');
    WriteBytes(folder.File("shadow_rows"), damaged);
    check(part);
  }
  WriteBytes(folder.File("shadow_rows"), bytes.substr(24, 24) + bytes.substr(24, 24));
  check(0);
  // It heals when it is written again, and the record before does no harm.
  store->Write(ids, 1, rows + 3);
  store->Checkpoint("{}");
  StoreModel model = {9, 3, 1, "{}", {{4, {4, 5, 6}}, {5, {4, 5, 6}}}};
  CHECK(StoreModel::Of(*store) == model);
  store->Verify();
}

// ---- Compacting that comes to no good end.

// A store whose next write compacts its log. It has large rows, since small logs are let grow.
struct LongLog {
  static constexpr int64_t kWidth = 30000;
  Rng rng;
  StoreFolder folder;
  std::unique_ptr<RowStore> store;
  StoreModel last;
  StoreModel now;

  explicit LongLog(uint64_t seed) : rng(seed) {
    now = StoreModel::Create(folder.Path(), 4, kWidth, &store);
    Write({0, 1, 2}, 1);
    now.Checkpoint(store.get());
    last = now;
    for (int i = 0; i < 3; ++i) Write({0, 2, 3}, 10 + i);
  }
  void Write(const std::vector<int64_t>& ids, float value) {
    std::vector<float> rows(ids.size() * kWidth, value);
    for (size_t k = 0; k < ids.size(); ++k) rows[k * kWidth] = static_cast<float>(rng() % 100);
    store->Write(ids.data(), ids.size(), rows.data());
    for (size_t k = 0; k < ids.size(); ++k) {
      now.written[ids[k]].assign(rows.begin() + k * kWidth, rows.begin() + (k + 1) * kWidth);
    }
  }
  void Reopen() {
    store.reset();
    store = RowStore::Open(folder.Path());
  }
};

void TestEndInACompaction() {
  bool done = false;
  for (int64_t n = 0; !done; ++n) {
    LongLog scene(n);
    done = Kill(n, n % 2 == 0).Run([&] { scene.Write({1}, 20); });
    CHECK(!done || n > 20, n);
    scene.Reopen();
    CHECK(StoreModel::Of(*scene.store) == scene.last, n);
    CHECK(!fs::exists(scene.folder.File("shadow_rows.new")), n);
  }
}

void TestFailureInACompaction() {
  std::string failed = "none";
  for (int64_t n = 0; !failed.empty(); ++n) {
    LongLog scene(n);
    failed.clear();
    std::string words;
    {
      int64_t left = n;
      const Hooked hooked([&](const char* call, const std::string& path, size_t*) {
        if (left-- != 0) return 0;
        failed = call + (" " + fs::path(path).filename().string());
        return EIO;
      });
      words = ErrorOf([&] { scene.Write({1}, 20); });
    }
    CHECK(words.empty() || Contains(words, scene.folder.Path()), words);
    const std::string now = ErrorOf([&] { scene.store->Verify(); });
    if (!now.empty()) {  // it is not known which file has the name
      CHECK(Contains(now, "must be opened again"), now);
      CHECK(!words.empty());
      scene.Reopen();
      scene.now = scene.last;
    }
    CHECK(StoreModel::Of(*scene.store) == scene.now, n, failed);
    scene.Write({0, 1}, 30);
    CHECK(StoreModel::Of(*scene.store) == scene.now, n, failed);
    scene.now.Checkpoint(scene.store.get());
    scene.Reopen();
    scene.store->Verify();
    CHECK(StoreModel::Of(*scene.store) == scene.now, n, failed);
  }
}

// The rows before the one that fails are written, and those from there on are what they were.
void TestAWriteThatFailsHalfway() {
  for (int64_t done = 0; done < 4; ++done) {
    LongLog scene(done);
    scene.now.Checkpoint(scene.store.get());
    const StoreModel before = scene.now;
    scene.Write({0, 1, 2, 3}, 20);
    const StoreModel after = scene.now;
    scene.store.reset();
    scene.store = RowStore::Open(scene.folder.Path());
    std::vector<float> rows;
    for (const auto& [id, row] : after.written) rows.insert(rows.end(), row.begin(), row.end());
    const int64_t ids[] = {0, 1, 2, 3};
    {
      int64_t left = done;
      const Hooked hooked([&](const char* call, const std::string&, size_t*) {
        return call == std::string("pwrite") && left-- == 0 ? ENOSPC : 0;
      });
      CHECK(ErrorOf([&] { scene.store->Write(ids, 4, rows.data()); }) != "");
    }
    scene.now = before;
    for (int64_t id = 0; id < done; ++id) scene.now.written[id] = after.written.at(id);
    CHECK(StoreModel::Of(*scene.store) == scene.now, done);
    scene.now.Checkpoint(scene.store.get());
    scene.Reopen();
    CHECK(StoreModel::Of(*scene.store) == scene.now, done);
  }
}

// The log that a checkpoint names is the one that has the name, whatever comes to the disk.
void TestLossOfPowerBehindACompaction() {
  int64_t counts[2] = {0, 0};
  bool done = false;
  for (int64_t n = 0; !done; n += 2) {
    LongLog scene(n);
    Disk disk(scene.folder.Path());
    StoreModel next;
    done = CutPower(&disk, n, [&] {
      scene.Write({1, 3}, 20);
      next = scene.now;
      ++next.checkpoint;
      next.header = "{}";
      scene.store->Checkpoint("{}");
    });
    const std::string target = scene.folder.Path() + "_after";
    disk.Crash(&scene.rng, target);
    const auto store = RowStore::Open(target);
    store->Verify();
    const bool is_next = store->Checkpoints() == scene.last.checkpoint + 1;
    CHECK(is_next || !done, n);
    CHECK(StoreModel::Of(*store) == (is_next ? next : scene.last), n, is_next);
    ++counts[is_next];
  }
  CHECK(counts[0] > 5 && counts[1] > 2, counts[0], counts[1]);
}

}  // namespace
}  // namespace tfrec

int main() {
  tfrec::TestCallsOfReadsAndWrites(false);
  tfrec::TestCallsOfReadsAndWrites(true);
  tfrec::TestHolesAreNotRead();
  tfrec::TestLogsAreCompacted(20000, 3);
  tfrec::TestLogsAreCompacted(1000, 60);
  tfrec::TestRowsWithoutAMapping();
  tfrec::TestIndexesWithoutAFile();
  tfrec::TestDamageToTheShadow();
  tfrec::TestEndInACompaction();
  tfrec::TestFailureInACompaction();
  tfrec::TestAWriteThatFailsHalfway();
  tfrec::TestLossOfPowerBehindACompaction();
  return 0;
}
