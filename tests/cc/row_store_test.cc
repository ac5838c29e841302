#include "custom_ops/row_store/row_store.h"

#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <limits>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "custom_ops/row_store/checksum.h"
#include "tests/cc/check.h"
#include "tests/cc/random_rows.h"
#include "tests/cc/store_folder.h"

namespace tfrec {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kPage = 4096;

void TestStoresAgreeWithMemory() {
  TestRandomOperations(StoreFolder(), 1, 1, 1, 40);
  TestRandomOperations(StoreFolder(StoreFolder::OnDisk()), 2, 50, 3, 100);
  TestRandomOperations(StoreFolder(), 3, 2000, 16, 60);   // more than what one call takes
  TestRandomOperations(StoreFolder(), 4, 5, 300000, 20);  // rows that are more than that each
  TestRandomOperations(StoreFolder(), 14, 200, 500, 60);  // pages without a row in question
}

// Every call does as little as it may, and signals come between.
void TestShortCallsAndSignals() {
  auto rng = std::make_shared<Rng>(5);
  const Hooked hooked([rng](const char*, const std::string&, size_t* bytes) {
    if (*bytes > 1) *bytes = 1 + (*rng)() % *bytes;
    return (*rng)() % 4 == 0 ? EINTR : 0;
  });
  TestRandomOperations(StoreFolder(), 6, 50, 3, 200);
}

// The bytes of a record.
std::string Record(int64_t id, const std::vector<float>& row) {
  std::string bytes(4 * row.size() + 4, '\0');
  std::memcpy(bytes.data(), row.data(), 4 * row.size());
  const uint32_t checksum = RowChecksum(id, row.data(), row.size());
  std::memcpy(bytes.data() + 4 * row.size(), &checksum, 4);
  return bytes;
}

void TestTheFilesAreAnArrayOfNumPyAndJson() {
  const StoreFolder folder;
  const std::vector<StoreColumn> columns = {{"weights", 2}, {"sum_0", 1}, {"_", 3}};
  const auto store = RowStore::Create(folder.Path(), 5, columns, R"({"a": "\"}"})");
  CHECK(store->Columns() == columns);
  CHECK_EQ(store->Width(), 6);
  const int64_t ids[] = {4, 1};
  const float rows[] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12};
  store->Write(ids, 2, rows);
  store->Checkpoint(R"({"a": [{}]})");
  const std::string blank(6 * 4 + 4, '\0');
  const std::string begin = std::string("\x93NUMPY\x01\x00\xf6\x0f", 10) +
                            "{'descr': [('weights', '<f4', (2,)), ('sum_0', '<f4'), ('_', '<f4', "
                            "(3,)), ('checksum', '<u4')], 'fortran_order': False, 'shape': (5,), }";
  CHECK_EQ(ReadBytes(folder.File("rows.npy")), begin + std::string(kPage - 1 - begin.size(), ' ') +
                                                   '\n' + blank + Record(1, {rows + 6, rows + 12}) +
                                                   blank + blank + Record(4, {rows, rows + 6}));
  const std::string header = ReadBytes(folder.File("header.json"));
  const std::string expected =
      "{\n  \"format\": \"tfrec_efficient.row_store\",\n  \"version\": 1,\n  \"rows\": 5,\n"
      "  \"columns\": [[\"weights\", 2], [\"sum_0\", 1], [\"_\", 3]],\n"
      "  \"dtype\": \"float32\",\n  \"checkpoint\": 1,\n  \"written_rows\": 2,\n"
      "  \"user\": {\"a\": [{}]},\n  \"shadow_rows\": 2,\n  \"shadow_checksum\": ";
  CHECK_EQ(header.substr(0, expected.size()), expected);
}

// ---- Errors.

void TestArguments() {
  const StoreFolder folder;
  const std::string path = folder.Path();
  CHECK_EQ(ErrorOf([&] { RowStore::Create(path, 0, {{"a", 3}}, "{}"); }),
           "`rows` must be in `[1, 1099511627776]`. Received: 0");
  const auto words_for = [&](const std::vector<StoreColumn>& columns) {
    return ErrorOf([&] { RowStore::Create(path, 3, columns, "{}"); });
  };
  CHECK_EQ(words_for({}), "`columns` must have one or more. Received: none");
  for (const char* name : {"", "A", "aB", "0a", "a b", "a'", "checksum", "twice"}) {
    CHECK_EQ(words_for({{"twice", 1}, {name, 1}}),
             std::string("`columns` must have names of the form `[a-z_][a-z0-9_]*`, each once, and "
                         "none of them `checksum`. Received: `") +
                 name + "`");
  }
  for (const int64_t width :
       {int64_t{0}, int64_t{-1}, int64_t{1} << 20, std::numeric_limits<int64_t>::max()}) {
    CHECK_EQ(words_for({{"a", 1}, {"b", width}}),
             "`columns` must have widths from 1 on, together in `[1, 1048576]`. Received: `b` of "
             "width " +
                 std::to_string(width));
  }
  CHECK_EQ(words_for({{std::string(4000, 'a'), 1}}),
           "`columns` must fit in the header of an .npy file with 4085 bytes. Received: 4098");
  for (const char* header :
       {"", "[]", "{", "{}}", "{} ", " {}", "{]}", "{[}]", R"({"a)", R"({"\"})"}) {
    CHECK_EQ(ErrorOf([&] { RowStore::Create(path, 3, {{"a", 3}}, header); }),
             std::string("`header` must be a JSON object, with nothing around it. Received: `") +
                 header + "`");
  }
  CHECK(!fs::exists(path));
  const StoreFolder other;
  RowStore::Create(other.Path(), 3, {{std::string(4000 - 13, 'a'), 1}}, "{}");
  RowStore::Open(other.Path());

  const auto store = RowStore::Create(path, 3, {{"a", 2}}, "{}");
  int64_t id = 3;
  float row[2] = {1, 2};
  uint8_t is_there = 7;
  const std::string wrong = "`ids` must be in `[0, 3)`. Received: `ids[0]=";
  CHECK_EQ(ErrorOf([&] { store->Write(&id, 1, row); }), wrong + "3`");
  id = std::numeric_limits<int64_t>::min();
  CHECK_EQ(ErrorOf([&] { store->Read(&id, 1, row, &is_there); }), wrong + "-9223372036854775808`");
  CHECK_EQ(ErrorOf([&] { store->Grow(2); }),
           "`rows` must be 3 or more, since a store only grows. Received: 2");
  CHECK(Contains(ErrorOf([&] { store->Checkpoint("1"); }), "`header` must be a JSON object"));
  CHECK_EQ(store->Checkpoints(), 0);
  store->Read(nullptr, 0, nullptr, nullptr);
  store->Write(nullptr, 0, nullptr);
}

void TestFoldersWithoutStores() {
  const StoreFolder folder;
  const std::string path = folder.Path();
  CHECK_EQ(ErrorOf([&] { RowStore::Open(path); }),
           "`" + path + "` must be the folder of a row store. Received: no file `" + path +
               "/header.json`");
  CHECK(Contains(ErrorOf([&] { RowStore::Create(path + "/deeper", 3, {{"a", 3}}, "{}"); }),
                 "/store/deeper` must be a folder that can be made. Received: No such file"));
  WriteBytes(path, "a file");
  for (const auto& use : {+[](const std::string& p) { RowStore::Create(p, 3, {{"a", 3}}, "{}"); },
                          +[](const std::string& p) { RowStore::Open(p); }}) {
    CHECK(ErrorOf([&] { use(path); }) != "");
  }
  CHECK_EQ(ReadBytes(path), "a file");
}

void TestAStoreIsNotOverwritten() {
  const StoreFolder folder;
  const int64_t id = 1;
  const float row[] = {1, 2, 3};
  auto store = RowStore::Create(folder.Path(), 3, {{"a", 3}}, "{}");
  store->Write(&id, 1, row);
  store->Checkpoint("{}");
  store.reset();
  for (const char* name : {"", "header.json"}) {  // which is removed before
    if (*name) fs::remove(folder.File(name));
    CHECK(Contains(ErrorOf([&] { RowStore::Create(folder.Path(), 4, {{"a", 4}}, "{}"); }),
                   "must not hold a store, nor the remains of one"),
          name);
  }
  CHECK_EQ(fs::file_size(folder.File("rows.npy")), uint64_t{kPage} + 3 * 16);
}

// Without rows, what a process that ended too early has left is in nobody's way.
void TestAHalfMadeStoreIsMadeAgain() {
  const StoreFolder folder;
  RowStore::Create(folder.Path(), 3, {{"a", 3}}, "{}");
  fs::remove(folder.File("header.json"));
  CHECK_EQ(RowStore::Create(folder.Path(), 4, {{"b", 5}}, "{}")->Rows(), 4);
}

void TestOneOpenerAtATime() {
  const StoreFolder folder;
  const auto expect_refusal = [&] {
    CHECK(Contains(ErrorOf([&] { RowStore::Open(folder.Path()); }),
                   "must be open once at a time. Received: a store that is open already"));
  };
  auto store = RowStore::Create(folder.Path(), 3, {{"a", 3}}, "{}");
  expect_refusal();
  CHECK(ErrorOf([&] { RowStore::Create(folder.Path(), 3, {{"a", 3}}, "{}"); }) != "");
  const pid_t child = fork();
  if (child == 0) {
    expect_refusal();
    _exit(0);
  }
  int status = -1;
  CHECK_EQ(waitpid(child, &status, 0), child);
  CHECK_EQ(status, 0);
  store.reset();
  RowStore::Open(folder.Path());
}

// The tests may run as a user to whom nothing is forbidden.
void TestFilesThatCannotBeOpened() {
  const StoreFolder folder;
  RowStore::Create(folder.Path(), 3, {{"a", 3}}, "{}");
  for (const int error : {EACCES, EROFS, EMFILE}) {
    for (const char* name : {"lock", "header.json", "rows.npy", "shadow_rows"}) {
      const Hooked hooked([&](const char* call, const std::string& path, size_t*) {
        return call == std::string("open") && path == folder.File(name) ? error : 0;
      });
      const std::string words = ErrorOf([&] { RowStore::Open(folder.Path()); });
      CHECK(Contains(words, "`" + folder.File(name) + "` must be there"), words);
      CHECK(Contains(words, std::strerror(error)), words);
    }
  }
  RowStore::Open(folder.Path());
}

// ---- Damage.

// A store of few rows, closed. Some of them are written, and some have been for long.
StoreModel MakeStore(uint64_t seed, const StoreFolder& folder) {
  Rng rng(seed);
  std::unique_ptr<RowStore> store;
  StoreModel model = StoreModel::Create(folder.Path(), 60, 5, &store);
  for (int i = 0; i < 2; ++i) {
    model.Write(&rng, 40, store.get());
    model.Checkpoint(store.get());
  }
  return model;
}

// Opens, reads and verifies; false where one of it is an error, which names the damaged file.
bool IsIntact(const StoreFolder& folder, const StoreModel& expected, const std::string& name) {
  std::unique_ptr<RowStore> store;
  std::string words = ErrorOf([&] { store = RowStore::Open(folder.Path()); });
  if (words.empty()) words = ErrorOf([&] { store->Verify(); });
  // What can be read is right, whatever else is damaged.
  for (int64_t id = 0; store && id < expected.rows; ++id) {
    std::vector<float> row(expected.width);
    uint8_t is_there;
    const std::string of_row = ErrorOf([&] { store->Read(&id, 1, row.data(), &is_there); });
    if (!of_row.empty()) {
      CHECK(Contains(of_row, "Row " + std::to_string(id) + " of `"), of_row);
      CHECK(!words.empty(), id);
      continue;
    }
    const auto found = expected.written.find(id);
    CHECK_EQ(is_there, found != expected.written.end(), id);
    CHECK(!is_there || found->second == row, id);
  }
  CHECK(words.empty() || Contains(words, folder.Path()), words, name);
  return words.empty() && StoreModel::Of(*store) == expected;
}

void TestFlippedBytes() {
  const StoreFolder folder;
  const StoreModel model = MakeStore(7, folder);
  Rng rng(8);
  for (const char* name : {"rows.npy", "header.json"}) {
    const std::string path = folder.File(name);
    const std::string bytes = ReadBytes(path);
    for (size_t i = 0; i < bytes.size(); ++i) {
      if (i >= 200 && i < kPage && rng() % 100) continue;  // mostly padding
      std::string damaged = bytes;
      damaged[i] ^= static_cast<char>(1 << rng() % 8);
      WriteBytes(path, damaged);
      CHECK(!IsIntact(folder, model, name), name, i);
      CHECK_EQ(ReadBytes(path), damaged, name, i);
    }
    WriteBytes(path, bytes);
  }
  CHECK(IsIntact(folder, model, ""));
}

void TestFilesOfOtherSizes() {
  const StoreFolder folder;
  const StoreModel model = MakeStore(9, folder);
  for (const char* name : {"rows.npy", "header.json"}) {
    const std::string path = folder.File(name);
    const std::string bytes = ReadBytes(path);
    for (const size_t size : {bytes.size() - 1, bytes.size() / 2, size_t{7}, size_t{0}}) {
      WriteBytes(path, bytes.substr(0, size));
      CHECK(!IsIntact(folder, model, name), name, size);
    }
    WriteBytes(path, bytes + '\0');
    CHECK(!IsIntact(folder, model, name), name);
    fs::remove(path);
    CHECK(!IsIntact(folder, model, name), name);
    WriteBytes(path, bytes);
  }
  CHECK(IsIntact(folder, model, ""));
  for (const char* name : {"shadow_rows", "lock"}) {  // of no account
    fs::remove(folder.File(name));
    CHECK(IsIntact(folder, model, name), name);
  }
}

// Each row that can be read is one that was written, or none: rows of which the disk has nothing
// any more are the one loss that Read() does not see.
void TestLostRowsAreNoticedByVerify() {
  const StoreFolder folder;
  const StoreModel model = MakeStore(10, folder);
  const std::string bytes = ReadBytes(folder.File("rows.npy"));
  const int64_t id = model.written.begin()->first;
  const auto words_for = [&](size_t begin, size_t end) {
    std::string damaged = bytes;
    std::fill(damaged.begin() + begin, damaged.begin() + end, '\0');
    WriteBytes(folder.File("rows.npy"), damaged);
    const auto store = RowStore::Open(folder.Path());
    return ErrorOf([&] { store->Verify(); });
  };
  const size_t place = kPage + id * 24;
  const std::string rows = std::to_string(model.written.size());
  CHECK_EQ(words_for(place, place + 24),
           "`" + folder.File("rows.npy") + "` must hold " + rows +
               " rows that were written, as the header has it. Received: " +
               std::to_string(model.written.size() - 1) +
               ". Rows were lost on the disk: bring the folder back from a copy");
  CHECK(Contains(words_for(kPage, bytes.size()), "Received: 0. Rows were lost"));
  for (size_t part = 1; part < 24; ++part) {  // of a record that lies on two blocks of the disk
    for (const auto& [begin, end] : {std::pair(place, place + part), {place + part, place + 24}}) {
      const bool is_same = bytes.find_first_not_of('\0', begin) >= end;
      CHECK_EQ(words_for(begin, end).empty(), is_same, begin, end);
    }
  }
  CHECK_EQ(words_for(0, 0), "");
}

void TestOtherVersionsAndWords() {
  const StoreFolder folder;
  const StoreModel model = MakeStore(11, folder);
  const std::string path = folder.File("header.json");
  const std::string text = ReadBytes(path);
  const auto words_for = [&](const std::string& from, const std::string& to) {
    std::string changed = text;
    changed.replace(changed.find(from), from.size(), to);
    WriteBytes(path, changed);
    return ErrorOf([&] { RowStore::Open(folder.Path()); });
  };
  CHECK_EQ(words_for("\"version\": 1", "\"version\": 2"),
           "`" + path +
               "` must be of version 1, which is the one that this library knows. "
               "Received: version 2");
  CHECK(Contains(words_for("\"checkpoint\": 2", "\"checkpoint\": 3"), "It was damaged, or edited"));
  CHECK_EQ(words_for("\"rows\": 60", "\"rows\": sixty"),
           "`" + path +
               "` must be the header of a row store, and have a number at byte 69. "
               "Received: `sixty,?  \"columns\": [[\"weights\", 4], [\"l`");
  for (const char* columns : {"", "[", "]", "[]", "[[\"", "[[\"a\", 3]", "[[\"a\", ]]"}) {
    CHECK(Contains(words_for("[[\"weights\", 4], [\"lookups\", 1]]", columns),
                   "must be the header of a row store, and have "),
          columns);
  }
  WriteBytes(path, text);
  const std::string rows = folder.File("rows.npy");
  WriteBytes(rows, ReadBytes(rows) + "more");
  CHECK_EQ(ErrorOf([&] { RowStore::Open(folder.Path()); }),
           "`" + rows + "` must have 5536 bytes, for 60 rows. Received: 5540");
}

void TestColumnsOfAnotherStore() {
  const StoreFolder folder;
  RowStore::Create(folder.Path(), 60, {{"weights", 3}, {"lookups", 1}}, "{}");
  const StoreFolder other;
  RowStore::Create(other.Path(), 60, {{"weights", 2}, {"bias", 1}, {"lookups", 1}}, "{}");
  WriteBytes(folder.File("header.json"), ReadBytes(other.File("header.json")));
  CHECK_EQ(ErrorOf([&] { RowStore::Open(folder.Path()); }),
           "`" + folder.File("rows.npy") +
               "` must begin as an .npy file with the header `{'descr': [('weights', '<f4', (2,)), "
               "('bias', '<f4'), ('lookups', '<f4'), ('checksum', '<u4')], 'fortran_order': False, "
               "'shape': (60,), }`. Received: another byte at offset 41");
}

void TestADamagedRowCanBeWrittenAgain() {
  const StoreFolder folder;
  const StoreModel model = MakeStore(12, folder);
  const int64_t id = model.written.begin()->first;
  std::string bytes = ReadBytes(folder.File("rows.npy"));
  bytes[kPage + id * 24 + 3] ^= 1;
  WriteBytes(folder.File("rows.npy"), bytes);
  const auto store = RowStore::Open(folder.Path());
  std::vector<float> row = model.written.begin()->second;
  uint8_t is_there;
  const std::string words = ErrorOf([&] { store->Read(&id, 1, row.data(), &is_there); });
  CHECK(Contains(words, "Row " + std::to_string(id) + " of `" + folder.File("rows.npy") +
                            "` must have the checksum "),
        words);
  CHECK(Contains(words, "write it again, or bring the folder back from a copy"), words);
  row = model.written.begin()->second;
  store->Write(&id, 1, row.data());
  store->Checkpoint(model.header);
  CHECK(StoreModel::Of(*store).written == model.written);
  store->Verify();
}

// ---- Large and full.

void TestLargeStores() {
  constexpr int64_t kRows = 400000000;
  constexpr int64_t kWidth = 64;
  const StoreFolder folder(StoreFolder::OnDisk());
  const auto seconds = [](const auto& call) {
    const auto begin = std::chrono::steady_clock::now();
    call();
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  };
  std::unique_ptr<RowStore> store;
  CHECK(seconds([&] { store = RowStore::Create(folder.Path(), kRows, ColumnsOf(kWidth), "{}"); }) <
        1);
  Rng rng(13);
  std::vector<int64_t> ids = {0, (1 << 18) - 1, 1 << 18, kRows - 1};
  for (int i = 0; i < 50; ++i) ids.push_back(rng() % kRows);
  std::vector<float> rows(ids.size() * kWidth);
  for (float& value : rows) value = static_cast<float>(rng() % 1000);
  store->Write(ids.data(), ids.size(), rows.data());
  store->Checkpoint("{}");
  store->Verify();
  store.reset();
  CHECK(seconds([&] { store = RowStore::Open(folder.Path()); }) < 1);
  std::vector<float> out(rows.size());
  std::vector<uint8_t> is_there(ids.size());
  store->Read(ids.data(), ids.size(), out.data(), is_there.data());
  CHECK(out == rows);
  CHECK_EQ(std::count(is_there.begin(), is_there.end(), 1), static_cast<int64_t>(ids.size()));
  CHECK_EQ(static_cast<int64_t>(fs::file_size(folder.File("rows.npy"))),
           kPage + kRows * (kWidth + 1) * 4);
}

void TestLimitOfFileSize() {
  std::signal(SIGXFSZ, SIG_IGN);
  struct rlimit whole;
  CHECK_EQ(getrlimit(RLIMIT_FSIZE, &whole), 0);
  const StoreFolder folder(StoreFolder::OnDisk());
  std::unique_ptr<RowStore> store;
  StoreModel model = StoreModel::Create(folder.Path(), 1000, 64, &store);
  const int64_t ids[] = {700, 2};
  const std::vector<float> rows(128, 3);
  store->Write(ids + 1, 1, rows.data());
  model.written[2].assign(64, 3);
  struct rlimit low = whole;
  low.rlim_cur = 268 + 100;
  CHECK_EQ(setrlimit(RLIMIT_FSIZE, &low), 0);
  const std::string words = ErrorOf([&] { store->Write(ids, 1, rows.data()); });
  CHECK_EQ(words, "`" + folder.File("shadow_rows") +
                      "` must take what is written to it. Received: File too large");
  CHECK(StoreModel::Of(*store) == model);
  // So many rows could not be copied by a checkpoint.
  CHECK(Contains(ErrorOf([&] { store->Grow(2000); }), "must have room for"));
  CHECK(StoreModel::Of(*store) == model);
  // The checkpoint is made, and cannot be copied.
  CHECK(Contains(ErrorOf([&] { store->Checkpoint("{}"); }), "File too large"));
  model.checkpoint = 1;
  model.header = "{}";
  CHECK(StoreModel::Of(*store) == model);
  CHECK(Contains(ErrorOf([&] { store->Write(ids, 1, rows.data()); }), "File too large"));
  CHECK_EQ(setrlimit(RLIMIT_FSIZE, &whole), 0);
  store->Write(ids, 1, rows.data());
  model.written[700].assign(64, 3);
  CHECK(StoreModel::Of(*store) == model);
  model.Checkpoint(store.get());
  store.reset();
  CHECK(StoreModel::Of(*RowStore::Open(folder.Path())) == model);
}

}  // namespace
}  // namespace tfrec

int main() {
  tfrec::TestStoresAgreeWithMemory();
  tfrec::TestShortCallsAndSignals();
  tfrec::TestTheFilesAreAnArrayOfNumPyAndJson();
  tfrec::TestArguments();
  tfrec::TestFoldersWithoutStores();
  tfrec::TestAStoreIsNotOverwritten();
  tfrec::TestAHalfMadeStoreIsMadeAgain();
  tfrec::TestOneOpenerAtATime();
  tfrec::TestFilesThatCannotBeOpened();
  tfrec::TestFlippedBytes();
  tfrec::TestFilesOfOtherSizes();
  tfrec::TestLostRowsAreNoticedByVerify();
  tfrec::TestOtherVersionsAndWords();
  tfrec::TestColumnsOfAnotherStore();
  tfrec::TestADamagedRowCanBeWrittenAgain();
  tfrec::TestLargeStores();
  tfrec::TestLimitOfFileSize();
  return 0;
}
