#include "custom_ops/common/huge_pages.h"

#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "tests/cc/check.h"

// Whether the kernel grants huge pages is its own affair. What is asserted is that the memory holds
// what it held, and that no memory is moved that should not be.
namespace tfrec {
namespace {

constexpr int64_t kMegabyte = int64_t{1} << 20;
constexpr int64_t kPage = 4096;

class Memory {
 public:
  explicit Memory(int64_t bytes) : bytes_(bytes) {
    data_ = static_cast<uint64_t*>(
        mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    CHECK(data_ != MAP_FAILED, bytes);
    for (int64_t i = 0; i < words(); ++i) data_[i] = Word(i);
  }
  ~Memory() { munmap(data_, bytes_); }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;

  char* data() const { return reinterpret_cast<char*>(data_); }
  int64_t words() const { return bytes_ / 8; }
  bool IsIntact() const {
    for (int64_t i = 0; i < words(); ++i) {
      if (data_[i] != Word(i)) return false;
    }
    return true;
  }

 private:
  static uint64_t Word(int64_t i) { return static_cast<uint64_t>(i) * 0x9e3779b97f4a7c15u + 1; }

  const int64_t bytes_;
  uint64_t* data_;
};

// Whether the kernel was asked for huge pages at an address; no where it does not tell.
bool IsAdvised(const char* address) {
  std::ifstream maps("/proc/self/smaps");
  bool inside = false;
  for (std::string line; std::getline(maps, line);) {
    uintptr_t begin = 0;
    uintptr_t end = 0;
    char dash = 0;
    if (std::istringstream(line) >> std::hex >> begin >> dash >> end && dash == '-') {
      const uintptr_t wanted = reinterpret_cast<uintptr_t>(address);
      inside = begin <= wanted && wanted < end;
    } else if (inside && line.rfind("VmFlags:", 0) == 0) {
      return (line + ' ').find(" hg ") != std::string::npos;
    }
  }
  return false;
}

// As often as it takes for the memory of a table to be moved.
void UseRepeatedly(HugePages* huge_pages, size_t table, const void* data, int64_t bytes) {
  for (int i = 0; i < 3; ++i) huge_pages->Use(table, data, bytes);
}

void TestSmallMemoryIsLeftAlone() {
  const Memory memory(16 * kMegabyte);
  HugePages huge_pages;
  UseRepeatedly(&huge_pages, 0, memory.data(), 16 * kMegabyte - 1);
  UseRepeatedly(&huge_pages, 1, memory.data(), kPage);
  UseRepeatedly(&huge_pages, 2, memory.data(), 0);
  UseRepeatedly(&huge_pages, 3, nullptr, 0);
  for (int64_t megabyte = 0; megabyte < 16; ++megabyte) {
    CHECK(!IsAdvised(memory.data() + megabyte * kMegabyte), megabyte);
  }
  CHECK(memory.IsIntact());
}

// A table begins and ends anywhere, next to what belongs to others.
void TestNeighboursAreLeftAlone() {
  const Memory memory(32 * kMegabyte);
  HugePages huge_pages;
  UseRepeatedly(&huge_pages, 0, memory.data() + kPage + 16, 26 * kMegabyte);
  CHECK(!IsAdvised(memory.data()));
  CHECK(!IsAdvised(memory.data() + 26 * kMegabyte + 2 * kPage));
  CHECK(!IsAdvised(memory.data() + 32 * kMegabyte - 1));
  CHECK(memory.IsIntact());
}

// Only memory that a table is found at twice in a row is worth it.
void TestMemoryThatChangesIsLeftAlone() {
  const Memory one(20 * kMegabyte);
  const Memory other(20 * kMegabyte);
  HugePages huge_pages;
  for (int step = 0; step < 3; ++step) {
    huge_pages.Use(0, one.data(), 20 * kMegabyte);
    huge_pages.Use(1, other.data(), (16 + step) * kMegabyte);
    huge_pages.Use(0, other.data(), 20 * kMegabyte);
  }
  CHECK(!IsAdvised(one.data() + 8 * kMegabyte));
  CHECK(!IsAdvised(other.data() + 8 * kMegabyte));
}

void TestReadersGoOnMeanwhile() {
  const Memory memory(24 * kMegabyte);
  HugePages huge_pages;
  std::atomic<bool> done{false};
  std::thread reader([&] {
    do {
      CHECK(memory.IsIntact());
    } while (!done);
  });
  std::vector<std::thread> users;
  for (size_t i = 0; i < 2; ++i) {
    users.emplace_back([&, i] {
      UseRepeatedly(&huge_pages, 0, memory.data(), 24 * kMegabyte);
      UseRepeatedly(&huge_pages, 1 + i, memory.data() + i * kPage, 20 * kMegabyte);
    });
  }
  for (std::thread& user : users) user.join();
  done = true;
  reader.join();
  HugePages others;
  UseRepeatedly(&others, 5, memory.data(), 24 * kMegabyte);
  CHECK(memory.IsIntact());
}

void TestSettingTurnsItOff() {
  // Read once by each process, hence one that has not read it yet.
  const pid_t child = fork();
  CHECK(child >= 0);
  if (child == 0) {
    setenv("TFREC_HUGE_PAGES", "0", 1);
    const Memory memory(24 * kMegabyte);
    HugePages huge_pages;
    UseRepeatedly(&huge_pages, 0, memory.data(), 24 * kMegabyte);
    CHECK(!IsAdvised(memory.data() + 8 * kMegabyte));
    std::_Exit(0);
  }
  int status = -1;
  CHECK_EQ(waitpid(child, &status, 0), child);
  CHECK_EQ(status, 0);
}

}  // namespace
}  // namespace tfrec

int main() {
  tfrec::TestSettingTurnsItOff();
  tfrec::TestSmallMemoryIsLeftAlone();
  tfrec::TestNeighboursAreLeftAlone();
  tfrec::TestMemoryThatChangesIsLeftAlone();
  tfrec::TestReadersGoOnMeanwhile();
  return 0;
}
