// TensorFlow kernels over the pure core: they check shapes, allocate, and spread the work over the
// thread pool of the session.

// Before any TensorFlow header: resource_var.h instantiates Eigen's thread pool device.
#define EIGEN_USE_THREADS

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "custom_ops/gather_reduce/bags.h"
#include "custom_ops/gather_reduce/casting.h"
#include "custom_ops/gather_reduce/gather_reduce.h"
#include "custom_ops/gather_reduce/row_reducer.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/core/framework/register_types.h"
#include "tensorflow/core/framework/resource_mgr.h"
#include "tensorflow/core/framework/resource_var.h"
#include "tensorflow/core/util/work_sharder.h"

namespace tfrec {
namespace {

using tensorflow::DataTypeToEnum;
using tensorflow::OpKernel;
using tensorflow::OpKernelConstruction;
using tensorflow::OpKernelContext;
using tensorflow::Tensor;
using tensorflow::TensorShape;
using tensorflow::TensorShapeUtils;

// How the core stores what TensorFlow calls T.
template <typename T>
struct CoreType {
  using Type = T;
};
template <>
struct CoreType<Eigen::half> {
  using Type = Half;
};
template <>
struct CoreType<Eigen::bfloat16> {
  using Type = BFloat16;
};

template <typename T>
const typename CoreType<T>::Type* CoreData(const Tensor& tensor) {
  return reinterpret_cast<const typename CoreType<T>::Type*>(tensor.flat<T>().data());
}
template <typename T>
typename CoreType<T>::Type* CoreData(Tensor* tensor) {
  return reinterpret_cast<typename CoreType<T>::Type*>(tensor->flat<T>().data());
}

// `ids[1, 0]=7` for a matrix, `ids.values[3]=7` for the flat ids of ragged and sparse input.
template <typename Value>
std::string Entry(const char* name, const Tensor& ids, int64_t position, Value value) {
  if (ids.dims() == 1) return absl::StrCat("`", name, ".values[", position, "]=", value, "`");
  const int64_t hotness = ids.dim_size(1);
  return absl::StrCat("`", name, "[", position / hotness, ", ", position % hotness, "]=", value,
                      "`");
}

void ParallelFor(OpKernelContext* ctx, int64_t total, int64_t cost_per_unit,
                 const std::function<void(int64_t, int64_t)>& work) {
  const auto& workers = *ctx->device()->tensorflow_cpu_worker_threads();
  tensorflow::Shard(workers.num_threads, workers.workers, total,
                    std::max<int64_t>(1, cost_per_unit), work);
}

// Nanoseconds for one lookup: a cache line from main memory each 64 bytes, and some bookkeeping.
template <typename T>
int64_t LookupCost(int64_t dim) {
  return 4 + dim * static_cast<int64_t>(sizeof(T)) / 8;
}

// What all kernels of the family share: the attributes, and the inputs `ids`, `row_splits` and
// `weights`, which stand at the indices 1, 2 and 3 of every op.
template <typename T, typename Id>
class BagKernel : public OpKernel {
 public:
  using Stored = typename CoreType<T>::Type;
  using Weight = Accumulator<Stored>;

  explicit BagKernel(OpKernelConstruction* ctx)
      : OpKernel(ctx), reduce_(SelectRowReducer<Stored>(BestIsa())) {
    std::string combiner;
    OP_REQUIRES_OK(ctx, ctx->GetAttr("combiner", &combiner));
    combiner_ = combiner == "sum"    ? Combiner::kSum
                : combiner == "mean" ? Combiner::kMean
                                     : Combiner::kSqrtn;
    OP_REQUIRES_OK(ctx, ctx->GetAttr("padding_id", &padding_id_));
  }

 protected:
  absl::Status ReadBags(OpKernelContext* ctx, Bags<Id>* bags) const {
    const Tensor& ids = ctx->input(1);
    const Tensor& row_splits = ctx->input(2);
    if (!TensorShapeUtils::IsVector(row_splits.shape())) {
      return absl::InvalidArgumentError(absl::StrCat(
          "`row_splits` must have rank 1. Received: shape ", row_splits.shape().DebugString()));
    }
    bags->ids = ids.flat<Id>().data();
    bags->lookups = ids.NumElements();
    bags->has_padding = padding_id_ != std::numeric_limits<int64_t>::min();
    bags->padding_id = padding_id_;
    bags->hotness = 0;
    bags->row_splits = nullptr;
    if (TensorShapeUtils::IsMatrix(ids.shape())) {
      if (row_splits.NumElements() != 0) {
        return absl::InvalidArgumentError(
            absl::StrCat("`row_splits` must be empty where `ids` has rank 2. Received: shape ",
                         row_splits.shape().DebugString()));
      }
      bags->count = ids.dim_size(0);
      bags->hotness = ids.dim_size(1);
      return absl::OkStatus();
    }
    if (!TensorShapeUtils::IsVector(ids.shape())) {
      return absl::InvalidArgumentError(
          absl::StrCat("`ids` must have rank 1 or 2. Received: shape ", ids.shape().DebugString()));
    }
    if (row_splits.NumElements() == 0) {
      return absl::InvalidArgumentError(
          "`row_splits` must have `batch + 1` entries where `ids` has rank 1. Received: none");
    }
    bags->count = row_splits.NumElements() - 1;
    bags->row_splits = row_splits.flat<int64_t>().data();
    const Fault fault = CheckRowSplits(*bags);
    if (fault.kind != Fault::kNone) {
      return absl::InvalidArgumentError(absl::StrCat(
          "`row_splits` must start at 0, never decrease and end at the number of ids, ",
          bags->lookups, ". Received: `row_splits[", fault.position,
          "]=", bags->row_splits[fault.position], "`"));
    }
    return absl::OkStatus();
  }

  // Null where the op is not weighted.
  absl::Status ReadWeights(OpKernelContext* ctx, bool weighted, const Weight** weights) const {
    *weights = nullptr;
    if (!weighted) return absl::OkStatus();
    const Tensor& ids = ctx->input(1);
    const Tensor& tensor = ctx->input(3);
    if (tensor.shape() != ids.shape()) {
      return absl::InvalidArgumentError(
          absl::StrCat("`weights` must have the shape of `ids`, ", ids.shape().DebugString(),
                       ". Received: shape ", tensor.shape().DebugString()));
    }
    *weights = tensor.flat<Weight>().data();
    return absl::OkStatus();
  }

  absl::Status CheckGrads(const Tensor& grads, int64_t batch) const {
    if (TensorShapeUtils::IsMatrix(grads.shape()) && grads.dim_size(0) == batch) {
      return absl::OkStatus();
    }
    return absl::InvalidArgumentError(absl::StrCat("`grads` must have the shape (", batch,
                                                   ", dim). Received: shape ",
                                                   grads.shape().DebugString()));
  }

  // Says which id or weight a fast path has stumbled over.
  absl::Status DescribeFault(OpKernelContext* ctx, const Bags<Id>& bags, int64_t rows,
                             const Weight* weights) const {
    const Tensor& ids = ctx->input(1);
    const Fault fault = FindFault(bags, rows, weights);
    if (fault.kind == Fault::kWeights) {
      return absl::InvalidArgumentError(
          absl::StrCat("`weights` must be finite. Received: ",
                       Entry("weights", ids, fault.position, weights[fault.position])));
    }
    return absl::InvalidArgumentError(
        absl::StrCat("`ids` must be in `[0, ", rows, ")`",
                     bags.has_padding ? absl::StrCat(" or `padding_id=", bags.padding_id, "`") : "",
                     ". Received: ", Entry("ids", ids, fault.position, bags.ids[fault.position])));
  }

  RowReducer<Stored> reduce_;
  Combiner combiner_;
  int64_t padding_id_;
};

// The forward op and the weight gradient read a table, which is a tensor or a variable.
template <typename T, typename Id>
class TableKernel : public BagKernel<T, Id> {
 public:
  using BagKernel<T, Id>::BagKernel;
  using typename BagKernel<T, Id>::Stored;

  void Compute(OpKernelContext* ctx) override {
    if (ctx->input_dtype(0) != tensorflow::DT_RESOURCE) {
      OP_REQUIRES_OK(ctx, ComputeOnTable(ctx, ctx->input(0)));
      return;
    }
    tensorflow::core::RefCountPtr<tensorflow::Var> variable;
    OP_REQUIRES_OK(ctx, LookupResource(ctx, HandleFromInput(ctx, 0), &variable));
    // Held for the whole read. Taking a reference to the tensor instead would be shorter to hold,
    // and would make the next sparse update copy the whole table.
    tensorflow::tf_shared_lock lock(*variable->mu());
    const Tensor& tensor = *variable->tensor();
    OP_REQUIRES(ctx, variable->is_initialized && tensor.IsInitialized(),
                absl::FailedPreconditionError("`table` is a variable without a value."));
    OP_REQUIRES(ctx, tensor.dtype() == DataTypeToEnum<T>::value,
                absl::InvalidArgumentError(absl::StrCat(
                    "`table` must have dtype ", DataTypeString(DataTypeToEnum<T>::value),
                    ". Received: ", DataTypeString(tensor.dtype()))));
    OP_REQUIRES_OK(ctx, ComputeOnTable(ctx, tensor));
  }

 protected:
  virtual absl::Status ComputeOnBags(OpKernelContext* ctx, const Table<Stored>& table,
                                     const Bags<Id>& bags) = 0;

 private:
  absl::Status ComputeOnTable(OpKernelContext* ctx, const Tensor& tensor) {
    if (!TensorShapeUtils::IsMatrix(tensor.shape())) {
      return absl::InvalidArgumentError(
          absl::StrCat("`table` must have rank 2. Received: shape ", tensor.shape().DebugString()));
    }
    Bags<Id> bags;
    TF_RETURN_IF_ERROR(this->ReadBags(ctx, &bags));
    return ComputeOnBags(ctx, {CoreData<T>(tensor), tensor.dim_size(0), tensor.dim_size(1)}, bags);
  }
};

template <typename T, typename Id>
class GatherReduceOp final : public TableKernel<T, Id> {
 public:
  using typename BagKernel<T, Id>::Stored;
  using typename BagKernel<T, Id>::Weight;

  explicit GatherReduceOp(OpKernelConstruction* ctx) : TableKernel<T, Id>(ctx) {
    OP_REQUIRES_OK(ctx, ctx->GetAttr("weighted", &weighted_));
  }

 private:
  absl::Status ComputeOnBags(OpKernelContext* ctx, const Table<Stored>& table,
                             const Bags<Id>& bags) override {
    const Weight* weights;
    TF_RETURN_IF_ERROR(this->ReadWeights(ctx, weighted_, &weights));
    TensorShape shape;
    TF_RETURN_IF_ERROR(TensorShape::BuildTensorShape({bags.count, table.dim}, &shape));
    Tensor* output = nullptr;
    TF_RETURN_IF_ERROR(ctx->allocate_output(0, shape, &output));
    Stored* out = CoreData<T>(output);
    if (bags.lookups == 0) {  // the bags may be more than can be counted
      std::fill_n(out, output->NumElements(), Stored{});
      return absl::OkStatus();
    }
    std::atomic<bool> ok{true};
    const int64_t lookups_per_bag = 1 + bags.lookups / std::max<int64_t>(1, bags.count);
    ParallelFor(ctx, bags.count, lookups_per_bag * LookupCost<T>(table.dim),
                [&](int64_t first, int64_t last) {
                  if (!GatherReduce(table, bags, weights, this->combiner_, this->reduce_, first,
                                    last, out)) {
                    ok = false;
                  }
                });
    return ok ? absl::OkStatus() : this->DescribeFault(ctx, bags, table.rows, weights);
  }

  bool weighted_;
};

template <typename T, typename Id>
class GatherReduceWeightGradOp final : public TableKernel<T, Id> {
 public:
  using typename BagKernel<T, Id>::Stored;
  using typename BagKernel<T, Id>::Weight;
  using TableKernel<T, Id>::TableKernel;

 private:
  absl::Status ComputeOnBags(OpKernelContext* ctx, const Table<Stored>& table,
                             const Bags<Id>& bags) override {
    const Weight* weights;
    TF_RETURN_IF_ERROR(this->ReadWeights(ctx, true, &weights));
    const Tensor& grads = ctx->input(4);
    TF_RETURN_IF_ERROR(this->CheckGrads(grads, bags.count));
    if (grads.dim_size(1) != table.dim) {
      return absl::InvalidArgumentError(absl::StrCat("`grads` must be as wide as `table`, ",
                                                     table.dim, ". Received: shape ",
                                                     grads.shape().DebugString()));
    }
    Tensor* output = nullptr;
    TF_RETURN_IF_ERROR(ctx->allocate_output(0, ctx->input(1).shape(), &output));
    if (bags.lookups == 0) return absl::OkStatus();
    Weight* out = output->flat<Weight>().data();
    std::atomic<bool> ok{true};
    const int64_t lookups_per_bag = 1 + bags.lookups / std::max<int64_t>(1, bags.count);
    ParallelFor(ctx, bags.count, lookups_per_bag * LookupCost<T>(table.dim),
                [&](int64_t first, int64_t last) {
                  if (!GatherReduceWeightGrad(table, bags, weights, this->combiner_,
                                              CoreData<T>(grads), first, last, out)) {
                    ok = false;
                  }
                });
    return ok ? absl::OkStatus() : this->DescribeFault(ctx, bags, table.rows, weights);
  }
};

template <typename T, typename Id>
class GatherReduceGradOp final : public BagKernel<T, Id> {
 public:
  using typename BagKernel<T, Id>::Stored;
  using typename BagKernel<T, Id>::Weight;

  explicit GatherReduceGradOp(OpKernelConstruction* ctx) : BagKernel<T, Id>(ctx) {
    OP_REQUIRES_OK(ctx, ctx->GetAttr("weighted", &weighted_));
  }

  void Compute(OpKernelContext* ctx) override { OP_REQUIRES_OK(ctx, ComputeGrad(ctx)); }

 private:
  absl::Status ComputeGrad(OpKernelContext* ctx) {
    Bags<Id> bags;
    const Weight* weights;
    const Tensor& grads = ctx->input(0);
    TF_RETURN_IF_ERROR(this->ReadBags(ctx, &bags));
    TF_RETURN_IF_ERROR(this->ReadWeights(ctx, weighted_, &weights));
    TF_RETURN_IF_ERROR(this->CheckGrads(grads, bags.count));
    if (bags.lookups == 0) bags.count = 0;  // the bags may be more than can be counted

    Tensor pairs_buffer, scratch_buffer, starts_buffer;
    PackedPairs pairs;
    TF_RETURN_IF_ERROR(Cast(ctx, bags, &pairs_buffer, &scratch_buffer, &pairs));
    TF_RETURN_IF_ERROR(
        ctx->allocate_temp(tensorflow::DT_INT64, TensorShape({pairs.count + 1}), &starts_buffer));
    int64_t* starts = starts_buffer.flat<int64_t>().data();
    const int64_t segments = FindSegments(pairs, starts);

    Tensor* unique_ids = nullptr;
    Tensor* values = nullptr;
    const int64_t dim = grads.dim_size(1);
    TF_RETURN_IF_ERROR(ctx->allocate_output(0, TensorShape({segments}), &unique_ids));
    TensorShape values_shape;
    TF_RETURN_IF_ERROR(TensorShape::BuildTensorShape({segments, dim}, &values_shape));
    TF_RETURN_IF_ERROR(ctx->allocate_output(1, values_shape, &values));
    Id* unique = unique_ids->flat<Id>().data();
    for (int64_t u = 0; u < segments; ++u) unique[u] = static_cast<Id>(pairs.Key(starts[u]));

    std::vector<int64_t> bag_of_position;
    std::vector<Weight> divisors;
    CastedWeights<Weight> casted = Factors(ctx, bags, weights, &bag_of_position, &divisors);
    // By pairs, not by segments: one hot id may own most of the pairs.
    ParallelFor(ctx, pairs.count, LookupCost<T>(dim), [&](int64_t begin, int64_t end) {
      const int64_t* const stop = starts + segments;
      ReduceSegments(pairs, starts, CoreData<T>(grads), dim, casted, this->reduce_,
                     std::lower_bound<const int64_t*>(starts, stop, begin) - starts,
                     std::lower_bound<const int64_t*>(starts, stop, end) - starts,
                     CoreData<T>(values));
    });
    return absl::OkStatus();
  }

  absl::Status Cast(OpKernelContext* ctx, const Bags<Id>& bags, Tensor* pairs_buffer,
                    Tensor* scratch_buffer, PackedPairs* pairs) const {
    Fault fault;
    const int64_t largest = LargestId(bags, &fault);
    if (fault.kind != Fault::kNone) {
      return absl::InvalidArgumentError(
          absl::StrCat("`ids` must not be negative. Received: ",
                       Entry("ids", ctx->input(1), fault.position, bags.ids[fault.position])));
    }
    pairs->key_bits = BitsFor(static_cast<uint64_t>(largest) + 1);
    pairs->payload_bits = BitsFor(static_cast<uint64_t>(weighted_ ? bags.lookups : bags.count));
    if (pairs->key_bits + pairs->payload_bits > 64) {
      return absl::InvalidArgumentError(absl::StrCat(
          "`ids` up to ", largest, " in ", bags.lookups,
          " lookups do not pack into 64 bits; use a smaller batch or a smaller table."));
    }
    const TensorShape shape({bags.lookups});
    TF_RETURN_IF_ERROR(ctx->allocate_temp(tensorflow::DT_UINT64, shape, pairs_buffer));
    TF_RETURN_IF_ERROR(ctx->allocate_temp(tensorflow::DT_UINT64, shape, scratch_buffer));
    pairs->data = reinterpret_cast<uint64_t*>(pairs_buffer->data());
    PackPairs(bags, weighted_, pairs);
    SortPairs(pairs, reinterpret_cast<uint64_t*>(scratch_buffer->data()));
    return absl::OkStatus();
  }

  CastedWeights<Weight> Factors(OpKernelContext* ctx, const Bags<Id>& bags, const Weight* weights,
                                std::vector<int64_t>* bag_of_position,
                                std::vector<Weight>* divisors) const {
    CastedWeights<Weight> casted;
    if (weights) {
      bag_of_position->resize(bags.lookups);
      for (int64_t bag = 0; bag < bags.count; ++bag) {
        std::fill(bag_of_position->begin() + bags.Begin(bag),
                  bag_of_position->begin() + bags.End(bag), bag);
      }
      casted.weights = weights;
      casted.bag_of_position = bag_of_position->data();
    }
    if (this->combiner_ != Combiner::kSum) {
      divisors->resize(bags.count);
      ParallelFor(ctx, bags.count, 1 + bags.lookups / std::max<int64_t>(1, bags.count),
                  [&](int64_t first, int64_t last) {
                    for (int64_t bag = first; bag < last; ++bag) {
                      (*divisors)[bag] = BagDivisor(bags, weights, this->combiner_, bag);
                    }
                  });
      casted.divisors = divisors->data();
    }
    return casted;
  }

  bool weighted_;
};

#define TFREC_REGISTER(NAME, KERNEL, T, Id)                             \
  REGISTER_KERNEL_BUILDER(Name("TfrecEfficient>" NAME)                  \
                              .Device(tensorflow::DEVICE_CPU)           \
                              .TypeConstraint<T>("dtype")               \
                              .TypeConstraint<Id>("Tids")               \
                              .TypeConstraint<WeightOf<T>>("Tweights"), \
                          KERNEL<T, Id>)
#define TFREC_REGISTER_FAMILY(T, Id)                                         \
  TFREC_REGISTER("GatherReduce", GatherReduceOp, T, Id);                     \
  TFREC_REGISTER("ResourceGatherReduce", GatherReduceOp, T, Id);             \
  TFREC_REGISTER("GatherReduceGrad", GatherReduceGradOp, T, Id);             \
  TFREC_REGISTER("GatherReduceWeightGrad", GatherReduceWeightGradOp, T, Id); \
  TFREC_REGISTER("ResourceGatherReduceWeightGrad", GatherReduceWeightGradOp, T, Id)

template <typename T>
using WeightOf = Accumulator<typename CoreType<T>::Type>;

TFREC_REGISTER_FAMILY(Eigen::half, int32_t);
TFREC_REGISTER_FAMILY(Eigen::half, int64_t);
TFREC_REGISTER_FAMILY(Eigen::bfloat16, int32_t);
TFREC_REGISTER_FAMILY(Eigen::bfloat16, int64_t);
TFREC_REGISTER_FAMILY(float, int32_t);
TFREC_REGISTER_FAMILY(float, int64_t);
TFREC_REGISTER_FAMILY(double, int32_t);
TFREC_REGISTER_FAMILY(double, int64_t);

}  // namespace
}  // namespace tfrec
