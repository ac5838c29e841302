// How a core spreads its work over threads that it does not own.
#ifndef TFREC_CUSTOM_OPS_COMMON_PARALLEL_H_
#define TFREC_CUSTOM_OPS_COMMON_PARALLEL_H_

#include <algorithm>
#include <cstdint>
#include <functional>

namespace tfrec {

struct Parallel {
  int64_t threads = 1;
  // Runs work(0) to work(blocks - 1), perhaps at the same time; returns when all have returned.
  std::function<void(int64_t blocks, const std::function<void(int64_t)>& work)> run =
      [](int64_t blocks, const std::function<void(int64_t)>& work) {
        for (int64_t block = 0; block < blocks; ++block) work(block);
      };

  // Runs work(block, begin, end) over [0, total), cut into `blocks` pieces of nearly one size.
  template <typename Work>
  void Split(int64_t total, int64_t blocks, const Work& work) const {
    const auto piece = [&](int64_t block) {
      work(block, total * block / blocks, total * (block + 1) / blocks);
    };
    if (blocks == 1) {
      piece(0);
    } else {
      run(blocks, piece);
    }
  }

  // As many blocks as threads, or fewer where each would have less than `least` to do.
  int64_t Blocks(int64_t total, int64_t least) const {
    return std::max<int64_t>(1, std::min(threads, total / least));
  }
};

}  // namespace tfrec

#endif  // TFREC_CUSTOM_OPS_COMMON_PARALLEL_H_
