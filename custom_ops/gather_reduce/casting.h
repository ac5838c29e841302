// Tensor Casting (Kwon, Lee and Rhu, HPCA 2021, section IV-A): the gradient of a gather-reduce is
// itself a gather-reduce, once the (id, bag) pairs are sorted by id.
//
// Casting looks at ids only. Each run of equal ids becomes one segment, which is one row of the
// coalesced gradient; the rows to add up for it are rows of the incoming gradient.
#ifndef TFREC_CUSTOM_OPS_GATHER_REDUCE_CASTING_H_
#define TFREC_CUSTOM_OPS_GATHER_REDUCE_CASTING_H_

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "custom_ops/gather_reduce/bags.h"
#include "custom_ops/gather_reduce/row_reducer.h"

namespace tfrec {

// Bits needed to write every value in [0, count).
inline int BitsFor(uint64_t count) {
  int bits = 0;
  while (bits < 64 && (count > (uint64_t{1} << bits))) ++bits;
  return bits;
}

// Pairs of (key, payload), packed into one word each: the payload in the low bits.
struct PackedPairs {
  uint64_t* data = nullptr;
  int64_t count = 0;
  int payload_bits = 0;
  int key_bits = 0;

  int64_t Key(int64_t i) const { return static_cast<int64_t>(data[i] >> payload_bits); }
  int64_t Payload(int64_t i) const {
    return static_cast<int64_t>(data[i] & ((uint64_t{1} << payload_bits) - 1));
  }
};

// Largest id that is not padding, or -1 without any. A negative id gives `*fault`.
template <typename Id>
int64_t LargestId(const Bags<Id>& bags, Fault* fault) {
  int64_t largest = -1;
  for (int64_t k = 0; k < bags.lookups; ++k) {
    if (bags.IsPadding(k)) continue;
    if (bags.ids[k] < 0) {
      *fault = {Fault::kIds, k};
      return -1;
    }
    largest = std::max<int64_t>(largest, bags.ids[k]);
  }
  return largest;
}

// One pair for each lookup that is not padding, in the order of the lookups. The payload is the
// bag, which is all that an unweighted gradient needs, or the lookup's position.
template <typename Id>
void PackPairs(const Bags<Id>& bags, bool payload_is_position, PackedPairs* pairs) {
  pairs->count = 0;
  for (int64_t bag = 0; bag < bags.count; ++bag) {
    for (int64_t k = bags.Begin(bag); k < bags.End(bag); ++k) {
      if (bags.IsPadding(k)) continue;
      const uint64_t payload = static_cast<uint64_t>(payload_is_position ? k : bag);
      pairs->data[pairs->count++] =
          (static_cast<uint64_t>(bags.ids[k]) << pairs->payload_bits) | payload;
    }
  }
}

// Sorts by key and keeps the order of equal keys. `scratch` is as large as the pairs; afterwards
// `pairs->data` points at whichever of the two buffers holds the result.
void SortPairs(PackedPairs* pairs, uint64_t* scratch);

// Writes the first pair of each run of equal keys, then `pairs.count`; returns the number of runs.
// `starts` has room for pairs.count + 1 entries.
int64_t FindSegments(const PackedPairs& pairs, int64_t* starts);

// What a gradient row is multiplied by before it is added to a segment.
template <typename Weight>
struct CastedWeights {
  const Weight* weights = nullptr;           // by position; null means ones
  const int64_t* bag_of_position = nullptr;  // needed where weights are given
  const Weight* divisors = nullptr;          // by bag; null means ones
};

// values[u] = sum over the pairs i of segment u of factor(i) * grads[bag(i)], for the segments
// [first, last). `values` points at the row of segment 0.
template <typename T>
void ReduceSegments(const PackedPairs& pairs, const int64_t* starts, const T* grads, int64_t dim,
                    const CastedWeights<Accumulator<T>>& casted, RowReducer<T> reduce,
                    int64_t first, int64_t last, T* values) {
  using Weight = Accumulator<T>;
  constexpr int64_t kChunkPairs = 4096;
  const bool weighted = casted.weights || casted.divisors;
  // Stands in for the gradient of a bag without a divisor, which may be infinite or NaN.
  const std::vector<T> zeros(casted.divisors ? dim : 0);
  std::vector<const T*> rows;
  std::vector<Weight> factors;
  while (first < last) {
    int64_t chunk_end = first + 1;
    while (chunk_end < last && starts[chunk_end + 1] - starts[first] <= kChunkPairs) ++chunk_end;
    const int64_t begin = starts[first];
    const int64_t count = starts[chunk_end] - begin;
    rows.resize(count);
    if (weighted) factors.resize(count);
    for (int64_t i = 0; i < count; ++i) {
      const int64_t payload = pairs.Payload(begin + i);
      const int64_t bag = casted.weights ? casted.bag_of_position[payload] : payload;
      rows[i] = grads + bag * dim;
      if (!weighted) continue;
      const Weight weight = casted.weights ? casted.weights[payload] : Weight{1};
      const Weight divisor = casted.divisors ? casted.divisors[bag] : Weight{1};
      if (divisor == 0) rows[i] = zeros.data();
      factors[i] = divisor == 0 ? Weight{0} : weight / divisor;
    }
    for (int64_t segment = first; segment < chunk_end; ++segment) {
      const int64_t offset = starts[segment] - begin;
      reduce(rows.data() + offset, weighted ? factors.data() + offset : nullptr,
             starts[segment + 1] - starts[segment], count - offset, dim, Weight{1},
             values + segment * dim);
    }
    first = chunk_end;
  }
}

}  // namespace tfrec

#endif  // TFREC_CUSTOM_OPS_GATHER_REDUCE_CASTING_H_
