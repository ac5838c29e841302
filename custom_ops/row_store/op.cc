// Tables in files, whose hot rows lie in variables: the slab.

#include "tensorflow/core/framework/op.h"

#include "tensorflow/core/framework/common_shape_fns.h"
#include "tensorflow/core/framework/shape_inference.h"

namespace tfrec {

using tensorflow::shape_inference::InferenceContext;

REGISTER_OP("TfrecEfficient>OpenCachedTable")
    .Input("folder: string")
    .Input("new_rows: int64")
    .Input("new_header: string")
    .Input("cache_rows: int64")
    .Input("initial: float")
    .Input("initial_state: float")
    .Input("seed: int64")
    .Input("columns: string")
    .Input("widths: int64")
    .Attr("dim: int >= 1")
    .Attr("policy: {'lru', 'lfu', 'static'}")
    .Attr("initializer: {'constant', 'uniform', 'normal'}")
    .Output("table: resource")
    .SetIsStateful()
    .SetShapeFn(tensorflow::shape_inference::ScalarShape)
    .Doc(
        "Opens the store in `folder`, or makes one of `new_rows` rows where that is not negative. "
        "A "
        "row has `dim` weights, then `initial_state`, and two numbers of the table itself, in "
        "`columns` of these `widths`. "
        "`initial` are the two numbers of `initializer`, as in "
        "custom_ops/row_store/initial_rows.h.");

#define TFREC_CACHED_TABLE(NAME)               \
  REGISTER_OP("TfrecEfficient>" NAME)          \
      .Input("table: resource")                \
      .Input("slab: num_variables * resource") \
      .Attr("num_variables: int >= 0")         \
      .SetIsStateful()

TFREC_CACHED_TABLE("CachedTableLookup")
    .Input("ids: int64")
    .Attr("padding_id: int")
    .Output("slots: int32")
    .Output("lease: variant")
    .SetShapeFn([](InferenceContext* c) {
      c->set_output(0, c->input(c->num_inputs() - 1));
      c->set_output(1, c->Scalar());
      return absl::OkStatus();
    })
    .Doc(
        "Where the rows of `ids` lie in the variables of `slab`, for as long as `lease` lives. "
        "-1 where an id is `padding_id`, the least integer for none.");

TFREC_CACHED_TABLE("CachedTablePrefetch")
    .Input("ids: int64")
    .Attr("padding_id: int")
    .Attr("stream: int")
    .SetShapeFn(tensorflow::shape_inference::NoOutputs)
    .Doc("Brings rows to `slab`, and holds them there until these `ids` are looked up.");

TFREC_CACHED_TABLE("CachedTableForget")
    .Attr("stream: int")
    .SetShapeFn(tensorflow::shape_inference::NoOutputs)
    .Doc("Ids of `stream` that were prefetched and not looked up never will be.");

TFREC_CACHED_TABLE("CachedTableCommit")
    .Input("lease: variant")
    .SetShapeFn(tensorflow::shape_inference::NoOutputs)
    .Doc("Ends a lease on rows that were changed in `slab`.");

TFREC_CACHED_TABLE("CachedTableCheckpoint")
    .Input("header: string")
    .SetShapeFn(tensorflow::shape_inference::NoOutputs)
    .Doc("Makes the rows, as they are now, the last checkpoint.");

TFREC_CACHED_TABLE("CachedTableRead")
    .Input("ids: int64")
    .Attr("width: int")
    .Output("rows: float")
    .SetShapeFn([](InferenceContext* c) {
      int64_t width;
      TF_RETURN_IF_ERROR(c->GetAttr("width", &width));
      c->set_output(0, c->Matrix(c->Dim(c->input(c->num_inputs() - 1), 0), width));
      return absl::OkStatus();
    })
    .Doc("Rows as they are now, with all of their columns.");

TFREC_CACHED_TABLE("CachedTableReset")
    .Input("ids: int64")
    .SetShapeFn(tensorflow::shape_inference::NoOutputs)
    .Doc("Gives rows their initial values again, while no batch is in use.");

TFREC_CACHED_TABLE("CachedTableGrow")
    .Input("rows: int64")
    .SetShapeFn(tensorflow::shape_inference::NoOutputs)
    .Doc("Adds rows until there are at least so many.");

TFREC_CACHED_TABLE("CachedTableStats")
    .Output("stats: int64")
    .Output("header: string")
    .SetShapeFn([](InferenceContext* c) {
      c->set_output(0, c->Vector(13));
      c->set_output(1, c->Scalar());
      return absl::OkStatus();
    })
    .Doc(
        "Rows, width and number of the last checkpoint, then the figures of CachedTable::Stats in "
        "custom_ops/row_store/cached_table.h; and the header of that checkpoint.");

TFREC_CACHED_TABLE("CachedTableClose")
    .SetShapeFn(tensorflow::shape_inference::NoOutputs)
    .Doc("Closes the store, at its last checkpoint.");

#undef TFREC_CACHED_TABLE

REGISTER_OP("TfrecEfficient>Hold")
    .Input("value: T")
    .Input("lease: variant")
    .Attr("T: type")
    .Output("same: T")
    .SetShapeFn(tensorflow::shape_inference::UnchangedShape)
    .Doc("`value`, before which `lease` does not end.");

}  // namespace tfrec
