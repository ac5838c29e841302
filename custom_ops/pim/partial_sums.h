// A gather-reduce as several groups of ranks compute it: each the sum of the rows that it holds.
#ifndef TFREC_CUSTOM_OPS_PIM_PARTIAL_SUMS_H_
#define TFREC_CUSTOM_OPS_PIM_PARTIAL_SUMS_H_

#include <cmath>
#include <cstdint>
#include <utility>
#include <vector>

#include "custom_ops/common/bags.h"
#include "custom_ops/common/prefetch.h"
#include "custom_ops/gather_reduce/gather_reduce.h"
#include "custom_ops/pim/grouped_reducer.h"
#include "custom_ops/pim/placement.h"

namespace tfrec {

// What the lookups of one bag look up, brought together by group.
template <typename T>
class BagByGroups {
 public:
  using Real = Accumulator<T>;

  explicit BagByGroups(int64_t groups) : place_of_(groups), bag_of_(groups, -1) {}

  void Begin(int64_t bag, int64_t most_lookups) {
    bag_ = bag;
    total_ = 0;
    found_.resize(most_lookups);
    rows_.resize(most_lookups);
    weights_.resize(most_lookups);
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
  // Groups in the order in which they came, and lookups in theirs.
  GroupedRows<T> Rows(bool weighted) {
    int64_t begin = 0;
    for (int64_t& end : ends_) begin += std::exchange(end, begin);
    for (int64_t k = 0; k < total_; ++k) {
      const int64_t i = ends_[found_[k].place]++;
      rows_[i] = found_[k].row;
      if (weighted) weights_[i] = found_[k].weight;
    }
    return {rows_.data(), weighted ? weights_.data() : nullptr, ends_.data(),
            static_cast<int64_t>(ends_.size())};
  }

 private:
  struct Lookup {
    int64_t place;
    const T* row;
    Real weight;
  };

  int64_t bag_ = -1;
  int64_t total_ = 0;              // lookups of the bag
  std::vector<int64_t> place_of_;  // of each group, among those of the bag
  std::vector<int64_t> bag_of_;    // for which that is true
  std::vector<Lookup> found_;
  std::vector<int64_t> ends_;
  std::vector<const T*> rows_;
  std::vector<Real> weights_;
};

// out[b] = (sum over groups g of (sum over the lookups k of bag b in g of weights[k] *
// table[ids[k]])) / divisor(b), for the bags [first, last). Groups are added in the order in which
// the bag first looks something up in them, and lookups in theirs. Returns false as GatherReduce()
// does.
template <typename T, typename Id>
bool SumByGroups(const Table<T>& table, const Bags<Id>& bags, const Accumulator<T>* weights,
                 Combiner combiner, const Placement& placement, GroupedReducer<T> reduce,
                 int64_t first, int64_t last, T* out) {
  using Real = Accumulator<T>;
  BagByGroups<T> groups(placement.groups());
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
    reduce(groups.Rows(weights != nullptr), table.dim, divisor.Divisor(), out + bag * table.dim);
  }
  return true;
}

}  // namespace tfrec

#endif  // TFREC_CUSTOM_OPS_PIM_PARTIAL_SUMS_H_
