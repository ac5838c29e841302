#include "custom_ops/row_store/store_text.h"

#include <algorithm>
#include <set>

#include "custom_ops/row_store/checksum.h"
#include "custom_ops/row_store/store_file.h"

namespace tfrec {
namespace {

constexpr int64_t kVersion = 1;
constexpr char kFormat[] = "\"tfrec_efficient.row_store\"";
constexpr char kType[] = "\"float32\"";
constexpr char kEnd[] = "\n}\n";

// Together no more bytes than an offset in a file can count.
constexpr int64_t kMaxRows = int64_t{1} << 40;
constexpr int64_t kMaxWidth = int64_t{1} << 20;

// Of an .npy file: magic, version, and the length of what follows them.
constexpr int64_t kNpyBegin = 10;
constexpr char kChecksum[] = "checksum";

// What stands before the value of a key.
std::string Before(const char* key, const char* separator = ",") {
  return std::string(separator) + "\n  \"" + key + "\": ";
}

// The end of the JSON object that begins at `begin`; npos where it has none. Only its brackets and
// strings are looked at.
size_t ObjectEnd(const std::string& text, size_t begin) {
  if (begin >= text.size() || text[begin] != '{') return std::string::npos;
  std::string open;  // the brackets that are to be closed
  bool in_string = false;
  for (size_t at = begin; at < text.size(); ++at) {
    const char c = text[at];
    if (in_string) {
      if (c == '\\') ++at;
      if (c == '"') in_string = false;
    } else if (c == '"') {
      in_string = true;
    } else if (c == '{' || c == '[') {
      open.push_back(c == '{' ? '}' : ']');
    } else if (c == '}' || c == ']') {
      if (c != open.back()) return std::string::npos;
      open.pop_back();
      if (open.empty()) return at + 1;
    }
  }
  return std::string::npos;
}

// What an error shows of a text that may hold anything.
std::string Excerpt(const std::string& text, size_t begin) {
  std::string excerpt = text.substr(std::min(begin, text.size()), 40);
  std::replace_if(excerpt.begin(), excerpt.end(), [](char c) { return c < ' ' || c > '~'; }, '?');
  return excerpt;
}

// What an .npy file says of its array, as a literal of Python.
std::string NpyText(int64_t rows, const std::vector<StoreColumn>& columns) {
  std::string text = "{'descr': [";
  for (const StoreColumn& column : columns) {
    text += "('" + column.name + "', '<f4'";
    if (column.width > 1) text += ", (" + std::to_string(column.width) + ",)";
    text += "), ";
  }
  return text + "('" + kChecksum + "', '<u4')], 'fortran_order': False, 'shape': (" +
         std::to_string(rows) + ",), }";
}

bool IsIdentifier(const std::string& name) {
  const auto is_letter = [](char c) { return (c >= 'a' && c <= 'z') || c == '_'; };
  const auto is_fine = [&](char c) { return is_letter(c) || (c >= '0' && c <= '9'); };
  return !name.empty() && is_letter(name[0]) && std::all_of(name.begin(), name.end(), is_fine);
}

class Scanner {
 public:
  Scanner(const std::string& path, const std::string& text) : path_(path), text_(text) {}

  size_t At() const { return at_; }
  void Skip(const std::string& words) {
    if (text_.compare(at_, words.size(), words) != 0) Fail("`" + Excerpt(words, 0) + "`");
    at_ += words.size();
  }
  int64_t NumberOf(const char* key) {
    Skip(Before(key));
    return Number();
  }
  int64_t Number() {
    size_t end = at_;
    int64_t number = 0;
    for (; end < text_.size() && text_[end] >= '0' && text_[end] <= '9'; ++end) {
      if (end - at_ == 18) Fail("a number of 18 digits at most");
      number = number * 10 + (text_[end] - '0');
    }
    if (end == at_) Fail("a number");
    at_ = end;
    return number;
  }
  std::string ObjectOf(const char* key) {
    Skip(Before(key));
    const size_t end = ObjectEnd(text_, at_);
    if (end == std::string::npos) Fail("a JSON object");
    const std::string object = text_.substr(at_, end - at_);
    at_ = end;
    return object;
  }
  std::vector<StoreColumn> ColumnsOf(const char* key) {
    Skip(Before(key) + "[");
    std::vector<StoreColumn> columns;
    for (;;) {
      Skip("[\"");
      const size_t end = text_.find('"', at_);
      if (end == std::string::npos) Fail("a name");
      columns.push_back({text_.substr(at_, end - at_), 0});
      at_ = end;
      Skip("\", ");
      columns.back().width = Number();
      Skip("]");
      if (text_.compare(at_, 1, ",") != 0) break;
      Skip(", ");
    }
    Skip("]");
    return columns;
  }
  void End() const {
    if (at_ != text_.size()) Fail("its end");
  }

 private:
  [[noreturn]] void Fail(const std::string& expected) const {
    throw StoreError("`" + path_ + "` must be the header of a row store, and have " + expected +
                     " at byte " + std::to_string(at_) + ". Received: `" + Excerpt(text_, at_) +
                     "`");
  }

  const std::string& path_;
  const std::string& text_;
  size_t at_ = 0;
};

}  // namespace

int64_t WidthOf(const std::vector<StoreColumn>& columns) {
  int64_t width = 0;
  for (const StoreColumn& column : columns) width += column.width;
  return width;
}

std::string NpyHeader(int64_t rows, const std::vector<StoreColumn>& columns) {
  constexpr int64_t kLength = kDataBegin - kNpyBegin;
  std::string header("\x93NUMPY\x01\x00", 8);
  header.push_back(static_cast<char>(kLength & 0xff));
  header.push_back(static_cast<char>(kLength >> 8));
  header += NpyText(rows, columns);
  header.resize(kDataBegin - 1, ' ');
  header.push_back('\n');
  return header;
}

void ShadowSum::Add(int64_t id, uint32_t row_checksum) {
  ++rows;
  checksum = Crc32c(checksum, &id, sizeof id);
  checksum = Crc32c(checksum, &row_checksum, sizeof row_checksum);
}

void CheckRows(int64_t rows) {
  if (rows >= 1 && rows <= kMaxRows) return;
  throw StoreError("`rows` must be in `[1, " + std::to_string(kMaxRows) +
                   "]`. Received: " + std::to_string(rows));
}

void CheckColumns(const std::vector<StoreColumn>& columns) {
  std::set<std::string> names = {kChecksum};
  int64_t width = 0;
  for (const StoreColumn& column : columns) {
    if (!IsIdentifier(column.name) || !names.insert(column.name).second) {
      throw StoreError(std::string("`columns` must have names of the form `[a-z_][a-z0-9_]*`, ") +
                       "each once, and none of them `" + kChecksum + "`. Received: `" +
                       Excerpt(column.name, 0) + "`");
    }
    if (column.width < 1 || column.width > kMaxWidth - width) {
      throw StoreError("`columns` must have widths from 1 on, together in `[1, " +
                       std::to_string(kMaxWidth) + "]`. Received: `" + Excerpt(column.name, 0) +
                       "` of width " + std::to_string(column.width));
    }
    width += column.width;
  }
  if (columns.empty()) throw StoreError("`columns` must have one or more. Received: none");
  const int64_t length = NpyText(kMaxRows, columns).size();
  const int64_t limit = kDataBegin - kNpyBegin - 1;
  if (length > limit) {
    throw StoreError("`columns` must fit in the header of an .npy file with " +
                     std::to_string(limit) + " bytes. Received: " + std::to_string(length));
  }
}

void CheckUserHeader(const std::string& user) {
  if (ObjectEnd(user, 0) == user.size()) return;
  throw StoreError("`header` must be a JSON object, with nothing around it. Received: `" +
                   Excerpt(user, 0) + "`");
}

std::string WriteStoreHeader(const StoreHeader& header, const ShadowSum& shadow) {
  std::string text = Before("format", "{") + kFormat;
  text += Before("version") + std::to_string(kVersion);
  text += Before("rows") + std::to_string(header.rows);
  text += Before("columns");
  for (const StoreColumn& column : header.columns) {
    text += &column == &header.columns[0] ? "[" : ", ";
    text += "[\"" + column.name + "\", " + std::to_string(column.width) + "]";
  }
  text += "]";
  text += Before("dtype") + kType;
  text += Before("checkpoint") + std::to_string(header.checkpoint);
  text += Before("written_rows") + std::to_string(header.written_rows);
  text += Before("user") + header.user;
  text += Before("shadow_rows") + std::to_string(shadow.rows);
  text += Before("shadow_checksum") + std::to_string(shadow.checksum);
  const uint32_t checksum = Crc32c(0, text.data(), text.size());
  return text + Before("checksum") + std::to_string(checksum) + kEnd;
}

StoreHeader ReadStoreHeader(const std::string& path, const std::string& text, ShadowSum* shadow) {
  Scanner scanner(path, text);
  scanner.Skip(Before("format", "{") + kFormat);
  const int64_t version = scanner.NumberOf("version");
  if (version != kVersion) {
    throw StoreError("`" + path + "` must be of version " + std::to_string(kVersion) +
                     ", which is the one that this library knows. Received: version " +
                     std::to_string(version));
  }
  StoreHeader header;
  header.rows = scanner.NumberOf("rows");
  header.columns = scanner.ColumnsOf("columns");
  scanner.Skip(Before("dtype") + kType);
  header.checkpoint = scanner.NumberOf("checkpoint");
  header.written_rows = scanner.NumberOf("written_rows");
  header.user = scanner.ObjectOf("user");
  shadow->rows = scanner.NumberOf("shadow_rows");
  shadow->checksum = static_cast<uint32_t>(scanner.NumberOf("shadow_checksum"));
  const int64_t actual = Crc32c(0, text.data(), scanner.At());
  const int64_t expected = scanner.NumberOf("checksum");
  scanner.Skip(kEnd);
  scanner.End();
  if (actual != expected) {
    throw StoreError("`" + path + "` must have the checksum " + std::to_string(expected) +
                     " that it was written with. Received: " + std::to_string(actual) +
                     ". It was damaged, or edited");
  }
  CheckRows(header.rows);
  CheckColumns(header.columns);
  return header;
}

}  // namespace tfrec
