#include "custom_ops/row_store/initial_rows.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <set>
#include <vector>

#include "tests/cc/check.h"

namespace tfrec {
namespace {

std::vector<float> InitialValues(InitialRows::Kind kind, float first, float second, uint64_t seed,
                                 int64_t ids, int64_t dim) {
  const InitialRows initial{kind, first, second, seed, dim, {}};
  std::vector<float> values(ids * dim);
  for (int64_t id = 0; id < ids; ++id) initial.Fill(id, &values[id * dim]);
  return values;
}

void TestInitialRows() {
  using Kind = InitialRows::Kind;
  for (const Kind kind : {Kind::kUniform, Kind::kNormal}) {
    const std::vector<float> wide = InitialValues(kind, -1, 1, 7, 1000, 8);
    const std::vector<float> narrow = InitialValues(kind, -1, 1, 7, 1000, 3);
    const std::vector<float> other = InitialValues(kind, -1, 1, 8, 1000, 8);
    int64_t same = 0;
    for (int64_t id = 0; id < 1000; ++id) {
      CHECK(std::equal(&narrow[id * 3], &narrow[id * 3] + 3, &wide[id * 8]), id);
      for (int64_t c = 0; c < 8; ++c) same += wide[id * 8 + c] == other[id * 8 + c];
    }
    CHECK(same < 5, same);
    CHECK(std::set<float>(wide.begin(), wide.end()).size() > 7990u);

    // Weights beside one another, in a row or in a column, have nothing to do with each other.
    constexpr int64_t kCount = 400000;
    const std::vector<float> many =
        InitialValues(kind, 2, kind == Kind::kUniform ? 6 : 0.5F, 1, kCount / 4, 4);
    const double mean = kind == Kind::kUniform ? 4 : 2;
    const double deviation = kind == Kind::kUniform ? 4 / std::sqrt(12) : 0.5;
    double sum = 0, squares = 0, cubes = 0, row = 0, column = 0;
    int64_t within = 0, above = 0;
    for (int64_t k = 0; k < kCount; ++k) {
      const double z = (many[k] - mean) / deviation;
      sum += z;
      squares += z * z;
      cubes += z * z * z;
      within += std::abs(z) < 1;
      above += std::abs(z) > 2;
      if (k + 4 < kCount) row += z * (many[k + 1] - mean) / deviation;
      if (k + 4 < kCount) column += z * (many[k + 4] - mean) / deviation;
    }
    for (const double off : {sum, row, column}) CHECK_NEAR(off / kCount, 0, 0.008);
    CHECK_NEAR(squares / kCount, 1, 0.01);
    CHECK_NEAR(cubes / kCount, 0, 0.03);
    CHECK_NEAR(1.0 * within / kCount, kind == Kind::kUniform ? 1 / std::sqrt(3) : 0.6827, 0.004);
    CHECK_NEAR(1.0 * above / kCount, kind == Kind::kUniform ? 0 : 0.0455, 0.002);
  }
  // The sum of 100 and less than 1 is less than 101, though rounded.
  const std::vector<float> rounded = InitialValues(Kind::kUniform, 100, 101, 2, 1 << 18, 8);
  CHECK_EQ(*std::min_element(rounded.begin(), rounded.end()), 100);
  CHECK_EQ(*std::max_element(rounded.begin(), rounded.end()), std::nextafter(101.F, 0.F));
  for (const float value : InitialValues(Kind::kUniform, 3, 3, 2, 10, 1)) CHECK_EQ(value, 3);
  for (const float value : InitialValues(Kind::kConstant, 3, 9, 2, 10, 1)) CHECK_EQ(value, 3);
  std::vector<float> row(4, 9);
  InitialRows{Kind::kConstant, 0.5F, 0, 0, 2, {7}}.Fill(5, row.data());
  CHECK(row == std::vector<float>({0.5F, 0.5F, 7, 9}));
  // Tables that were made before have to find their rows again.
  InitialRows{Kind::kUniform, -1, 1, 42, 4, {}}.Fill(1234567890123, row.data());
  CHECK(row == std::vector<float>({0x1.79d084p-1F, -0x1.38184p-4F, 0x1.6ac2fp-1F, 0x1.da3efp-2F}));
  InitialRows{Kind::kNormal, 0, 1, 42, 4, {}}.Fill(1234567890123, row.data());
  CHECK(row ==
        std::vector<float>({-0x1.f7074ap-2F, 0x1.a618e4p-1F, -0x1.f1e5cp-2F, -0x1.2f9c6ep-3F}));
}

}  // namespace
}  // namespace tfrec

int main() {
  tfrec::TestInitialRows();
  return 0;
}
