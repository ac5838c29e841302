// What the tests of row stores share: folders, what a store should hold, and hooks for its calls of
// the system.
#ifndef TFREC_TESTS_CC_STORE_FOLDER_H_
#define TFREC_TESTS_CC_STORE_FOLDER_H_

#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "custom_ops/row_store/row_store.h"
#include "tests/cc/check.h"
#include "tests/cc/random_rows.h"

namespace tfrec {

// A folder that goes with this object. A store may be made in `Path()`, which is not there yet.
class StoreFolder {
 public:
  // In memory where that is possible: syncs of a busy disk take seconds.
  StoreFolder() : StoreFolder(access("/dev/shm", W_OK) == 0 ? "/dev/shm" : OnDisk()) {}
  explicit StoreFolder(const std::string& parent)
      : parent_(parent + "/row_store_" + std::string(6, 'X')) {
    CHECK(mkdtemp(parent_.data()) != nullptr, parent_);
  }
  ~StoreFolder() { std::filesystem::remove_all(parent_); }
  StoreFolder(const StoreFolder&) = delete;
  StoreFolder& operator=(const StoreFolder&) = delete;

  static std::string OnDisk() { return std::filesystem::temp_directory_path(); }

  std::string Path() const { return parent_ + "/store"; }
  std::string File(const std::string& name) const { return Path() + "/" + name; }

 private:
  std::string parent_;
};

inline std::string ReadBytes(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  CHECK(file.is_open(), path);
  return {std::istreambuf_iterator<char>(file), {}};
}
inline void WriteBytes(const std::string& path, const std::string& bytes) {
  std::ofstream file(path, std::ios::binary | std::ios::trunc);
  file << bytes;
  CHECK(file.good(), path);
}

// The words of the StoreError of a call; none where it does not throw one.
template <typename Call>
std::string ErrorOf(const Call& call) {
  try {
    call();
  } catch (const StoreError& error) {
    CHECK(*error.what() != '\0');
    return error.what();
  }
  return "";
}
inline bool Contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

// Sets a hook while it lives.
class Hooked {
 public:
  explicit Hooked(FileHook hook) { SetFileHook(std::move(hook)); }
  ~Hooked() { SetFileHook(nullptr); }
  Hooked(const Hooked&) = delete;
  Hooked& operator=(const Hooked&) = delete;
};

// Thrown by hooks in the place of the end of the process.
struct Killed {};

// Columns that are together so wide.
inline std::vector<StoreColumn> ColumnsOf(int64_t width) {
  if (width == 1) return {{"weights", 1}};
  return {{"weights", width - 1}, {"lookups", 1}};
}

// What a store holds, or should.
struct StoreModel {
  int64_t rows = 0;
  int64_t width = 0;
  int64_t checkpoint = 0;
  std::string header;
  std::map<int64_t, std::vector<float>> written;

  // All that a store holds, read in one call.
  static StoreModel Of(const RowStore& store) {
    StoreModel model = {store.Rows(), store.Width(), store.Checkpoints(), store.Header(), {}};
    std::vector<int64_t> ids(model.rows);
    for (int64_t id = 0; id < model.rows; ++id) ids[id] = id;
    constexpr float kUntouched = -12345;
    std::vector<float> rows(model.rows * model.width, kUntouched);
    std::vector<uint8_t> is_there(model.rows, 7);
    store.Read(ids.data(), model.rows, rows.data(), is_there.data());
    for (int64_t id = 0; id < model.rows; ++id) {
      const auto row = rows.begin() + id * model.width;
      CHECK(is_there[id] <= 1, id);
      if (is_there[id]) {
        model.written[id].assign(row, row + model.width);
      } else {
        CHECK_EQ(std::count(row, row + model.width, kUntouched), model.width, id);
      }
    }
    return model;
  }

  bool operator==(const StoreModel& other) const {
    return rows == other.rows && width == other.width && checkpoint == other.checkpoint &&
           header == other.header && written == other.written;
  }

  std::vector<int64_t> RandomIds(Rng* rng, int64_t most) const {
    std::vector<int64_t> ids;
    const int64_t count = (*rng)() % (most + 1);
    while (static_cast<int64_t>(ids.size()) < count) {
      int64_t id = (*rng)() % rows;  // and a few behind it, at times with gaps
      for (int64_t run = (*rng)() % 8; run >= 0 && id < rows; --run) {
        ids.push_back(id);
        id += (*rng)() % 5 == 0 ? 2 : 1;
      }
    }
    if ((*rng)() % 2) std::sort(ids.begin(), ids.end());
    return ids;
  }
  void Write(Rng* rng, int64_t most, RowStore* store) {
    const std::vector<int64_t> ids = RandomIds(rng, most);
    std::vector<float> values(ids.size() * width);
    // Rows of zeros are rows as well.
    const bool is_zero = (*rng)() % 8 == 0;
    for (float& value : values) value = is_zero ? 0 : static_cast<float>((*rng)() % 1000);
    store->Write(ids.data(), ids.size(), values.data());
    for (size_t k = 0; k < ids.size(); ++k) {
      written[ids[k]].assign(values.begin() + k * width, values.begin() + (k + 1) * width);
    }
  }
  void Checkpoint(RowStore* store) {
    const std::string next = "{\"step\": [" + std::to_string(checkpoint + 1) + ", \"}\\\"\"]}";
    store->Checkpoint(next);
    ++checkpoint;
    header = next;
  }
  void Grow(int64_t more, RowStore* store) {
    store->Grow(rows + more);
    rows += more;
  }

  static StoreModel Create(const std::string& path, int64_t rows, int64_t width,
                           std::unique_ptr<RowStore>* store) {
    const std::string header = "{ }";
    *store = RowStore::Create(path, rows, ColumnsOf(width), header);
    return {rows, width, 0, header, {}};
  }
};

// ---- What stores do, against models of it.

// Reads of any ids, in any order and more than once, against one row at a time.
inline void TestReads(Rng* rng, const RowStore& store, const StoreModel& model) {
  const std::vector<int64_t> ids = model.RandomIds(rng, 3 * model.rows);
  std::vector<float> rows(ids.size() * model.width, -1);
  std::vector<uint8_t> is_there(ids.size(), 7);
  store.Read(ids.data(), ids.size(), rows.data(), is_there.data());
  const std::vector<float> untouched(model.width, -1);
  for (size_t k = 0; k < ids.size(); ++k) {
    const auto found = model.written.find(ids[k]);
    CHECK_EQ(is_there[k], found != model.written.end(), k, ids[k]);
    const std::vector<float>& expected = is_there[k] ? found->second : untouched;
    CHECK(std::equal(expected.begin(), expected.end(), rows.begin() + k * model.width), k, ids[k]);
  }
}

inline void TestRandomOperations(const StoreFolder& folder, uint64_t seed, int64_t rows,
                                 int64_t width, int steps) {
  Rng rng(seed);
  std::unique_ptr<RowStore> store;
  StoreModel model = StoreModel::Create(folder.Path(), rows, width, &store);
  StoreModel last = model;  // as of the last checkpoint
  for (int step = 0; step < steps; ++step) {
    switch (rng() % 12) {
      case 0:
        model.Checkpoint(store.get());
        last = model;
        break;
      case 1:
        store.reset();
        store = RowStore::Open(folder.Path());
        model = last;
        break;
      case 2:
        model.Grow(rng() % 50, store.get());
        break;
      case 3:
        store->Verify();
        break;
      default:
        model.Write(&rng, rows, store.get());
    }
    if (rng() % 3 == 0) CHECK(StoreModel::Of(*store) == model, seed, step);
    TestReads(&rng, *store, model);
  }
}

inline bool EndsWith(const std::string& text, const std::string& end) {
  return text.size() >= end.size() && text.compare(text.size() - end.size(), end.size(), end) == 0;
}

// Lets so many calls pass, and then ends the process. What the last one of them writes may be half
// of what it should.
class Kill {
 public:
  Kill(int64_t calls, bool is_halved) : left_(calls), is_halved_(is_halved) {}

  FileHook Hook() {
    return [this](const char* call, const std::string& path, size_t* bytes) {
      if (left_ == 0) throw Killed();
      if (left_ == 1 && is_halved_ && *bytes > 1) *bytes /= 2;
      --left_;
      if (call == std::string("rename") && EndsWith(path, "header.json.new")) has_commit_ = true;
      return 0;
    };
  }
  // Runs `work` and returns whether it came to its end.
  template <typename Work>
  bool Run(const Work& work) {
    const Hooked hooked(Hook());
    try {
      work();
    } catch (const Killed&) {
      return false;
    }
    return true;
  }
  bool HasCommit() const { return has_commit_; }

 private:
  int64_t left_;
  const bool is_halved_;
  bool has_commit_ = false;
};

// ---- Loss of power.

// What a disk may hold below a folder after one: what was synced, and any part of what was not.
// Entries of the folder come to the disk in order; blocks of files do in any.
class Disk {
 public:
  // All that a folder holds is on the disk already, but not what is in a shadow.
  explicit Disk(const std::string& folder) : folder_(folder), listings_({List()}) {
    for (const auto& [name, inode] : listings_[0]) {
      if (name.rfind("shadow", 0) != 0) contents_[inode] = ReadBytes(folder_ + "/" + name);
    }
  }

  void BeforeCall(const std::string& call, const std::string& path) {
    listings_.push_back(List());
    if (call != "fsync") return;
    if (path == folder_) {
      listings_ = {List()};
    } else {
      contents_[Inode(path)] = ReadBytes(path);
    }
  }

  void Crash(Rng* rng, const std::string& target) {
    listings_.push_back(List());
    std::map<ino_t, std::string> names;  // of the files that are there still
    for (const auto& [name, inode] : listings_.back()) names[inode] = name;
    std::filesystem::create_directory(target);
    for (const auto& [name, inode] : listings_[(*rng)() % listings_.size()]) {
      const std::string synced = contents_[inode];
      const auto there = names.find(inode);
      WriteBytes(target + "/" + name,
                 there == names.end() ? synced
                                      : Mix(rng, synced, ReadBytes(folder_ + "/" + there->second)));
    }
  }

 private:
  using Listing = std::map<std::string, ino_t>;

  static ino_t Inode(const std::string& path) {
    struct stat status;
    CHECK_EQ(stat(path.c_str(), &status), 0, path);
    return status.st_ino;
  }
  Listing List() const {
    Listing listing;
    for (const auto& entry : std::filesystem::directory_iterator(folder_)) {
      listing[entry.path().filename()] = Inode(entry.path());
    }
    return listing;
  }
  static std::string Mix(Rng* rng, const std::string& a, const std::string& b) {
    constexpr size_t kBlock = 16;
    std::string mixed((*rng)() % 2 ? a.size() : b.size(), '\0');
    for (size_t at = 0; at < mixed.size(); at += kBlock) {
      const std::string& from = (*rng)() % 2 ? a : b;
      if (at < from.size()) from.copy(mixed.data() + at, std::min(kBlock, mixed.size() - at), at);
    }
    return mixed;
  }

  const std::string folder_;
  std::vector<Listing> listings_;  // at the last sync of the folder and after each call since
  std::map<ino_t, std::string> contents_;  // at the last sync of a file
};

// Cuts the power behind so many calls of `work`, and returns whether it came to its end.
template <typename Work>
bool CutPower(Disk* disk, int64_t calls, const Work& work) {
  const Hooked hooked([&](const char* call, const std::string& path, size_t*) {
    if (calls-- == 0) throw Killed();
    disk->BeforeCall(call, path);
    return 0;
  });
  try {
    work();
  } catch (const Killed&) {
    return false;
  }
  return true;
}

}  // namespace tfrec

#endif  // TFREC_TESTS_CC_STORE_FOLDER_H_
