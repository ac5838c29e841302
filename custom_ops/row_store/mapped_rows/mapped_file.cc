#include "custom_ops/row_store/mapped_rows/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <stdexcept>

namespace tfrec {
namespace {

[[noreturn]] void Fail(const std::string& path, const std::string& what) {
  throw std::runtime_error("`" + path + "` " + what);
}

// What NumPy writes, version 1.0, before it pads.
std::string ExpectedHeader(const std::string& type, const std::vector<int64_t>& shape) {
  std::string text = "{'descr': '" + type + "', 'fortran_order': False, 'shape': (";
  for (size_t i = 0; i < shape.size(); ++i) {
    text += (i > 0 ? ", " : "") + std::to_string(shape[i]);
  }
  return text + (shape.size() == 1 ? ",), }" : "), }");
}

}  // namespace

MappedFile::MappedFile(const std::string& path, const std::string& type, int64_t item_bytes,
                       const std::vector<int64_t>& shape) {
  const int descriptor = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (descriptor < 0) Fail(path, std::string("must be readable: ") + std::strerror(errno));
  struct stat status{};
  const bool has_size = fstat(descriptor, &status) == 0;
  mapped_ = has_size ? status.st_size : 0;
  pages_ = mapped_ > 0 ? mmap(nullptr, mapped_, PROT_READ, MAP_SHARED, descriptor, 0) : MAP_FAILED;
  const int error = errno;
  close(descriptor);
  if (pages_ == MAP_FAILED) {
    Fail(path, "must be a file to map, with something in it: " +
                   std::string(has_size && mapped_ == 0 ? "it is empty" : std::strerror(error)));
  }
  const auto fail = [&](const std::string& what) {
    munmap(pages_, mapped_);
    Fail(path, what);
  };
  constexpr int64_t kPreamble = 10;  // magic, version, and two bytes for the size of the header
  const auto* const bytes = static_cast<const unsigned char*>(pages_);
  if (mapped_ < kPreamble || std::memcmp(bytes, "\x93NUMPY\x01\x00", 8) != 0) {
    fail("must be an .npy file of version 1.0. Received: another file");
  }
  const int64_t begin = kPreamble + bytes[8] + 256 * bytes[9];
  const std::string expected = ExpectedHeader(type, shape);
  const int64_t size = expected.size();
  if (begin > mapped_ || begin % 64 != 0 || begin < kPreamble + size ||
      std::memcmp(bytes + kPreamble, expected.data(), size) != 0) {
    const int64_t shown = begin < mapped_ ? begin - kPreamble : 0;
    fail("must have the header `" + expected + "`. Received: `" +
         std::string(reinterpret_cast<const char*>(bytes) + kPreamble, shown) + "`");
  }
  bytes_ = item_bytes;
  for (const int64_t dim : shape) bytes_ *= dim;
  if (mapped_ - begin != bytes_) {
    fail("must have " + std::to_string(begin + bytes_) +
         " bytes. Received: " + std::to_string(mapped_));
  }
  data_ = static_cast<char*>(pages_) + begin;
  madvise(pages_, mapped_, MADV_RANDOM);  // rows are: the pages around one are of no use
}

MappedFile::~MappedFile() { munmap(pages_, mapped_); }

}  // namespace tfrec
