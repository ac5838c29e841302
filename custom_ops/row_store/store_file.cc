#include "custom_ops/row_store/store_file.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <utility>

namespace tfrec {
namespace {

FileHook& Hook() {
  static FileHook hook;
  return hook;
}

// Calls the system until no signal comes between. `call` takes the number of bytes.
template <typename Call>
int64_t Repeat(const char* name, const std::string& path, size_t bytes, const Call& call) {
  for (;;) {
    size_t allowed = bytes;
    errno = Hook() ? Hook()(name, path, &allowed) : 0;
    const int64_t result = errno == 0 ? static_cast<int64_t>(call(allowed)) : -1;
    if (result >= 0 || errno != EINTR) return result;
  }
}
template <typename Call>
int64_t Repeat(const char* name, const std::string& path, const Call& call) {
  return Repeat(name, path, 0, [&](size_t) { return call(); });
}

[[noreturn]] void Fail(const std::string& path, const char* rule) {
  const std::string reason = std::strerror(errno);
  throw StoreError("`" + path + "` must " + rule + ". Received: " + reason);
}

}  // namespace

void SetFileHook(FileHook hook) { Hook() = std::move(hook); }

StoreFile::StoreFile(const std::string& path, int flags) : path_(path) {
  descriptor_ = static_cast<int>(
      Repeat("open", path, [&] { return open(path.c_str(), flags | O_CLOEXEC, /*mode=*/0666); }));
  if (descriptor_ < 0) {
    Fail(path, (flags & O_ACCMODE) == O_RDONLY ? "be there and readable"
                                               : "be there, readable and writable");
  }
}
StoreFile::~StoreFile() {
  if (descriptor_ >= 0) close(descriptor_);
}
StoreFile::StoreFile(StoreFile&& other) noexcept
    : path_(std::move(other.path_)), descriptor_(std::exchange(other.descriptor_, -1)) {}
StoreFile& StoreFile::operator=(StoreFile&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(descriptor_, other.descriptor_);
  return *this;
}

int64_t StoreFile::Size() const {
  struct stat status;
  if (Repeat("fstat", path_, [&] { return fstat(descriptor_, &status); }) < 0) {
    Fail(path_, "have a size");
  }
  return status.st_size;
}

void StoreFile::Read(void* data, int64_t bytes, int64_t offset) const {
  for (char* at = static_cast<char*>(data); bytes > 0;) {
    const int64_t done = Repeat("pread", path_, bytes, [&](size_t allowed) {
      return pread(descriptor_, at, allowed, offset);
    });
    if (done < 0) Fail(path_, "be readable");
    if (done == 0) {
      throw StoreError("`" + path_ + "` must not end before byte " +
                       std::to_string(offset + bytes) + ". Received: an end at byte " +
                       std::to_string(offset));
    }
    at += done;
    offset += done;
    bytes -= done;
  }
}

void StoreFile::Write(const void* data, int64_t bytes, int64_t offset) {
  for (const char* at = static_cast<const char*>(data); bytes > 0;) {
    const int64_t done = Repeat("pwrite", path_, bytes, [&](size_t allowed) {
      return pwrite(descriptor_, at, allowed, offset);
    });
    if (done < 0) Fail(path_, "take what is written to it");
    at += done;
    offset += done;
    bytes -= done;
  }
}

void StoreFile::Resize(int64_t bytes) {
  if (Repeat("ftruncate", path_, [&] { return ftruncate(descriptor_, bytes); }) < 0) {
    Fail(path_, ("have room for " + std::to_string(bytes) + " bytes").c_str());
  }
}

void StoreFile::Reserve(int64_t offset, int64_t bytes) {
  const int64_t result = Repeat("fallocate", path_, [&] {
    return fallocate(descriptor_, FALLOC_FL_KEEP_SIZE, offset, bytes);
  });
  if (result < 0 && errno != EOPNOTSUPP) Fail(path_, "find space for all that is written");
}

void StoreFile::Sync() const {
  if (Repeat("fsync", path_, [&] { return fsync(descriptor_); }) < 0) {
    Fail(path_, "reach the disk");
  }
}

int64_t StoreFile::Seek(int64_t offset, int whence) const {
  const int64_t next = Repeat("lseek", path_, [&] { return lseek(descriptor_, offset, whence); });
  if (next >= 0) return next;
  if (errno != ENXIO) Fail(path_, "tell where its data lie");
  return Size();
}
int64_t StoreFile::NextData(int64_t offset) const { return Seek(offset, SEEK_DATA); }
int64_t StoreFile::NextHole(int64_t offset) const { return Seek(offset, SEEK_HOLE); }

bool StoreFile::KeepsSpace() const {
  constexpr uint32_t kXfsMagic = 0x58465342;
  struct statfs status;
  if (Repeat("fstatfs", path_, [&] { return fstatfs(descriptor_, &status); }) < 0) return false;
  const auto type = static_cast<uint32_t>(status.f_type);
  return type == EXT4_SUPER_MAGIC || type == TMPFS_MAGIC || type == kXfsMagic;
}

void* StoreFile::TakeAndMap(int64_t offset, int64_t bytes) {
  const auto take = [&] { return fallocate(descriptor_, /*mode=*/0, offset, bytes); };
  if (Repeat("fallocate", path_, take) < 0) return nullptr;
  return Map(offset, bytes, PROT_READ | PROT_WRITE);
}

void* StoreFile::MapToRead(int64_t offset, int64_t bytes) const {
  return Map(offset, bytes, PROT_READ);
}

void* StoreFile::Map(int64_t offset, int64_t bytes, int protection) const {
  void* memory = MAP_FAILED;
  const int64_t result = Repeat("mmap", path_, [&] {
    memory = mmap(nullptr, bytes, protection, MAP_SHARED, descriptor_, offset);
    return memory == MAP_FAILED ? -1 : 0;
  });
  if (result < 0) return nullptr;
  madvise(memory, bytes, MADV_RANDOM);  // or each page brings those around it
  return memory;
}

void* MapMemory(int64_t bytes) {
  constexpr int kFlags = MAP_PRIVATE | MAP_ANONYMOUS;
  void* const memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, kFlags, -1, 0);
  return memory == MAP_FAILED ? nullptr : memory;
}

void Unmap(void* memory, int64_t bytes) { munmap(memory, bytes); }

bool StoreFile::TryLock() {
  if (Repeat("flock", path_, [&] { return flock(descriptor_, LOCK_EX | LOCK_NB); }) == 0) {
    return true;
  }
  if (errno != EWOULDBLOCK) Fail(path_, "be on a file system with locks");
  return false;
}

std::string ReadText(const std::string& path) {
  const StoreFile file(path, O_RDONLY);
  std::string text(file.Size(), '\0');
  file.Read(text.data(), text.size(), 0);
  return text;
}

void WriteText(const std::string& path, const std::string& text) {
  StoreFile file(path, O_WRONLY | O_CREAT | O_TRUNC);
  file.Write(text.data(), text.size(), 0);
  file.Sync();
}

bool Exists(const std::string& path) {
  struct stat status;
  if (Repeat("stat", path, [&] { return stat(path.c_str(), &status); }) == 0) return true;
  if (errno != ENOENT && errno != ENOTDIR) Fail(path, "be reachable");
  return false;
}

void Rename(const std::string& from, const std::string& to) {
  if (Repeat("rename", from, [&] { return rename(from.c_str(), to.c_str()); }) < 0) {
    Fail(to, "take the place of the file before it");
  }
}

void Remove(const std::string& path) {
  if (Repeat("unlink", path, [&] { return unlink(path.c_str()); }) < 0 && errno != ENOENT) {
    Fail(path, "be removable");
  }
}

void MakeFolder(const std::string& path) {
  const int64_t result = Repeat("mkdir", path, [&] { return mkdir(path.c_str(), /*mode=*/0777); });
  if (result < 0 && errno != EEXIST) Fail(path, "be a folder that can be made");
}

}  // namespace tfrec
