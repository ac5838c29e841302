// A set of rows, as bits. Memory is taken where rows are: hundreds of millions of rows cost next to
// nothing until some of them are added, and so does one long range of them.
#ifndef TFREC_CUSTOM_OPS_ROW_STORE_ROW_SET_H_
#define TFREC_CUSTOM_OPS_ROW_STORE_ROW_SET_H_

#include <algorithm>
#include <array>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

namespace tfrec {

class RowSet {
 public:
  // Room for ids in [0, rows), which may only become more.
  void Grow(int64_t rows) { chunks_.resize((rows + kChunkRows - 1) / kChunkRows); }

  bool Has(int64_t id) const {
    if (id >= first_ && id < end_) return true;
    const Chunk* chunk = chunks_[id / kChunkRows].get();
    return chunk && ((*chunk)[id % kChunkRows / 64] >> (id % 64) & 1);
  }
  void Add(int64_t id) { AddRange(id, id + 1); }
  void AddRange(int64_t first, int64_t end) {
    if (end - first >= kChunkRows && end - first > end_ - first_) {
      std::swap(first, first_);
      std::swap(end, end_);
    }
    for (int64_t id = first, next; id < end; id = next) {
      next = std::min(end, (id / 64 + 1) * 64);
      std::unique_ptr<Chunk>& chunk = chunks_[id / kChunkRows];
      if (!chunk) chunk = std::make_unique<Chunk>();
      (*chunk)[id % kChunkRows / 64] |= ~uint64_t{0} >> (64 - (next - id)) << (id % 64);
    }
  }

 private:
  static constexpr int64_t kChunkRows = int64_t{1} << 18;
  using Chunk = std::array<uint64_t, kChunkRows / 64>;

  // All rows of the longest range that was added, whose bits take no memory.
  int64_t first_ = 0;
  int64_t end_ = 0;
  std::vector<std::unique_ptr<Chunk>> chunks_;
};

}  // namespace tfrec

#endif  // TFREC_CUSTOM_OPS_ROW_STORE_ROW_SET_H_
