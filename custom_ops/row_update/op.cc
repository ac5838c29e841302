// One optimizer step on the rows of a table that a batch has looked up.

#include "tensorflow/core/framework/op.h"

#include "tensorflow/core/framework/shape_inference.h"

namespace tfrec {

REGISTER_OP("TfrecEfficient>ResourceRowUpdate")
    .Input("table: resource")
    .Input("slots: num_slots * resource")
    .Input("hyperparameters: Tweights")
    .Input("rounding_seed: int64")
    .Input("grads: dtype")
    .Input("ids: num_features * Tids")
    .Input("row_splits: num_features * int64")
    .Input("weights: num_features * Tweights")
    .Input("casting: int64")
    .Attr("num_slots: int >= 0")
    .Attr("num_features: int >= 1")
    .Attr("dtype: {half, bfloat16, float, double}")
    .Attr("Tids: {int32, int64}")
    .Attr("Tweights: {float, double}")
    .Attr("weighted: list(bool)")
    .Attr("combiners: list({'sum', 'mean', 'sqrtn'})")
    .Attr("padding_ids: list(int)")
    .Attr("columns: list(int)")
    .Attr(
        "rule: {'sgd', 'momentum', 'nesterov', 'adagrad', 'rowwise_adagrad', 'adam', 'amsgrad', "
        "'ftrl'}")
    .Attr("round_at_random: bool = false")
    .SetIsStateful()
    .SetShapeFn([](tensorflow::shape_inference::InferenceContext*) { return absl::OkStatus(); })
    .Doc(
        "Sums, for each row of the variable behind `table` that the features looked up, what "
        "`grads`, `(batch, any)`, sends to it, where feature i owns the columns from `columns[i]` "
        "on, and lets `rule` update the row and its rows in `slots`. `casting` is that of `ids`. "
        "`hyperparameters` are in the order of custom_ops/row_update/row_updater.h.");

}  // namespace tfrec
