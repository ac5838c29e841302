// Forward gather-reduce and the gradient of its weights, over a range of bags.
#ifndef TFREC_CUSTOM_OPS_GATHER_REDUCE_GATHER_REDUCE_H_
#define TFREC_CUSTOM_OPS_GATHER_REDUCE_GATHER_REDUCE_H_

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <type_traits>
#include <vector>

#include "custom_ops/common/bags.h"
#include "custom_ops/common/prefetch.h"
#include "custom_ops/gather_reduce/row_reducer.h"

namespace tfrec {

// Rows of a table, one behind the other. Each stands for its values times its scale, if there are
// any.
template <typename T>
struct Table {
  const T* data;
  int64_t rows;
  int64_t dim;
  const float* scales = nullptr;
};

// Whether the lookups [first, last) are rows of a table, all of them.
template <typename Id>
bool AreRows(const Id* ids, int64_t first, int64_t last, int64_t rows) {
  using Unsigned = std::make_unsigned_t<Id>;
  constexpr Unsigned kNonNegative = static_cast<Unsigned>(std::numeric_limits<Id>::max()) + 1;
  const Unsigned count =
      rows > std::numeric_limits<Id>::max() ? kNonNegative : static_cast<Unsigned>(rows);
  bool good = true;
  for (int64_t k = first; k < last; ++k) good &= static_cast<Unsigned>(ids[k]) < count;
  return good;
}

// GatherReduce(), below, for lookups without weights and padding.
template <typename T, typename Id>
bool GatherReducePlain(const Table<T>& table, const Bags<Id>& bags, Combiner combiner,
                       IdReducer<T, Id> reduce, int64_t first, int64_t last, int64_t width,
                       Pooled<T>* out) {
  const int64_t end = bags.End(last - 1);
  if (!AreRows(bags.ids, bags.Begin(first), end, table.rows)) return false;
  for (int64_t bag = first; bag < last; ++bag) {
    const int64_t begin = bags.Begin(bag);
    const int64_t hotness = bags.End(bag) - begin;
    const auto sum = static_cast<Accumulator<T>>(hotness);
    const Accumulator<T> divisor = combiner == Combiner::kSum    ? Accumulator<T>{1}
                                   : combiner == Combiner::kMean ? sum
                                                                 : std::sqrt(sum);
    reduce(table.data, table.dim, bags.ids + begin, hotness, end - begin, divisor,
           out + bag * width);
  }
  return true;
}

// out[b] = (sum over the lookups k of bag b of weights[k] * table[ids[k]]) / divisor(b), for the
// bags [first, last). `out` points at the first value of bag 0, and from one bag to the next it is
// `width` values. Returns false, with some rows unwritten, when an id or a weight breaks a rule;
// FindFault() then names it.
//
// Works in chunks: first the lookups of a chunk become row pointers, which is where rules are
// checked and padding disappears, then a reducer without any branch runs over them.
template <typename T, typename Id>
bool GatherReduce(const Table<T>& table, const Bags<Id>& bags, const Accumulator<T>* weights,
                  Combiner combiner, RowReducer<T> reduce, int64_t first, int64_t last,
                  int64_t width, Pooled<T>* out) {
  using Weight = Accumulator<T>;
  constexpr int64_t kChunkLookups = 4096;
  const bool weighted = weights || table.scales;
  std::vector<const T*> rows;
  std::vector<Weight> kept_weights;
  std::vector<int64_t> ends;
  std::vector<Weight> divisors;
  while (first < last) {
    int64_t chunk_end = first + 1;
    while (chunk_end < last && bags.End(chunk_end) - bags.Begin(first) <= kChunkLookups) {
      ++chunk_end;
    }
    rows.resize(bags.End(chunk_end - 1) - bags.Begin(first));
    if (weighted) kept_weights.resize(rows.size());
    ends.clear();
    divisors.clear();
    int64_t kept = 0;
    for (int64_t bag = first; bag < chunk_end; ++bag) {
      DivisorSum<Weight> divisor(combiner);
      for (int64_t k = bags.Begin(bag); k < bags.End(bag); ++k) {
        if (bags.IsPadding(k)) continue;
        if (!bags.IsRow(k, table.rows)) return false;
        rows[kept] = table.data + bags.ids[k] * table.dim;
        const Weight weight = weights ? weights[k] : Weight{1};
        if (!std::isfinite(weight)) return false;
        if (weighted)
          kept_weights[kept] = table.scales ? weight * table.scales[bags.ids[k]] : weight;
        divisor.Add(weight);
        ++kept;
      }
      ends.push_back(kept);
      divisors.push_back(divisor.Divisor());
    }
    int64_t begin = 0;
    for (int64_t bag = first; bag < chunk_end; ++bag) {
      const int64_t end = ends[bag - first];
      reduce(rows.data() + begin, weighted ? kept_weights.data() + begin : nullptr, end - begin,
             kept - begin, table.dim, divisors[bag - first], out + bag * width);
      begin = end;
    }
    first = chunk_end;
  }
  return true;
}

// a . b, summed in a fixed order that vectorises.
template <typename T>
Accumulator<T> Dot(const T* a, const T* b, int64_t dim) {
  constexpr int64_t kLanes = 16;
  Accumulator<T> lanes[kLanes] = {};
  int64_t c = 0;
  for (; c + kLanes <= dim; c += kLanes) {
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      lanes[lane] += Widen(a[c + lane]) * Widen(b[c + lane]);
    }
  }
  for (; c < dim; ++c) lanes[c % kLanes] += Widen(a[c]) * Widen(b[c]);
  Accumulator<T> sum = 0;
  for (int64_t lane = 0; lane < kLanes; ++lane) sum += lanes[lane];
  return sum;
}

// The gradient of the weights, for the bags [first, last). `grads` points at the first value of
// bag 0, and from one bag to the next it is `width` values. With d[k] = table[ids[k]] . grads[b]
// and m = sum(w * d) over the bag:
//   sum:   d[k]
//   mean:  d[k] / S - m / S^2           with S = sum(w)
//   sqrtn: d[k] / Q - w[k] * m / Q^3    with Q = sqrt(sum(w^2))
// Padding, and bags without a divisor, get zero. Returns false as GatherReduce() does.
template <typename T, typename Id>
bool GatherReduceWeightGrad(const Table<T>& table, const Bags<Id>& bags,
                            const Accumulator<T>* weights, Combiner combiner, const T* grads,
                            int64_t width, int64_t first, int64_t last, Accumulator<T>* out) {
  using Weight = Accumulator<T>;
  for (int64_t bag = first; bag < last; ++bag) {
    DivisorSum<Weight> divisor_sum(combiner);
    Weight weighted_dots = 0;
    for (int64_t k = bags.Begin(bag); k < bags.End(bag); ++k) {
      out[k] = 0;
      if (bags.IsPadding(k)) continue;
      if (!bags.IsRow(k, table.rows) || !std::isfinite(weights[k])) return false;
      if (k + kPrefetchDistance < bags.lookups && bags.IsRow(k + kPrefetchDistance, table.rows)) {
        Prefetch(table.data + bags.ids[k + kPrefetchDistance] * table.dim, table.dim);
      }
      out[k] = Dot(table.data + bags.ids[k] * table.dim, grads + bag * width, table.dim);
      weighted_dots += weights[k] * out[k];
      divisor_sum.Add(weights[k]);
    }
    const Weight divisor = divisor_sum.Divisor();
    if (divisor == 0) {
      std::fill(out + bags.Begin(bag), out + bags.End(bag), Weight{0});
      continue;
    }
    if (combiner == Combiner::kSum) continue;
    const Weight pull = weighted_dots / divisor / divisor;
    for (int64_t k = bags.Begin(bag); k < bags.End(bag); ++k) {
      if (bags.IsPadding(k)) continue;
      out[k] =
          out[k] / divisor - (combiner == Combiner::kMean ? pull : weights[k] * (pull / divisor));
    }
  }
  return true;
}

}  // namespace tfrec

#endif  // TFREC_CUSTOM_OPS_GATHER_REDUCE_GATHER_REDUCE_H_
