#include "custom_ops/common/kernel.h"

#include <cstring>
#include <exception>
#include <limits>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "custom_ops/common/prefetch.h"
#include "custom_ops/row_store/cached_table.h"
#include "tensorflow/core/framework/variant.h"
#include "tensorflow/core/framework/variant_op_registry.h"

namespace tfrec {
namespace {

using tensorflow::tstring;

class CachedTableResource final : public tensorflow::ResourceBase {
 public:
  explicit CachedTableResource(std::shared_ptr<CachedTable> table) : table_(std::move(table)) {}
  std::string DebugString() const override { return "a cached table"; }

  std::shared_ptr<CachedTable> Table() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return table_;
  }
  void Close() {
    std::shared_ptr<CachedTable> last;  // which may be freed here, without the lock
    const std::lock_guard<std::mutex> lock(mutex_);
    last.swap(table_);
  }

 private:
  std::mutex mutex_;
  std::shared_ptr<CachedTable> table_;
};

// What a tensor can hold of a lease: copies are the same one.
struct LeaseVariant {
  std::shared_ptr<CachedTable::Lease> lease;

  std::string TypeName() const { return "TfrecEfficient>Lease"; }
  void Encode(tensorflow::VariantTensorData*) const {}
  bool Decode(const tensorflow::VariantTensorData&) { return false; }
  std::string DebugString() const { return "a lease"; }
};

// Where a tape goes through a function, it asks for zeros like each of its results.
absl::Status NoLease(OpKernelContext*, const LeaseVariant&, LeaseVariant*) {
  return absl::OkStatus();
}
using tensorflow::TypeIndex;  // a name in the macro
REGISTER_UNARY_VARIANT_UNARY_OP_FUNCTION(tensorflow::ZEROS_LIKE_VARIANT_UNARY_OP,
                                         tensorflow::DEVICE_CPU, LeaseVariant, NoLease);

// Rows of variables, side by side.
class VariableSlab final : public Slab {
 public:
  VariableSlab(OpKernelContext* ctx, int variables, int64_t slots)
      : ctx_(ctx), variables_(variables), slots_(slots) {}

  void Read(const int32_t* slots, int64_t count, int64_t stride, float* rows) override {
    Move(/*exclusive=*/false, [&](int64_t column, int64_t width, float* data) {
      for (int64_t k = 0; k < count; ++k) {
        if (k + kPrefetchDistance < count)
          Prefetch(data + slots[k + kPrefetchDistance] * width, width);
        std::memcpy(rows + k * stride + column, data + slots[k] * width, width * sizeof *rows);
      }
    });
  }
  void Write(const int32_t* slots, int64_t count, int64_t stride, const float* rows) override {
    Move(/*exclusive=*/true, [&](int64_t column, int64_t width, float* data) {
      for (int64_t k = 0; k < count; ++k) {
        if (k + kPrefetchDistance < count)
          Prefetch(data + slots[k + kPrefetchDistance] * width, width);
        std::memcpy(data + slots[k] * width, rows + k * stride + column, width * sizeof *rows);
      }
    });
  }

 private:
  template <typename Work>
  void Move(bool exclusive, const Work& work) {
    const absl::Status status = TryMove(exclusive, work);
    if (!status.ok()) throw StoreError(std::string(status.message()));
  }
  template <typename Work>
  absl::Status TryMove(bool exclusive, const Work& work) {
    LockedVariables variables(exclusive);
    for (int i = 0; i < variables_; ++i) {
      TF_RETURN_IF_ERROR(variables.Add(ctx_, HandleFromInput(ctx_, 1 + i)));
    }
    variables.Lock();
    int64_t column = 0;
    for (int i = 0; i < variables_; ++i) {
      Tensor* rows = nullptr;
      TF_RETURN_IF_ERROR(variables.Get(i, "slab", tensorflow::DT_FLOAT, &rows));
      if (rows->dims() < 1 || rows->dim_size(0) != slots_) {
        return absl::InvalidArgumentError(absl::StrCat(
            "`slab` must have ", slots_, " rows. Received: shape ", rows->shape().DebugString()));
      }
      if (exclusive) TF_RETURN_IF_ERROR(OwnValue(ctx_, rows));
      const int64_t width = rows->NumElements() / slots_;
      work(column, width, rows->flat<float>().data());
      column += width;
    }
    return absl::OkStatus();
  }

  OpKernelContext* const ctx_;
  const int variables_;
  const int64_t slots_;
};

template <typename Work>
absl::Status Guarded(const Work& work) {
  try {
    work();
    return absl::OkStatus();
  } catch (const StoreError& error) {
    return absl::InvalidArgumentError(error.what());
  } catch (const std::exception& error) {
    return absl::ResourceExhaustedError(error.what());  // memory
  }
}

template <typename T>
T Scalar(const Tensor& tensor) {
  return tensor.flat<T>()(0);
}

class OpenCachedTableOp final : public OpKernel {
 public:
  explicit OpenCachedTableOp(OpKernelConstruction* ctx) : OpKernel(ctx) {
    std::string policy, initializer;
    OP_REQUIRES_OK(ctx, ctx->GetAttr("dim", &dim_));
    OP_REQUIRES_OK(ctx, ctx->GetAttr("policy", &policy));
    OP_REQUIRES_OK(ctx, ctx->GetAttr("initializer", &initializer));
    policy_ = policy == "lru" ? Policy::kLru : policy == "lfu" ? Policy::kLfu : Policy::kStatic;
    kind_ = initializer == "constant"  ? InitialRows::Kind::kConstant
            : initializer == "uniform" ? InitialRows::Kind::kUniform
                                       : InitialRows::Kind::kNormal;
  }

  void Compute(OpKernelContext* ctx) override {
    for (const int i : {0, 1, 2, 3, 6}) {
      OP_REQUIRES(ctx, ctx->input(i).NumElements() == 1,
                  absl::InvalidArgumentError(absl::StrCat("Input ", i, " must be one value.")));
    }
    OP_REQUIRES(ctx, ctx->input(4).NumElements() == 2,
                absl::InvalidArgumentError("`initial` must be two numbers."));
    const std::string folder(Scalar<tstring>(ctx->input(0)));
    const int64_t rows = Scalar<int64_t>(ctx->input(1));
    const std::string header(Scalar<tstring>(ctx->input(2)));
    const int64_t slots = Scalar<int64_t>(ctx->input(3));
    const auto initial = ctx->input(4).flat<float>();
    const auto state = ctx->input(5).flat<float>();
    OP_REQUIRES(
        ctx, slots >= 1 && slots <= RowCache::kMaxSlots,
        absl::InvalidArgumentError(absl::StrCat("`cache_rows` must be in `[1, ",
                                                RowCache::kMaxSlots, "]`. Received: ", slots)));
    std::vector<float> rest(state.data(), state.data() + state.size());
    rest.resize(rest.size() + CachedTable::kOwnColumns);
    const int64_t width = dim_ + static_cast<int64_t>(rest.size());
    const auto names = ctx->input(7).flat<tstring>();
    const auto widths = ctx->input(8).flat<int64_t>();
    OP_REQUIRES(ctx, names.size() == widths.size(),
                absl::InvalidArgumentError("`columns` must have a width each."));
    std::vector<StoreColumn> columns;
    for (int64_t i = 0; i < names.size(); ++i) {
      columns.push_back({std::string(names(i)), widths(i)});
    }
    OP_REQUIRES(ctx, WidthOf(columns) == width,
                absl::InvalidArgumentError(absl::StrCat("`columns` must have the width ", width,
                                                        ". Received: ", WidthOf(columns))));
    InitialRows initial_rows{kind_,      initial(0),
                             initial(1), static_cast<uint64_t>(Scalar<int64_t>(ctx->input(6))),
                             dim_,       rest};
    std::shared_ptr<CachedTable> table;
    OP_REQUIRES_OK(ctx, Guarded([&] {
                     auto store = rows < 0 ? RowStore::Open(folder)
                                           : RowStore::Create(folder, rows, columns, header);
                     if (!(store->Columns() == columns)) {
                       throw StoreError("`" + folder +
                                        "` must have the columns of the table and its optimizer, " +
                                        std::to_string(width) +
                                        " wide. Received: a store of others, " +
                                        std::to_string(store->Width()) + " wide");
                     }
                     table = std::make_shared<CachedTable>(std::move(store), slots, policy_,
                                                           std::move(initial_rows));
                   }));
    Tensor* output = nullptr;
    OP_REQUIRES_OK(ctx, ctx->allocate_output(0, TensorShape({}), &output));
    output->scalar<tensorflow::ResourceHandle>()() =
        tensorflow::ResourceHandle::MakeRefCountingHandle(new CachedTableResource(std::move(table)),
                                                          ctx->device()->name(), {}, {});
  }

 private:
  int64_t dim_ = 0;
  Policy policy_ = Policy::kLru;
  InitialRows::Kind kind_ = InitialRows::Kind::kConstant;
};

// One of the ops on an open table.
class CachedTableKernel : public OpKernel {
 public:
  explicit CachedTableKernel(OpKernelConstruction* ctx) : OpKernel(ctx) {
    OP_REQUIRES_OK(ctx, ctx->GetAttr("num_variables", &variables_));
  }

  void Compute(OpKernelContext* ctx) final {
    tensorflow::core::RefCountPtr<CachedTableResource> resource;
    OP_REQUIRES_OK(ctx, LookupResource(ctx, HandleFromInput(ctx, 0), &resource));
    const std::shared_ptr<CachedTable> table = resource->Table();
    OP_REQUIRES(ctx, table != nullptr,
                absl::FailedPreconditionError("The table must be open. Received: a closed one"));
    VariableSlab slab(ctx, variables_, table->Slots());
    absl::Status status;
    const absl::Status guarded =
        Guarded([&] { status = Run(ctx, resource.get(), table.get(), &slab); });
    OP_REQUIRES_OK(ctx, guarded);
    OP_REQUIRES_OK(ctx, status);
  }

 protected:
  virtual absl::Status Run(OpKernelContext* ctx, CachedTableResource* resource, CachedTable* table,
                           Slab* slab) = 0;
  // The one input behind the slab.
  const Tensor& Argument(OpKernelContext* ctx) const { return ctx->input(1 + variables_); }

 private:
  int variables_ = 0;
};

template <bool kIsLookup>
class LookupOp final : public CachedTableKernel {
 public:
  explicit LookupOp(OpKernelConstruction* ctx) : CachedTableKernel(ctx) {
    OP_REQUIRES_OK(ctx, ctx->GetAttr("padding_id", &padding_.id));
    padding_.is_there = padding_.id != std::numeric_limits<int64_t>::min();
    if (!kIsLookup) OP_REQUIRES_OK(ctx, ctx->GetAttr("stream", &stream_));
  }

 protected:
  absl::Status Run(OpKernelContext* ctx, CachedTableResource*, CachedTable* table,
                   Slab* slab) override {
    const Tensor& ids = Argument(ctx);
    const int64_t* const data = ids.flat<int64_t>().data();
    if (ids.NumElements() > std::numeric_limits<int32_t>::max()) {
      return absl::InvalidArgumentError(
          absl::StrCat("`ids` must be fewer than 2**31. Received: ", ids.NumElements()));
    }
    if (!kIsLookup) {
      table->Prefetch(stream_, data, ids.NumElements(), padding_, slab);
      return absl::OkStatus();
    }
    Tensor* slots = nullptr;
    Tensor* lease = nullptr;
    TF_RETURN_IF_ERROR(ctx->allocate_output(0, ids.shape(), &slots));
    TF_RETURN_IF_ERROR(ctx->allocate_output(1, TensorShape({}), &lease));
    lease->scalar<tensorflow::Variant>()() = LeaseVariant{
        table->Lookup(data, ids.NumElements(), padding_, slab, slots->flat<int32_t>().data())};
    return absl::OkStatus();
  }

 private:
  CachedTable::Padding padding_;
  int64_t stream_ = 0;
};

class ForgetOp final : public CachedTableKernel {
 public:
  explicit ForgetOp(OpKernelConstruction* ctx) : CachedTableKernel(ctx) {
    OP_REQUIRES_OK(ctx, ctx->GetAttr("stream", &stream_));
  }

 protected:
  absl::Status Run(OpKernelContext*, CachedTableResource*, CachedTable* table, Slab*) override {
    table->Forget(stream_);
    return absl::OkStatus();
  }

 private:
  int64_t stream_ = 0;
};

absl::Status LeaseOf(const Tensor& tensor, CachedTable::Lease** lease) {
  const auto* held = tensor.NumElements() == 1
                         ? tensor.flat<tensorflow::Variant>()(0).get<LeaseVariant>()
                         : nullptr;
  if (!held || !held->lease) {
    return absl::InvalidArgumentError("`lease` must be that of a lookup.");
  }
  *lease = held->lease.get();
  return absl::OkStatus();
}

class CommitOp final : public CachedTableKernel {
 public:
  using CachedTableKernel::CachedTableKernel;

 protected:
  absl::Status Run(OpKernelContext* ctx, CachedTableResource*, CachedTable*, Slab*) override {
    CachedTable::Lease* lease = nullptr;
    TF_RETURN_IF_ERROR(LeaseOf(Argument(ctx), &lease));
    lease->End(/*is_dirty=*/true);
    return absl::OkStatus();
  }
};

class CheckpointOp final : public CachedTableKernel {
 public:
  using CachedTableKernel::CachedTableKernel;

 protected:
  absl::Status Run(OpKernelContext* ctx, CachedTableResource*, CachedTable* table,
                   Slab* slab) override {
    table->Checkpoint(std::string(Scalar<tstring>(Argument(ctx))), slab);
    return absl::OkStatus();
  }
};

class ReadOp final : public CachedTableKernel {
 public:
  explicit ReadOp(OpKernelConstruction* ctx) : CachedTableKernel(ctx) {
    OP_REQUIRES_OK(ctx, ctx->GetAttr("width", &width_));
  }

 protected:
  absl::Status Run(OpKernelContext* ctx, CachedTableResource*, CachedTable* table,
                   Slab* slab) override {
    const Tensor& ids = Argument(ctx);
    if (width_ != table->Store().Width()) {
      return absl::InvalidArgumentError(
          absl::StrCat("`width` must be ", table->Store().Width(), ". Received: ", width_));
    }
    Tensor* rows = nullptr;
    TF_RETURN_IF_ERROR(ctx->allocate_output(0, TensorShape({ids.NumElements(), width_}), &rows));
    table->Read(ids.flat<int64_t>().data(), ids.NumElements(), slab, rows->flat<float>().data());
    return absl::OkStatus();
  }

 private:
  int64_t width_ = 0;
};

class ResetOp final : public CachedTableKernel {
 public:
  using CachedTableKernel::CachedTableKernel;

 protected:
  absl::Status Run(OpKernelContext* ctx, CachedTableResource*, CachedTable* table, Slab*) override {
    const Tensor& ids = Argument(ctx);
    table->Reset(ids.flat<int64_t>().data(), ids.NumElements());
    return absl::OkStatus();
  }
};

class GrowOp final : public CachedTableKernel {
 public:
  using CachedTableKernel::CachedTableKernel;

 protected:
  absl::Status Run(OpKernelContext* ctx, CachedTableResource*, CachedTable* table, Slab*) override {
    table->Grow(Scalar<int64_t>(Argument(ctx)));
    return absl::OkStatus();
  }
};

class StatsOp final : public CachedTableKernel {
 public:
  using CachedTableKernel::CachedTableKernel;

 protected:
  absl::Status Run(OpKernelContext* ctx, CachedTableResource*, CachedTable* table, Slab*) override {
    const CachedTable::Stats stats = table->GetStats();
    const RowStore& store = table->Store();
    const std::vector<int64_t> values = {
        store.Rows(),       store.Width(),   store.Checkpoints(), stats.lookups,
        stats.hits,         stats.rows_read, stats.rows_written,  stats.stall_nanoseconds,
        stats.announced,    stats.awaited,   stats.used_slots,    stats.bytes,
        stats.largest_batch};
    Tensor* output = nullptr;
    const int64_t size = values.size();
    TF_RETURN_IF_ERROR(ctx->allocate_output(0, TensorShape({size}), &output));
    std::copy(values.begin(), values.end(), output->flat<int64_t>().data());
    Tensor* header = nullptr;
    TF_RETURN_IF_ERROR(ctx->allocate_output(1, TensorShape({}), &header));
    header->scalar<tstring>()() = store.Header();
    return absl::OkStatus();
  }
};

class CloseOp final : public CachedTableKernel {
 public:
  using CachedTableKernel::CachedTableKernel;

 protected:
  absl::Status Run(OpKernelContext*, CachedTableResource* resource, CachedTable*, Slab*) override {
    resource->Close();
    return absl::OkStatus();
  }
};

class HoldOp final : public OpKernel {
 public:
  using OpKernel::OpKernel;
  void Compute(OpKernelContext* ctx) override { ctx->set_output(0, ctx->input(0)); }
};

#define TFREC_REGISTER(NAME, OP) \
  REGISTER_KERNEL_BUILDER(Name("TfrecEfficient>" NAME).Device(tensorflow::DEVICE_CPU), OP)
TFREC_REGISTER("OpenCachedTable", OpenCachedTableOp);
TFREC_REGISTER("CachedTableLookup", LookupOp<true>);
TFREC_REGISTER("CachedTablePrefetch", LookupOp<false>);
TFREC_REGISTER("CachedTableForget", ForgetOp);
TFREC_REGISTER("CachedTableCommit", CommitOp);
TFREC_REGISTER("CachedTableCheckpoint", CheckpointOp);
TFREC_REGISTER("CachedTableRead", ReadOp);
TFREC_REGISTER("CachedTableReset", ResetOp);
TFREC_REGISTER("CachedTableGrow", GrowOp);
TFREC_REGISTER("CachedTableStats", StatsOp);
TFREC_REGISTER("CachedTableClose", CloseOp);
TFREC_REGISTER("Hold", HoldOp);

}  // namespace
}  // namespace tfrec
