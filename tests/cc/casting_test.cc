#include "custom_ops/gather_reduce/casting.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <map>
#include <random>
#include <utility>
#include <vector>

#include "custom_ops/common/narrow_float.h"
#include "custom_ops/gather_reduce/bags.h"
#include "custom_ops/gather_reduce/row_reducer.h"
#include "tests/cc/check.h"
#include "tests/cc/random_rows.h"

namespace tfrec {
namespace {

template <typename Value>
Value OneOf(Rng* rng, const std::vector<Value>& values) {
  return values[Below(rng, values.size())];
}

// ------------------------------------------------------------------------------------- pairs

void TestBitsFor() {
  CHECK_EQ(BitsFor(0), 0);
  CHECK_EQ(BitsFor(1), 0);
  for (int bits = 1; bits < 64; ++bits) {
    const uint64_t count = uint64_t{1} << bits;
    CHECK_EQ(BitsFor(count), bits);
    CHECK_EQ(BitsFor(count + 1), bits + 1);
  }
  CHECK_EQ(BitsFor(std::numeric_limits<uint64_t>::max()), 64);
}

uint64_t RandomBits(Rng* rng, int bits) { return bits == 0 ? 0 : (*rng)() >> (64 - bits); }

void CheckSort(Rng* rng, int64_t count, int key_bits, int payload_bits) {
  std::vector<uint64_t> buffer(count);
  for (uint64_t& pair : buffer) {
    const uint64_t key = RandomBits(rng, key_bits);
    pair = key << payload_bits | RandomBits(rng, payload_bits);
  }
  const auto key = [&](uint64_t pair) { return pair >> payload_bits; };
  std::vector<uint64_t> expected = buffer;
  std::stable_sort(expected.begin(), expected.end(),
                   [&](uint64_t a, uint64_t b) { return key(a) < key(b); });

  std::vector<uint64_t> scratch(count);
  PackedPairs pairs{buffer.data(), count, payload_bits, key_bits};
  SortPairs(&pairs, scratch.data());
  CHECK(pairs.data == buffer.data() || pairs.data == scratch.data(), key_bits, payload_bits);
  for (int64_t i = 0; i < count; ++i) {
    CHECK_EQ(pairs.data[i], expected[i], i, count, key_bits, payload_bits);
    CHECK_EQ(static_cast<uint64_t>(pairs.Key(i)), key(expected[i]), payload_bits);
    CHECK_EQ(static_cast<uint64_t>(pairs.Payload(i)),
             expected[i] - (key(expected[i]) << payload_bits), payload_bits);
  }

  std::vector<int64_t> expected_starts;
  for (int64_t i = 0; i < count; ++i) {
    if (i == 0 || key(expected[i]) != key(expected[i - 1])) expected_starts.push_back(i);
  }
  std::vector<int64_t> starts(count + 1, -1);
  const int64_t segments = FindSegments(pairs, starts.data());
  CHECK_EQ(segments, static_cast<int64_t>(expected_starts.size()), count, key_bits);
  CHECK_EQ(starts[segments], count, segments, key_bits);
  starts.resize(segments);
  CHECK(starts == expected_starts, count, key_bits, payload_bits);
}

void TestSort() {
  Rng rng(1);
  // Key bits below, at and above multiples of the digit of 11 bits. 40 + 24 fill the whole word.
  for (const int key_bits : {0, 1, 2, 10, 11, 12, 22, 23, 33, 40}) {
    for (const int payload_bits : {0, 1, 7, 24}) {
      for (const int64_t count : {0, 1, 2, 3, 100, 3000}) {
        CheckSort(&rng, count, key_bits, payload_bits);
      }
    }
  }
  CheckSort(&rng, 1000, 63, 0);
  CheckSort(&rng, 1000, 63, 1);
}

// -------------------------------------------------------------------------------------- bags

constexpr int64_t kPaddingId = 5;

template <typename Id>
struct BagData {
  std::vector<Id> ids;
  std::vector<int64_t> row_splits;  // empty where all bags have `hotness` lookups
  std::vector<int64_t> bag_of_position;
  int64_t count;
  int64_t hotness;
  bool has_padding;

  Bags<Id> bags() const {
    return {ids.data(), static_cast<int64_t>(ids.size()),
            count,      row_splits.empty() ? nullptr : row_splits.data(),
            hotness,    has_padding,
            kPaddingId};
  }
  bool IsPadding(int64_t position) const { return has_padding && ids[position] == kPaddingId; }
};

// `hotness` lookups in each bag, or up to twice as many where `ragged`.
template <typename Id>
BagData<Id> RandomBags(Rng* rng, int64_t count, int64_t hotness, int64_t rows, bool ragged,
                       bool has_padding) {
  BagData<Id> data{{}, {}, {}, count, ragged ? 0 : hotness, has_padding};
  if (ragged) data.row_splits = {0};
  for (int64_t bag = 0; bag < count; ++bag) {
    for (int64_t left = ragged ? Below(rng, 2 * hotness + 1) : hotness; left > 0; --left) {
      data.ids.push_back(static_cast<Id>(Below(rng, rows)));
      data.bag_of_position.push_back(bag);
    }
    if (ragged) data.row_splits.push_back(data.ids.size());
  }
  return data;
}

template <typename Id>
std::vector<BagData<Id>> ManyBags(Rng* rng) {
  std::vector<BagData<Id>> many;
  for (const bool ragged : {false, true}) {
    for (const bool has_padding : {false, true}) {
      for (const int64_t count : {0, 1, 3, 60}) {
        for (const int64_t hotness : {0, 1, 7}) {
          many.push_back(RandomBags<Id>(rng, count, hotness, 30, ragged, has_padding));
        }
      }
      // A chunk ends at 4096 pairs: ids with more of them, one with just as many, and many chunks.
      many.push_back(RandomBags<Id>(rng, 700, 30, 3, ragged, has_padding));
      many.push_back(RandomBags<Id>(rng, 4096, 1, 1, ragged, has_padding));
      many.push_back(RandomBags<Id>(rng, 900, 10, 400, ragged, has_padding));
    }
  }
  return many;
}

// All the steps from bags to segments, and the buffers behind them.
struct Casted {
  std::vector<uint64_t> buffer;
  std::vector<uint64_t> scratch;
  std::vector<int64_t> starts;
  PackedPairs pairs;
  int64_t segments;
};

template <typename Id>
void Cast(const BagData<Id>& data, bool payload_is_position, Casted* casted) {
  const Bags<Id> bags = data.bags();
  Fault fault;
  const int64_t largest = LargestId(bags, &fault);
  CHECK_EQ(static_cast<int>(fault.kind), static_cast<int>(Fault::kNone));
  casted->buffer.resize(bags.lookups);
  casted->scratch.resize(bags.lookups);
  casted->pairs.data = casted->buffer.data();
  casted->pairs.key_bits = BitsFor(static_cast<uint64_t>(largest) + 1);
  casted->pairs.payload_bits =
      BitsFor(static_cast<uint64_t>(payload_is_position ? bags.lookups : bags.count));
  PackPairs(bags, payload_is_position, &casted->pairs);
  SortPairs(&casted->pairs, casted->scratch.data());
  casted->starts.resize(casted->pairs.count + 1);
  casted->segments = FindSegments(casted->pairs, casted->starts.data());
}

template <typename Id>
void TestPackPairs() {
  Rng rng(2);
  for (const BagData<Id>& data : ManyBags<Id>(&rng)) {
    for (const bool payload_is_position : {false, true}) {
      std::vector<uint64_t> buffer(data.ids.size());
      PackedPairs pairs{buffer.data(), -1, 20, 5};
      PackPairs(data.bags(), payload_is_position, &pairs);
      int64_t i = 0;
      for (int64_t k = 0; k < static_cast<int64_t>(data.ids.size()); ++k) {
        if (data.IsPadding(k)) continue;
        CHECK_EQ(pairs.Key(i), data.ids[k], k);
        CHECK_EQ(pairs.Payload(i), payload_is_position ? k : data.bag_of_position[k], k);
        ++i;
      }
      CHECK_EQ(pairs.count, i);
    }
  }
}

// The largest key there can be, and the number of pairs that still packs with it.
void TestPackLargestId() {
  constexpr int64_t kLargest = std::numeric_limits<int64_t>::max();
  BagData<int64_t> data{{kLargest, 0, kLargest, 1}, {}, {0, 0, 1, 1}, 2, 2, false};
  Casted casted;
  Cast(data, false, &casted);
  CHECK_EQ(casted.pairs.key_bits + casted.pairs.payload_bits, 64);
  CHECK_EQ(casted.segments, 3);
  CHECK_EQ(casted.pairs.Key(3), kLargest);
  CHECK_EQ(casted.pairs.Payload(2), 0);
  CHECK_EQ(casted.pairs.Payload(3), 1);
}

template <typename Id>
void TestLargestId() {
  const auto check = [](std::vector<Id> ids, bool has_padding, int64_t largest, int64_t culprit) {
    const int64_t count = ids.size();
    const BagData<Id> data{std::move(ids), {}, {}, count, 1, has_padding};
    Fault fault;
    CHECK_EQ(LargestId(data.bags(), &fault), largest);
    CHECK_EQ(static_cast<int>(fault.kind),
             static_cast<int>(culprit < 0 ? Fault::kNone : Fault::kIds));
    CHECK_EQ(fault.position, culprit);
  };
  constexpr Id kMin = std::numeric_limits<Id>::min();
  constexpr Id kMax = std::numeric_limits<Id>::max();
  const Id padding = kPaddingId;
  check({}, true, -1, -1);
  check({padding, padding}, true, -1, -1);
  check({padding, padding}, false, padding, -1);
  check({0, padding, 3}, true, 3, -1);
  check({0, kMax, 3}, false, kMax, -1);
  check({7, padding, -1, 9, -2}, true, -1, 2);
  check({kMin}, false, -1, 0);
  // A negative padding id is no fault.
  const std::vector<Id> ids = {2, -1, 1};
  Fault fault;
  CHECK_EQ(LargestId(Bags<Id>{ids.data(), 3, 3, nullptr, 1, true, -1}, &fault), 2);
  CHECK_EQ(static_cast<int>(fault.kind), static_cast<int>(Fault::kNone));
}

// ---------------------------------------------------------------------------------- segments

// Few bits each, so that every sum is exact in float: there is one right answer for each bit.
template <typename T>
struct Factors {
  std::vector<Accumulator<T>> weights;   // by position
  std::vector<Accumulator<T>> divisors;  // by bag
  bool use_weights;
  bool use_divisors;

  double Of(int64_t position, int64_t bag) const {
    const double divisor = use_divisors ? divisors[bag] : 1;
    return divisor == 0 ? 0 : (use_weights ? weights[position] : 1) / divisor;
  }
  CastedWeights<Accumulator<T>> View(const std::vector<int64_t>& bag_of_position) const {
    CastedWeights<Accumulator<T>> view;
    if (use_weights) {
      view.weights = weights.data();
      view.bag_of_position = bag_of_position.data();
    }
    if (use_divisors) view.divisors = divisors.data();
    return view;
  }
};

template <typename Id>
using RowSums = std::map<Id, std::vector<double>>;

// factor(position, bag) * grads[bag], added up by id.
template <typename T, typename Id, typename Factor>
RowSums<Id> NaiveSums(const BagData<Id>& data, const std::vector<T>& grads, int64_t dim,
                      Factor factor) {
  RowSums<Id> sums;
  for (size_t k = 0; k < data.ids.size(); ++k) {
    if (data.IsPadding(k)) continue;
    const int64_t bag = data.bag_of_position[k];
    std::vector<double>& sum = sums.emplace(data.ids[k], dim).first->second;
    for (int64_t c = 0; c < dim; ++c) sum[c] += factor(k, bag) * Widen(grads[bag * dim + c]);
  }
  return sums;
}

// The segments are reduced in one call for each two neighbours of `cuts`.
template <typename T>
std::vector<T> RunSegments(const Casted& casted, const std::vector<T>& grads, int64_t dim,
                           const CastedWeights<Accumulator<T>>& weights, Isa isa,
                           const std::vector<int64_t>& cuts) {
  std::vector<T> values(casted.segments * dim, Narrowed<T>(std::nan("")));
  for (size_t i = 0; i + 1 < cuts.size(); ++i) {
    ReduceSegments(casted.pairs, casted.starts.data(), grads.data(), dim, weights,
                   SelectRowReducer<T>(isa), cuts[i], cuts[i + 1], values.data());
  }
  return values;
}

template <typename T>
bool SameBits(T a, T b) {
  return std::memcmp(&a, &b, sizeof a) == 0;
}

template <typename T, typename Id>
void CheckSegments(const Casted& casted, const RowSums<Id>& expected, int64_t dim,
                   const std::vector<T>& actual) {
  CHECK_EQ(casted.segments, static_cast<int64_t>(expected.size()));
  int64_t segment = 0;
  for (const auto& [id, sum] : expected) {  // a map, hence in the order of the ids
    CHECK_EQ(casted.pairs.Key(casted.starts[segment]), id);
    for (int64_t c = 0; c < dim; ++c) {
      const T value = actual[segment * dim + c];
      CHECK(SameBits(value, Narrowed<T>(sum[c])), Widen(value), sum[c], segment, c);
    }
    ++segment;
  }
}

template <typename T, typename Id>
void TestReduceSegments() {
  Rng rng(3);
  for (const BagData<Id>& data : ManyBags<Id>(&rng)) {
    const int64_t dim = OneOf<int64_t>(&rng, {1, 4, 21});
    std::vector<T> grads;
    for (int64_t i = 0; i < data.count * dim; ++i) grads.push_back(Narrowed<T>(Below(&rng, 9) - 4));
    Factors<T> factors;
    for (size_t k = 0; k < data.ids.size(); ++k) {
      factors.weights.push_back(OneOf<Accumulator<T>>(&rng, {-1, 0, 0.5, 3}));
    }
    for (int64_t bag = 0; bag < data.count; ++bag) {
      factors.divisors.push_back(OneOf<Accumulator<T>>(&rng, {0, 1, -2, 4}));
    }
    for (const bool use_weights : {false, true}) {
      Casted casted;
      Cast(data, use_weights, &casted);
      for (const bool use_divisors : {false, true}) {
        factors.use_weights = use_weights;
        factors.use_divisors = use_divisors;
        const RowSums<Id> expected =
            NaiveSums(data, grads, dim, [&](int64_t k, int64_t bag) { return factors.Of(k, bag); });
        for (const Isa isa : {Isa::kPortable, BestIsa()}) {
          std::vector<int64_t> cuts = {0, casted.segments};
          for (int pass = 0; pass < 2; ++pass) {  // the second one in several calls
            CheckSegments(
                casted, expected, dim,
                RunSegments(casted, grads, dim, factors.View(data.bag_of_position), isa, cuts));
            for (int i = 0; i < 4; ++i) cuts.push_back(Below(&rng, casted.segments + 1));
            std::sort(cuts.begin(), cuts.end());
          }
        }
      }
    }
  }
}

// With real weights and divisors, sums round: splitting the segments must not change how.
template <typename T>
void TestSplittingKeepsBits() {
  Rng rng(4);
  for (const BagData<int32_t>& data : ManyBags<int32_t>(&rng)) {
    constexpr int64_t kDim = 21;
    std::uniform_real_distribution<double> uniform(-2, 2);
    std::vector<T> grads(data.count * kDim);
    for (T& grad : grads) grad = Narrowed<T>(uniform(rng));
    std::vector<Accumulator<T>> weights(data.ids.size());
    for (auto& weight : weights) weight = static_cast<Accumulator<T>>(uniform(rng));
    const CastedWeights<Accumulator<T>> view{weights.data(), data.bag_of_position.data(), nullptr};
    Casted casted;
    Cast(data, true, &casted);
    std::vector<int64_t> cuts(casted.segments + 1);
    for (int64_t i = 0; i <= casted.segments; ++i) cuts[i] = i;
    const auto one_call =
        RunSegments(casted, grads, kDim, view, Isa::kPortable, {0, casted.segments});
    const auto many_calls = RunSegments(casted, grads, kDim, view, BestIsa(), cuts);
    for (size_t i = 0; i < one_call.size(); ++i) {
      CHECK(SameBits(one_call[i], many_calls[i]), Widen(one_call[i]), Widen(many_calls[i]), i);
    }
  }
}

// The whole gradient of a mean and a sqrtn, with the divisors that the forward pass has.
template <typename Id>
void TestGradientWithDivisors() {
  Rng rng(5);
  for (const BagData<Id>& data : ManyBags<Id>(&rng)) {
    constexpr int64_t kDim = 3;
    std::uniform_real_distribution<double> uniform(0.5, 2);
    std::vector<double> grads(data.count * kDim);
    for (double& grad : grads) grad = uniform(rng);
    std::vector<double> weights(data.ids.size());
    for (double& weight : weights) weight = uniform(rng);
    for (const bool weighted : {false, true}) {
      Casted casted;
      Cast(data, weighted, &casted);
      for (const Combiner combiner : {Combiner::kMean, Combiner::kSqrtn}) {
        const double* some_weights = weighted ? weights.data() : nullptr;
        const auto power = [&](int64_t k) {
          const double weight = weighted ? weights[k] : 1;
          return combiner == Combiner::kMean ? weight : weight * weight;
        };
        std::vector<double> expected_divisors(data.count);
        for (size_t k = 0; k < data.ids.size(); ++k) {
          if (!data.IsPadding(k)) expected_divisors[data.bag_of_position[k]] += power(k);
        }
        std::vector<double> divisors;
        for (int64_t bag = 0; bag < data.count; ++bag) {
          divisors.push_back(BagDivisor(data.bags(), some_weights, combiner, bag));
          if (combiner == Combiner::kSqrtn) {
            expected_divisors[bag] = std::sqrt(expected_divisors[bag]);
          }
        }
        const auto expected = NaiveSums(data, grads, kDim, [&](int64_t k, int64_t bag) {
          return (weighted ? weights[k] : 1) / expected_divisors[bag];
        });
        const auto actual = RunSegments<double>(
            casted, grads, kDim,
            {some_weights, weighted ? data.bag_of_position.data() : nullptr, divisors.data()},
            BestIsa(), {0, casted.segments});
        CHECK_EQ(casted.segments, static_cast<int64_t>(expected.size()));
        auto value = actual.begin();
        for (const auto& [id, sum] : expected) {
          for (const double entry : sum) CHECK_NEAR(*value++, entry, 1e-12 * entry, id, weighted);
        }
      }
    }
  }
}

}  // namespace
}  // namespace tfrec

int main() {
  tfrec::TestBitsFor();
  tfrec::TestSort();
  tfrec::TestPackPairs<int32_t>();
  tfrec::TestPackPairs<int64_t>();
  tfrec::TestPackLargestId();
  tfrec::TestLargestId<int32_t>();
  tfrec::TestLargestId<int64_t>();
  // Types of gradients and of ids do not interact: each one once is enough.
  tfrec::TestReduceSegments<float, int32_t>();
  tfrec::TestReduceSegments<double, int64_t>();
  tfrec::TestReduceSegments<tfrec::Half, int64_t>();
  tfrec::TestReduceSegments<tfrec::BFloat16, int32_t>();
  tfrec::TestSplittingKeepsBits<float>();
  tfrec::TestSplittingKeepsBits<tfrec::Half>();
  tfrec::TestGradientWithDivisors<int64_t>();
  return 0;
}
