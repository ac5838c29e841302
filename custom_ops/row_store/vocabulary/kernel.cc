#include "custom_ops/common/kernel.h"

#include <algorithm>
#include <exception>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "custom_ops/row_store/vocabulary/vocabulary.h"

namespace tfrec {
namespace {

// A vocabulary, and how many batches it was trained with, in which the age of keys is counted.
class VocabularyResource final : public tensorflow::ResourceBase {
 public:
  VocabularyResource(Vocabulary vocabulary, int64_t step)
      : vocabulary_(std::move(vocabulary)), step_(step) {}
  std::string DebugString() const override { return "a vocabulary"; }

  template <typename Work>
  void Use(const Work& work) {
    const std::lock_guard<std::mutex> lock(mutex_);
    work(&vocabulary_, &step_);
  }

 private:
  std::mutex mutex_;
  Vocabulary vocabulary_;
  int64_t step_;
};

absl::Status SetOutput(OpKernelContext* ctx, int index, const std::vector<int64_t>& values) {
  Tensor* output = nullptr;
  const int64_t size = values.size();
  TF_RETURN_IF_ERROR(ctx->allocate_output(index, TensorShape({size}), &output));
  std::copy(values.begin(), values.end(), output->flat<int64_t>().data());
  return absl::OkStatus();
}

template <typename Work>
absl::Status Guarded(const Work& work) {
  try {
    return work();
  } catch (const std::exception& error) {
    return absl::InvalidArgumentError(error.what());
  }
}

class OpenVocabularyOp final : public OpKernel {
 public:
  explicit OpenVocabularyOp(OpKernelConstruction* ctx) : OpKernel(ctx) {
    OP_REQUIRES_OK(ctx, ctx->GetAttr("min_count", &min_count_));
    OP_REQUIRES_OK(ctx, ctx->GetAttr("max_age", &max_age_));
    OP_REQUIRES_OK(ctx, ctx->GetAttr("max_rows", &max_rows_));
  }

  void Compute(OpKernelContext* ctx) override {
    const auto saved = ctx->input(0).flat<int64_t>();
    VocabularyResource* resource = nullptr;
    OP_REQUIRES_OK(
        ctx, Guarded([&] {
          resource = saved.size() == 0
                         ? new VocabularyResource(Vocabulary(min_count_, max_age_, max_rows_), 0)
                         : new VocabularyResource(
                               Vocabulary::Load(saved.data() + 1, saved.size() - 1, "vocabulary"),
                               saved(0));
          return absl::OkStatus();
        }));
    Tensor* output = nullptr;
    OP_REQUIRES_OK(ctx, ctx->allocate_output(0, TensorShape({}), &output));
    output->scalar<tensorflow::ResourceHandle>()() =
        tensorflow::ResourceHandle::MakeRefCountingHandle(resource, ctx->device()->name(), {}, {});
  }

 private:
  int64_t min_count_ = 1;
  int64_t max_age_ = 0;
  int64_t max_rows_ = 0;
};

class VocabularyKernel : public OpKernel {
 public:
  using OpKernel::OpKernel;

  void Compute(OpKernelContext* ctx) final {
    tensorflow::core::RefCountPtr<VocabularyResource> resource;
    OP_REQUIRES_OK(ctx, LookupResource(ctx, HandleFromInput(ctx, 0), &resource));
    absl::Status status;
    resource->Use([&](Vocabulary* vocabulary, int64_t* step) {
      status = Guarded([&] { return Run(ctx, vocabulary, step); });
    });
    OP_REQUIRES_OK(ctx, status);
  }

 protected:
  virtual absl::Status Run(OpKernelContext* ctx, Vocabulary* vocabulary, int64_t* step) = 0;
};

template <bool kTrains>
class RowsOfKeysOp final : public VocabularyKernel {
 public:
  using VocabularyKernel::VocabularyKernel;

 protected:
  absl::Status Run(OpKernelContext* ctx, Vocabulary* vocabulary, int64_t* step) override {
    const Tensor& keys = ctx->input(1);
    const int64_t* const data = keys.flat<int64_t>().data();
    Tensor* rows = nullptr;
    TF_RETURN_IF_ERROR(ctx->allocate_output(0, keys.shape(), &rows));
    int64_t* const out = rows->flat<int64_t>().data();
    if (!kTrains) {
      vocabulary->Find(data, keys.NumElements(), out);
      return absl::OkStatus();
    }
    vocabulary->Train(data, keys.NumElements(), ++*step, out);
    Tensor* row_count = nullptr;
    TF_RETURN_IF_ERROR(ctx->allocate_output(1, TensorShape({}), &row_count));
    row_count->scalar<int64_t>()() = vocabulary->Rows();
    return absl::OkStatus();
  }
};

class ExpireOp final : public VocabularyKernel {
 public:
  using VocabularyKernel::VocabularyKernel;

 protected:
  absl::Status Run(OpKernelContext* ctx, Vocabulary* vocabulary, int64_t* step) override {
    return SetOutput(ctx, 0, vocabulary->Expire(*step));
  }
};

class SaveOp final : public VocabularyKernel {
 public:
  using VocabularyKernel::VocabularyKernel;

 protected:
  absl::Status Run(OpKernelContext* ctx, Vocabulary* vocabulary, int64_t* step) override {
    std::vector<int64_t> saved = vocabulary->Save();
    saved.insert(saved.begin(), *step);
    return SetOutput(ctx, 0, saved);
  }
};

class ExportOp final : public VocabularyKernel {
 public:
  using VocabularyKernel::VocabularyKernel;

 protected:
  absl::Status Run(OpKernelContext* ctx, Vocabulary* vocabulary, int64_t*) override {
    std::vector<int64_t> keys, rows;
    vocabulary->Export(&keys, &rows);
    TF_RETURN_IF_ERROR(SetOutput(ctx, 0, keys));
    return SetOutput(ctx, 1, rows);
  }
};

#define TFREC_REGISTER(NAME, OP) \
  REGISTER_KERNEL_BUILDER(Name("TfrecEfficient>" NAME).Device(tensorflow::DEVICE_CPU), OP)
TFREC_REGISTER("OpenVocabulary", OpenVocabularyOp);
TFREC_REGISTER("VocabularyTrain", RowsOfKeysOp<true>);
TFREC_REGISTER("VocabularyFind", RowsOfKeysOp<false>);
TFREC_REGISTER("VocabularyExpire", ExpireOp);
TFREC_REGISTER("VocabularySave", SaveOp);
TFREC_REGISTER("VocabularyExport", ExportOp);

}  // namespace
}  // namespace tfrec
