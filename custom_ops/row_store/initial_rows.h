// What a row holds before it is written for the first time.
//
// A function of the seed, the id and the column, and of nothing else: rows that nobody has used
// need no place in a file, and which thread meets one first makes no difference.
#ifndef TFREC_CUSTOM_OPS_ROW_STORE_INITIAL_ROWS_H_
#define TFREC_CUSTOM_OPS_ROW_STORE_INITIAL_ROWS_H_

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

namespace tfrec {

struct InitialRows {
  enum class Kind { kConstant, kUniform, kNormal };

  Kind kind;
  // The constant; the least and the first number above all; or mean and standard deviation.
  float first;
  float second;
  uint64_t seed;
  int64_t dim;              // columns that are drawn
  std::vector<float> rest;  // those behind them, the same in all rows

  void Fill(int64_t id, float* row) const {
    for (int64_t column = 0; column < dim; ++column) row[column] = Weight(id, column);
    std::copy(rest.begin(), rest.end(), row + dim);
  }

 private:
  float Weight(int64_t id, int64_t column) const {
    if (kind == Kind::kConstant) return first;
    const uint64_t bits = Mix(Mix(seed + 0x9e3779b97f4a7c15u * (id + 1)) + column);
    if (kind == Kind::kUniform) {
      const float weight = first + (second - first) * (static_cast<float>(bits >> 40) * 0x1p-24f);
      return weight == second ? std::nextafter(second, first) : weight;  // the sum is rounded
    }
    // Box and Muller, in double so that a libm with another last bit gives the same float.
    const double radius = std::sqrt(-2 * std::log(((bits >> 32) + 0.5) * 0x1p-32));
    const double angle = static_cast<double>(bits & 0xffffffffu) * 0x1p-32 * 2 * M_PI;
    return static_cast<float>(first + second * radius * std::cos(angle));
  }
  static uint64_t Mix(uint64_t bits) {  // of SplitMix64
    bits = (bits ^ (bits >> 30)) * 0xbf58476d1ce4e5b9u;
    bits = (bits ^ (bits >> 27)) * 0x94d049bb133111ebu;
    return bits ^ (bits >> 31);
  }
};

}  // namespace tfrec

#endif  // TFREC_CUSTOM_OPS_ROW_STORE_INITIAL_ROWS_H_
