// An array in an .npy file, as memory: pages come when they are read, and can go again.
#ifndef TFREC_CUSTOM_OPS_ROW_STORE_MAPPED_ROWS_MAPPED_FILE_H_
#define TFREC_CUSTOM_OPS_ROW_STORE_MAPPED_ROWS_MAPPED_FILE_H_

#include <cstdint>
#include <string>
#include <vector>

namespace tfrec {

class MappedFile {
 public:
  // Throws a std::runtime_error unless the file holds an array of this type, as NumPy writes it
  // ("<f4"), and shape. It must neither change nor become shorter while it is mapped.
  MappedFile(const std::string& path, const std::string& type, int64_t item_bytes,
             const std::vector<int64_t>& shape);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  void* Data() const { return data_; }  // aligned to 64 bytes
  int64_t Bytes() const { return bytes_; }

 private:
  void* pages_ = nullptr;
  int64_t mapped_ = 0;
  void* data_ = nullptr;
  int64_t bytes_ = 0;
};

}  // namespace tfrec

#endif  // TFREC_CUSTOM_OPS_ROW_STORE_MAPPED_ROWS_MAPPED_FILE_H_
