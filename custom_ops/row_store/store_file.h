// Files of a store. Every failure is a StoreError that names the path and what the system says.
#ifndef TFREC_CUSTOM_OPS_ROW_STORE_STORE_FILE_H_
#define TFREC_CUSTOM_OPS_ROW_STORE_STORE_FILE_H_

#include <fcntl.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <stdexcept>
#include <string>

namespace tfrec {

// What went wrong, in words for the user: the file, the rule, and what was found.
class StoreError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// An open file or folder.
class StoreFile {
 public:
  StoreFile() = default;
  StoreFile(const std::string& path, int flags);  // the flags of open()
  ~StoreFile();
  StoreFile(StoreFile&& other) noexcept;
  StoreFile& operator=(StoreFile&& other) noexcept;

  bool IsOpen() const { return descriptor_ >= 0; }
  const std::string& Path() const { return path_; }
  int64_t Size() const;
  // All of the bytes, or an error: a file that ends before them is one.
  void Read(void* data, int64_t bytes, int64_t offset) const;
  void Write(const void* data, int64_t bytes, int64_t offset);
  void Resize(int64_t bytes);
  // Takes space of the disk for a part of the file, so that Write() will not lack it. The file does
  // not become longer. File systems that cannot do so are left alone.
  void Reserve(int64_t offset, int64_t bytes);
  void Sync() const;
  // Pages around one that is read are not read, too. For holes that would be memory to clear.
  void ExpectRandomAccess() const { posix_fadvise(descriptor_, 0, 0, POSIX_FADV_RANDOM); }
  // The first offset from this one on that may lie in no hole; the size where all others do.
  int64_t NextData(int64_t offset) const;
  // The first one that may lie in a hole, or the size.
  int64_t NextHole(int64_t offset) const;
  // Whether space that was taken is there for all that is written to it later. It is not known to
  // be where file systems write each time to another place.
  bool KeepsSpace() const;
  // Takes space for a part of the file, which becomes as long as that, and maps it. Returns null
  // where that cannot be.
  void* TakeAndMap(int64_t offset, int64_t bytes);
  // Maps a part of the file, which may end before that; what lies behind the end is not to be
  // touched. Returns null where that cannot be.
  void* MapToRead(int64_t offset, int64_t bytes) const;
  // Whether nobody else holds the lock of this file. It is held until the file is closed.
  bool TryLock();

 private:
  int64_t Seek(int64_t offset, int whence) const;
  void* Map(int64_t offset, int64_t bytes, int protection) const;

  std::string path_;
  int descriptor_ = -1;
};

// Memory of zeros, in whole pages; null where there is none.
void* MapMemory(int64_t bytes);
void Unmap(void* memory, int64_t bytes);

std::string ReadText(const std::string& path);
// The file is synced, and its folder is not.
void WriteText(const std::string& path, const std::string& text);
bool Exists(const std::string& path);
void Rename(const std::string& from, const std::string& to);
void Remove(const std::string& path);      // where there is such a file
void MakeFolder(const std::string& path);  // where there is none

// For tests. Called before each call of the system, with its name, the path, and for those that
// read and write the number of bytes, which it may lower. Returns 0, or the error with which the
// call shall fail, or throws, as if the process ended there. Set while no store is in use.
using FileHook = std::function<int(const char* call, const std::string& path, size_t* bytes)>;
void SetFileHook(FileHook hook);

}  // namespace tfrec

#endif  // TFREC_CUSTOM_OPS_ROW_STORE_STORE_FILE_H_
