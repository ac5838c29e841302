// What the files of a store say besides rows: headers of NumPy, and of the store itself.
#ifndef TFREC_CUSTOM_OPS_ROW_STORE_STORE_TEXT_H_
#define TFREC_CUSTOM_OPS_ROW_STORE_STORE_TEXT_H_

#include <cstdint>
#include <string>
#include <vector>

namespace tfrec {

// Some of the floats of each row, by a name.
struct StoreColumn {
  std::string name;  // of a-z, 0-9 and _, of which no digit is the first
  int64_t width;     // floats, at least 1

  bool operator==(const StoreColumn& other) const {
    return name == other.name && width == other.width;
  }
};
int64_t WidthOf(const std::vector<StoreColumn>& columns);  // of all together

// Where the data of an .npy file begin: with a page, so that rows of a page's size lie in one.
constexpr int64_t kDataBegin = 4096;

// The first kDataBegin bytes of an .npy file whose records are a field for each column, and one for
// the checksum. The columns are ones that a store can have.
std::string NpyHeader(int64_t rows, const std::vector<StoreColumn>& columns);

// One checkpoint.
struct StoreHeader {
  int64_t rows;
  std::vector<StoreColumn> columns;
  int64_t checkpoint;
  int64_t written_rows;  // how many rows were ever written
  std::string user;      // a JSON object
};

// The records of a shadow, all of them, of which the last one of a row counts: how many, and a
// checksum of their ids and checksums, in their order. Files name them `shadow_rows`.
struct ShadowSum {
  int64_t rows = 0;
  uint32_t checksum = 0;

  void Add(int64_t id, uint32_t row_checksum);
};

// Throws a StoreError where a store cannot have so many rows, such columns, or such a header.
void CheckRows(int64_t rows);
void CheckColumns(const std::vector<StoreColumn>& columns);
void CheckUserHeader(const std::string& user);

// The text of header.json, and of commit.json before it has that name: the checkpoint, and the
// shadow that it came with. Reading takes what was written, to the byte, and throws a StoreError
// for all else: the text ends with a checksum of itself.
std::string WriteStoreHeader(const StoreHeader& header, const ShadowSum& shadow);
StoreHeader ReadStoreHeader(const std::string& path, const std::string& text, ShadowSum* shadow);

}  // namespace tfrec

#endif  // TFREC_CUSTOM_OPS_ROW_STORE_STORE_TEXT_H_
