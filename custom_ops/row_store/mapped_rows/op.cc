// Arrays in files as tensors that take no memory of their own.

#include "tensorflow/core/framework/op.h"

#include "tensorflow/core/framework/shape_inference.h"

namespace tfrec {

REGISTER_OP("TfrecEfficient>MappedRows")
    .Input("path: string")
    .Attr("dtype: {float, half, int8, int64}")
    .Attr("shape: shape")
    .Output("rows: dtype")
    // One mapping for one kernel: what the file holds is not known before it runs.
    .SetIsStateful()
    .SetShapeFn([](tensorflow::shape_inference::InferenceContext* c) {
      tensorflow::PartialTensorShape shape;
      TF_RETURN_IF_ERROR(c->GetAttr("shape", &shape));
      tensorflow::shape_inference::ShapeHandle handle;
      TF_RETURN_IF_ERROR(c->MakeShapeFromPartialTensorShape(shape, &handle));
      c->set_output(0, handle);
      return absl::OkStatus();
    })
    .Doc("The array in the .npy file `path`, in place.");

}  // namespace tfrec
