// A gather-reduce as several groups of ranks compute it: each the sum of the rows that it holds.
#ifndef TFREC_CUSTOM_OPS_PIM_PARTIAL_SUMS_H_
#define TFREC_CUSTOM_OPS_PIM_PARTIAL_SUMS_H_

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <type_traits>
#include <utility>
#include <vector>

#include "custom_ops/common/bags.h"
#include "custom_ops/common/prefetch.h"
#include "custom_ops/gather_reduce/gather_reduce.h"
#include "custom_ops/gather_reduce/row_reducer.h"
#include "custom_ops/pim/placement.h"

namespace tfrec {

// The weighted sum of rows, in the type of sums.
template <typename T>
void SumRows(const T* const* rows, const Accumulator<T>* weights, int64_t count, int64_t dim,
             RowReducer<T> reduce, Accumulator<T>* sum) {
  using Real = Accumulator<T>;
  if constexpr (std::is_same_v<T, Real>) {
    reduce(rows, weights, count, count, dim, Real{1}, sum);
  } else {
    std::fill_n(sum, dim, Real{0});
    for (int64_t k = 0; k < count; ++k) {
      const Real weight = weights ? weights[k] : Real{1};
      for (int64_t c = 0; c < dim; ++c) sum[c] += weight * Widen(rows[k][c]);
    }
  }
}

// What the lookups of one bag look up, brought together by group.
template <typename T>
class BagByGroups {
 public:
  using Real = Accumulator<T>;

  BagByGroups(int64_t groups, int64_t dim) : dim_(dim), place_of_(groups), bag_of_(groups, -1) {}

  void Begin(int64_t bag, int64_t most_lookups) {
    bag_ = bag;
    found_.resize(most_lookups);
    total_ = 0;
    ends_.clear();
  }
  void Add(int64_t group, const T* row, Real weight) {
    if (bag_of_[group] != bag_) {
      bag_of_[group] = bag_;
      place_of_[group] = ends_.size();
      ends_.push_back(0);
    }
    const int64_t place = place_of_[group];
    ++ends_[place];
    found_[total_++] = {place, row, weight};
  }
  // The partial sums of the groups, in the order in which they came.
  const std::vector<const Real*>& Sum(bool weighted, RowReducer<T> reduce) {
    int64_t total = 0;
    for (int64_t& end : ends_) total += std::exchange(end, total);
    rows_.resize(total);
    weights_.resize(total);
    for (int64_t k = 0; k < total; ++k) {
      const int64_t i = ends_[found_[k].place]++;
      rows_[i] = found_[k].row;
      if (weighted) weights_[i] = found_[k].weight;
    }
    const size_t values = ends_.size() * dim_;
    if (sums_.size() < values) sums_.resize(values);
    partials_.resize(ends_.size());
    int64_t begin = 0;
    for (size_t place = 0; place < ends_.size(); begin = ends_[place++]) {
      const int64_t count = ends_[place] - begin;
      if constexpr (std::is_same_v<T, Real>) {
        if (count == 1 && !weighted) {  // the row is the sum
          partials_[place] = rows_[begin];
          continue;
        }
      }
      Real* const sum = sums_.data() + place * dim_;
      SumRows(rows_.data() + begin, weighted ? weights_.data() + begin : nullptr, count, dim_,
              reduce, sum);
      partials_[place] = sum;
    }
    return partials_;
  }

 private:
  struct Lookup {
    int64_t place;
    const T* row;
    Real weight;
  };

  const int64_t dim_;
  int64_t bag_ = -1;
  int64_t total_ = 0;              // lookups of the bag
  std::vector<int64_t> place_of_;  // of each group, among those of the bag
  std::vector<int64_t> bag_of_;    // for which that is true
  std::vector<Lookup> found_;
  std::vector<int64_t> ends_;
  std::vector<const T*> rows_;
  std::vector<Real> weights_;
  std::vector<Real> sums_;
  std::vector<const Real*> partials_;
};

// out[b] = (sum over groups g of (sum over the lookups k of bag b in g of weights[k] *
// table[ids[k]])) / divisor(b), for the bags [first, last). Groups are added in the order in which
// the bag first looks something up in them, and lookups in theirs. Returns false as GatherReduce()
// does. `combine` adds up the partial sums of a bag.
template <typename T, typename Id>
bool SumByGroups(const Table<T>& table, const Bags<Id>& bags, const Accumulator<T>* weights,
                 Combiner combiner, const Placement& placement, RowReducer<T> reduce,
                 RowReducer<Accumulator<T>> combine, int64_t first, int64_t last, T* out) {
  using Real = Accumulator<T>;
  BagByGroups<T> groups(placement.groups(), table.dim);
  std::vector<Real> wide(table.dim);
  const int64_t readable = bags.End(last - 1);
  for (int64_t bag = first; bag < last; ++bag) {
    DivisorSum<Real> divisor(combiner);
    groups.Begin(bag, bags.End(bag) - bags.Begin(bag));
    for (int64_t k = bags.Begin(bag); k < bags.End(bag); ++k) {
      const int64_t ahead = k + kPrefetchDistance;
      if (ahead < readable && bags.IsRow(ahead, table.rows)) {
        Prefetch(table.data + bags.ids[ahead] * table.dim, table.dim);
      }
      if (bags.IsPadding(k)) continue;
      if (!bags.IsRow(k, table.rows)) return false;
      const Real weight = weights ? weights[k] : Real{1};
      if (!std::isfinite(weight)) return false;
      divisor.Add(weight);
      groups.Add(placement.GroupOf(bags.ids[k], k), table.data + bags.ids[k] * table.dim, weight);
    }
    const std::vector<const Real*>& partials = groups.Sum(weights != nullptr, reduce);
    const int64_t count = partials.size();
    T* const pooled = out + bag * table.dim;
    if constexpr (std::is_same_v<T, Real>) {
      combine(partials.data(), nullptr, count, count, table.dim, divisor.Divisor(), pooled);
    } else {
      combine(partials.data(), nullptr, count, count, table.dim, divisor.Divisor(), wide.data());
      for (int64_t c = 0; c < table.dim; ++c) Narrow(wide[c], pooled + c);
    }
  }
  return true;
}

}  // namespace tfrec

#endif  // TFREC_CUSTOM_OPS_PIM_PARTIAL_SUMS_H_
