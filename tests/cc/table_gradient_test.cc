#include "custom_ops/gather_reduce/table_gradient.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <map>
#include <numeric>
#include <vector>

#include "custom_ops/casting/casting.h"
#include "custom_ops/common/bags.h"
#include "custom_ops/gather_reduce/row_reducer.h"
#include "tests/cc/check.h"
#include "tests/cc/random_lookups.h"
#include "tests/cc/random_rows.h"

namespace tfrec {
namespace {

// ----------------------------------------------------------------------------------- divisor

void TestDivisorIsExact() {
  constexpr uint64_t kOne = 1;
  std::vector<uint64_t> divisors(2000);
  std::iota(divisors.begin(), divisors.end(), kOne);
  for (int bits = 11; bits < 63; ++bits) {
    for (const int64_t apart : {-1, 0, 1}) divisors.push_back((kOne << bits) + apart);
  }
  Rng rng(1);
  for (int i = 0; i < 2000; ++i) divisors.push_back(1 + (rng() >> Below(&rng, 63)) / 2);
  for (const uint64_t divisor : divisors) {
    const Divisor fast(divisor);
    const auto check = [&](uint64_t number) {
      CHECK_EQ(fast.Divide(number), static_cast<int64_t>(number / divisor), number, divisor);
    };
    // Numbers where the quotient steps: small multiples, and those around where the method changes
    // and where numbers end.
    for (const uint64_t around : {uint64_t{0}, divisor, 2 * divisor, 3 * divisor, 1000 * divisor,
                                  kOne << 31, kOne << 32, kOne << 33, kOne << 62}) {
      const uint64_t multiple = around / divisor * divisor;
      for (const uint64_t from : {multiple, multiple - divisor, around}) {
        for (const int64_t apart : {-2, -1, 0, 1, 2}) {
          // Wraps below zero; positions have 63 bits at the most.
          check((from + apart) & (std::numeric_limits<uint64_t>::max() >> 1));
        }
      }
    }
    for (int i = 0; i < 20; ++i) check(rng() >> (1 + Below(&rng, 62)));
  }
}

// ------------------------------------------------------------------------------ gradient rows

template <typename T, typename Id>
GradientRows<T> RowsOf(const Typed<T, Id>& problem, const Parallel& parallel) {
  return GradientRows<T>(problem.features(), problem.grads().data(), problem.rounded().width,
                         problem.rounded().dim, parallel);
}

template <typename T, typename Id>
void CheckGradientRows(const Typed<T, Id>& problem, const GradientRows<T>& gradient) {
  bool weighted = false;
  for (const Feature<T, Id>& feature : problem.features()) {
    weighted |= feature.weights || feature.combiner != Combiner::kSum;
  }
  CHECK_EQ(gradient.weighted(), weighted);
  int64_t start = 0;
  for (const Feature<T, Id>& feature : problem.features()) {
    for (int64_t bag = 0; bag < feature.bags.count; ++bag) {
      const auto divisor = BagDivisor(feature.bags, feature.weights, feature.combiner, bag);
      const int64_t row = bag * problem.rounded().width + feature.column;
      for (int64_t k = feature.bags.Begin(bag); k < feature.bags.End(bag); ++k) {
        if (feature.bags.IsPadding(k)) continue;
        const T* const actual = gradient.row(start + k);
        if (divisor == 0) {
          for (int64_t c = 0; c < problem.rounded().dim; ++c) CHECK_EQ(Widen(actual[c]), 0, bag);
        } else {
          CHECK_EQ(actual - problem.grads().data(), row, bag, k);
        }
        if (!weighted) continue;
        const Accumulator<T> weight = feature.weights ? feature.weights[k] : 1;
        CHECK_EQ(gradient.factor(start + k), divisor == 0 ? 0 : weight / divisor, bag, k);
      }
    }
    start += feature.bags.lookups;
  }
}

// ---------------------------------------------------------------------------------- segments

struct NaiveRow {
  std::vector<double> sums;
  std::vector<double> magnitudes;
  int64_t count = 0;
};

// By id, in the order of the ids.
std::map<int64_t, NaiveRow> NaiveGradient(const TableProblem& problem) {
  std::map<int64_t, NaiveRow> rows;
  for (const FeatureData& data : problem.data) {
    const std::vector<double> divisors = data.Divisors();
    for (size_t k = 0; k < data.ids.size(); ++k) {
      if (data.IsPadding(k)) continue;
      NaiveRow& row = rows[data.ids[k]];
      row.sums.resize(problem.dim);
      row.magnitudes.resize(problem.dim);
      ++row.count;
      const int64_t bag = data.bag_of_position[k];
      if (divisors[bag] == 0) continue;
      const double factor = data.Weight(k) / divisors[bag];
      for (int64_t c = 0; c < problem.dim; ++c) {
        const double term = factor * problem.grads[bag * problem.width + data.column + c];
        row.sums[c] += term;
        row.magnitudes[c] += std::abs(term);
      }
    }
  }
  return rows;
}

template <typename T, typename Id>
struct Coalesced {
  std::vector<Id> ids;
  std::vector<T> values;
};

// In one call for each two neighbours of `cuts`.
template <typename T, typename Id>
Coalesced<T, Id> Coalesce(const Typed<T, Id>& problem, const Casting& casting,
                          const GradientRows<T>& gradient, Isa isa,
                          const std::vector<int64_t>& cuts) {
  const int64_t segments = CountSegments(casting, 0, casting.count);
  const int64_t dim = problem.rounded().dim;
  Coalesced<T, Id> out{std::vector<Id>(segments, -1), Unwritten<T>(segments * dim)};
  int64_t segment = 0;
  for (size_t i = 0; i + 1 < cuts.size(); ++i) {
    CoalescedGradient(casting, gradient, dim, SelectRowReducer<T>(isa), cuts[i], cuts[i + 1],
                      out.ids.data() + segment, out.values.data() + segment * dim);
    segment += CountSegments(casting, cuts[i], cuts[i + 1]);
  }
  CHECK_EQ(segment, segments);
  return out;
}

template <typename T, typename Id>
void CheckNearNaive(const Typed<T, Id>& problem, const Coalesced<T, Id>& actual) {
  const std::map<int64_t, NaiveRow> expected = NaiveGradient(problem.rounded());
  const int64_t dim = problem.rounded().dim;
  CHECK_EQ(actual.ids.size(), expected.size());
  int64_t segment = 0;
  for (const auto& [id, row] : expected) {
    CHECK_EQ(actual.ids[segment], id, segment);
    for (int64_t c = 0; c < dim; ++c) {
      // The divisor is a sum too.
      CHECK_NEAR(Widen(actual.values[segment * dim + c]), row.sums[c],
                 Tolerance<T>(row.count + 50, row.magnitudes[c]), id, c, row.count);
    }
    ++segment;
  }
}

// Casts as the kernel does, on several threads where there is enough to do.
template <typename T, typename Id>
Casting Cast(const Typed<T, Id>& problem, std::vector<int64_t>* pairs) {
  const Parallel parallel = Backwards(3);
  const TableLookups<Id>& lookups = problem.lookups();
  *pairs = CastAll(lookups, parallel, parallel.Blocks(lookups.Total(), 16384));
  Casting casting;
  CHECK(IsCastingOf(lookups, pairs->data(), parallel, &casting));
  return casting;
}

template <typename T, typename Id>
void CheckProblem(Rng* rng, const TableProblem& untyped) {
  const Typed<T, Id> problem(untyped);
  std::vector<int64_t> pairs;
  const Casting casting = Cast(problem, &pairs);
  const GradientRows<T> gradient = RowsOf(problem, Backwards(3));
  CheckGradientRows(problem, gradient);
  const auto whole = Coalesce(problem, casting, gradient, Isa::kPortable, {0, casting.count});
  CheckNearNaive(problem, whole);
  std::vector<std::vector<int64_t>> all_cuts = {RandomCuts(rng, casting.count)};
  if (casting.count < 100) {  // one block for each pair
    all_cuts.emplace_back(casting.count + 1);
    std::iota(all_cuts.back().begin(), all_cuts.back().end(), int64_t{0});
  }
  for (const Isa isa : SupportedIsas()) {
    for (const std::vector<int64_t>& cuts : all_cuts) {
      const auto cut = Coalesce(problem, casting, gradient, isa, cuts);
      CHECK(cut.ids == whole.ids, static_cast<int>(isa), casting.count);
      CHECK(SameBits(cut.values, whole.values), static_cast<int>(isa), casting.count);
    }
  }
}

void AddSingleFeatures(Rng* rng, std::vector<TableProblem>* problems) {
  for (const Combiner combiner : kCombiners) {
    for (const bool weighted : {false, true}) {
      for (const bool ragged : {false, true}) {
        for (const bool padded : {false, true}) {
          for (const int64_t count : {0, 1, 60}) {
            const FeatureShape shape{combiner, weighted, ragged, padded, Below(rng, 8)};
            problems->push_back(RandomTableProblem(rng, {shape}, count, 30, 5));
          }
        }
      }
    }
  }
}

void AddSeveralFeatures(Rng* rng, std::vector<TableProblem>* problems) {
  for (int i = 0; i < 30; ++i) {
    std::vector<FeatureShape> shapes;
    for (int64_t f = 0; f <= i % 4; ++f) {
      shapes.push_back(RandomShape(rng, Below(rng, 6)));
      // Every third time all of them without factors.
      if (i % 3 == 0) shapes.back().weighted = false;
      if (i % 3 == 0) shapes.back().combiner = Combiner::kSum;
    }
    const int64_t dim = std::vector<int64_t>{1, 4, 37}[Below(rng, 3)];
    const int64_t rows = std::vector<int64_t>{3, 50, 1000}[Below(rng, 3)];
    problems->push_back(RandomTableProblem(rng, shapes, 1 + Below(rng, 70), rows, dim));
  }
}

// Enough lookups for several blocks, with and without arrays of rows and factors.
void AddManyLookups(Rng* rng, std::vector<TableProblem>* problems) {
  const FeatureShape plain{Combiner::kSum, false, false, false, 17};
  problems->push_back(RandomTableProblem(rng, {plain}, 2000, 300, 3));
  const FeatureShape weighted{Combiner::kSqrtn, true, true, true, 20};
  problems->push_back(RandomTableProblem(rng, {weighted, plain}, 2000, 5000, 2));
}

// A chunk ends at 1024 pairs: segments that end just before, at and behind that, and longer ones.
void AddHotIds(Rng* rng, std::vector<TableProblem>* problems) {
  const std::vector<std::vector<int64_t>> lengths = {
      {1024}, {1023, 1}, {1023, 2}, {1025}, {1, 1024, 1}, {1024, 1024, 5}, {5, 3000, 1, 1, 1100}};
  for (const std::vector<int64_t>& of_ids : lengths) {
    for (const bool weighted : {false, true}) {
      const int64_t total = std::accumulate(of_ids.begin(), of_ids.end(), int64_t{0});
      const FeatureShape shape{Combiner::kSum, weighted, false, false, total % 2 == 0 ? 2 : 1};
      problems->push_back(RandomTableProblem(rng, {shape}, total / shape.hotness, 1, 2));
      std::vector<int64_t>* const ids = &problems->back().data[0].ids;
      int64_t* id = ids->data();
      for (size_t i = 0; i < of_ids.size(); ++i) id = std::fill_n(id, of_ids[i], 10 + i);
      std::shuffle(ids->begin(), ids->end(), *rng);
    }
  }
}

std::vector<TableProblem> ManyProblems() {
  Rng rng(2);
  std::vector<TableProblem> problems;
  AddSingleFeatures(&rng, &problems);
  AddSeveralFeatures(&rng, &problems);
  AddManyLookups(&rng, &problems);
  AddHotIds(&rng, &problems);
  return problems;
}

template <typename T, typename Id>
void TestTableGradient(const std::vector<TableProblem>& problems) {
  Rng rng(3);
  for (const TableProblem& problem : problems) CheckProblem<T, Id>(&rng, problem);
}

// What a consumer may rely on besides the sums: what it can read ahead.
template <typename T>
void TestSegmentsSeeWhatFollows() {
  Rng rng(6);
  const FeatureShape shape{Combiner::kMean, true, true, true, 4};
  const Typed<T, int64_t> problem(RandomTableProblem(&rng, {shape}, 800, 40, 2));
  std::vector<int64_t> pairs;
  const Casting casting = Cast(problem, &pairs);
  const GradientRows<T> gradient = RowsOf(problem, Parallel());
  CHECK(casting.count > 2048, casting.count);
  std::vector<int64_t> starts;
  for (int64_t i = 0; i < casting.count; ++i) {
    if (casting.SegmentFrom(i) == i) starts.push_back(i);
  }
  for (int i = 0; i < 50; ++i) {
    const int64_t first = Below(&rng, casting.count + 1);
    const int64_t last = first + Below(&rng, casting.count + 1 - first);
    size_t s = std::lower_bound(starts.begin(), starts.end(), first) - starts.begin();
    const size_t begin = s;
    ForEachSegment(casting, gradient, first, last, [&](const Segment<T>& segment) {
      CHECK(starts[s] < last, first, last);
      const int64_t end = s + 1 < starts.size() ? starts[s + 1] : casting.count;
      CHECK_EQ(segment.count, end - starts[s], s);
      CHECK(segment.readable >= segment.count && segment.ids_readable >= 1, s);
      for (int64_t k = 0; k < segment.readable; ++k) {
        const int64_t position = casting.Position(starts[s] + k);
        CHECK_EQ(segment.rows[k], gradient.row(position), s, k);
        CHECK_EQ(segment.factors[k], gradient.factor(position), s, k);
      }
      for (int64_t k = 0; k < segment.ids_readable; ++k) {
        CHECK_EQ(segment.ids[k], casting.Id(starts[s + k]), s, k);
      }
      ++s;
    });
    CHECK(s == starts.size() || starts[s] >= last, first, last);
    CHECK_EQ(CountSegments(casting, first, last), static_cast<int64_t>(s - begin), first, last);
  }
}

// Without ids, their number is not bound by memory.
void TestMoreBagsThanCanBeCounted() {
  const Bags<int64_t> bags{nullptr, 0, std::numeric_limits<int64_t>::max() / 8, nullptr, 0,
                           false,   0};
  for (const Combiner combiner : kCombiners) {
    const GradientRows<float> gradient(
        std::vector<Feature<float, int64_t>>{{bags, nullptr, combiner, 0}}, nullptr, 4, 4,
        Backwards(2));
    CHECK_EQ(gradient.weighted(), combiner != Combiner::kSum);
  }
}

}  // namespace
}  // namespace tfrec

int main() {
  tfrec::TestDivisorIsExact();
  const std::vector<tfrec::TableProblem> problems = tfrec::ManyProblems();
  // Types of gradients and of ids do not interact: each one once is enough.
  tfrec::TestTableGradient<float, int32_t>(problems);
  tfrec::TestTableGradient<double, int64_t>(problems);
  tfrec::TestTableGradient<tfrec::Half, int64_t>(problems);
  tfrec::TestTableGradient<tfrec::BFloat16, int32_t>(problems);
  tfrec::TestSegmentsSeeWhatFollows<float>();
  tfrec::TestMoreBagsThanCanBeCounted();
  return 0;
}
