#include "custom_ops/row_store/cached_table.h"

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <iterator>
#include <memory>
#include <numeric>
#include <optional>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "custom_ops/row_store/row_cache.h"
#include "custom_ops/row_store/row_store.h"
#include "tests/cc/check.h"
#include "tests/cc/random_rows.h"
#include "tests/cc/slow_cached_table.h"
#include "tests/cc/store_folder.h"

namespace tfrec {
namespace {

constexpr Policy kPolicies[] = {Policy::kLru, Policy::kLfu, Policy::kStatic};

// ---- All that a few actors can do with three rows, two of which fit in memory.

class Model {
 public:
  struct Size {
    Policy policy;
    int64_t rows;
    int64_t slots;
    int actors;
    size_t length;  // of a sequence
  };
  explicit Model(const Size& size)
      : actors_(size.actors), pair_(size.rows, size.slots, 4, size.policy) {}

  // Does one of the actions that are possible now, and returns how many there are.
  int Do(int number) {
    ListActions();
    const Action action = actions_[number];
    is_saved_ = action.kind == Kind::kCheckpoint;
    if (action.batch) used_ = std::max(used_, 1 + LastOf(*action.batch));
    switch (action.kind) {
      case Kind::kLookup:
        has_begun_ = true;
        pair_.Lookup(action.actor, *action.batch);
        break;
      case Kind::kPrefetch:
        pair_.Prefetch(0, *action.batch);
        break;
      case Kind::kTrain:
        pair_.Train(action.actor);
        break;
      case Kind::kFinish:
        pair_.Finish(action.actor, pair_.IsTrained(action.actor));
        break;
      case Kind::kForget:
        pair_.Forget(0);
        break;
      case Kind::kCheckpoint:
        pair_.Checkpoint();
        break;
    }
    return actions_.size();
  }
  // All rows are as at first then. Those in the files are so because they were written.
  void Restart() {
    pair_.CheckAll();
    pair_.FinishAll();
    pair_.Reset(pair_.AllIds());
    used_ = 0;
    has_begun_ = false;
    is_saved_ = true;
  }
  void End() {
    pair_.FinishAll();
    pair_.Checkpoint();
    pair_.CheckAll();
    pair_.Reopen();
  }

 private:
  enum class Kind { kLookup, kPrefetch, kTrain, kFinish, kForget, kCheckpoint };
  struct Action {
    Kind kind;
    int actor;
    const Ids* batch;
  };

  void ListActions() {
    actions_.clear();
    AddBatches(Kind::kPrefetch, 0);
    for (int actor = 0; actor < actors_; ++actor) {
      if (!pair_.IsIdle(actor)) {
        actions_.push_back({Kind::kFinish, actor, nullptr});
        if (!pair_.IsTrained(actor)) actions_.push_back({Kind::kTrain, actor, nullptr});
      } else if (actor == 0 || has_begun_) {  // before, the first one can do the same
        AddBatches(Kind::kLookup, actor);
      }
    }
    if (!pair_.Coming().empty()) actions_.push_back({Kind::kForget, 0, nullptr});
    if (!is_saved_) actions_.push_back({Kind::kCheckpoint, 0, nullptr});
  }
  // Rows are all the same: one that nobody used stands for all of those.
  void AddBatches(Kind kind, int actor) {
    struct Batch {
      Ids ids;
      int64_t used;  // rows, at least
    };
    static const Batch kBatches[] = {{{0}, 0}, {{1, 0}, 0}, {{1}, 1}, {{0, 2}, 2}, {{2}, 2}};
    for (const Batch& batch : kBatches) {
      if (used_ < batch.used || LastOf(batch.ids) >= pair_.Rows()) continue;
      actions_.push_back({kind, actor, &batch.ids});
    }
  }
  static int64_t LastOf(const Ids& ids) { return *std::max_element(ids.begin(), ids.end()); }

  const int actors_;
  TablePair pair_;
  std::vector<Action> actions_;
  int64_t used_ = 0;  // rows
  bool has_begun_ = false;
  bool is_saved_ = true;
};

// Does all sequences of actions, and returns how many there are.
int64_t Explore(const Model::Size& size) {
  struct Choice {
    int number;
    int actions;
  };
  std::vector<Choice> choices;
  std::optional<Model> model;
  int64_t sequences = 0;
  do {
    if (!model) model.emplace(size);
    for (size_t step = 0; step < size.length; ++step) {
      if (step == choices.size()) choices.push_back({0, 0});
      choices[step].actions = model->Do(choices[step].number);
    }
    if (++sequences % 32 > 0) {
      model->Restart();
    } else {
      model->End();
      model.reset();
    }
    while (!choices.empty() && ++choices.back().number == choices.back().actions) {
      choices.pop_back();
    }
  } while (!choices.empty());
  return sequences;
}

void TestAllInterleavings() {
  CHECK_EQ(Explore({Policy::kLru, 3, 2, 1, 5}), 26172);
  CHECK_EQ(Explore({Policy::kLru, 3, 2, 2, 4}), 5948);
  CHECK_EQ(Explore({Policy::kLfu, 3, 2, 2, 4}), 5948);
  CHECK_EQ(Explore({Policy::kStatic, 2, 1, 1, 5}), 8591);
}

// ---- Long random runs.

Ids RandomBatch(Rng* rng, const TablePair& pair) {
  Ids ids(Below(rng, 1 + std::max<int64_t>(2, pair.Slots() / (1 + Below(rng, 4)))));
  const double exponent = 1 + Below(rng, 3);
  for (int64_t& id : ids) {
    id = static_cast<int64_t>(pair.Rows() * std::pow(Uniform(rng, 0, 1), exponent));
  }
  return ids;
}
Padding RandomPadding(Rng* rng) {
  if (Below(rng, 2) == 0) return {};
  return {true, Below(rng, 2) - 1};  // which may be no id of a row
}

void CheckRefuses(Rng* rng, TablePair* pair) {
  Ids ids = {0, 0, 0};
  const int64_t k = Below(rng, 3);
  ids[k] = Below(rng, 2) ? pair->Rows() + Below(rng, 2) : -1 - Below(rng, 2);
  const std::string words = "`ids` must be in `[0, " + std::to_string(pair->Rows()) +
                            ")`. Received: `ids[" + std::to_string(k) +
                            "]=" + std::to_string(ids[k]) + "`";
  Slab* const slab = pair->GetSlab();
  CachedTable* const table = pair->Table();
  std::vector<int32_t> slots(3);
  Floats rows(3 * table->Store().Width());
  CHECK_EQ(ErrorOf([&] { table->Lookup(ids.data(), 3, {}, slab, slots.data()); }), words);
  CHECK_EQ(ErrorOf([&] { table->Lookup(ids.data(), 3, {true, 0}, slab, slots.data()); }), words);
  CHECK_EQ(ErrorOf([&] { table->Prefetch(0, ids.data(), 3, {}, slab); }), words);
  CHECK_EQ(ErrorOf([&] { table->Reset(ids.data(), 3); }), words);
  CHECK_EQ(ErrorOf([&] { table->Read(ids.data(), 3, slab, rows.data()); }), words);
}

// Returns false where there was no room for a batch.
bool Step(Rng* rng, TablePair* pair) {
  const int actor = static_cast<int>(Below(rng, 3));
  const int64_t action = Below(rng, 64);
  const int64_t coming = pair->Coming().size();
  if (action < 18 && !pair->IsIdle(actor)) {
    if (!pair->IsTrained(actor)) pair->Train(actor);
  } else if (action < 36 && !pair->IsIdle(actor)) {
    pair->Finish(actor, pair->IsTrained(actor) || Below(rng, 8) == 0);
  } else if (action < 24 && coming > 0) {
    const auto next = std::next(pair->Coming().begin(), Below(rng, 4) ? 0 : Below(rng, coming));
    const Ids ids = next->ids;
    return pair->Lookup(actor, ids, Below(rng, 16) ? next->padding : RandomPadding(rng));
  } else if (action < 36) {
    return pair->Lookup(actor, RandomBatch(rng, *pair), RandomPadding(rng));
  } else if (action < 51) {
    pair->Prefetch(Below(rng, 2), RandomBatch(rng, *pair), RandomPadding(rng));
  } else if (action < 53) {
    pair->Forget(Below(rng, 2));
  } else if (action < 57) {
    pair->Checkpoint();
  } else if (action < 60) {
    pair->Read(RandomBatch(rng, *pair));
  } else if (action < 62) {
    pair->Reset(RandomBatch(rng, *pair));
  } else if (action == 62) {
    CheckRefuses(rng, pair);
  } else if (pair->Rows() < 200) {
    pair->Grow(pair->Rows() + Below(rng, pair->Rows()) - 1);
  }
  return true;
}

void CheckAtRandom(uint64_t seed, Policy policy, int64_t slots, int64_t width, int steps) {
  Rng rng(seed);
  TablePair pair(1 + slots * (1 + Below(&rng, 3)), slots, width, policy, seed);
  int64_t full = 0;
  int64_t awaited = 0;
  int64_t hits = 0;
  for (int step = 0; step < steps; ++step) {
    full += !Step(&rng, &pair);
    if (step % 32 == 0) pair.CheckAll();
    if (step % 200 == 199) {
      pair.FinishAll();
      pair.Checkpoint();
      pair.CheckAll();
      awaited += pair.Stats().awaited;
      hits += pair.Stats().hits;
      pair.Reopen();
      pair.CheckAll();
    }
  }
  CHECK(steps < 1000 || (full > 5 && awaited > 50 && hits > 30), full, awaited, hits, slots);
}

void TestRandomRuns() {
  uint64_t seed = 0;
  for (const Policy policy : kPolicies) {
    for (const int64_t slots : {1, 2, 3, 5, 8, 17, 40}) {
      CheckAtRandom(++seed, policy, slots, /*width=*/4 + slots % 3, 2000);
    }
  }
  // Rows so wide that three of them are moved with one call.
  CheckAtRandom(++seed, Policy::kLru, 12, 20000, 100);
}

// ---- Announced batches.

void TestABatchThatDoesNotFit() {
  TablePair pair(20, 4, 5, Policy::kLru);
  CHECK(pair.Lookup(0, {1}));
  pair.Prefetch(0, {2, 3, 2});
  CHECK(!pair.Lookup(1, {4, 5, 6, 7}));
  CHECK(!pair.Lookup(1, {4, 5, 6, 7, 8}));
  CHECK(pair.Lookup(1, {2, 3, 2}));  // as announced, all the same
  CHECK_EQ(pair.Stats().awaited, 1);
  CHECK(!pair.Lookup(2, {4, 5}));
  CHECK(pair.Lookup(2, {4, 1}));
  pair.Finish(1, true);
  CHECK(pair.Lookup(1, {5, 6}));
  pair.FinishAll();
  pair.CheckAll();
}

void TestAnnouncedBatchesGiveWay() {
  TablePair pair(20, 4, 5, Policy::kLru);
  pair.Prefetch(0, {0});
  pair.Prefetch(1, {1, 1});
  pair.Prefetch(0, {2, 3});
  pair.Prefetch(1, {4});  // no room
  CHECK_EQ(pair.Stats().announced, 3);
  CHECK(pair.Lookup(0, {5, 6}));  // in the place of the last one
  CHECK_EQ(pair.Coming().size(), 2u);
  pair.Finish(0, true);
  CHECK(pair.Lookup(0, {1, 1}));
  CHECK(pair.Lookup(1, {0}));
  CHECK_EQ(pair.Stats().awaited, 2);
  CHECK_EQ(pair.Stats().hits, 3);
  CHECK(pair.Lookup(2, {2, 3}));  // whose rows are gone
  CHECK_EQ(pair.Stats().rows_written, 2);
  pair.FinishAll();
  pair.CheckAll();
}

void TestOrderOfAnnouncedBatches() {
  TablePair pair(20, 8, 5, Policy::kLru);
  const auto come = [&](const Ids& ids) {
    const int64_t before = pair.Stats().awaited;
    CHECK(pair.Lookup(0, ids));
    pair.Finish(0, false);
    return pair.Stats().awaited > before;
  };
  for (const int64_t id : {1, 2, 2, 3}) pair.Prefetch(0, {id});
  pair.Prefetch(1, {9});
  CHECK(come({2}));   // without the one before it, which will not come any more
  CHECK(!come({1}));  // or does, and is there
  CHECK(come({2}));
  CHECK(!come({2}));
  CHECK(!come({3, 3}));
  CHECK(come({3}));
  CHECK(come({9}));  // another stream keeps its own order
  CHECK_EQ(pair.Coming().size(), 0u);
  CHECK_EQ(pair.Stats().hits, pair.Stats().lookups);

  pair.Prefetch(0, {4});  // never comes
  pair.Prefetch(1, {5});
  pair.Forget(0);
  CHECK(!come({4}));
  CHECK(come({5}));
  // The very same batch has the same padding.
  pair.Prefetch(0, {6, 0}, {true, 0});
  CHECK(!come({6, 0}));
  CHECK(pair.Lookup(0, {6, 0}, {true, 0}));
  pair.Prefetch(0, {});
  CHECK(pair.Lookup(1, {}));
  CHECK(pair.Lookup(2, {0, 0, 0}, {true, 0}));
  CHECK_EQ(pair.Stats().awaited, 7);
  pair.FinishAll();
  pair.CheckAll();
}

// A batch that comes while its rows do waits for them, and is the announced one.
void TestABatchThatComesEarly() {
  TablePair pair(20, 4, 5, Policy::kLru);
  const Ids ids = {3, 7};
  CachedTable* const table = pair.Table();
  std::atomic<bool> has_begun{false};
  std::thread trainer;
  pair.GetSlab()->on_move = [&] {
    trainer = std::thread([&] {
      std::vector<int32_t> slots(2);
      has_begun = true;
      table->Lookup(ids.data(), 2, {}, pair.GetSlab(), slots.data());
    });
    while (!has_begun) std::this_thread::yield();
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    pair.GetSlab()->on_move = nullptr;
  };
  table->Prefetch(0, ids.data(), 2, {}, pair.GetSlab());
  trainer.join();
  const CachedTable::Stats stats = table->GetStats();
  CHECK_EQ(stats.awaited, 1);
  CHECK_EQ(stats.hits, 2);
  table->Reset(ids.data(), 2);  // which nobody uses any more
}

// ---- Files that fail.

struct Scene {
  Rng rng;
  TablePair pair;

  explicit Scene(uint64_t seed)
      : rng(seed), pair(12, 4, 4, kPolicies[seed % std::size(kPolicies)], seed) {
    Steps(6);
    pair.Checkpoint();
    Steps(8);
  }
  void Steps(int steps) {
    while (steps-- > 0) Step(&rng, &pair);
  }
  void CheckGoesOn() {
    Steps(6);
    pair.FinishAll();
    pair.Checkpoint();
    pair.CheckAll();
    pair.Reopen();
  }
};

// That nothing works until the table is opened again, and errors stay what they are.
void CheckIsLost(TablePair* pair) {
  const Ids ids = {0};
  int32_t slot = 0;
  Floats row(pair->Table()->Store().Width());
  CachedTable* const table = pair->Table();
  Slab* const slab = pair->GetSlab();
  std::set<std::string> errors;
  for (int i = 0; i < 2; ++i) {
    errors.insert(ErrorOf([&] { table->Lookup(ids.data(), 1, {}, slab, &slot); }));
    errors.insert(ErrorOf([&] { table->Prefetch(0, ids.data(), 1, {}, slab); }));
    errors.insert(ErrorOf([&] { table->Checkpoint("{}", slab); }));
    errors.insert(ErrorOf([&] { table->Reset(ids.data(), 1); }));
    errors.insert(ErrorOf([&] { table->Grow(1000); }));
    if (!pair->Coming().empty()) {
      const auto& next = pair->Coming().front();
      std::vector<int32_t> slots(next.ids.size());
      errors.insert(ErrorOf([&] {
        table->Lookup(next.ids.data(), next.ids.size(), next.padding, slab, slots.data());
      }));
    }
  }
  CHECK_EQ(errors.size(), 1u, *errors.begin(), *errors.rbegin());
  CHECK(Contains(*errors.begin(), "The table must be opened again, at its last checkpoint"));
  // In its words or in those of its store.
  CHECK(Contains(ErrorOf([&] { table->Read(ids.data(), 1, slab, row.data()); }), "opened again"));
  CHECK_EQ(ErrorOf([&] { table->Forget(0); }), "");
}

// Lets call `n` of files or of the slab fail with this error, or end the process there where it is
// 0, with half of what the call before it writes. Returns whether there is such a call.
bool Disturb(Scene* scene, int64_t n, int error, bool is_slab) {
  TablePair* const pair = &scene->pair;
  int64_t left = n;
  const auto is_now = [&](const std::string& call) {
    if (left-- != 0) return false;
    if (error == 0) throw Killed();
    pair->fault = call;
    return true;
  };
  const Hooked hooked([&](const char* call, const std::string& path, size_t* bytes) {
    // Without a mapping rows are read all the same, and an index without its file is memory.
    const bool is_needed = call != std::string("mmap") &&
                           (call == std::string("fsync") || !std::filesystem::is_directory(path));
    if (!is_slab && (error == 0 || is_needed) && is_now(call)) return error;
    if (!is_slab && error == 0 && left == 0 && *bytes > 1) *bytes /= 2;
    const bool is_commit = std::filesystem::path(path).filename() == "header.json.new";
    if (call == std::string("rename") && is_commit) pair->has_commit = true;
    return 0;
  });
  if (is_slab) {
    pair->GetSlab()->on_move = [&] {
      if (is_now("slab")) throw StoreError(std::strerror(error));
    };
  }
  bool is_disturbed = true;
  try {
    scene->Steps(8);
    pair->Checkpoint();
    scene->Steps(4);
    is_disturbed = false;
  } catch (const Killed&) {
  } catch (const FileFault& fault) {
    pair->fault.clear();
    if (fault.is_of_read) {
      pair->CheckAll();  // nothing is lost
    } else {
      CheckIsLost(pair);
    }
  }
  pair->GetSlab()->on_move = nullptr;
  return is_disturbed;
}

void TestFailuresAndEnds() {
  int64_t calls = 0;
  int64_t commits = 0;
  for (const uint64_t seed : {1, 2, 3, 4, 5, 6}) {
    for (const int error : {ENOSPC, EIO, 0}) {
      for (const bool is_slab : {false, true}) {
        for (int64_t n = 0;; ++n, ++calls) {
          Scene scene(seed);
          if (!Disturb(&scene, n, error, is_slab)) break;
          commits += scene.pair.has_commit;
          scene.pair.Reopen();
          scene.CheckGoesOn();
        }
      }
    }
  }
  CHECK(calls > 500 && commits > 200, calls, commits);
}

// ---- Edges.

void TestCountsDoNotOverflow() {
  TablePair pair(4, 2, 4, Policy::kLru);
  const int64_t id = 1;
  int32_t slot;
  std::vector<std::unique_ptr<CachedTable::Lease>> leases;
  const auto look_up = [&] {
    leases.push_back(pair.Table()->Lookup(&id, 1, {}, pair.GetSlab(), &slot));
  };
  for (int k = 0; k < RowCache::kMaxLeases; ++k) look_up();
  CHECK(!ErrorOf(look_up).empty());
  leases.pop_back();
  look_up();
}

void TestALeaseKeepsTheTable() {
  const StoreFolder folder;
  auto store = RowStore::Create(folder.Path(), 4, ColumnsOf(3), "{}");
  MemorySlab slab(2, 1);
  const InitialRows initial{InitialRows::Kind::kConstant, 5, 0, 0, 1, {0, 0}};
  auto table = std::make_shared<CachedTable>(std::move(store), 2, Policy::kLru, initial);
  const std::weak_ptr<CachedTable> alive = table;
  const int64_t id = 2;
  int32_t slot;
  auto lease = table->Lookup(&id, 1, {}, &slab, &slot);
  CHECK_EQ(slab.Row(slot)[0], 5);
  table.reset();
  CHECK(!alive.expired());
  lease->End(true);
  CHECK(alive.expired());
  lease->End(true);
  RowStore::Open(folder.Path());
}

// So many rows that they are moved with several calls, and slots are looked at with several locks.
// Some are used twice, of which some are gone in between.
void TestManyRows(const Ids& ids, int64_t rows, int64_t slots, int64_t second) {
  constexpr int64_t kWidth = 3;
  const StoreFolder folder;
  auto store = RowStore::Create(folder.Path(), rows, ColumnsOf(kWidth), "{}");
  MemorySlab slab(slots, 1);
  const InitialRows initial{InitialRows::Kind::kConstant, 1, 0, 0, 1, {0, 0}};
  const auto table = std::make_shared<CachedTable>(std::move(store), slots, Policy::kLru, initial);
  for (const int64_t first : {int64_t{0}, second}) {
    std::vector<int32_t> places(slots);
    const auto lease = table->Lookup(&ids[first], slots, {}, &slab, places.data());
    for (int64_t k = 0; k < slots; ++k) {
      float* const weight = slab.Row(places[k]);
      CHECK_EQ(*weight, first > 0 && k + first < slots ? 1 + (k + first) % 1000 : 1, k, first);
      *weight += static_cast<float>((k + first) % 1000);
    }
    lease->End(true);
    table->Checkpoint("{}", &slab);
  }
  CHECK_EQ(table->GetStats().rows_written, 2 * slots);
  const int64_t count = ids.size();
  const auto check = [&](const Floats& actual) {
    for (int64_t k = 0; k < count; ++k) {
      const int times = (k < slots) + (k >= second);
      CHECK_EQ(actual[k * kWidth], 1 + times * (k % 1000), k);
      CHECK_EQ(actual[k * kWidth + 1], times, k);
      CHECK_EQ(actual[k * kWidth + 2], k < second ? 1 : 2, k);
    }
  };
  Floats actual(count * kWidth);
  table->Read(ids.data(), count, &slab, actual.data());
  check(actual);
  std::vector<uint8_t> is_there(count);
  table->Store().Read(ids.data(), count, actual.data(), is_there.data());
  check(actual);
}

void TestManyRows() {
  Rng rng(1);
  Ids ids(100000);
  std::iota(ids.begin(), ids.end(), int64_t{0});
  std::shuffle(ids.begin(), ids.end(), rng);
  TestManyRows(ids, ids.size(), 70000, 30000);
  // Ids that are large, or differ in few bits: by 2^32, among others.
  const int64_t rows = int64_t{1} << 34;
  ids.resize(600);
  for (int64_t k = 0; k < 600; ++k) ids[k] = k % 2 ? rows - k : (k / 2) << 25;
  TestManyRows(ids, rows, 400, 200);
}

}  // namespace
}  // namespace tfrec

int main() {
  tfrec::TestAllInterleavings();
  tfrec::TestRandomRuns();
  tfrec::TestABatchThatDoesNotFit();
  tfrec::TestAnnouncedBatchesGiveWay();
  tfrec::TestOrderOfAnnouncedBatches();
  tfrec::TestABatchThatComesEarly();
  tfrec::TestFailuresAndEnds();
  tfrec::TestCountsDoNotOverflow();
  tfrec::TestALeaseKeepsTheTable();
  tfrec::TestManyRows();
  return 0;
}
