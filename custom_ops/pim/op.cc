// Processing in memory, emulated: the values that a device would return, and the events that it
// would count. What the events cost is for the device model to say, in Python.

#include "tensorflow/core/framework/op.h"

#include <vector>

#include "custom_ops/pim/rank_events.h"
#include "tensorflow/core/framework/common_shape_fns.h"
#include "tensorflow/core/framework/shape_inference.h"

namespace tfrec {
namespace {

using tensorflow::shape_inference::DimensionHandle;
using tensorflow::shape_inference::InferenceContext;
using tensorflow::shape_inference::ShapeHandle;

template <bool kIsResource>
absl::Status PooledShape(InferenceContext* c) {
  std::vector<ShapeHandle> ids, row_splits;
  TF_RETURN_IF_ERROR(c->input("ids", &ids));
  TF_RETURN_IF_ERROR(c->input("row_splits", &row_splits));
  DimensionHandle batch = c->UnknownDim();
  if (c->RankKnown(ids[0]) && c->Rank(ids[0]) == 2) batch = c->Dim(ids[0], 0);
  if (c->RankKnown(ids[0]) && c->Rank(ids[0]) == 1) {
    TF_RETURN_IF_ERROR(c->Subtract(c->Dim(row_splits[0], 0), 1, &batch));
  }
  ShapeHandle table = c->input(0);
  if (kIsResource) {
    const auto* handle = c->input_handle_shapes_and_types(0);
    table = handle && handle->size() == 1 ? handle->at(0).shape : c->UnknownShape();
  }
  TF_RETURN_IF_ERROR(c->WithRank(table, 2, &table));
  c->set_output(0, c->Matrix(batch, c->Dim(table, 1)));
  return absl::OkStatus();
}

absl::Status EventsShape(InferenceContext* c) {
  int64_t groups = 0;
  TF_RETURN_IF_ERROR(c->GetAttr("groups", &groups));
  c->set_output(0, c->Matrix(groups, kEventKinds));
  return absl::OkStatus();
}

}  // namespace

// As the ops of gather_reduce have them, for one table and one feature.
#define TFREC_BAG_INPUTS                         \
  .Input("ids: num_features * Tids")             \
      .Input("row_splits: num_features * int64") \
      .Input("weights: num_features * Tweights")
#define TFREC_BAG_ATTRS                                  \
  .Attr("num_features: int >= 1")                        \
      .Attr("Tids: {int32, int64}")                      \
      .Attr("Tweights: {float, double}")                 \
      .Attr("weighted: list(bool)")                      \
      .Attr("combiners: list({'sum', 'mean', 'sqrtn'})") \
      .Attr("padding_ids: list(int)")
#define TFREC_PLACEMENT_ATTRS \
  .Attr("groups: int >= 1").Attr("first_group: int >= 0").Attr("by_table: bool")
#define TFREC_POOLED_ATTRS                            \
  .Attr("num_tables: int >= 1")                       \
      .Attr("table_of: list(int)")                    \
      .Attr("dtype: {half, bfloat16, float, double}") \
      .Attr("num_castings: int >= 0")                 \
      .Attr("dims: list(int)")

REGISTER_OP("TfrecEfficient>ResourcePimGatherReduce")
    .Input("tables: num_tables * resource") TFREC_BAG_INPUTS.Input("castings: num_castings * int64")
    .Input("hot_ids: int64")
    .Output("output: dtype") TFREC_BAG_ATTRS TFREC_POOLED_ATTRS TFREC_PLACEMENT_ATTRS
    .SetIsStateful()
    .SetShapeFn(PooledShape<true>)
    .Doc(
        "ResourceGatherReduce of one feature and one table, summed first within each group of "
        "ranks: see custom_ops/pim/placement.h.");

REGISTER_OP("TfrecEfficient>PimGatherReduce")
    .Input("tables: num_tables * dtype") TFREC_BAG_INPUTS.Input("castings: num_castings * int64")
    .Input("hot_ids: int64")
    .Output("output: dtype") TFREC_BAG_ATTRS TFREC_POOLED_ATTRS TFREC_PLACEMENT_ATTRS
    .SetShapeFn(PooledShape<false>)
    .Doc(
        "GatherReduce of one feature and one table, summed first within each group of ranks: see "
        "custom_ops/pim/placement.h.");

REGISTER_OP("TfrecEfficient>PimEvents")
TFREC_BAG_INPUTS.Input("castings: num_castings * int64")
    .Input("hot_ids: int64")
    .Input("rows: int64")
    .Output("events: int64") TFREC_BAG_ATTRS.Attr("num_castings: int >= 0") TFREC_PLACEMENT_ATTRS
    .Attr("rows_per_page: int >= 1")
    .Attr("pages_per_row: int >= 1")
    .Attr("banks: int >= 1")
    .Attr("cached_rows: int >= 0")
    .SetShapeFn(EventsShape)
    .Doc(
        "What happens in each group of ranks when `ids` look up in a table of so many `rows`, and, "
        "with their casting, in the backward pass and the update. The columns are those of "
        "custom_ops/pim/rank_events.h.");

}  // namespace tfrec
