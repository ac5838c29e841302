// What the memory of this machine allows: the pooled forward pass, and the update of the rows of a
// batch, with nothing around them. Built and started by _workers.py; speaks the lines that
// _peer_worker.py speaks. "gather" sums the rows of each bag; "update" reads, changes and writes
// each row of a batch once. The table lies in 4 KiB pages or in huge pages, as the cell says.

#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <fstream>
#include <functional>
#include <iostream>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

namespace {

using Clock = std::chrono::steady_clock;

[[noreturn]] void Fail(const std::string& message) {
  std::cerr << "_ceiling: " << message << std::endl;
  std::exit(1);
}

// The value of `name` in one line of flat JSON, as text; strings without their quotes.
std::string Field(const std::string& json, const std::string& name) {
  size_t start = json.find("\"" + name + "\":");
  if (start == std::string::npos) Fail("the cell has no " + name);
  start = json.find_first_not_of(' ', start + name.size() + 3);
  const bool is_text = json[start] == '"';
  const size_t end = json.find_first_of(is_text ? "\"" : ",}", start + 1);
  return json.substr(start + is_text, end - start - is_text);
}

int64_t Number(const std::string& json, const std::string& name) {
  return std::atoll(Field(json, name).c_str());
}

// The numbers of a .npy file, whose shape and dtype the caller knows.
template <typename T>
std::vector<T> Load(const std::string& path, size_t size) {
  std::ifstream file(path, std::ios::binary);
  char start[10];
  if (!file.read(start, 10)) Fail("cannot read " + path);
  file.seekg(10 + static_cast<uint8_t>(start[8]) + 256 * static_cast<uint8_t>(start[9]));
  std::vector<T> values(size);
  if (!file.read(reinterpret_cast<char*>(values.data()), size * sizeof(T))) {
    Fail(path + " is too short");
  }
  return values;
}

// Threads that sleep until there is work, like those of the rivals.
class Threads {
 public:
  explicit Threads(int count) {
    for (int i = 1; i < count; ++i) threads_.emplace_back([this] { Wait(); });
  }

  ~Threads() {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      is_over_ = true;
    }
    wake_.notify_all();
    for (std::thread& thread : threads_) thread.join();
  }

  // Calls work(begin, end) until [0, size) is done; whoever is free takes the next piece.
  void Run(int64_t size, int64_t piece, const std::function<void(int64_t, int64_t)>& work) {
    next_ = 0;
    take_ = [this, size, piece, &work] {
      for (int64_t begin; (begin = next_.fetch_add(piece)) < size;) {
        work(begin, std::min(begin + piece, size));
      }
    };
    {
      std::lock_guard<std::mutex> lock(mutex_);
      ++turn_;
      busy_ = threads_.size();
    }
    wake_.notify_all();
    take_();
    std::unique_lock<std::mutex> lock(mutex_);
    done_.wait(lock, [this] { return busy_ == 0; });
  }

 private:
  void Wait() {
    int64_t seen = 0;
    for (;;) {
      {
        std::unique_lock<std::mutex> lock(mutex_);
        wake_.wait(lock, [&] { return is_over_ || turn_ != seen; });
        if (is_over_) return;
        seen = turn_;
      }
      take_();
      std::lock_guard<std::mutex> lock(mutex_);
      if (--busy_ == 0) done_.notify_one();
    }
  }

  std::vector<std::thread> threads_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::condition_variable done_;
  std::function<void()> take_;
  std::atomic<int64_t> next_{0};
  int64_t turn_ = 0;
  size_t busy_ = 0;
  bool is_over_ = false;
};

float* MapTable(int64_t rows, int64_t dim, bool huge_pages) {
  constexpr size_t kHugePage = size_t{2} << 20;
  const size_t bytes = rows * dim * sizeof(float);
  void* memory =
      mmap(nullptr, bytes + kHugePage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) Fail("no memory for the table");
  const uintptr_t address = reinterpret_cast<uintptr_t>(memory);
  void* table = reinterpret_cast<void*>((address + kHugePage - 1) / kHugePage * kHugePage);
  // Where the kernel has no transparent huge pages both kinds are the same, which is the truth.
  madvise(table, bytes, huge_pages ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
  return static_cast<float*>(table);
}

// kDim is 0 where the width of a row is known at run time only.
template <int kDim>
struct Kernels {
  // Into the first level of the cache or into the second, which can wait for more lines at once.
  static void Prefetch(const float* row, int64_t dim, int level) {
    const int64_t width = kDim ? kDim : dim;
    const char* address = reinterpret_cast<const char*>(row);
    for (int64_t byte = 0; byte < width * 4; byte += 64) {
      if (level == 1) {
        __builtin_prefetch(address + byte, 0, 3);
      } else {
        __builtin_prefetch(address + byte, 0, 2);
      }
    }
  }

  // pooled[bag] = sum of the rows of the bag, for the bags in [begin, end).
  static void Gather(const float* table, int64_t dim, const int64_t* ids, int64_t hotness,
                     int64_t distance, int level, int64_t last, int64_t begin, int64_t end,
                     float* pooled) {
    const int64_t width = kDim ? kDim : dim;
    std::vector<float> wide(kDim ? 0 : width);
    float narrow[kDim ? kDim : 1];
    float* sum = kDim ? narrow : wide.data();
    for (int64_t bag = begin; bag < end; ++bag) {
      std::fill(sum, sum + width, 0.f);
      for (int64_t i = bag * hotness; i < (bag + 1) * hotness; ++i) {
        if (distance) Prefetch(table + ids[std::min(i + distance, last)] * width, dim, level);
        const float* row = table + ids[i] * width;
        for (int64_t column = 0; column < width; ++column) sum[column] += row[column];
      }
      std::copy(sum, sum + width, pooled + bag * width);
    }
  }

  // Adds a constant to the rows ids[begin:end).
  static void Update(float* table, int64_t dim, const int64_t* ids, int64_t distance, int level,
                     int64_t last, int64_t begin, int64_t end) {
    const int64_t width = kDim ? kDim : dim;
    for (int64_t i = begin; i < end; ++i) {
      if (distance) Prefetch(table + ids[std::min(i + distance, last)] * width, dim, level);
      float* row = table + ids[i] * width;
      for (int64_t column = 0; column < width; ++column) row[column] += 1e-6f;
    }
  }
};

struct Cell {
  explicit Cell(const std::string& json)
      : rows(Number(json, "rows")),
        dim(Number(json, "dim")),
        batches(Number(json, "batches")),
        batch(Number(json, "batch")),
        hotness(Number(json, "hotness")),
        is_update(Field(json, "kind") == "update"),
        huge_pages(Field(json, "pages") == "huge"),
        threads(Number(json, "threads")),
        ids(Load<int64_t>(Field(json, "ids"), batches * batch * hotness)),
        pattern_rows(Number(json, "pattern_rows")),
        pattern(Load<float>(Field(json, "pattern"), pattern_rows * dim)),
        bag_weights(Load<double>(Field(json, "bag_weights"), batch)) {}

  const int64_t rows, dim, batches, batch, hotness;
  const bool is_update, huge_pages;
  const int threads;
  const std::vector<int64_t> ids;
  const int64_t pattern_rows;
  const std::vector<float> pattern;
  const std::vector<double> bag_weights;
};

template <int kDim>
class Ceiling {
 public:
  explicit Ceiling(const Cell& cell)
      : cell_(cell),
        threads_(cell.threads),
        table_(MapTable(cell.rows, cell.dim, cell.huge_pages)),
        pooled_(cell.batch * cell.dim) {
    for (int64_t row = 0; row < cell.rows; ++row) {
      std::memcpy(table_ + row * cell.dim, &cell.pattern[row % cell.pattern_rows * cell.dim],
                  cell.dim * sizeof(float));
    }
    const int64_t lookups = cell.batch * cell.hotness;
    for (int64_t batch = 0; batch < cell.batches; ++batch) {
      const auto first = cell.ids.begin() + batch * lookups;
      // An update may take its rows in any order: the order of addresses is the fastest.
      std::vector<int64_t> unique(first, first + lookups);
      std::sort(unique.begin(), unique.end());
      unique.erase(std::unique(unique.begin(), unique.end()), unique.end());
      unique_.push_back(std::move(unique));
    }
  }

  // The columns of the pooled rows of batch 0, the bags summed with weights: shows that all rivals
  // compute the same.
  std::string Pooled() {
    Gather(0);
    std::string text;
    for (int64_t column = 0; column < cell_.dim; ++column) {
      double sum = 0;
      for (int64_t bag = 0; bag < cell_.batch; ++bag) {
        sum += cell_.bag_weights[bag] * pooled_[bag * cell_.dim + column];
      }
      char number[32];
      std::snprintf(number, sizeof number, "%s%.9g", column ? ", " : "", sum);
      text += number;
    }
    return text;
  }

  // Finds the prefetches with which this machine is fastest; a distance of 0 is none.
  void Tune() {
    double least = 1e30;
    int64_t best = 0;
    int best_level = 2;
    for (int64_t setting : {0, 2, 4, 8, 16, 32, 64, -8, -16, -24, -32, -48, -64}) {
      distance_ = std::abs(setting);  // negative for the second level
      level_ = setting < 0 ? 2 : 1;
      double took = 1e30;
      for (int i = 0; i < 6; ++i) {
        const auto start = Clock::now();
        Run(i % cell_.batches);
        took = std::min(took, std::chrono::duration<double>(Clock::now() - start).count());
      }
      if (took < least) {
        least = took;
        best = distance_;
        best_level = level_;
      }
    }
    distance_ = best;
    level_ = best_level;
  }

  void Run(int64_t batch) { cell_.is_update ? Update(batch) : Gather(batch); }

  int64_t distance() const { return distance_; }
  int level() const { return level_; }

 private:
  void Gather(int64_t batch) {
    const int64_t lookups = cell_.batch * cell_.hotness;
    const int64_t* ids = cell_.ids.data() + batch * lookups;
    threads_.Run(cell_.batch, 64, [&](int64_t begin, int64_t end) {
      Kernels<kDim>::Gather(table_, cell_.dim, ids, cell_.hotness, distance_, level_, lookups - 1,
                            begin, end, pooled_.data());
    });
  }

  void Update(int64_t batch) {
    const std::vector<int64_t>& ids = unique_[batch];
    const int64_t size = ids.size();
    threads_.Run(size, 2048, [&](int64_t begin, int64_t end) {
      Kernels<kDim>::Update(table_, cell_.dim, ids.data(), distance_, level_, size - 1, begin, end);
    });
  }

  const Cell& cell_;
  Threads threads_;
  float* const table_;
  std::vector<float> pooled_;
  std::vector<std::vector<int64_t>> unique_;
  int64_t distance_ = 8;
  int level_ = 2;
};

double CpuMilliseconds() {
  timespec time;
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
  return time.tv_sec * 1e3 + time.tv_nsec * 1e-6;
}

template <int kDim>
void Answer(const Cell& cell) {
  Ceiling<kDim> ceiling(cell);
  const std::string pooled = ceiling.Pooled();
  ceiling.Tune();
  std::cout << "{\"ready\": true, \"pooled\": [" << pooled << "], \"versions\": {}, "
            << "\"prefetch_distance\": " << ceiling.distance()
            << ", \"prefetch_level\": " << ceiling.level() << "}" << std::endl;
  double slept_from = CpuMilliseconds();
  std::string word;
  for (int64_t batch; std::cin >> word >> batch;) {
    const double cpu = CpuMilliseconds();
    const auto wall = Clock::now();
    ceiling.Run(batch);
    const std::chrono::duration<double, std::milli> took = Clock::now() - wall;
    const double idle = cpu - slept_from;
    slept_from = CpuMilliseconds();
    std::cout << "{\"wall\": " << took.count() << ", \"cpu\": " << slept_from - cpu
              << ", \"idle_cpu\": " << idle << "}" << std::endl;
  }
}

}  // namespace

int main() {
  std::string json;
  std::getline(std::cin, json);
  const Cell cell(json);
  switch (cell.dim) {
    case 32:
      Answer<32>(cell);
      break;
    case 64:
      Answer<64>(cell);
      break;
    case 128:
      Answer<128>(cell);
      break;
    default:
      Answer<0>(cell);
  }
}
