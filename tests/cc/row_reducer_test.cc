#include "custom_ops/gather_reduce/row_reducer.h"

#include <cmath>
#include <cstdint>
#include <numeric>
#include <type_traits>
#include <vector>

#include "tests/cc/check.h"
#include "tests/cc/random_rows.h"

namespace tfrec {
namespace {

template <typename T>
struct Reduction {
  std::vector<const T*> rows;  // those to add, then others that may be prefetched
  std::vector<Accumulator<T>> weights;
  int64_t count;
  int64_t dim;
  Accumulator<T> divisor;

  std::vector<Pooled<T>> Run(Isa isa) const {
    auto out = Unwritten<Pooled<T>>(dim);
    SelectRowReducer<T>(isa)(rows.data(), weights.empty() ? nullptr : weights.data(), count,
                             rows.size(), dim, divisor, out.data());
    return out;
  }
};

template <typename T>
void CheckNearNaive(const Reduction<T>& reduction, const std::vector<Pooled<T>>& actual) {
  for (int64_t c = 0; c < reduction.dim; ++c) {
    double sum = 0;
    double magnitude = 0;
    for (int64_t k = 0; k < reduction.count; ++k) {
      const double weight = reduction.weights.empty() ? 1 : reduction.weights[k];
      sum += weight * Widen(reduction.rows[k][c]);
      magnitude += std::abs(weight * Widen(reduction.rows[k][c]));
    }
    const double scale = reduction.divisor == 0 ? 0 : 1 / static_cast<double>(reduction.divisor);
    CHECK_NEAR(Widen(actual[c]), sum * scale,
               Tolerance<Pooled<T>>(reduction.count, magnitude * std::abs(scale)), c, reduction.dim,
               reduction.count, reduction.divisor, reduction.weights.empty());
  }
}

// Each row is an allocation of its own, so that the sanitizer sees any read past the end of one.
template <typename T>
std::vector<std::vector<T>> RandomRows(Rng* rng, int64_t dim, bool any_pattern) {
  std::vector<std::vector<T>> rows;
  for (int row = 0; row < 50; ++row) {
    rows.push_back(any_pattern ? RandomPatterns<T>(rng, dim) : RandomValues<T>(rng, dim));
  }
  return rows;
}

template <typename T>
void TestReducers() {
  Rng rng(1);
  std::vector<int64_t> dims(41);
  std::iota(dims.begin(), dims.end(), 0);
  dims.insert(dims.end(), {64, 65, 96, 128, 129, 200});
  for (const int64_t dim : dims) {
    for (const bool any_pattern : {false, true}) {
      const std::vector<std::vector<T>> storage = RandomRows<T>(&rng, dim, any_pattern);
      for (int64_t count = 0; count <= 40; ++count) {
        Reduction<T> reduction{{}, {}, count, dim, 1};
        for (int64_t k = count + Below(&rng, 40); k > 0; --k) {
          reduction.rows.push_back(storage[Below(&rng, storage.size())].data());
        }
        for (const bool weighted : {false, true}) {
          if (weighted) reduction.weights = RandomValues<Accumulator<T>>(&rng, count);
          for (const double divisor : {1.0, 0.0, Uniform(&rng, 0.5, 9), -3.0}) {
            reduction.divisor = static_cast<Accumulator<T>>(divisor);
            const auto portable = reduction.Run(Isa::kPortable);
            if (!any_pattern) CheckNearNaive(reduction, portable);
            for (const Isa isa : SupportedIsas()) {
              CHECK(SameBits(reduction.Run(isa), portable), static_cast<int>(isa), dim, count,
                    weighted, divisor, any_pattern);
            }
          }
        }
      }
    }
  }
}

// What a reducer of ids must return, and a reducer of rows does.
template <typename T, typename Id>
void TestIdReducersAreRowReducers() {
  Rng rng(3);
  constexpr int64_t kRows = 50;
  for (const int64_t dim : {0, 1, 7, 8, 15, 16, 17, 24, 33, 64, 100, 129, 200}) {
    for (const bool any_pattern : {false, true}) {
      const std::vector<T> table =
          any_pattern ? RandomPatterns<T>(&rng, kRows * dim) : RandomValues<T>(&rng, kRows * dim);
      for (const int64_t count : {0, 1, 2, 3, 15, 16, 17, 40}) {
        std::vector<Id> ids(count + Below(&rng, 40));
        Reduction<T> reduction{{}, {}, count, dim, 1};
        for (Id& id : ids) {
          id = static_cast<Id>(Below(&rng, kRows));
          reduction.rows.push_back(table.data() + id * dim);
        }
        for (const double divisor : {1.0, 0.0, Uniform(&rng, 0.5, 9)}) {
          reduction.divisor = static_cast<Accumulator<T>>(divisor);
          const auto expected = reduction.Run(Isa::kPortable);
          for (const Isa isa : SupportedIsas()) {
            auto out = Unwritten<Pooled<T>>(dim);
            SelectIdReducer<T, Id>(isa)(table.data(), dim, ids.data(), count, ids.size(),
                                        reduction.divisor, out.data());
            CHECK(SameBits(out, expected), static_cast<int>(isa), dim, count, divisor, any_pattern);
          }
        }
      }
    }
  }
}

// A table may hold infinities and NaN; they stay in their column and are no reason for zeros.
template <typename T>
void TestReducersKeepNonFinite() {
  Rng rng(2);
  constexpr int64_t kDim = 75;
  for (int64_t column = 0; column < kDim; ++column) {
    for (const double value : {kNan, kInfinity, -kInfinity}) {
      std::vector<T> row = RandomValues<T>(&rng, kDim);
      row[column] = Narrowed<T>(value);
      for (const Isa isa : SupportedIsas()) {
        const std::vector<T> out = Reduction<T>{{row.data()}, {}, 1, kDim, 2}.Run(isa);
        for (int64_t c = 0; c < kDim; ++c) {
          CHECK_EQ(std::isfinite(Widen(out[c])), c != column, c, static_cast<int>(isa));
        }
        CHECK_EQ(std::isnan(Widen(out[column])), std::isnan(value), static_cast<int>(isa));
      }
    }
  }
}

template <typename T>
void TestRowReducers() {
  TestReducers<T>();
  TestIdReducersAreRowReducers<T, int32_t>();
  TestIdReducersAreRowReducers<T, int64_t>();
  if constexpr (!std::is_same_v<T, int8_t>) TestReducersKeepNonFinite<T>();
}

}  // namespace
}  // namespace tfrec

int main() {
  tfrec::TestRowReducers<float>();
  tfrec::TestRowReducers<double>();
  tfrec::TestRowReducers<tfrec::Half>();
  tfrec::TestRowReducers<tfrec::BFloat16>();
  tfrec::TestRowReducers<int8_t>();
  return 0;
}
