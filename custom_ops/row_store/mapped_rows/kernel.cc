#include "custom_ops/common/kernel.h"

#include <sys/stat.h>

#include <exception>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "custom_ops/row_store/mapped_rows/mapped_file.h"

namespace tfrec {
namespace {

class MappedBuffer final : public tensorflow::TensorBuffer {
 public:
  explicit MappedBuffer(std::unique_ptr<MappedFile> file)
      : TensorBuffer(file->Data()), file_(std::move(file)) {}
  size_t size() const override { return file_->Bytes(); }
  TensorBuffer* root_buffer() override { return this; }
  void FillAllocationDescription(tensorflow::AllocationDescription* description) const override {
    description->set_allocated_bytes(0);
  }
  bool OwnsMemory() const override { return false; }  // nobody may write there

 private:
  const std::unique_ptr<MappedFile> file_;
};

const char* NumpyType(tensorflow::DataType dtype) {
  switch (dtype) {
    case tensorflow::DT_FLOAT:
      return "<f4";
    case tensorflow::DT_HALF:
      return "<f2";
    case tensorflow::DT_INT8:
      return "|i1";
    default:
      return "<i8";
  }
}

class MappedRowsOp final : public OpKernel {
 public:
  explicit MappedRowsOp(OpKernelConstruction* ctx) : OpKernel(ctx) {
    OP_REQUIRES_OK(ctx, ctx->GetAttr("dtype", &dtype_));
    OP_REQUIRES_OK(ctx, ctx->GetAttr("shape", &shape_));
  }

  void Compute(OpKernelContext* ctx) override {
    OP_REQUIRES(ctx, ctx->input(0).NumElements() == 1,
                absl::InvalidArgumentError("`path` must be one text."));
    const std::string path(ctx->input(0).flat<tensorflow::tstring>()(0));
    const std::lock_guard<std::mutex> lock(mutex_);
    // Kernels outlive layers, and a file may be replaced by another one of its name.
    struct stat status{};
    const bool is_there = stat(path.c_str(), &status) == 0;
    const bool is_other = status.st_dev != device_ || status.st_ino != inode_;
    if (path != path_ || (is_there && is_other)) {
      std::vector<int64_t> shape;
      for (const auto dim : shape_) shape.push_back(dim.size);
      std::unique_ptr<MappedFile> file;
      try {
        file = std::make_unique<MappedFile>(path, NumpyType(dtype_),
                                            tensorflow::DataTypeSize(dtype_), shape);
      } catch (const std::exception& error) {
        ctx->CtxFailure(absl::InvalidArgumentError(error.what()));
        return;
      }
      const tensorflow::core::RefCountPtr<MappedBuffer> buffer(new MappedBuffer(std::move(file)));
      rows_ = Tensor(dtype_, shape_, buffer.get());
      path_ = path;
      device_ = status.st_dev;
      inode_ = status.st_ino;
    }
    ctx->set_output(0, rows_);
  }

 private:
  tensorflow::DataType dtype_ = tensorflow::DT_INVALID;
  TensorShape shape_;
  std::mutex mutex_;
  std::string path_;
  dev_t device_ = 0;
  ino_t inode_ = 0;
  Tensor rows_;
};

REGISTER_KERNEL_BUILDER(Name("TfrecEfficient>MappedRows").Device(tensorflow::DEVICE_CPU),
                        MappedRowsOp);

}  // namespace
}  // namespace tfrec
