// The gradient of a table, from casted lookups: for each segment of a casting, the rows of the
// incoming gradient to add up.
#ifndef TFREC_CUSTOM_OPS_GATHER_REDUCE_TABLE_GRADIENT_H_
#define TFREC_CUSTOM_OPS_GATHER_REDUCE_TABLE_GRADIENT_H_

#include <algorithm>
#include <cstdint>
#include <memory>
#include <vector>

#include "custom_ops/casting/casting.h"
#include "custom_ops/common/bags.h"
#include "custom_ops/common/parallel.h"
#include "custom_ops/gather_reduce/row_reducer.h"

namespace tfrec {

// Divides numbers below 2^32 by multiplication, others as usual.
class Divisor {
 public:
  explicit Divisor(uint64_t divisor)
      : divisor_(divisor), inverse_(divisor == 1 ? 0 : ~uint64_t{0} / divisor + 1) {}
  int64_t Divide(uint64_t number) const {
    if (inverse_ == 0 || number >> 32) return number / divisor_;
    return static_cast<unsigned __int128>(number) * inverse_ >> 64;
  }

 private:
  uint64_t divisor_;
  uint64_t inverse_;  // 2^64 / divisor, rounded up
};

// For each lookup of one table, by position: the row of the incoming gradient that it sends to its
// table row, and what that row is multiplied by.
template <typename T>
class GradientRows {
 public:
  using Weight = Accumulator<T>;

  // `grads` has a row of `width` values for each bag.
  template <typename Id>
  GradientRows(const std::vector<Feature<T, Id>>& features, const T* grads, int64_t width,
               int64_t dim, const Parallel& parallel) {
    int64_t total = 0;
    for (const Feature<T, Id>& feature : features) {
      total += feature.bags.lookups;
      weighted_ |= feature.weights || feature.combiner != Combiner::kSum;
    }
    if (!weighted_ && features.size() == 1 && !features[0].bags.row_splits && total > 0) {
      // Bags of one size need no array: it would cost a cache miss for each lookup.
      hotness_ = Divisor(features[0].bags.hotness);
      first_ = grads + features[0].column;
      width_ = width;
      return;
    }
    if (weighted_) zeros_.resize(dim);
    rows_.reset(new const T*[total]);
    if (weighted_) factors_.reset(new Weight[total]);
    int64_t start = 0;
    for (const Feature<T, Id>& feature : features) {
      const Bags<Id>& bags = feature.bags;
      // With no lookups, the bags may be more than can be counted.
      if (bags.lookups == 0) continue;
      parallel.Split(bags.count, parallel.Blocks(bags.lookups, 16384),
                     [&](int64_t, int64_t first, int64_t last) {
                       for (int64_t bag = first; bag < last; ++bag) {
                         FillBag(feature, bag, grads + bag * width + feature.column, start);
                       }
                     });
      start += bags.lookups;
    }
  }

  bool weighted() const { return weighted_; }
  const T* row(int64_t position) const {
    return first_ ? first_ + hotness_.Divide(position) * width_ : rows_[position];
  }
  Weight factor(int64_t position) const { return factors_[position]; }

 private:
  template <typename Id>
  void FillBag(const Feature<T, Id>& feature, int64_t bag, const T* row, int64_t start) {
    const Bags<Id>& bags = feature.bags;
    const int64_t end = bags.End(bag);
    if (!weighted_) {
      std::fill(rows_.get() + start + bags.Begin(bag), rows_.get() + start + end, row);
      return;
    }
    const Weight divisor = BagDivisor(bags, feature.weights, feature.combiner, bag);
    for (int64_t k = bags.Begin(bag); k < end; ++k) {
      const Weight weight = feature.weights ? feature.weights[k] : Weight{1};
      // The gradient of a bag without a divisor may be infinite or NaN, and is not looked at.
      rows_[start + k] = divisor == 0 ? zeros_.data() : row;
      factors_[start + k] = divisor == 0 ? Weight{0} : weight / divisor;
    }
  }

  const T* first_ = nullptr;
  int64_t width_ = 0;
  Divisor hotness_{1};
  // Not std::vector, which would write all of it once more, on one thread.
  std::unique_ptr<const T*[]> rows_;
  std::unique_ptr<Weight[]> factors_;
  std::vector<T> zeros_;
  bool weighted_ = false;
};

// One segment of a casting with its inputs for a RowReducer.
template <typename T>
struct Segment {
  const T* const* rows;
  const Accumulator<T>* factors;  // or null
  int64_t count;
  int64_t readable;
  const int64_t* ids;  // of this and the segments that follow
  int64_t ids_readable;
};

// consume(segment) for the segments that begin in the pairs [first, last), in order.
template <typename T, typename Consume>
void ForEachSegment(const Casting& casting, const GradientRows<T>& gradient, int64_t first,
                    int64_t last, const Consume& consume) {
  constexpr int64_t kChunkPairs = 1024;
  const bool weighted = gradient.weighted();
  std::vector<const T*> rows;
  std::vector<Accumulator<T>> factors;
  std::vector<int64_t> ids;
  std::vector<int64_t> ends;
  const int64_t stop = casting.SegmentFrom(last);
  for (int64_t begin = casting.SegmentFrom(first), end; begin < stop; begin = end) {
    // Whole segments: a hot id makes a chunk as long as it needs.
    end = casting.SegmentFrom(std::min(begin + kChunkPairs, stop));
    const int64_t count = end - begin;
    if (static_cast<int64_t>(rows.size()) < count) {
      rows.resize(count);
      ids.resize(count);
      ends.resize(count);
      if (weighted) factors.resize(count);
    }
    int64_t segments = 0;
    for (int64_t k = 0; k < count; ++k) {
      const int64_t position = casting.Position(begin + k);
      const int64_t id = casting.Id(begin + k);
      rows[k] = gradient.row(position);
      if (weighted) factors[k] = gradient.factor(position);
      ids[segments] = id;
      ends[segments] = k + 1;
      segments += k + 1 == count || casting.Id(begin + k + 1) != id;
    }
    int64_t from = 0;
    for (int64_t s = 0; s < segments; ++s) {
      consume(Segment<T>{rows.data() + from, weighted ? factors.data() + from : nullptr,
                         ends[s] - from, count - from, ids.data() + s, segments - s});
      from = ends[s];
    }
  }
}

// Number of segments that begin in the pairs [first, last).
inline int64_t CountSegments(const Casting& casting, int64_t first, int64_t last) {
  int64_t segments = 0;
  for (int64_t i = first; i < last; ++i) {
    segments += i == 0 || casting.Id(i) != casting.Id(i - 1);
  }
  return segments;
}

// The coalesced gradient of the segments that begin in the pairs [first, last): each id once, and
// the row that belongs to it.
template <typename T, typename Id>
void CoalescedGradient(const Casting& casting, const GradientRows<T>& gradient, int64_t dim,
                       RowReducer<T> reduce, int64_t first, int64_t last, Id* unique_ids,
                       T* values) {
  ForEachSegment(casting, gradient, first, last, [&](const Segment<T>& segment) {
    *unique_ids++ = static_cast<Id>(segment.ids[0]);
    reduce(segment.rows, segment.factors, segment.count, segment.readable, dim, Accumulator<T>{1},
           values);
    values += dim;
  });
}

}  // namespace tfrec

#endif  // TFREC_CUSTOM_OPS_GATHER_REDUCE_TABLE_GRADIENT_H_
