#include "custom_ops/row_store/mapped_records.h"

#include <fcntl.h>

#include <cerrno>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <string>
#include <vector>

#include "tests/cc/check.h"
#include "tests/cc/store_folder.h"

namespace tfrec {
namespace {

// A file with holes, and the places of records at their begin and end.
class Scene {
 public:
  Scene(int64_t begin, int64_t record_bytes)
      : begin_(begin), record_bytes_(record_bytes), mapped_(begin, record_bytes) {
    std::filesystem::create_directory(folder_.Path());
    file_ = StoreFile(folder_.File("records"), O_RDWR | O_CREAT);
  }

  MappedRecords& Mapped() { return mapped_; }
  void Map(int64_t records) { mapped_.Map(file_, records); }
  // Makes a record, which is the last one of the file where it was none before.
  void Write(int64_t place) {
    std::string record(record_bytes_, '\0');
    std::memcpy(record.data(), &place, sizeof place);
    std::memcpy(record.data() + record_bytes_ - sizeof place, &place, sizeof place);
    file_.Write(record.data(), record_bytes_, begin_ + place * record_bytes_);
  }
  // Whether the record is mapped, and the right one.
  bool IsRight(int64_t place) const {
    std::vector<float> record(record_bytes_ / sizeof(float) + 1, 7);
    mapped_.Prefetch(place);
    if (!mapped_.Copy(place, record.data())) return false;
    const char* const bytes = reinterpret_cast<const char*>(record.data());
    CHECK_EQ(std::memcmp(bytes, &place, sizeof place), 0, place);
    CHECK_EQ(std::memcmp(bytes + record_bytes_ - sizeof place, &place, sizeof place), 0, place);
    CHECK_EQ(record.back(), 7.0F);
    return true;
  }

 private:
  const StoreFolder folder_;
  const int64_t begin_;
  const int64_t record_bytes_;
  StoreFile file_;
  MappedRecords mapped_;
};

// How many records the first chunk has.
int64_t FirstChunk(int64_t record_bytes) {
  int64_t records = 1;
  while (2 * records * record_bytes <= int64_t{1} << 26) records *= 2;
  return records;
}

// The file ends with each record that is read, in the middle of a page or not.
void TestBordersOfChunks() {
  for (const int64_t bytes : {16, 532, 4092, 4096}) {
    for (const int64_t begin : {0, 4096}) {
      Scene scene(begin, bytes);
      const int64_t first = FirstChunk(bytes);
      CHECK(!scene.IsRight(0));
      for (const int64_t place : {int64_t{0}, int64_t{1}, first - 1, first, 3 * first - 1,
                                  3 * first, 7 * first - 1, 7 * first, 15 * first}) {
        if (place == first || place == 3 * first || place == 7 * first) {
          scene.Map(place);
          CHECK(!scene.Mapped().Copy(place, nullptr), bytes, place);
        }
        scene.Map(place + 1);  // before it is written, as in a log
        scene.Write(place);
        CHECK(scene.IsRight(place), bytes, place);
        CHECK(scene.IsRight(0), bytes, place);
      }
      scene.Mapped().Clear();
      CHECK(!scene.IsRight(0) && !scene.IsRight(first));
      scene.Map(1);
      CHECK(scene.IsRight(0) && !scene.IsRight(first));
    }
  }
}

void TestLongRecordsAreNotMapped() {
  Scene scene(0, 4100);
  scene.Map(1);
  scene.Write(0);
  CHECK(!scene.IsRight(0));
}

void TestAChunkThatIsRefusedIsTriedAgain() {
  Scene scene(0, 4096);
  for (const int64_t place : {0, 16384, 49152}) scene.Write(place);
  {
    int64_t calls = 0;
    const Hooked hooked(
        [&](const char*, const std::string&, size_t*) { return calls++ == 1 ? ENOMEM : 0; });
    scene.Map(49153);
    CHECK_EQ(calls, 3);
  }
  CHECK(scene.IsRight(0) && !scene.IsRight(16384) && scene.IsRight(49152));
  scene.Map(49153);
  CHECK(scene.IsRight(0) && scene.IsRight(16384) && scene.IsRight(49152));
}

}  // namespace
}  // namespace tfrec

int main() {
  tfrec::TestBordersOfChunks();
  tfrec::TestLongRecordsAreNotMapped();
  tfrec::TestAChunkThatIsRefusedIsTriedAgain();
  return 0;
}
