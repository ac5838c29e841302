// Points whose neighbours are searched: those with a similarity above a threshold.
//
// The similarity of a and b is (1 + cos(a, b)) / 2, computed in double from their float rows and
// rounded to float. So it is the same in whatever order a search comes by, and that of equal rows
// is 1. That of opposite rows is nearly 0, and above no threshold.
//
// Most pairs are no neighbours, and the search of all pairs is a product of matrices. It runs over
// copies of the unit vectors in 16-bit integers, where one instruction multiplies and adds pairs of
// them; what it finds above the threshold, less a bound of the error of rounding, is computed in
// full. The result is exact, and independent of the instruction set.
#ifndef TFREC_CUSTOM_OPS_NEIGHBOURHOOD_POINTS_H_
#define TFREC_CUSTOM_OPS_NEIGHBOURHOOD_POINTS_H_

#include <cstdint>
#include <vector>

#include "custom_ops/common/parallel.h"
#include "custom_ops/common/vector_isa.h"

namespace tfrec {

// Points that are compared with a group of queries in one go.
constexpr int64_t kTile = 32;

// Compares a tile with a group of queries. Bit p of masks[q] says whether the product of query q
// and point p is at least `least`. A tile is [pair of columns][point][2], a group [pair][query][2].
struct Scan {
  int64_t queries;  // in a group
  void (*run)(const int16_t* tile, const int16_t* group, int64_t pairs, int32_t least,
              uint32_t* masks);
};

Scan SelectScan(Isa isa);

class Points {
 public:
  // `rows` of shape (count, dim) must be finite, none of them zero, and outlive this object.
  Points(const float* rows, int64_t count, int64_t dim, float threshold, Isa isa,
         const Parallel& parallel);

  int64_t Count() const { return count_; }
  int64_t Dim() const { return dim_; }
  const float* Row(int64_t point) const { return rows_ + point * dim_; }
  Isa InstructionSet() const { return isa_; }
  int64_t Tiles() const { return (count_ + kTile - 1) / kTile; }
  float Similarity(int64_t a, int64_t b) const;
  float Threshold() const { return threshold_; }

  // Some of the points, in the layout of groups.
  struct Queries {
    std::vector<int64_t> points;
    std::vector<int16_t> groups;
  };
  Queries MakeQueries(std::vector<int64_t> points) const;

  // Calls visit(q, point, similarity) for the neighbours of query q among the points of the tiles
  // [begin, end), a query itself included. For each point, queries come in their order.
  template <typename Visit>
  void ForEachNeighbour(const Queries& queries, int64_t begin, int64_t end,
                        const Visit& visit) const {
    const int64_t group_size = scan_.queries * pairs_ * 2;
    const int64_t groups = static_cast<int64_t>(queries.groups.size()) / group_size;
    const int64_t total = queries.points.size();
    for (int64_t tile = begin; tile < end; ++tile) {
      for (int64_t group = 0; group < groups; ++group) {
        uint32_t masks[kTile];
        scan_.run(packed_.data() + tile * kTile * pairs_ * 2,
                  queries.groups.data() + group * group_size, pairs_, least_, masks);
        for (int64_t k = 0; k < scan_.queries; ++k) {
          const int64_t query = group * scan_.queries + k;
          if (query == total) break;
          for (uint32_t mask = masks[k]; mask != 0; mask &= mask - 1) {
            const int64_t point = tile * kTile + __builtin_ctz(mask);
            if (point >= count_) break;
            const float similarity = Similarity(queries.points[query], point);
            if (similarity > threshold_) visit(query, point, similarity);
          }
        }
      }
    }
  }

 private:
  void Pack(int64_t point, int16_t* out, int64_t stride) const;

  const float* rows_;
  int64_t count_;
  int64_t dim_;
  int64_t pairs_;  // of columns; where their number is odd, the last is filled with zeros
  float threshold_;
  int32_t least_;
  Isa isa_;
  Scan scan_;
  std::vector<double> inverse_norms_;
  std::vector<int16_t> packed_;
};

}  // namespace tfrec

#endif  // TFREC_CUSTOM_OPS_NEIGHBOURHOOD_POINTS_H_
