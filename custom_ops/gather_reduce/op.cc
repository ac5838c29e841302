// The gather-reduce op family.
//
// A forward op pools rows of tables into bags, for one or more features at once. It exists twice:
// over tensors, and over the handles of resource variables, which it reads in place. The gradient
// of the tables is one op that needs none of them: the lookups come sorted by id, from
// `CastIndices`, and it gather-reduces the incoming gradient (Tensor Casting). The gradient of the
// weights reads the tables again, so it exists twice too.
//
// Bags come in two layouts. `ids` of rank 2, `(batch, hotness)`, take empty `row_splits`. `ids` of
// rank 1 take `batch + 1` offsets in `row_splits`.

#include "tensorflow/core/framework/op.h"

#include <string>
#include <vector>

#include "tensorflow/core/framework/common_shape_fns.h"
#include "tensorflow/core/framework/shape_inference.h"

namespace tfrec {
namespace {

using tensorflow::shape_inference::DimensionHandle;
using tensorflow::shape_inference::InferenceContext;
using tensorflow::shape_inference::ShapeHandle;

// Number of bags of the first feature, which the others share.
absl::Status Batch(InferenceContext* c, DimensionHandle* batch) {
  std::vector<ShapeHandle> ids, row_splits;
  TF_RETURN_IF_ERROR(c->input("ids", &ids));
  TF_RETURN_IF_ERROR(c->input("row_splits", &row_splits));
  ShapeHandle splits;
  TF_RETURN_IF_ERROR(c->WithRank(row_splits[0], 1, &splits));
  *batch = c->UnknownDim();
  if (!c->RankKnown(ids[0])) return absl::OkStatus();
  if (c->Rank(ids[0]) == 2) {
    *batch = c->Dim(ids[0], 0);
    return absl::OkStatus();
  }
  ShapeHandle flat;
  TF_RETURN_IF_ERROR(c->WithRank(ids[0], 1, &flat));
  return c->Subtract(c->Dim(splits, 0), 1, batch);
}

// The widths of all features, added up.
absl::Status Width(InferenceContext* c, bool is_resource, DimensionHandle* width) {
  int tables = 0;
  std::vector<int> table_of;
  TF_RETURN_IF_ERROR(c->GetAttr("num_tables", &tables));
  TF_RETURN_IF_ERROR(c->GetAttr("table_of", &table_of));
  *width = c->MakeDim(0);
  for (const int table : table_of) {
    if (table < 0 || table >= tables) {
      return absl::InvalidArgumentError("`table_of` must name one of the tables.");
    }
    ShapeHandle shape = c->input(table);
    if (is_resource) {
      const auto* handle = c->input_handle_shapes_and_types(table);
      shape = handle && handle->size() == 1 ? handle->at(0).shape : c->UnknownShape();
    }
    TF_RETURN_IF_ERROR(c->WithRank(shape, 2, &shape));
    TF_RETURN_IF_ERROR(c->Add(*width, c->Dim(shape, 1), width));
  }
  return absl::OkStatus();
}

template <bool kIsResource>
absl::Status ForwardShape(InferenceContext* c) {
  DimensionHandle batch, width;
  TF_RETURN_IF_ERROR(Batch(c, &batch));
  TF_RETURN_IF_ERROR(Width(c, kIsResource, &width));
  c->set_output(0, c->Matrix(batch, width));
  return absl::OkStatus();
}

absl::Status GradShape(InferenceContext* c) {
  ShapeHandle grads;
  std::vector<int> dims;
  TF_RETURN_IF_ERROR(c->WithRank(c->input(0), 2, &grads));
  TF_RETURN_IF_ERROR(c->GetAttr("dims", &dims));
  int tables = 0;
  TF_RETURN_IF_ERROR(c->GetAttr("num_tables", &tables));
  if (static_cast<int>(dims.size()) != tables) {
    return absl::InvalidArgumentError("`dims` must have an entry for each of `castings`.");
  }
  for (int table = 0; table < tables; ++table) {
    const DimensionHandle unique = c->UnknownDim();
    c->set_output(table, c->Vector(unique));
    c->set_output(tables + table,
                  c->Matrix(unique, dims[table] < 0 ? c->Dim(grads, 1) : c->MakeDim(dims[table])));
  }
  return absl::OkStatus();
}

absl::Status WeightGradShape(InferenceContext* c) {
  std::vector<ShapeHandle> weights;
  TF_RETURN_IF_ERROR(c->input("weights", &weights));
  return c->set_output("weight_grads", weights);
}

}  // namespace

// What all ops of the family take. The smallest int64 stands for "no padding id": it can never be
// the id of a row.
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
#define TFREC_TABLE_ATTRS          \
  .Attr("num_tables: int >= 1")    \
      .Attr("table_of: list(int)") \
      .Attr("dtype: {half, bfloat16, float, double}")

// Stateful, as ResourceGather is: two reads of one variable may see two values. TensorFlow runs the
// stateful ops on one variable one after another.
REGISTER_OP("TfrecEfficient>ResourceGatherReduce")
    .Input("tables: num_tables * resource") TFREC_BAG_INPUTS.Input("castings: num_castings * int64")
    .Output("output: dtype") TFREC_BAG_ATTRS TFREC_TABLE_ATTRS.Attr("num_castings: int >= 0")
    .Attr("dims: list(int)")
    .SetIsStateful()
    .SetShapeFn(ForwardShape<true>)
    .Doc(
        "Pools rows of the variables behind `tables`, each `(rows, dim)`: feature i looks up in "
        "table `table_of[i]`. The features stand side by side in the output, "
        "`(batch, sum of dims)`. `castings`, those of `ids` or none, and `dims`, the widths of the "
        "tables or -1, wait here for the gradient.");

REGISTER_OP("TfrecEfficient>GatherReduce")
    .Input("tables: num_tables * dtype") TFREC_BAG_INPUTS.Input("castings: num_castings * int64")
    .Output("output: dtype") TFREC_BAG_ATTRS TFREC_TABLE_ATTRS.Attr("num_castings: int >= 0")
    .Attr("dims: list(int)")
    .SetShapeFn(ForwardShape<false>)
    .Doc(
        "Pools rows of `tables`, each `(rows, dim)`: feature i looks up in table `table_of[i]`. "
        "The features stand side by side in the output, `(batch, sum of dims)`. `weights` have "
        "the shape of `ids`, or are empty where `weighted` is false; they are double where the "
        "tables are, else float.");

REGISTER_OP("TfrecEfficient>ResourceQuantizedGatherReduce")
    .Input("tables: num_tables * resource")
    .Input("scales: num_tables * resource") TFREC_BAG_INPUTS.Output("output: float") TFREC_BAG_ATTRS
    .Attr("num_tables: int >= 1")
    .Attr("table_of: list(int)")
    .SetIsStateful()
    .SetShapeFn(ForwardShape<true>)
    .Doc(
        "ResourceGatherReduce of int8 variables, `(rows, dim)`, each row of which is multiplied "
        "by its entry of `scales`, float `(rows,)`.");

REGISTER_OP("TfrecEfficient>GatherReduceGrad")
    .Input("grads: dtype") TFREC_BAG_INPUTS.Input("castings: num_tables * int64")
    .Output("unique_ids: num_tables * Tids")
    .Output("values: num_tables * dtype") TFREC_BAG_ATTRS TFREC_TABLE_ATTRS.Attr("dims: list(int)")
    .SetShapeFn(GradShape)
    .Doc(
        "The coalesced gradient of each table: ids in rising order, each once, and the sum of "
        "what `grads`, `(batch, sum of dims)`, sends to each. `castings` are those of `ids`; "
        "`dims` are the widths of the tables, or -1 for the width of `grads`.");

REGISTER_OP("TfrecEfficient>ResourceGatherReduceWeightGrad")
    .Input("tables: num_tables * resource") TFREC_BAG_INPUTS.Input("grads: dtype")
    .Output("weight_grads: num_features * Tweights") TFREC_BAG_ATTRS TFREC_TABLE_ATTRS
    .SetIsStateful()
    .SetShapeFn(WeightGradShape)
    .Doc("The gradients of `weights`, in their shapes; empty where `weighted` is false.");

REGISTER_OP("TfrecEfficient>GatherReduceWeightGrad")
    .Input("tables: num_tables * dtype") TFREC_BAG_INPUTS.Input("grads: dtype")
    .Output("weight_grads: num_features * Tweights") TFREC_BAG_ATTRS TFREC_TABLE_ATTRS
    .SetShapeFn(WeightGradShape)
    .Doc("The gradients of `weights`, in their shapes; empty where `weighted` is false.");

}  // namespace tfrec
