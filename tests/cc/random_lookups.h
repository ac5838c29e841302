// What the tests of castings and of all that is made of them share: features of one table with
// random ids, and blocks in an order that nothing may hang on.
#ifndef TFREC_TESTS_CC_RANDOM_LOOKUPS_H_
#define TFREC_TESTS_CC_RANDOM_LOOKUPS_H_

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <utility>
#include <vector>

#include "custom_ops/casting/casting.h"
#include "custom_ops/common/bags.h"
#include "custom_ops/common/parallel.h"
#include "tests/cc/check.h"
#include "tests/cc/random_rows.h"

namespace tfrec {

// Runs its blocks one after another, the last one first.
inline Parallel Backwards(int64_t threads) {
  return {threads, [](int64_t blocks, const std::function<void(int64_t)>& work) {
            for (int64_t block = blocks; block-- > 0;) work(block);
          }};
}

// All the steps from lookups to pairs, in buffers of the least size and with other values before.
template <typename Id>
std::vector<int64_t> CastAll(const TableLookups<Id>& lookups, const Parallel& parallel,
                             int64_t blocks) {
  std::vector<int64_t> kept_in_block;
  const IdScan scan = ScanIds(lookups, parallel, blocks, &kept_in_block);
  CHECK(!scan.negative);
  std::vector<int64_t> scratch(lookups.Total(), -2);
  std::vector<int64_t> pairs(lookups.Total(), -3);
  Cast(lookups, scan, kept_in_block, parallel, scratch.data(), pairs.data());
  return pairs;
}
template <typename Id>
std::vector<int64_t> CastAll(const TableLookups<Id>& lookups) {
  return CastAll(lookups, Parallel(), 1);
}

struct FeatureShape {
  Combiner combiner;
  bool weighted;
  bool ragged;
  bool padded;
  int64_t hotness;  // the mean of it, where ragged
};

inline FeatureShape RandomShape(Rng* rng, int64_t hotness) {
  return {kCombiners[Below(rng, 3)], Below(rng, 2) == 0, Below(rng, 2) == 0, Below(rng, 2) == 0,
          hotness};
}

struct FeatureData {
  std::vector<int64_t> ids;
  std::vector<int64_t> bag_of_position;
  std::vector<int64_t> row_splits;
  std::vector<double> weights;
  int64_t count;
  int64_t column;
  FeatureShape shape;

  int64_t padding_id() const { return 2; }  // occurs, and is a row where nothing is padding
  bool IsPadding(int64_t k) const { return shape.padded && ids[k] == padding_id(); }
  double Weight(int64_t k) const { return shape.weighted ? weights[k] : 1; }
  // Of each bag; zero where there are no lookups.
  std::vector<double> Divisors() const {
    std::vector<double> divisors(count);
    for (size_t k = 0; k < ids.size(); ++k) {
      if (IsPadding(k)) continue;
      double* const divisor = &divisors[bag_of_position[k]];
      if (shape.combiner == Combiner::kSum) *divisor = 1;
      if (shape.combiner == Combiner::kMean) *divisor += Weight(k);
      if (shape.combiner == Combiner::kSqrtn) *divisor = std::hypot(*divisor, Weight(k));
    }
    return divisors;
  }
};

// Weights are positive and NaN at padding, but for some bags whose weights leave no divisor.
inline FeatureData RandomFeatureData(Rng* rng, const FeatureShape& shape, int64_t count,
                                     int64_t rows) {
  FeatureData data{{}, {}, {0}, {}, count, 0, shape};
  for (int64_t bag = 0; bag < count; ++bag) {
    const int64_t size = shape.ragged ? Below(rng, 2 * shape.hotness + 1) : shape.hotness;
    const int64_t kind = Below(rng, 8);
    double last = 0;
    for (int64_t k = 0; k < size; ++k) {
      data.ids.push_back(Below(rng, rows));
      data.bag_of_position.push_back(bag);
      double weight = Uniform(rng, 0.25, 2);
      if (data.IsPadding(data.ids.size() - 1)) {
        weight = kNan;
      } else if (shape.combiner != Combiner::kSum && kind == 0) {
        weight = 0;
      } else if (shape.combiner == Combiner::kMean && kind == 1) {
        weight = last = last == 1.5 ? -1.5 : 1.5;  // cancel where they are even in number
      }
      data.weights.push_back(weight);
    }
    data.row_splits.push_back(data.ids.size());
  }
  return data;
}

// Features of one table, and the incoming gradient of all of them and of columns of others.
struct TableProblem {
  std::vector<FeatureData> data;
  std::vector<double> grads;
  int64_t width;
  int64_t dim;
};

// The incoming gradient is NaN wherever nobody may look: at columns of other features, and for bags
// without a divisor.
inline TableProblem RandomTableProblem(Rng* rng, const std::vector<FeatureShape>& shapes,
                                       int64_t count, int64_t rows, int64_t dim) {
  TableProblem problem{{}, {}, 1, dim};
  for (const FeatureShape& shape : shapes) {
    problem.data.push_back(RandomFeatureData(rng, shape, count, rows));
    problem.data.back().column = problem.width;
    problem.width += dim + 2;
  }
  // Columns need not be in the order of the features.
  std::swap(problem.data.front().column, problem.data.back().column);
  problem.grads.assign(count * problem.width, kNan);
  for (const FeatureData& data : problem.data) {
    const std::vector<double> divisors = data.Divisors();
    for (int64_t bag = 0; bag < count; ++bag) {
      if (divisors[bag] == 0) continue;
      for (int64_t c = 0; c < dim; ++c) {
        problem.grads[bag * problem.width + data.column + c] = Uniform(rng, -2, 2);
      }
    }
  }
  return problem;
}

// A problem in the types that the cores take.
template <typename T, typename Id>
class Typed {
 public:
  explicit Typed(const TableProblem& problem) : rounded_(problem) {
    for (FeatureData& data : rounded_.data) {
      ids_.emplace_back(data.ids.begin(), data.ids.end());
      weights_.emplace_back(data.weights.begin(), data.weights.end());
      data.weights.assign(weights_.back().begin(), weights_.back().end());
    }
    for (double& grad : rounded_.grads) {
      grads_.push_back(Narrowed<T>(grad));
      grad = Widen(grads_.back());
    }
    for (size_t f = 0; f < ids_.size(); ++f) {
      const FeatureData& data = rounded_.data[f];
      const FeatureShape& shape = data.shape;
      const Bags<Id> bags{ids_[f].data(),
                          static_cast<int64_t>(ids_[f].size()),
                          data.count,
                          shape.ragged ? data.row_splits.data() : nullptr,
                          shape.ragged ? 0 : shape.hotness,
                          shape.padded,
                          data.padding_id()};
      features_.push_back(
          {bags, shape.weighted ? weights_[f].data() : nullptr, shape.combiner, data.column});
      lookups_.features.push_back(bags);
    }
  }
  Typed(const Typed&) = delete;
  Typed& operator=(const Typed&) = delete;

  // As the cores see it.
  const TableProblem& rounded() const { return rounded_; }
  const std::vector<T>& grads() const { return grads_; }
  const std::vector<Feature<T, Id>>& features() const { return features_; }
  const TableLookups<Id>& lookups() const { return lookups_; }

 private:
  TableProblem rounded_;
  std::vector<std::vector<Id>> ids_;
  std::vector<std::vector<Accumulator<T>>> weights_;
  std::vector<T> grads_;
  std::vector<Feature<T, Id>> features_;
  TableLookups<Id> lookups_;
};

}  // namespace tfrec

#endif  // TFREC_TESTS_CC_RANDOM_LOOKUPS_H_
