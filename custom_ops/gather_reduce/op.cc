// The gather-reduce op family.
//
// A forward op pools rows of a table into bags. It exists twice: over a tensor, and over the
// handle of a resource variable, which it reads in place. The gradient of the table is one op that
// needs neither of them: it sorts the lookups by id and gather-reduces the incoming gradient
// (Tensor Casting). The gradient of the weights reads the table again, so it exists twice too.
//
// Bags come in two layouts. `ids` of rank 2, `(batch, hotness)`, takes an empty `row_splits`.
// `ids` of rank 1 takes `batch + 1` offsets in `row_splits`.

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

// Number of bags, from the two inputs that begin at `ids_index`.
absl::Status BatchOf(InferenceContext* c, int ids_index, DimensionHandle* batch) {
  const ShapeHandle ids = c->input(ids_index);
  ShapeHandle row_splits;
  TF_RETURN_IF_ERROR(c->WithRank(c->input(ids_index + 1), 1, &row_splits));
  *batch = c->UnknownDim();
  if (!c->RankKnown(ids)) return absl::OkStatus();
  if (c->Rank(ids) == 2) {
    *batch = c->Dim(ids, 0);
    return absl::OkStatus();
  }
  ShapeHandle flat;
  TF_RETURN_IF_ERROR(c->WithRank(ids, 1, &flat));
  return c->Subtract(c->Dim(row_splits, 0), 1, batch);
}

absl::Status TableShape(InferenceContext* c, bool is_resource, ShapeHandle* table) {
  ShapeHandle shape = c->input(0);
  if (is_resource) {
    const auto* handle = c->input_handle_shapes_and_types(0);
    shape = handle && handle->size() == 1 ? handle->at(0).shape : c->UnknownShape();
  }
  return c->WithRank(shape, 2, table);
}

template <bool kIsResource>
absl::Status ForwardShape(InferenceContext* c) {
  ShapeHandle table;
  DimensionHandle batch;
  TF_RETURN_IF_ERROR(TableShape(c, kIsResource, &table));
  TF_RETURN_IF_ERROR(BatchOf(c, 1, &batch));
  c->set_output(0, c->Matrix(batch, c->Dim(table, 1)));
  return absl::OkStatus();
}

absl::Status GradShape(InferenceContext* c) {
  ShapeHandle grads;
  DimensionHandle batch;
  TF_RETURN_IF_ERROR(c->WithRank(c->input(0), 2, &grads));
  TF_RETURN_IF_ERROR(BatchOf(c, 1, &batch));
  const DimensionHandle unique = c->UnknownDim();
  c->set_output(0, c->Vector(unique));
  c->set_output(1, c->Matrix(unique, c->Dim(grads, 1)));
  return absl::OkStatus();
}

template <bool kIsResource>
absl::Status WeightGradShape(InferenceContext* c) {
  ShapeHandle table;
  ShapeHandle grads;
  DimensionHandle batch;
  TF_RETURN_IF_ERROR(TableShape(c, kIsResource, &table));
  TF_RETURN_IF_ERROR(BatchOf(c, 1, &batch));
  TF_RETURN_IF_ERROR(c->WithRank(c->input(4), 2, &grads));
  c->set_output(0, c->input(3));
  return absl::OkStatus();
}

}  // namespace

// What all ops of the family take. The smallest int64 stands for "no padding id": it can never be
// the id of a row.
#define TFREC_BAG_INPUTS .Input("ids: Tids").Input("row_splits: int64").Input("weights: Tweights")
#define TFREC_BAG_ATTRS                                   \
  .Attr("dtype: {half, bfloat16, float, double}")         \
      .Attr("Tids: {int32, int64}")                       \
      .Attr("Tweights: {float, double}")                  \
      .Attr("combiner: {'sum', 'mean', 'sqrtn'} = 'sum'") \
      .Attr("padding_id: int = -9223372036854775808")

// Stateful, as ResourceGather is: two reads of one variable may see two values. TensorFlow runs the
// stateful ops on one variable one after another.
REGISTER_OP("TfrecEfficient>ResourceGatherReduce")
    .Input("table: resource") TFREC_BAG_INPUTS.Output("output: dtype") TFREC_BAG_ATTRS
    .Attr("weighted: bool")
    .SetIsStateful()
    .SetShapeFn(ForwardShape<true>)
    .Doc("Pools rows of the variable behind `table`, `(rows, dim)`, into `(batch, dim)`.");

REGISTER_OP("TfrecEfficient>GatherReduce")
    .Input("table: dtype") TFREC_BAG_INPUTS.Output("output: dtype") TFREC_BAG_ATTRS
    .Attr("weighted: bool")
    .SetShapeFn(ForwardShape<false>)
    .Doc(
        "Pools rows of `table`, `(rows, dim)`, into `(batch, dim)`. "
        "`weights` has the shape of `ids`, or is empty where `weighted` is false; it is double "
        "where the table is, else float.");

REGISTER_OP("TfrecEfficient>GatherReduceGrad")
    .Input("grads: dtype") TFREC_BAG_INPUTS.Output("unique_ids: Tids")
    .Output("values: dtype") TFREC_BAG_ATTRS.Attr("weighted: bool")
    .SetShapeFn(GradShape)
    .Doc(
        "The coalesced gradient of the table: ids in rising order, each once, and the sum of "
        "what `grads`, `(batch, dim)`, sends to each.");

REGISTER_OP("TfrecEfficient>ResourceGatherReduceWeightGrad")
    .Input("table: resource") TFREC_BAG_INPUTS.Input("grads: dtype")
    .Output("weight_grads: Tweights") TFREC_BAG_ATTRS.SetIsStateful()
    .SetShapeFn(WeightGradShape<true>)
    .Doc("The gradient of `weights`, in their shape.");

REGISTER_OP("TfrecEfficient>GatherReduceWeightGrad")
    .Input("table: dtype") TFREC_BAG_INPUTS.Input("grads: dtype")
    .Output("weight_grads: Tweights") TFREC_BAG_ATTRS.SetShapeFn(WeightGradShape<false>)
    .Doc("The gradient of `weights`, in their shape.");

}  // namespace tfrec
