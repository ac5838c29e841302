// Which rows of a table keys have, while they come and go.

#include "tensorflow/core/framework/op.h"

#include "tensorflow/core/framework/common_shape_fns.h"
#include "tensorflow/core/framework/shape_inference.h"

namespace tfrec {

using tensorflow::shape_inference::InferenceContext;

REGISTER_OP("TfrecEfficient>OpenVocabulary")
    .Input("saved: int64")
    .Attr("min_count: int >= 1")
    .Attr("max_age: int >= 0")
    .Attr("max_rows: int >= 0")
    .Output("vocabulary: resource")
    .SetIsStateful()
    .SetShapeFn(tensorflow::shape_inference::ScalarShape)
    .Doc(
        "A vocabulary as in custom_ops/row_store/vocabulary/vocabulary.h: a new one where `saved` "
        "is empty.");

REGISTER_OP("TfrecEfficient>VocabularyTrain")
    .Input("vocabulary: resource")
    .Input("keys: int64")
    .Output("rows: int64")
    .Output("row_count: int64")
    .SetIsStateful()
    .SetShapeFn([](InferenceContext* c) {
      c->set_output(0, c->input(1));
      c->set_output(1, c->Scalar());
      return absl::OkStatus();
    })
    .Doc("Counts keys, and finds their rows; and how many rows the table must have.");

REGISTER_OP("TfrecEfficient>VocabularyFind")
    .Input("vocabulary: resource")
    .Input("keys: int64")
    .Output("rows: int64")
    .SetIsStateful()
    .SetShapeFn([](InferenceContext* c) {
      c->set_output(0, c->input(1));
      return absl::OkStatus();
    })
    .Doc("The rows of keys, which are not counted.");

REGISTER_OP("TfrecEfficient>VocabularyExpire")
    .Input("vocabulary: resource")
    .Output("freed: int64")
    .SetIsStateful()
    .SetShapeFn([](InferenceContext* c) {
      c->set_output(0, c->Vector(InferenceContext::kUnknownDim));
      return absl::OkStatus();
    })
    .Doc("Forgets keys that are too old, and returns the rows that they had.");

REGISTER_OP("TfrecEfficient>VocabularySave")
    .Input("vocabulary: resource")
    .Output("saved: int64")
    .SetIsStateful()
    .SetShapeFn([](InferenceContext* c) {
      c->set_output(0, c->Vector(InferenceContext::kUnknownDim));
      return absl::OkStatus();
    })
    .Doc("All that there is to know of a vocabulary.");

REGISTER_OP("TfrecEfficient>VocabularyExport")
    .Input("vocabulary: resource")
    .Output("keys: int64")
    .Output("rows: int64")
    .SetIsStateful()
    .SetShapeFn([](InferenceContext* c) {
      const auto size = c->Vector(InferenceContext::kUnknownDim);
      c->set_output(0, size);
      c->set_output(1, size);
      return absl::OkStatus();
    })
    .Doc("The keys that have a row, and these rows, which ascend.");

}  // namespace tfrec
