// The cores on real threads, for ThreadSanitizer to watch, with the results of one thread.
#include <fcntl.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <mutex>
#include <set>
#include <shared_mutex>
#include <thread>
#include <vector>

#include "custom_ops/casting/casting.h"
#include "custom_ops/common/huge_pages.h"
#include "custom_ops/common/parallel.h"
#include "custom_ops/gather_reduce/gather_reduce.h"
#include "custom_ops/gather_reduce/table_gradient.h"
#include "custom_ops/neighbourhood/points.h"
#include "custom_ops/row_store/cached_table.h"
#include "custom_ops/row_store/initial_rows.h"
#include "custom_ops/row_store/mapped_records.h"
#include "custom_ops/row_store/row_store.h"
#include "custom_ops/row_store/store_file.h"
#include "custom_ops/row_update/row_update.h"
#include "tests/cc/check.h"
#include "tests/cc/random_lookups.h"
#include "tests/cc/random_points.h"
#include "tests/cc/random_rows.h"
#include "tests/cc/random_updates.h"
#include "tests/cc/slow_cached_table.h"
#include "tests/cc/store_folder.h"

namespace tfrec {
namespace {

// Threads share no more or less for other types. Rows of this one are rounded at random too.
using T = BFloat16;
using Id = int32_t;
using Problem = Typed<T, Id>;

constexpr int64_t kThreads = 4;
constexpr int64_t kRows = 3000;
constexpr int64_t kDim = 5;

void RunTogether(int64_t count, const std::function<void(int64_t)>& work) {
  std::vector<std::thread> threads;
  for (int64_t i = 0; i < count; ++i) threads.emplace_back(work, i);
  for (std::thread& thread : threads) thread.join();
}

// A thread for each block.
Parallel Together(int64_t threads) { return {threads, RunTogether}; }

// More than 16384 lookups for each thread, which is where all the cores use all of them.
std::vector<TableProblem> ManyProblems() {
  Rng rng(1);
  const FeatureShape plain{Combiner::kSum, false, false, false, 20};
  const FeatureShape ragged{Combiner::kMean, true, true, true, 40};
  const FeatureShape dense{Combiner::kSqrtn, true, false, true, 25};
  return {RandomTableProblem(&rng, {plain}, 3500, kRows, kDim),
          RandomTableProblem(&rng, {ragged, dense}, 1800, kRows, kDim),
          // Three ids, so that blocks meet within a segment.
          RandomTableProblem(&rng, {plain}, 3500, 3, kDim)};
}

void TestCasting(const TableProblem& untyped) {
  const Problem problem(untyped);
  const Parallel parallel = Together(kThreads);
  const std::vector<int64_t> expected = CastAll(problem.lookups());
  const int64_t blocks = parallel.Blocks(problem.lookups().Total(), 16384);
  CHECK_EQ(blocks, kThreads);
  CHECK(CastAll(problem.lookups(), parallel, blocks) == expected);
  Casting casting;
  CHECK(IsCastingOf(problem.lookups(), expected.data(), parallel, &casting));
  std::vector<int64_t> forged = expected;
  std::swap(forged[100], forged[101]);
  CHECK(!IsCastingOf(problem.lookups(), forged.data(), parallel, &casting));
}

// The steps of the kernels behind a casting.
class Backward {
 public:
  Backward(const Problem& problem, const Parallel& parallel)
      : parallel_(parallel),
        pairs_(CastAll(problem.lookups())),
        gradient_(problem.features(), problem.grads().data(), problem.rounded().width, kDim,
                  parallel) {
    CHECK(IsCastingOf(problem.lookups(), pairs_.data(), parallel, &casting_));
  }

  std::vector<T> Coalesced() const {
    const int64_t blocks = parallel_.Blocks(casting_.count, 1024);
    std::vector<int64_t> starts(blocks + 1);
    parallel_.Split(casting_.count, blocks, [&](int64_t block, int64_t first, int64_t last) {
      starts[block + 1] = CountSegments(casting_, first, last);
    });
    for (int64_t block = 0; block < blocks; ++block) starts[block + 1] += starts[block];
    std::vector<Id> ids(starts[blocks]);
    std::vector<T> values = Unwritten<T>(starts[blocks] * kDim);
    parallel_.Split(casting_.count, blocks, [&](int64_t block, int64_t first, int64_t last) {
      CoalescedGradient(casting_, gradient_, kDim, SelectRowReducer<T>(BestIsa()), first, last,
                        ids.data() + starts[block], values.data() + starts[block] * kDim);
    });
    CHECK(std::is_sorted(ids.begin(), ids.end()));
    return values;
  }

  void Update(const RuleInfo& info, Rounding rounding, TableData<T>* data) const {
    Rng rng(2);
    const auto hyper = Converted<Accumulator<T>>(RandomHyperparameters(&rng, info.rule));
    const TrainedTable<T> table = data->View();
    parallel_.Split(casting_.count, parallel_.Blocks(casting_.count, 100),
                    [&](int64_t, int64_t first, int64_t last) {
                      UpdateRows(casting_, gradient_, SelectRowReducer<T>(BestIsa()),
                                 SelectRowUpdater<T>(info.rule, BestIsa()), hyper, rounding, table,
                                 first, last);
                    });
  }

 private:
  const Parallel parallel_;
  const std::vector<int64_t> pairs_;
  const GradientRows<T> gradient_;
  Casting casting_;
};

void TestBackward(const TableProblem& untyped) {
  Rng rng(3);
  const Problem problem(untyped);
  const Backward serial(problem, Parallel());
  const Backward parallel(problem, Together(kThreads));
  CHECK(SameBits(parallel.Coalesced(), serial.Coalesced()));
  for (const RuleInfo& info : kRules) {
    TableData<T> expected(&rng, info, kRows, kDim);
    TableData<T> actual = expected;
    serial.Update(info, {true, 5}, &expected);
    parallel.Update(info, {true, 5}, &actual);
    CHECK(actual.IsSame(expected), info.name);
  }
}

// Bags of all features, one feature beside the other.
std::vector<T> Forward(const Problem& problem, const Table<T>& table, const Parallel& parallel) {
  const int64_t width = problem.rounded().width;
  std::vector<T> out(problem.features()[0].bags.count * width);
  for (const Feature<T, Id>& feature : problem.features()) {
    parallel.Split(feature.bags.count, parallel.threads, [&](int64_t, int64_t first, int64_t last) {
      const bool plain = !feature.weights && !feature.bags.has_padding;
      T* const from = out.data() + feature.column;
      const bool good =
          plain ? GatherReducePlain(table, feature.bags, feature.combiner,
                                    SelectIdReducer<T, Id>(BestIsa()), first, last, width, from)
                : GatherReduce(table, feature.bags, feature.weights, feature.combiner,
                               SelectRowReducer<T>(BestIsa()), first, last, width, from);
      CHECK(good, first, last);
    });
  }
  return out;
}

std::vector<Accumulator<T>> WeightGrads(const Problem& problem, const Table<T>& table,
                                        const Parallel& parallel) {
  std::vector<Accumulator<T>> out(problem.lookups().Total());
  int64_t start = 0;
  for (const Feature<T, Id>& feature : problem.features()) {
    const int64_t blocks = feature.weights ? parallel.threads : 0;
    parallel.Split(feature.bags.count, blocks, [&](int64_t, int64_t first, int64_t last) {
      CHECK(GatherReduceWeightGrad(table, feature.bags, feature.weights, feature.combiner,
                                   problem.grads().data() + feature.column, problem.rounded().width,
                                   first, last, out.data() + start),
            first, last);
    });
    start += feature.bags.lookups;
  }
  return out;
}

void TestForward(const TableProblem& untyped) {
  Rng rng(4);
  const Problem problem(untyped);
  const std::vector<T> rows = RandomValues<T>(&rng, kRows * kDim);
  const Table<T> table{rows.data(), kRows, kDim};
  const Parallel parallel = Together(kThreads);
  CHECK(SameBits(Forward(problem, table, parallel), Forward(problem, table, Parallel())));
  CHECK(SameBits(WeightGrads(problem, table, parallel), WeightGrads(problem, table, Parallel())));
}

// As the kernels hold the lock of a variable: a step alone, lookups together.
void TestReadersSeeWholeSteps() {
  constexpr int kSteps = 5;
  Rng rng(5);
  const FeatureShape shape{Combiner::kMean, true, true, true, 6};
  const Problem problem(RandomTableProblem(&rng, {shape}, 300, kRows, kDim));
  const Backward backward(problem, Together(2));
  const RuleInfo& info = kRules[3];
  TableData<T> data(&rng, info, kRows, kDim);
  const auto read = [&](const TableData<T>& from, const Parallel& parallel) {
    return Forward(problem, Table<T>{from.rows.data(), kRows, kDim}, parallel);
  };

  std::vector<std::vector<T>> expected;  // after so many steps
  TableData<T> serial = data;
  for (int step = 0; step <= kSteps; ++step) {
    expected.push_back(read(serial, Parallel()));
    CHECK(step == 0 || !SameBits(expected[step], expected[step - 1]), step);
    backward.Update(info, {}, &serial);
  }

  std::shared_mutex mutex;
  std::atomic<int> steps{0};
  std::thread writer([&] {
    while (steps < kSteps) {
      {
        const std::unique_lock<std::shared_mutex> lock(mutex);
        backward.Update(info, {}, &data);
      }
      ++steps;
    }
  });
  RunTogether(2, [&](int64_t) {
    for (int seen = 0; seen < kSteps;) {
      const int before = steps;
      std::vector<T> actual;
      {
        const std::shared_lock<std::shared_mutex> lock(mutex);
        actual = read(data, Together(2));
      }
      while (seen <= kSteps && !SameBits(actual, expected[seen])) ++seen;
      CHECK(seen <= kSteps && seen >= before, seen, before);
      // A lock that readers hold by turns may keep a writer waiting for ever.
      while (steps < kSteps && steps == before) std::this_thread::yield();
    }
  });
  writer.join();
}

void TestHugePagesForSeveralTables() {
  const std::vector<char> table(int64_t{20} << 20, 7);
  HugePages huge_pages;
  RunTogether(kThreads, [&](int64_t thread) {
    for (int i = 0; i < 3; ++i) {
      huge_pages.Use(0, table.data(), table.size());
      huge_pages.Use(thread, table.data() + thread, table.size() - thread);
    }
  });
  CHECK_EQ(std::count(table.begin(), table.end(), 7), static_cast<int64_t>(table.size()));
}

// As many points as it takes for all threads to have tiles to pack, and to search.
void TestNeighbourhood() {
  constexpr int64_t kPoints = kThreads * 64 * kTile;
  Rng rng(6);
  const Parallel parallel = Together(kThreads);
  const std::vector<float> rows = RandomPoints(&rng, PointKind::kClusters, kPoints, 2);
  const Points serial(rows.data(), kPoints, 2, 0.9999F, BestIsa(), Parallel());
  const Points together(rows.data(), kPoints, 2, 0.9999F, BestIsa(), parallel);
  CHECK_EQ(parallel.Blocks(serial.Tiles(), 64), kThreads);

  Choice expected(&rng, kPoints, 3, 1);
  Choice actual = expected;
  expected.ChooseByOwnGain(serial, 40);
  actual.ChooseByOwnGain(together, 40, parallel);
  CHECK(actual.IsSame(expected));

  const std::vector<float> few(rows.begin(), rows.begin() + 2 * 1200);
  const Points points(few.data(), 1200, 2, 0.99F, BestIsa(), Parallel());
  const GraphData graph(points, 30);
  CHECK(GraphData(points, 30, parallel).IsSame(graph));
  for (const bool own : {false, true}) {
    expected = Choice(&rng, 1200, 3, 1);
    actual = expected;
    expected.ChooseOverGraph(graph.View(), own, 100);
    actual.ChooseOverGraph(graph.View(), own, 100, parallel);
    CHECK(actual.IsSame(expected) && SameBits(actual.bounds, expected.bounds), own);
  }
}

// Each thread writes rows of its own among those of the others, and reads them back, while the
// store grows and makes checkpoints.
void TestRowStore() {
  constexpr int64_t kWidth = 3;
  const StoreFolder folder;
  const auto store = RowStore::Create(folder.Path(), kRows, ColumnsOf(kWidth), "{}");
  const auto work = [&](int64_t thread) {
    Rng rng(thread);
    std::vector<int64_t> ids;
    for (int64_t id = thread; id < kRows; id += kThreads) ids.push_back(id);
    std::vector<float> expected(ids.size() * kWidth);
    std::vector<float> actual(expected.size());
    std::vector<uint8_t> is_there(ids.size());
    for (int round = 0; round < 10; ++round) {
      const size_t first = round > 0 ? rng() % ids.size() : 0;
      for (size_t k = first * kWidth; k < expected.size(); ++k) {
        expected[k] = static_cast<float>(rng() % 1000);
      }
      store->Write(ids.data() + first, ids.size() - first, expected.data() + first * kWidth);
      store->Read(ids.data(), ids.size(), actual.data(), is_there.data());
      CHECK(actual == expected, thread, round);
      CHECK_EQ(std::count(is_there.begin(), is_there.end(), 1), static_cast<int64_t>(ids.size()));
    }
  };
  std::thread saver([&] {
    for (int i = 1; i <= 5; ++i) {
      store->Checkpoint("{}");
      store->Grow(kRows + i);
      store->Verify();
      CHECK_EQ(store->Checkpoints(), i);
    }
  });
  RunTogether(kThreads, work);
  saver.join();
}

// One thread appends records over the borders of chunks, while others read those that are there.
void TestMappedRecordsThatGrow() {
  constexpr int64_t kBytes = 4096;
  constexpr int64_t kRecords = 60000;  // of three chunks
  constexpr int64_t kStep = 16;        // those between are left out
  const StoreFolder folder;
  std::filesystem::create_directory(folder.Path());
  StoreFile file(folder.File("records"), O_RDWR | O_CREAT);
  MappedRecords mapped(0, kBytes);
  std::atomic<int64_t> count{0};
  std::thread writer([&] {
    for (int64_t place = 0; place < kRecords; place += kStep) {
      mapped.Map(file, place + 1);
      file.Resize((place + 1) * kBytes);
      file.Write(&place, sizeof place, place * kBytes);
      count = place + kStep;
      if (place % 256 == 0) std::this_thread::yield();
    }
  });
  RunTogether(2, [&](int64_t thread) {
    Rng rng(thread);
    std::vector<int64_t> record(kBytes / sizeof(int64_t));
    for (int64_t seen = 0, reads = 0; seen < kRecords; ++reads) {
      seen = count;
      if (seen == 0) continue;
      const int64_t place =
          (reads % 2 ? seen - kStep : static_cast<int64_t>(rng() % seen)) / kStep * kStep;
      mapped.Prefetch(place);
      CHECK(mapped.Copy(place, reinterpret_cast<float*>(record.data())), place);
      CHECK_EQ(record[0], place);
    }
  });
  writer.join();
}

// One thread trains for a second, while others announce its batches, read rows and make
// checkpoints. All weights of a row are the same, so that a row that is torn shows.
class CachedTraining {
 public:
  CachedTraining()
      : table_(std::make_shared<CachedTable>(
            RowStore::Create(folder_.Path(), kIds, ColumnsOf(kWidth), "{}"), kSlots, Policy::kLfu,
            InitialRows{InitialRows::Kind::kConstant, 1, 0, 0, kWeights, {0, 0}})),
        slab_(kSlots, kWeights) {}

  void Run() {
    std::vector<std::thread> threads;
    threads.emplace_back([&] { Announce(); });
    threads.emplace_back([&] { Read(); });
    threads.emplace_back([&] { Save(); });
    Train();
    for (std::thread& thread : threads) thread.join();
    const CachedTable::Stats stats = table_->GetStats();
    CHECK(stats.awaited > 10 && stats.rows_written > 10, stats.awaited, stats.rows_written);
    CHECK(table_->Store().Checkpoints() > 1);
    CheckIsSerial();
    table_->Checkpoint("{}", &slab_);
    slab_.Clear();
    table_.reset();
    table_ = std::make_shared<CachedTable>(
        RowStore::Open(folder_.Path()), kSlots, Policy::kLru,
        InitialRows{InitialRows::Kind::kConstant, 1, 0, 0, kWeights, {0, 0}});
    CheckIsSerial();
  }

 private:
  static constexpr int64_t kIds = 300;
  static constexpr int64_t kSlots = 90;
  static constexpr int64_t kWeights = 4;
  static constexpr int64_t kWidth = kWeights + CachedTable::kOwnColumns;

  static Ids BatchOf(int64_t step) {
    Rng rng(step);
    Ids ids(20);
    for (int64_t& id : ids) id = Below(&rng, 1 + Below(&rng, kIds));
    return ids;
  }
  static bool IsAnnounced(int64_t step) { return step % 8 > 0; }
  static float Trained(float weight, int64_t step) {
    return weight * 0.5F + static_cast<float>(step % 100);
  }

  void Train() {
    const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(1);
    for (; steps_ < 200 || std::chrono::steady_clock::now() < end; ++steps_) {
      const Ids ids = BatchOf(steps_);
      while (IsAnnounced(steps_) && announced_ <= steps_) std::this_thread::yield();
      std::vector<int32_t> slots(ids.size());
      const auto lease = table_->Lookup(ids.data(), ids.size(), {}, &slab_, slots.data());
      {
        const std::lock_guard<std::mutex> lock(slab_.Mutex());
        for (const int32_t slot : std::set<int32_t>(slots.begin(), slots.end())) {
          float* const weights = slab_.Row(slot);
          for (int64_t c = 0; c < kWeights; ++c) weights[c] = Trained(weights[c], steps_);
        }
      }
      lease->End(/*is_dirty=*/true);
    }
    is_done_ = true;
  }
  void Announce() {
    for (int64_t step = 0; !is_done_; announced_ = ++step) {
      while (step > steps_ + 3 && !is_done_) std::this_thread::yield();
      if (step % 100 == 99) table_->Forget(0);
      if (!IsAnnounced(step)) continue;
      const Ids ids = BatchOf(step);
      table_->Prefetch(0, ids.data(), ids.size(), {}, &slab_);
    }
  }
  void Read() {
    Rng rng(1);
    std::vector<float> lookups(kIds, 0);
    while (!is_done_) {
      const Ids ids = BatchOf(static_cast<int64_t>(rng() >> 1));
      Floats rows(ids.size() * kWidth);
      table_->Read(ids.data(), ids.size(), &slab_, rows.data());
      for (size_t k = 0; k < ids.size(); ++k) {
        const float* const row = &rows[k * kWidth];
        CHECK_EQ(std::count(row, row + kWeights, row[0]), kWeights, ids[k]);
        CHECK(row[kWeights] >= lookups[ids[k]], ids[k]);
        lookups[ids[k]] = row[kWeights];
      }
      std::this_thread::sleep_for(std::chrono::microseconds(100));
    }
  }
  void Save() {
    while (!is_done_) {
      table_->Checkpoint("{}", &slab_);
      std::this_thread::sleep_for(std::chrono::milliseconds(2));
    }
  }

  void CheckIsSerial() {
    Ids ids(kIds);
    Floats weights(kIds, 1);
    Floats lookups(kIds, 0);
    for (int64_t step = 0; step < steps_; ++step) {
      const Ids batch = BatchOf(step);
      for (const int64_t id : batch) ++lookups[id];
      for (const int64_t id : std::set<int64_t>(batch.begin(), batch.end())) {
        weights[id] = Trained(weights[id], step);
      }
    }
    for (int64_t id = 0; id < kIds; ++id) ids[id] = id;
    Floats rows(kIds * kWidth);
    table_->Read(ids.data(), kIds, &slab_, rows.data());
    for (int64_t id = 0; id < kIds; ++id) {
      const float* const row = &rows[id * kWidth];
      CHECK_EQ(std::count(row, row + kWeights, weights[id]), kWeights, id);
      CHECK_EQ(row[kWeights], lookups[id], id);
    }
  }

  const StoreFolder folder_;
  std::shared_ptr<CachedTable> table_;
  MemorySlab slab_;
  std::atomic<int64_t> steps_{0};
  std::atomic<int64_t> announced_{0};
  std::atomic<bool> is_done_{false};
};

}  // namespace
}  // namespace tfrec

int main() {
  for (const tfrec::TableProblem& problem : tfrec::ManyProblems()) {
    tfrec::TestCasting(problem);
    tfrec::TestBackward(problem);
    tfrec::TestForward(problem);
  }
  tfrec::TestReadersSeeWholeSteps();
  tfrec::TestHugePagesForSeveralTables();
  tfrec::TestNeighbourhood();
  tfrec::TestRowStore();
  tfrec::TestMappedRecordsThatGrow();
  tfrec::CachedTraining().Run();
  return 0;
}
