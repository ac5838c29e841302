// Casting: the part of the gradient of a gather-reduce that depends on ids only, so that it can run
// in the input pipeline or beside the forward pass.

#include "tensorflow/core/framework/op.h"

#include <vector>

#include "tensorflow/core/framework/common_shape_fns.h"
#include "tensorflow/core/framework/shape_inference.h"

namespace tfrec {
namespace {

using tensorflow::shape_inference::InferenceContext;
using tensorflow::shape_inference::ShapeHandle;

absl::Status CastIndicesShape(InferenceContext* c) {
  std::vector<int> table_of;
  TF_RETURN_IF_ERROR(c->GetAttr("table_of", &table_of));
  if (static_cast<int>(table_of.size()) != c->num_inputs()) {
    return absl::InvalidArgumentError("`table_of` must have an entry for each of `ids`.");
  }
  for (int i = 0; i < c->num_inputs(); ++i) {
    ShapeHandle ids;
    TF_RETURN_IF_ERROR(c->WithRankAtLeast(c->input(i), 1, &ids));
    TF_RETURN_IF_ERROR(c->WithRankAtMost(ids, 2, &ids));
  }
  for (int table = 0; table < c->num_outputs(); ++table) {
    std::vector<int> features;
    for (int i = 0; i < c->num_inputs(); ++i) {
      if (table_of[i] == table) features.push_back(i);
    }
    c->set_output(table, features.size() == 1 ? c->input(features[0]) : c->Vector(c->UnknownDim()));
  }
  return absl::OkStatus();
}

}  // namespace

REGISTER_OP("TfrecEfficient>CastIndices")
    .Input("ids: num_features * Tids")
    .Output("castings: num_tables * int64")
    .Attr("num_features: int >= 1")
    .Attr("num_tables: int >= 1")
    .Attr("Tids: {int32, int64}")
    .Attr("table_of: list(int)")
    .Attr("padding_ids: list(int)")
    .SetShapeFn(CastIndicesShape)
    .Doc(
        "For each table, the pairs (id, position) of its lookups in rising order, packed into one "
        "word each with the position in the low bits; -1 for each lookup that is padding, at the "
        "end. In the shape of `ids` where one feature looks up in the table, else flat.");

}  // namespace tfrec
