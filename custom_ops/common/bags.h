// Bags of ids over one flat id array, and the rules an input must keep.
//
// Bag b holds the lookups [Begin(b), End(b)). A lookup is one (id, weight) pair; its position is
// its index in the flat id array. Lookups whose id is the padding id do not exist for any purpose:
// they are not range-checked, not counted by a combiner, and their weight is never read.
#ifndef TFREC_CUSTOM_OPS_COMMON_BAGS_H_
#define TFREC_CUSTOM_OPS_COMMON_BAGS_H_

#include <cmath>
#include <cstdint>

#include "custom_ops/common/narrow_float.h"

namespace tfrec {

enum class Combiner { kSum, kMean, kSqrtn };

template <typename Id>
struct Bags {
  const Id* ids;
  int64_t lookups;
  int64_t count;
  const int64_t* row_splits;  // count + 1 offsets, or null when every bag has `hotness` lookups
  int64_t hotness;
  bool has_padding;
  int64_t padding_id;

  int64_t Begin(int64_t bag) const { return row_splits ? row_splits[bag] : bag * hotness; }
  int64_t End(int64_t bag) const { return Begin(bag + 1); }
  bool IsPadding(int64_t position) const { return has_padding && ids[position] == padding_id; }
  bool IsRow(int64_t position, int64_t rows) const {
    return static_cast<uint64_t>(static_cast<int64_t>(ids[position])) < static_cast<uint64_t>(rows);
  }
};

// The first thing wrong with an input, in the order in which a caller should hear of it.
struct Fault {
  enum Kind { kNone, kRowSplits, kIds, kWeights };
  Kind kind = kNone;
  int64_t position = -1;
};

// Must hold before Begin() and End() may be used on ragged bags.
template <typename Id>
Fault CheckRowSplits(const Bags<Id>& bags) {
  if (!bags.row_splits) return {};
  if (bags.row_splits[0] != 0) return {Fault::kRowSplits, 0};
  for (int64_t bag = 0; bag < bags.count; ++bag) {
    if (bags.row_splits[bag + 1] < bags.row_splits[bag]) return {Fault::kRowSplits, bag + 1};
  }
  if (bags.row_splits[bags.count] != bags.lookups) return {Fault::kRowSplits, bags.count};
  return {};
}

// Names the culprit after a fast path has met one: slow, serial, and so always the same answer.
template <typename Id, typename Weight>
Fault FindFault(const Bags<Id>& bags, int64_t rows, const Weight* weights) {
  for (int64_t k = 0; k < bags.lookups; ++k) {
    if (!bags.IsPadding(k) && !bags.IsRow(k, rows)) return {Fault::kIds, k};
  }
  for (int64_t k = 0; weights && k < bags.lookups; ++k) {
    if (!bags.IsPadding(k) && !std::isfinite(weights[k])) return {Fault::kWeights, k};
  }
  return {};
}

// What a bag's weighted sum is divided by: 1, sum(w) or sqrt(sum(w^2)). A bag without a divisor
// (empty, weights that cancel, squares that leave the range of the type) is a zero row.
template <typename Weight>
class DivisorSum {
 public:
  explicit DivisorSum(Combiner combiner) : combiner_(combiner) {}

  void Add(Weight weight) { sum_ += combiner_ == Combiner::kSqrtn ? weight * weight : weight; }

  Weight Divisor() const {
    switch (combiner_) {
      case Combiner::kSum:
        return 1;
      case Combiner::kMean:
        return sum_;
      case Combiner::kSqrtn:
        return std::sqrt(sum_);
    }
    return 1;
  }

 private:
  const Combiner combiner_;
  Weight sum_ = 0;
};

template <typename Id, typename Weight>
Weight BagDivisor(const Bags<Id>& bags, const Weight* weights, Combiner combiner, int64_t bag) {
  DivisorSum<Weight> sum(combiner);
  for (int64_t k = bags.Begin(bag); k < bags.End(bag); ++k) {
    if (!bags.IsPadding(k)) sum.Add(weights ? weights[k] : Weight{1});
  }
  return sum.Divisor();
}

// One input of a pooled lookup. A row of the output, and of its gradient, is as wide as all
// features together; this one owns the columns from `column` on.
template <typename T, typename Id>
struct Feature {
  Bags<Id> bags;
  const Accumulator<T>* weights;  // by position; null means ones
  Combiner combiner;
  int64_t column;
};

}  // namespace tfrec

#endif  // TFREC_CUSTOM_OPS_COMMON_BAGS_H_
