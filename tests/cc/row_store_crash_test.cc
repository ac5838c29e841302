// What is left of a row store where a process ends, a call of the system fails or the power goes,
// at any call.
#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <functional>
#include <map>
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

// A store with rows that were written after its last checkpoint, and sometimes more rows.
struct Scene {
  Rng rng;
  StoreFolder folder;
  std::unique_ptr<RowStore> store;
  StoreModel now;   // what is to be read
  StoreModel last;  // the last checkpoint
  StoreModel next;  // the next one

  explicit Scene(uint64_t seed) : rng(seed) {
    now = StoreModel::Create(folder.Path(), 40, 3, &store);
    now.Write(&rng, 30, store.get());
    now.Checkpoint(store.get());
    last = now;
    if (seed % 3 == 0) now.Write(&rng, 20, store.get());
    if (seed % 2 == 0) now.Grow(9, store.get());
    now.Write(&rng, 20, store.get());
    next = now;
    next.header = "{\"next\": true}";
    ++next.checkpoint;
  }

  void Checkpoint() { store->Checkpoint(next.header); }
  // As after the end of the process.
  void Reopen() {
    store.reset();
    store = RowStore::Open(folder.Path());
  }
  // That the store is like a model, and in order.
  void CheckIs(const StoreModel& expected, int64_t context) {
    CHECK(StoreModel::Of(*store) == expected, context, store->Checkpoints());
    store->Verify();
    StoreModel model = expected;
    model.Write(&rng, 20, store.get());
    model.Checkpoint(store.get());
    CHECK(StoreModel::Of(*store) == model, context);
    Reopen();
    CHECK(StoreModel::Of(*store) == model, context);
    store->Verify();
  }
};

// Ends the process as soon as a checkpoint counts. `see` is told of each call before.
using Observer = std::function<void(const std::string& call, const std::string& path)>;
void KillAtCommit(
    Scene* scene, const Observer& see = [](const std::string&, const std::string&) {}) {
  bool has_commit = false;
  const Hooked hooked([&](const char* call, const std::string& path, size_t*) {
    if (has_commit) throw Killed();
    see(call, path);
    has_commit = call == std::string("rename") && EndsWith(path, "header.json.new");
    return 0;
  });
  try {
    scene->Checkpoint();
    CHECK(false);
  } catch (const Killed&) {
  }
  scene->store.reset();
}

void TestEndInACheckpoint() {
  for (uint64_t seed = 0; seed < 4; ++seed) {
    for (const bool is_halved : {false, true}) {
      int64_t before = 0;
      bool done = false;
      for (int64_t n = 0; !done; ++n) {
        Scene scene(seed);
        Kill kill(n, is_halved);
        done = kill.Run([&] { scene.Checkpoint(); });
        CHECK(!done || n > 20, n);
        before += !kill.HasCommit();
        scene.Reopen();
        scene.CheckIs(kill.HasCommit() ? scene.next : scene.last, n);
      }
      CHECK(before > 5, before);
    }
  }
}

void TestEndInTheOpeningBehindAnEnd() {
  for (const uint64_t seed : {10, 11}) {
    for (const bool is_halved : {false, true}) {
      bool done = false;
      for (int64_t n = 0; !done; ++n) {
        Scene scene(seed);
        KillAtCommit(&scene);
        Kill kill(n, is_halved);
        done = kill.Run([&] { scene.Reopen(); });
        CHECK(!done || n > 20, n);
        scene.Reopen();
        scene.CheckIs(scene.next, n);
      }
    }
  }
}

// What lies between a commit and its copy is never taken for what it is not.
void TestDamageBehindAnEnd() {
  for (const char* name : {"commit.json", "shadow_rows"}) {
    int64_t errors = 0;
    int64_t scenes = 0;
    for (int64_t n = 0; n < 60; ++n) {
      Scene scene(100 + n);
      KillAtCommit(&scene);
      const std::string path = scene.folder.File(name);
      const std::string bytes = ReadBytes(path);
      if (bytes.empty()) continue;  // no row was written
      ++scenes;
      std::string damaged = bytes;
      damaged[scene.rng() % bytes.size()] ^= static_cast<char>(1 << n % 8);
      if (n % 20 == 0) damaged.pop_back();
      if (n % 20 == 1) damaged.assign(bytes.size(), '\0');
      WriteBytes(path, damaged);
      const std::string rows = ReadBytes(scene.folder.File("rows.npy"));
      const std::string words = ErrorOf([&] { scene.Reopen(); });
      errors += !words.empty();
      CHECK(words.empty() || Contains(words, scene.folder.Path() + "/"), words);
      if (!words.empty()) {  // and nothing was done yet
        CHECK(ReadBytes(scene.folder.File("rows.npy")) == rows, name, n);
        WriteBytes(path, bytes);
        scene.Reopen();
      }
      scene.CheckIs(scene.next, n);
    }
    CHECK_EQ(errors, scenes, name);
    CHECK(scenes > 40, scenes);
  }
}

void TestEndInAWrite() {
  bool done = false;
  for (int64_t n = 0; !done; ++n) {
    Scene scene(20);
    done = Kill(n, n % 2 == 0).Run([&] { scene.now.Write(&scene.rng, 10, scene.store.get()); });
    scene.Reopen();
    scene.CheckIs(scene.last, n);
  }
}

void TestEndInCreate() {
  bool done = false;
  int64_t stores = 0;
  for (int64_t n = 0; !done; ++n) {
    const StoreFolder folder;
    std::unique_ptr<RowStore> store;
    StoreModel model;
    done =
        Kill(n, n % 2 == 0).Run([&] { model = StoreModel::Create(folder.Path(), 10, 2, &store); });
    store.reset();
    const std::string words = ErrorOf([&] { store = RowStore::Open(folder.Path()); });
    CHECK(words.empty() || (!done && Contains(words, "must be the folder of a row store")), words);
    stores += store != nullptr;
    if (!store) {  // and it can be made again
      model = StoreModel::Create(folder.Path(), 10, 2, &store);
      CHECK(StoreModel::Of(*store) == model, n);
      continue;
    }
    model = {10, 2, 0, "{ }", {}};
    CHECK(StoreModel::Of(*store) == model, n);
  }
  CHECK(stores > 1, stores);
}

// ---- Calls that fail.

bool IsLost(const std::string& words) { return Contains(words, "must be opened again"); }

// Lets one call fail, and all others pass. `failed` is the call and its file then.
FileHook FailOnce(int64_t calls, int error, std::string* failed) {
  return [=](const char* call, const std::string& path, size_t*) mutable {
    if (calls-- != 0) return 0;
    *failed = call + (" " + fs::path(path).filename().string());
    return error;
  };
}

void TestFailureInACheckpoint() {
  for (const int error : {ENOSPC, EIO}) {
    bool done = false;
    for (int64_t n = 0; !done; ++n) {
      Scene scene(30 + n % 2);
      std::string failed;
      {
        const Hooked hooked(FailOnce(n, error, &failed));
        const std::string words = ErrorOf([&] { scene.Checkpoint(); });
        CHECK(words.empty() || Contains(words, std::strerror(error)), words);
        done = failed.empty();
        // Without a file for the index there is memory.
        CHECK_EQ(words.empty(), done || failed == "open store" || failed == "fstatfs store",
                 failed);
      }
      const bool is_made = scene.store->Checkpoints() == scene.next.checkpoint;
      CHECK_EQ(scene.store->Header(), is_made ? scene.next.header : scene.last.header);
      const StoreModel& expected = is_made ? scene.next : scene.now;
      StoreModel actual;
      const std::string words = ErrorOf([&] { actual = StoreModel::Of(*scene.store); });
      // What was not synced when it should have been is not to be known again.
      const bool is_fatal = (failed.rfind("fsync", 0) == 0 && failed != "fsync header.json.new") ||
                            failed.rfind("rename", 0) == 0;
      CHECK_EQ(IsLost(words), is_fatal, words, failed);
      if (words.empty()) {
        CHECK(actual == expected, n);
        if (n % 3) scene.Reopen();  // or go on with it as it is
        scene.CheckIs(n % 3 == 0 || is_made ? expected : scene.last, n);
        continue;
      }
      CHECK(IsLost(ErrorOf([&] { scene.Checkpoint(); })));
      CHECK(IsLost(ErrorOf([&] { scene.now.Write(&scene.rng, 1, scene.store.get()); })));
      CHECK(IsLost(ErrorOf([&] { scene.store->Grow(100); })));
      CHECK(IsLost(ErrorOf([&] { scene.store->Verify(); })));
      const bool has_commit = fs::exists(scene.folder.File("commit.json"));
      scene.Reopen();
      scene.CheckIs(is_made || has_commit ? scene.next : scene.last, n);
    }
  }
}

// A write of which a part is done, and what it leaves behind the end of the log.
void TestFailureInAWrite() {
  for (int64_t n = 0; n < 60; ++n) {
    Scene scene(40 + n % 7);
    StoreModel after = scene.now;
    std::vector<int64_t> ids = after.RandomIds(&scene.rng, 25);
    ids.push_back(0);
    std::vector<float> rows(ids.size() * after.width);
    for (float& value : rows) value = static_cast<float>(scene.rng() % 100);
    for (size_t k = 0; k < ids.size(); ++k) {
      after.written[ids[k]].assign(rows.begin() + k * 3, rows.begin() + k * 3 + 3);
    }
    int64_t left = n % 4;
    const auto write = [&] {
      return ErrorOf([&] { scene.store->Write(ids.data(), ids.size(), rows.data()); });
    };
    {
      const Hooked hooked([&](const char* call, const std::string&, size_t* bytes) {
        if (call != std::string("pwrite")) return 0;
        *bytes = 1 + scene.rng() % (*bytes / 2 + 1);
        return left-- == 0 ? ENOSPC : 0;
      });
      const std::string words = write();
      CHECK(Contains(words, "No space left on device") || left >= 0, words);
      if (words.empty()) scene.now = after;
    }
    CHECK(StoreModel::Of(*scene.store) == scene.now, n);
    scene.store->Verify();
    if (n % 3 == 0) {
      CHECK_EQ(write(), "");
      scene.now = after;
      CHECK(StoreModel::Of(*scene.store) == scene.now, n);
    }
    scene.next.written = scene.now.written;
    if (n % 2) {
      KillAtCommit(&scene);
    } else {
      scene.Checkpoint();
    }
    scene.Reopen();
    scene.CheckIs(scene.next, n);
  }
}

// A failed Grow() must not confuse the opening behind a later end.
void TestFailureInGrow() {
  Scene scene(48);
  {
    const Hooked hooked([&](const char* call, const std::string&, size_t*) {
      return call == std::string("ftruncate") ? EFBIG : 0;
    });
    CHECK(Contains(ErrorOf([&] { scene.store->Grow(1000); }), "File too large"));
  }
  CHECK(StoreModel::Of(*scene.store) == scene.now);
  KillAtCommit(&scene);
  scene.Reopen();
  scene.CheckIs(scene.next, 0);
}

void TestAFullDisk() {
  for (const bool can_reserve : {true, false}) {
    Scene scene(50);
    {
      const Hooked hooked([&](const char* call, const std::string& path, size_t*) {
        if (call == std::string("fallocate")) return can_reserve ? ENOSPC : EOPNOTSUPP;
        return call == std::string("pwrite") && EndsWith(path, "/rows.npy") ? ENOSPC : 0;
      });
      const std::string words = ErrorOf([&] { scene.Checkpoint(); });
      CHECK_EQ(words, "`" + scene.folder.File("rows.npy") + "` must " +
                          (can_reserve ? "find space for all that is written"
                                       : "take what is written to it") +
                          ". Received: No space left on device");
      // Where space could not be reserved, it runs out in the copy, and the new checkpoint counts.
      CHECK(StoreModel::Of(*scene.store) == (can_reserve ? scene.now : scene.next));
      CHECK(ErrorOf([&] { scene.Checkpoint(); }) == words);
      StoreModel model = scene.now;
      if (!can_reserve) {
        CHECK(ErrorOf([&] { model.Write(&scene.rng, 1, scene.store.get()); }) == words);
        CHECK(ErrorOf([&] { scene.store->Grow(100); }) == words);
      }
    }
    scene.CheckIs(can_reserve ? scene.now : scene.next, can_reserve);
  }
}

// A copy of which half is done has torn rows, until it goes on.
void TestACopyThatIsCutShort() {
  int64_t errors = 0;
  for (int64_t n = 0; n < 40; ++n) {
    Scene scene(90 + n % 3);
    int64_t left = n / 3;
    {
      const Hooked hooked([&](const char* call, const std::string& path, size_t* bytes) {
        if (call != std::string("pwrite") || !EndsWith(path, "/rows.npy")) return 0;
        if (left == 0) *bytes = 1 + scene.rng() % *bytes;
        return left-- < 0 ? ENOSPC : 0;
      });
      const bool is_cut = !ErrorOf([&] { scene.Checkpoint(); }).empty();
      errors += is_cut;
      CHECK(StoreModel::Of(*scene.store) == scene.next, n);
      scene.store->Verify();
    }
    if (n % 2) scene.Reopen();
    scene.CheckIs(scene.next, n);
  }
  CHECK(errors > 10, errors);
}

// ---- Loss of power.

void TestLossOfPowerInACheckpoint() {
  for (uint64_t seed = 60; seed < 64; ++seed) {
    int64_t counts[2] = {0, 0};
    bool done = false;
    for (int64_t n = 0; !done; ++n) {
      Scene scene(seed);
      Disk disk(scene.folder.Path());
      done = CutPower(&disk, n, [&] { scene.Checkpoint(); });
      for (int mix = 0; mix < 4; ++mix) {
        const std::string target = scene.folder.Path() + std::to_string(mix);
        disk.Crash(&scene.rng, target);
        const auto store = RowStore::Open(target);
        const StoreModel model = StoreModel::Of(*store);
        store->Verify();
        const bool is_next = store->Checkpoints() == scene.next.checkpoint;
        CHECK(is_next || !done, n);
        CHECK(model == (is_next ? scene.next : scene.last), seed, n, mix, is_next);
        ++counts[is_next];
      }
    }
    CHECK(counts[0] > 20 && counts[1] > 20, counts[0], counts[1]);
  }
}

void TestLossOfPowerInTheOpeningBehindAnEnd() {
  for (const uint64_t seed : {70, 71}) {
    bool done = false;
    for (int64_t n = 0; !done; ++n) {
      Scene scene(seed);
      Disk disk(scene.folder.Path());
      KillAtCommit(&scene, [&](const std::string& call, const std::string& path) {
        disk.BeforeCall(call, path);
      });
      done = CutPower(&disk, n, [&] { scene.Reopen(); });
      for (int mix = 0; mix < 4; ++mix) {
        const std::string target = scene.folder.Path() + std::to_string(mix);
        disk.Crash(&scene.rng, target);
        const auto store = RowStore::Open(target);
        store->Verify();
        const bool is_next = store->Checkpoints() == scene.next.checkpoint;
        CHECK(is_next || !done, n);
        CHECK(StoreModel::Of(*store) == (is_next ? scene.next : scene.last), seed, n, mix, is_next);
      }
    }
  }
}

// Each time a store goes on with what the last loss has left.
void TestLossOfPowerManyTimes() {
  const StoreFolder folder;
  Rng rng(80);
  std::unique_ptr<RowStore> store;
  StoreModel last = StoreModel::Create(folder.Path(), 20, 4, &store);
  store.reset();
  std::string path = folder.Path();
  for (int loss = 0; loss < 150; ++loss) {
    Disk disk(path);
    StoreModel now = last;
    StoreModel next = last;  // of the checkpoint that goes on, or went on last
    const bool done = CutPower(&disk, rng() % 400, [&] {
      store = RowStore::Open(path);
      for (;;) {
        now.Write(&rng, 8, store.get());
        if (rng() % 4 == 0) now.Grow(rng() % 3, store.get());
        if (rng() % 3) continue;
        next = now;
        ++next.checkpoint;
        next.header = "{\"loss\": " + std::to_string(loss) + "}";
        store->Checkpoint(next.header);
        last = now = next;
      }
    });
    CHECK(!done);
    store.reset();
    const std::string target = folder.Path() + std::to_string(loss);
    disk.Crash(&rng, target);
    fs::remove_all(path);
    path = target;
    store = RowStore::Open(path);
    store->Verify();
    if (store->Checkpoints() != last.checkpoint) last = next;
    CHECK(StoreModel::Of(*store) == last, loss);
    store.reset();
  }
  CHECK(last.checkpoint > 100, last.checkpoint);
}

}  // namespace
}  // namespace tfrec

int main() {
  tfrec::TestEndInACheckpoint();
  tfrec::TestEndInTheOpeningBehindAnEnd();
  tfrec::TestDamageBehindAnEnd();
  tfrec::TestEndInAWrite();
  tfrec::TestEndInCreate();
  tfrec::TestFailureInACheckpoint();
  tfrec::TestFailureInAWrite();
  tfrec::TestFailureInGrow();
  tfrec::TestAFullDisk();
  tfrec::TestACopyThatIsCutShort();
  tfrec::TestLossOfPowerInACheckpoint();
  tfrec::TestLossOfPowerInTheOpeningBehindAnEnd();
  tfrec::TestLossOfPowerManyTimes();
  return 0;
}
