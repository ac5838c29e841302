#include "custom_ops/row_store/mapped_rows/mapped_file.h"

#include <sys/stat.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "tests/cc/check.h"
#include "tests/cc/random_rows.h"
#include "tests/cc/store_folder.h"

namespace tfrec {
namespace {

namespace fs = std::filesystem;

using Shape = std::vector<int64_t>;

// An array as NumPy writes it, in a file of its own.
class Array {
 public:
  Array(const std::string& type, int64_t item_bytes, const Shape& shape)
      : type_(type), item_bytes_(item_bytes), shape_(shape) {
    fs::create_directory(folder_.Path());
    std::string text = "{'descr': '" + type + "', 'fortran_order': False, 'shape': (";
    int64_t bytes = item_bytes;
    for (size_t i = 0; i < shape.size(); ++i) {
      text += (i > 0 ? ", " : "") + std::to_string(shape[i]);
      bytes *= shape[i];
    }
    text += shape.size() == 1 ? ",), }" : "), }";
    header_ = Header(text);
    Rng rng(shape.size());
    while (static_cast<int64_t>(data_.size()) < bytes) data_ += static_cast<char>(rng());
    Write(header_ + data_);
  }

  // Magic and version, the length of the rest, and this text, up to a multiple of 64 bytes.
  static std::string Header(std::string text, char version = 1) {
    while ((10 + text.size() + 1) % 64 != 0) text += ' ';
    text += '\n';
    std::string start = std::string("\x93NUMPY") + version + '\0';
    start += static_cast<char>(text.size() % 256);
    start += static_cast<char>(text.size() / 256);
    return start + text;
  }

  std::string Path() const { return folder_.File("rows.npy"); }
  const std::string& Head() const { return header_; }
  const std::string& Data() const { return data_; }
  void Write(const std::string& bytes) const { WriteBytes(Path(), bytes); }

  std::unique_ptr<MappedFile> Map() const {
    return std::make_unique<MappedFile>(Path(), type_, item_bytes_, shape_);
  }
  bool IsIn(const MappedFile& file) const {
    return file.Bytes() == static_cast<int64_t>(data_.size()) &&
           std::memcmp(file.Data(), data_.data(), data_.size()) == 0;
  }

 private:
  StoreFolder folder_;
  std::string type_;
  int64_t item_bytes_;
  Shape shape_;
  std::string header_;
  std::string data_;
};

// How many maps and open files of a path this process has.
int64_t HeldOf(const std::string& path) {
  int64_t held = 0;
  std::ifstream maps("/proc/self/maps");
  for (std::string line; std::getline(maps, line);) held += Contains(line, path);
  for (const auto& entry : fs::directory_iterator("/proc/self/fd")) {
    std::error_code none;
    held += fs::read_symlink(entry.path(), none) == path;
  }
  return held;
}

// Checks that a file is refused in words that name it, and say this. Nothing is left of it.
template <typename Call>
void CheckRefused(const std::string& path, const std::string& part, const Call& map) {
  std::string words;
  try {
    map();
  } catch (const std::runtime_error& error) {
    words = error.what();
  }
  CHECK(words.rfind("`" + path + "` must ", 0) == 0, words);
  CHECK(Contains(words, part), words, part);
  CHECK_EQ(HeldOf(path), 0, words);
}
void CheckRefused(const Array& array, const std::string& part) {
  CheckRefused(array.Path(), part, [&] { array.Map(); });
}

void TestFilesAreWhatWasWritten() {
  struct Case {
    const char* type;
    int64_t item_bytes;
    Shape shape;
  };
  for (const auto& [type, item_bytes, shape] :
       {Case{"<f4", 4, {3, 5}},
        {"<f4", 4, {1000, 33}},
        {"<f2", 2, {7, 1}},
        {"|i1", 1, {5}},
        {"<i8", 8, {1}},
        {"<f4", 4, {2, 3, 4}},
        {"<f4", 4, {0, 8}},
        {"<i8", 8, {0}},
        {"<f4", 4, {}},
        // So many dimensions that the length of the header takes two bytes.
        {"<f4", 4, Shape(150, 1)}}) {
    const Array array(type, item_bytes, shape);
    const auto file = array.Map();
    CHECK(array.IsIn(*file), type, shape.size());
    CHECK_EQ(reinterpret_cast<uintptr_t>(file->Data()) % 64, 0u, type);
  }
}

void TestAFileStaysWhileItIsMapped() {
  const Array array("<f4", 4, {4000, 3});
  auto first = array.Map();
  const auto second = array.Map();
  CHECK(first->Data() != second->Data());
  first.reset();
  CHECK_EQ(HeldOf(array.Path()), 1);
  fs::remove(array.Path());
  CHECK(array.IsIn(*second));
}

void TestOtherArraysAreRefused() {
  const Array array("<f4", 4, {6, 4});
  const std::string& data = array.Data();
  for (const std::string text :
       {"{'descr': '<f8', 'fortran_order': False, 'shape': (6, 4), }",
        "{'descr': '>f4', 'fortran_order': False, 'shape': (6, 4), }",
        "{'descr': '<f4', 'fortran_order': True, 'shape': (6, 4), }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (4, 6), }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (24,), }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (6, 4, 1), }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (6, 40), }", "{}", ""}) {
    array.Write(Array::Header(text) + data);
    CheckRefused(array,
                 "have the header `{'descr': '<f4', 'fortran_order': False, 'shape': (6, 4), }`. "
                 "Received: `" +
                     text);
  }
  // No byte of what the header says may be another one.
  for (size_t i = 0; i < array.Head().find('\n') && array.Head()[i + 1] != ' '; ++i) {
    std::string bytes = array.Head() + data;
    bytes[i] = static_cast<char>(bytes[i] ^ 1);
    array.Write(bytes);
    CheckRefused(array, "Received: ");
  }
}

void TestOtherLengthsAreRefused() {
  const Array array("<f4", 4, {6, 4});
  const std::string whole = array.Head() + array.Data();
  for (size_t size = 0; size < whole.size(); ++size) {
    array.Write(whole.substr(0, size));
    CheckRefused(array, size == 0   ? "something in it: it is empty"
                        : size < 10 ? "be an .npy file of version 1.0"
                        : size < array.Head().size()
                            ? "have the header"
                            : "have " + std::to_string(whole.size()) +
                                  " bytes. Received: " + std::to_string(size));
  }
  array.Write(whole + "x");
  CheckRefused(array, "bytes. Received: " + std::to_string(whole.size() + 1));
  array.Write(whole);
  CHECK(array.IsIn(*array.Map()));
}

void TestOtherFilesAreRefused() {
  const Array array("<f4", 4, {6, 4});
  std::string text = array.Head().substr(10);
  array.Write(Array::Header(text, 2) + array.Data());
  CheckRefused(array, "an .npy file of version 1.0. Received: another file");
  array.Write(std::string(1000, 'x'));
  CheckRefused(array, "an .npy file of version 1.0. Received: another file");
  // Rows that would not be aligned: the same header, one byte longer.
  std::string shifted = array.Head() + array.Data();
  shifted.insert(array.Head().size() - 1, " ");
  ++shifted[8];
  array.Write(shifted);
  CheckRefused(array, "have the header");
  // A header that ends before its text does, with as many bytes behind it as there should be.
  std::string short_header = array.Head() + array.Data();
  short_header[8] = 64 - 10;
  array.Write(short_header.substr(0, 64 + array.Data().size()));
  CheckRefused(array, "have the header");
  // A header that is as long as it can be, and longer than the file.
  std::string endless = array.Head() + array.Data();
  endless[8] = endless[9] = '\xff';
  array.Write(endless);
  CheckRefused(array, "have the header");

  fs::remove(array.Path());
  CheckRefused(array, "be readable: No such file or directory");
  fs::create_directory(array.Path());
  CheckRefused(array, "be a file to map");
}

}  // namespace
}  // namespace tfrec

int main() {
  tfrec::TestFilesAreWhatWasWritten();
  tfrec::TestAFileStaysWhileItIsMapped();
  tfrec::TestOtherArraysAreRefused();
  tfrec::TestOtherLengthsAreRefused();
  tfrec::TestOtherFilesAreRefused();
  return 0;
}
