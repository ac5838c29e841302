#include "custom_ops/row_store/mapped_records.h"

#include <algorithm>
#include <cstring>

#include "custom_ops/common/prefetch.h"

namespace tfrec {
namespace {

constexpr int64_t kFirstChunkBytes = int64_t{1} << 26;
// The copy of a longer record takes longer than the call, which brings all of its pages at once.
constexpr int64_t kLongestBytes = 4096;
// The processor itself finds out what comes behind them.
constexpr int64_t kPrefetchBytes = 1024;

int FloorLog2(int64_t n) { return 63 - __builtin_clzll(n); }

}  // namespace

MappedRecords::MappedRecords(int64_t begin, int64_t record_bytes)
    : begin_(begin),
      record_bytes_(record_bytes),
      first_bits_(record_bytes <= kLongestBytes ? FloorLog2(kFirstChunkBytes / record_bytes) : -1) {
}

// Chunk c begins with record (2^c - 1) * 2^first_bits_. That is on a page, as four bytes for each
// of 2^10 records fill whole ones.
inline const char* MappedRecords::Find(int64_t place) const {
  if (first_bits_ < 0) return nullptr;
  const int64_t n = place + (int64_t{1} << first_bits_);
  const int bits = FloorLog2(n);
  const char* chunk = chunks_[bits - first_bits_].load(std::memory_order_acquire);
  return chunk ? chunk + (n - (int64_t{1} << bits)) * record_bytes_ : nullptr;
}

bool MappedRecords::Copy(int64_t place, float* record) const {
  const char* const found = Find(place);
  if (found) std::memcpy(record, found, record_bytes_);
  return found;
}

void MappedRecords::Prefetch(int64_t place) const {
  const char* const found = Find(place);
  if (found) tfrec::Prefetch(found, std::min(record_bytes_, kPrefetchBytes));
}

void MappedRecords::Map(const StoreFile& file, int64_t records) {
  if (first_bits_ < 0 || records == 0) return;
  const int last = FloorLog2(records - 1 + (int64_t{1} << first_bits_)) - first_bits_;
  for (int c = 0; c <= last; ++c) {
    if (chunks_[c].load(std::memory_order_relaxed)) continue;
    void* const chunk = file.MapToRead(begin_ + ChunkBytes(c) - ChunkBytes(0), ChunkBytes(c));
    chunks_[c].store(static_cast<char*>(chunk), std::memory_order_release);
  }
}

void MappedRecords::Clear() {
  for (int c = 0; c < kChunks; ++c) {
    if (char* const chunk = chunks_[c].exchange(nullptr)) Unmap(chunk, ChunkBytes(c));
  }
}

}  // namespace tfrec
