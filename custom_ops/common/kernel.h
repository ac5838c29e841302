// What the TensorFlow kernels of all families share: attributes and inputs that describe bags,
// variables under their locks, and the thread pool of the session.
#ifndef TFREC_CUSTOM_OPS_COMMON_KERNEL_H_
#define TFREC_CUSTOM_OPS_COMMON_KERNEL_H_

// Before any TensorFlow header: resource_var.h instantiates Eigen's thread pool device.
#define EIGEN_USE_THREADS

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <functional>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "custom_ops/casting/casting.h"
#include "custom_ops/common/bags.h"
#include "custom_ops/common/huge_pages.h"
#include "custom_ops/common/narrow_float.h"
#include "custom_ops/common/parallel.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/core/framework/register_types.h"
#include "tensorflow/core/framework/resource_mgr.h"
#include "tensorflow/core/framework/resource_var.h"
#include "tensorflow/core/util/work_sharder.h"

namespace tfrec {

using tensorflow::DataTypeToEnum;
using tensorflow::OpInputList;
using tensorflow::OpKernel;
using tensorflow::OpKernelConstruction;
using tensorflow::OpKernelContext;
using tensorflow::OpOutputList;
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
using WeightOf = Accumulator<typename CoreType<T>::Type>;

template <typename T>
const typename CoreType<T>::Type* CoreData(const Tensor& tensor) {
  return reinterpret_cast<const typename CoreType<T>::Type*>(tensor.flat<T>().data());
}
template <typename T>
typename CoreType<T>::Type* CoreData(Tensor* tensor) {
  return reinterpret_cast<typename CoreType<T>::Type*>(tensor->flat<T>().data());
}

// Nanoseconds for one lookup: a cache line from main memory each 64 bytes, and some bookkeeping.
template <typename T>
int64_t LookupCost(int64_t dim) {
  return 4 + dim * static_cast<int64_t>(sizeof(T)) / 8;
}

inline void ParallelFor(OpKernelContext* ctx, int64_t total, int64_t cost_per_unit,
                        const std::function<void(int64_t, int64_t)>& work) {
  const auto& workers = *ctx->device()->tensorflow_cpu_worker_threads();
  tensorflow::Shard(workers.num_threads, workers.workers, total,
                    std::max<int64_t>(1, cost_per_unit), work);
}

inline Parallel ParallelOf(OpKernelContext* ctx) {
  const auto& workers = *ctx->device()->tensorflow_cpu_worker_threads();
  return {workers.num_threads,
          [&workers](int64_t blocks, const std::function<void(int64_t)>& work) {
            constexpr int64_t kAlwaysWorthAThread = 1'000'000;
            tensorflow::Shard(workers.num_threads, workers.workers, blocks, kAlwaysWorthAThread,
                              [&work](int64_t first, int64_t last) {
                                for (int64_t block = first; block < last; ++block) work(block);
                              });
          }};
}

// `ids`, or `ids[2]` where an op has several of them.
inline std::string ListEntry(const char* name, int index, int size) {
  return size == 1 ? name : absl::StrCat(name, "[", index, "]");
}

// `ids[1, 0]=7` for a matrix, `ids.values[3]=7` for the flat ids of ragged and sparse input.
template <typename Value>
std::string Entry(const std::string& name, const Tensor& ids, int64_t position, Value value) {
  if (ids.dims() == 1) return absl::StrCat("`", name, ".values[", position, "]=", value, "`");
  const int64_t hotness = ids.dim_size(1);
  return absl::StrCat("`", name, "[", position / hotness, ", ", position % hotness, "]=", value,
                      "`");
}

// Which table each feature looks up in, from the attribute `table_of`.
inline absl::Status GetTableOf(OpKernelConstruction* ctx, int tables, std::vector<int>* table_of) {
  TF_RETURN_IF_ERROR(ctx->GetAttr("table_of", table_of));
  for (const int table : *table_of) {
    if (table < 0 || table >= tables) {
      return absl::InvalidArgumentError(
          absl::StrCat("`table_of` must be in `[0, ", tables, ")`. Received: ", table));
    }
  }
  return absl::OkStatus();
}

// Several variables, locked in the order of their addresses so that two kernels never wait for each
// other. Holding the lock for the whole kernel, and not a reference to the tensor, is what keeps
// the next update from copying the table.
class LockedVariables {
 public:
  explicit LockedVariables(bool exclusive) : exclusive_(exclusive) {}
  ~LockedVariables() {
    for (tensorflow::mutex* mutex : locked_) exclusive_ ? mutex->unlock() : mutex->unlock_shared();
  }
  LockedVariables(const LockedVariables&) = delete;
  LockedVariables& operator=(const LockedVariables&) = delete;

  absl::Status Add(OpKernelContext* ctx, const tensorflow::ResourceHandle& handle) {
    variables_.emplace_back();
    return LookupResource(ctx, handle, &variables_.back());
  }
  void Lock() TF_NO_THREAD_SAFETY_ANALYSIS {
    for (const auto& variable : variables_) locked_.push_back(variable->mu());
    std::sort(locked_.begin(), locked_.end());
    locked_.erase(std::unique(locked_.begin(), locked_.end()), locked_.end());
    for (tensorflow::mutex* mutex : locked_) exclusive_ ? mutex->lock() : mutex->lock_shared();
  }
  size_t size() const { return variables_.size(); }
  // Of type T, of any shape, with a value.
  absl::Status Get(int index, const std::string& name, tensorflow::DataType dtype,
                   Tensor** tensor) const {
    tensorflow::Var& variable = *variables_[index];
    *tensor = variable.tensor();
    if (!variable.is_initialized || !(*tensor)->IsInitialized()) {
      return absl::FailedPreconditionError(
          absl::StrCat("`", name, "` is a variable without a value."));
    }
    if ((*tensor)->dtype() != dtype) {
      return absl::InvalidArgumentError(
          absl::StrCat("`", name, "` must have dtype ", DataTypeString(dtype),
                       ". Received: ", DataTypeString((*tensor)->dtype())));
    }
    return absl::OkStatus();
  }

 private:
  const bool exclusive_;
  std::vector<tensorflow::core::RefCountPtr<tensorflow::Var>> variables_;
  std::vector<tensorflow::mutex*> locked_;
};

// Before a variable changes: who still holds its value, as a dense read does, must keep it.
inline absl::Status OwnValue(OpKernelContext* ctx, Tensor* value) {
  if (value->RefCountIsOne()) return absl::OkStatus();
  Tensor copy;
  TF_RETURN_IF_ERROR(ctx->allocate_temp(value->dtype(), value->shape(), &copy));
  std::memcpy(copy.data(), value->data(), value->TotalBytes());
  *value = copy;
  return absl::OkStatus();
}

// What all kernels over bags share: the attributes of the features, and the input lists `ids`,
// `row_splits` and `weights`, of one entry for each feature.
template <typename T, typename Id>
class BagKernel : public OpKernel {
 public:
  using Stored = typename CoreType<T>::Type;
  using Weight = Accumulator<Stored>;

  explicit BagKernel(OpKernelConstruction* ctx) : OpKernel(ctx) {
    std::vector<std::string> combiners;
    OP_REQUIRES_OK(ctx, ctx->GetAttr("combiners", &combiners));
    OP_REQUIRES_OK(ctx, ctx->GetAttr("padding_ids", &padding_ids_));
    OP_REQUIRES_OK(ctx, ctx->GetAttr("weighted", &weighted_));
    int features = 0;
    OP_REQUIRES_OK(ctx, ctx->GetAttr("num_features", &features));
    for (const std::string& combiner : combiners) {
      combiners_.push_back(combiner == "sum"    ? Combiner::kSum
                           : combiner == "mean" ? Combiner::kMean
                                                : Combiner::kSqrtn);
    }
    const size_t size = features;
    OP_REQUIRES(
        ctx, combiners_.size() == size && padding_ids_.size() == size && weighted_.size() == size,
        absl::InvalidArgumentError("`combiners`, `padding_ids` and `weighted` must have an entry "
                                   "for each of `ids`."));
  }

 protected:
  int features() const { return combiners_.size(); }
  bool weighted(int feature) const { return weighted_[feature]; }

  // One feature for each of `ids`, all with column 0.
  absl::Status ReadFeatures(OpKernelContext* ctx,
                            std::vector<Feature<Stored, Id>>* features) const {
    OpInputList ids, row_splits, weights;
    TF_RETURN_IF_ERROR(ctx->input_list("ids", &ids));
    TF_RETURN_IF_ERROR(ctx->input_list("row_splits", &row_splits));
    TF_RETURN_IF_ERROR(ctx->input_list("weights", &weights));
    for (int i = 0; i < ids.size(); ++i) {
      Feature<Stored, Id> feature{{}, nullptr, combiners_[i], 0};
      TF_RETURN_IF_ERROR(ReadBags(ids[i], row_splits[i], i, &feature.bags));
      if (weighted_[i]) {
        if (weights[i].shape() != ids[i].shape()) {
          return absl::InvalidArgumentError(absl::StrCat(
              "`", ListEntry("weights", i, this->features()), "` must have the shape of `",
              ListEntry("ids", i, this->features()), "`, ", ids[i].shape().DebugString(),
              ". Received: shape ", weights[i].shape().DebugString()));
        }
        feature.weights = weights[i].flat<Weight>().data();
      } else if (weights[i].NumElements() != 0) {
        return absl::InvalidArgumentError(
            absl::StrCat("`", ListEntry("weights", i, this->features()),
                         "` must be empty where `weighted` is false. Received: shape ",
                         weights[i].shape().DebugString()));
      }
      if (feature.bags.count != (i == 0 ? feature.bags.count : features->at(0).bags.count)) {
        return absl::InvalidArgumentError(absl::StrCat(
            "`ids` must all have as many bags, ", features->at(0).bags.count, ". Received: `",
            ListEntry("ids", i, this->features()), "` with ", feature.bags.count));
      }
      features->push_back(feature);
    }
    return absl::OkStatus();
  }

  static absl::Status CheckGrads(const Tensor& grads, int64_t batch, int64_t width) {
    if (TensorShapeUtils::IsMatrix(grads.shape()) && grads.dim_size(0) == batch &&
        (width < 0 || grads.dim_size(1) == width)) {
      return absl::OkStatus();
    }
    return absl::InvalidArgumentError(absl::StrCat(
        "`grads` must have the shape (", batch, ", ", width < 0 ? "dim" : absl::StrCat(width),
        "). Received: shape ", grads.shape().DebugString()));
  }

  // Puts a fault that a fast path has stumbled over into words.
  absl::Status Describe(OpKernelContext* ctx, const Fault& fault, int index,
                        const Feature<Stored, Id>& feature, int64_t rows) const {
    OpInputList ids;
    TF_RETURN_IF_ERROR(ctx->input_list("ids", &ids));
    const Bags<Id>& bags = feature.bags;
    if (fault.kind == Fault::kWeights) {
      return absl::InvalidArgumentError(
          absl::StrCat("`weights` must be finite. Received: ",
                       Entry(ListEntry("weights", index, features()), ids[index], fault.position,
                             feature.weights[fault.position])));
    }
    const std::string name = ListEntry("ids", index, features());
    return absl::InvalidArgumentError(absl::StrCat(
        "`", name, "` must be in `[0, ", rows, ")`",
        bags.has_padding ? absl::StrCat(" or `padding_id=", bags.padding_id, "`") : "",
        ". Received: ", Entry(name, ids[index], fault.position, bags.ids[fault.position])));
  }

 private:
  absl::Status ReadBags(const Tensor& ids, const Tensor& row_splits, int index,
                        Bags<Id>* bags) const {
    const std::string ids_name = ListEntry("ids", index, features());
    const std::string splits_name = ListEntry("row_splits", index, features());
    if (!TensorShapeUtils::IsVector(row_splits.shape())) {
      return absl::InvalidArgumentError(absl::StrCat("`", splits_name,
                                                     "` must have rank 1. Received: shape ",
                                                     row_splits.shape().DebugString()));
    }
    bags->ids = ids.flat<Id>().data();
    bags->lookups = ids.NumElements();
    bags->has_padding = padding_ids_[index] != std::numeric_limits<int64_t>::min();
    bags->padding_id = padding_ids_[index];
    bags->hotness = 0;
    bags->row_splits = nullptr;
    if (TensorShapeUtils::IsMatrix(ids.shape())) {
      if (row_splits.NumElements() != 0) {
        return absl::InvalidArgumentError(absl::StrCat("`", splits_name, "` must be empty where `",
                                                       ids_name, "` has rank 2. Received: shape ",
                                                       row_splits.shape().DebugString()));
      }
      bags->count = ids.dim_size(0);
      bags->hotness = ids.dim_size(1);
      return absl::OkStatus();
    }
    if (!TensorShapeUtils::IsVector(ids.shape())) {
      return absl::InvalidArgumentError(absl::StrCat(
          "`", ids_name, "` must have rank 1 or 2. Received: shape ", ids.shape().DebugString()));
    }
    if (row_splits.NumElements() == 0) {
      return absl::InvalidArgumentError(absl::StrCat("`", splits_name,
                                                     "` must have `batch + 1` entries where `",
                                                     ids_name, "` has rank 1. Received: none"));
    }
    bags->count = row_splits.NumElements() - 1;
    bags->row_splits = row_splits.flat<int64_t>().data();
    const Fault fault = CheckRowSplits(*bags);
    if (fault.kind != Fault::kNone) {
      return absl::InvalidArgumentError(absl::StrCat(
          "`", splits_name, "` must start at 0, never decrease and end at the number of ids, ",
          bags->lookups, ". Received: `", splits_name, "[", fault.position,
          "]=", bags->row_splits[fault.position], "`"));
    }
    return absl::OkStatus();
  }

  std::vector<Combiner> combiners_;
  std::vector<int64_t> padding_ids_;
  std::vector<bool> weighted_;
};

// Takes a casting from outside, if it is that of the ids of these features of one table.
template <typename T, typename Id>
absl::Status CheckCasting(const std::vector<Feature<T, Id>>& features, const Tensor& pairs,
                          const Parallel& parallel, Casting* casting) {
  TableLookups<Id> lookups;
  for (const Feature<T, Id>& feature : features) lookups.features.push_back(feature.bags);
  if (pairs.NumElements() == lookups.Total() &&
      IsCastingOf(lookups, pairs.flat<int64_t>().data(), parallel, casting)) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(absl::StrCat(
      "`casting` must be what `cast_indices` returns for these `ids`. Received: shape ",
      pairs.shape().DebugString(), " with other pairs."));
}

}  // namespace tfrec

#endif  // TFREC_CUSTOM_OPS_COMMON_KERNEL_H_
