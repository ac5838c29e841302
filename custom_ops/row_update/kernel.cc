#include "custom_ops/common/kernel.h"

#include <cmath>
#include <string>
#include <vector>

#include "custom_ops/casting/casting.h"
#include "custom_ops/gather_reduce/table_gradient.h"
#include "custom_ops/row_update/row_update.h"
#include "custom_ops/row_update/row_updater.h"

namespace tfrec {
namespace {

template <typename T, typename Id>
class RowUpdateOp final : public BagKernel<T, Id> {
 public:
  using typename BagKernel<T, Id>::Stored;
  using typename BagKernel<T, Id>::Weight;

  explicit RowUpdateOp(OpKernelConstruction* ctx)
      : BagKernel<T, Id>(ctx), reduce_(SelectRowReducer<Stored>(BestIsa())) {
    if (!ctx->status().ok()) return;
    std::string rule;
    OP_REQUIRES_OK(ctx, ctx->GetAttr("rule", &rule));
    for (const RuleInfo& info : kRules) {
      if (rule == info.name) info_ = info;
    }
    update_ = SelectRowUpdater<Stored>(info_.rule, BestIsa());
    int slots = 0;
    OP_REQUIRES_OK(ctx, ctx->GetAttr("num_slots", &slots));
    OP_REQUIRES(ctx, slots == info_.slots,
                absl::InvalidArgumentError(absl::StrCat("`slots` of the rule ", rule, " must be ",
                                                        info_.slots, ". Received: ", slots)));
    OP_REQUIRES_OK(ctx, ctx->GetAttr("columns", &columns_));
    OP_REQUIRES(ctx, static_cast<int>(columns_.size()) == this->features(),
                absl::InvalidArgumentError("`columns` must have an entry for each of `ids`."));
    OP_REQUIRES_OK(ctx, ctx->GetAttr("round_at_random", &round_at_random_));
  }

  void Compute(OpKernelContext* ctx) override { OP_REQUIRES_OK(ctx, Update(ctx)); }

 private:
  absl::Status Update(OpKernelContext* ctx) {
    const int first_input = 1 + info_.slots;
    const Tensor& hyperparameters = ctx->input(first_input);
    const Tensor& seed = ctx->input(first_input + 1);
    const Tensor& grads = ctx->input(first_input + 2);
    if (hyperparameters.NumElements() != kHyperparameters || seed.NumElements() != 1) {
      return absl::InvalidArgumentError(absl::StrCat(
          "`hyperparameters` must be ", kHyperparameters, " and `rounding_seed` one. Received: ",
          hyperparameters.NumElements(), " and ", seed.NumElements()));
    }
    Hyperparameters<Weight> hyper;
    const auto values = hyperparameters.flat<Weight>();
    hyper.learning_rate = values(0);
    hyper.decay = values(1);
    for (int i = 2; i < kHyperparameters; ++i) hyper.rule[i - 2] = values(i);
    const Rounding rounding{round_at_random_, static_cast<uint64_t>(seed.flat<int64_t>()(0))};

    // Everything is checked before the first row changes.
    const Parallel parallel = ParallelOf(ctx);
    std::vector<Feature<Stored, Id>> features;
    TF_RETURN_IF_ERROR(this->ReadFeatures(ctx, &features));
    for (int i = 0; i < this->features(); ++i) features[i].column = columns_[i];
    Casting casting;
    TF_RETURN_IF_ERROR(
        CheckCasting(features, ctx->input(ctx->num_inputs() - 1), parallel, &casting));

    LockedVariables variables(/*exclusive=*/true);
    for (int i = 0; i <= info_.slots; ++i) {
      TF_RETURN_IF_ERROR(variables.Add(ctx, HandleFromInput(ctx, i)));
    }
    variables.Lock();
    TrainedTable<Stored> table{};
    TF_RETURN_IF_ERROR(GetTable(ctx, variables, casting, &table));
    TF_RETURN_IF_ERROR(this->CheckGrads(grads, features[0].bags.count, -1));
    for (const int column : columns_) {
      if (column >= 0 && column + table.dim <= grads.dim_size(1)) continue;
      return absl::InvalidArgumentError(
          absl::StrCat("`grads` must be as wide as `table`, ", table.dim, ". Received: shape ",
                       grads.shape().DebugString(), " for column ", column));
    }
    const GradientRows<Stored> gradient(features, CoreData<T>(grads), grads.dim_size(1), table.dim,
                                        parallel);
    ParallelFor(ctx, casting.count, (2 + info_.slots) * LookupCost<T>(table.dim),
                [&](int64_t first, int64_t last) {
                  UpdateRows(casting, gradient, reduce_, update_, hyper, rounding, table, first,
                             last);
                });
    return absl::OkStatus();
  }

  absl::Status GetTable(OpKernelContext* ctx, const LockedVariables& variables,
                        const Casting& casting, TrainedTable<Stored>* table) {
    Tensor* rows = nullptr;
    TF_RETURN_IF_ERROR(variables.Get(0, "table", DataTypeToEnum<T>::value, &rows));
    if (rows->dims() == 0) {
      return absl::InvalidArgumentError("`table` must have rank 1 or more. Received: a scalar");
    }
    if (casting.count > 0 && casting.Id(casting.count - 1) >= rows->dim_size(0)) {
      return absl::InvalidArgumentError(
          absl::StrCat("`ids` must be in `[0, ", rows->dim_size(0),
                       ")`. Received: ", casting.Id(casting.count - 1)));
    }
    const bool scalar = info_.slot_shape == SlotShape::kScalar;
    const TensorShape slot_shape = scalar ? TensorShape({rows->dim_size(0)}) : rows->shape();
    std::vector<Tensor*> slots(info_.slots);
    for (int s = 0; s < info_.slots; ++s) {
      TF_RETURN_IF_ERROR(variables.Get(1 + s, "slots", DataTypeToEnum<Weight>::value, &slots[s]));
      if (slots[s]->shape() != slot_shape) {
        return absl::InvalidArgumentError(
            absl::StrCat("`slots` must have the shape ", slot_shape.DebugString(),
                         ". Received: ", slots[s]->shape().DebugString()));
      }
    }
    TF_RETURN_IF_ERROR(MakeWritable(ctx, 0, rows));
    table->rows = CoreData<T>(rows);
    table->dim = rows->NumElements() / std::max<int64_t>(1, rows->dim_size(0));
    table->slot_count = info_.slots;
    table->slot_dim = scalar ? 1 : table->dim;
    for (int s = 0; s < info_.slots; ++s) {
      TF_RETURN_IF_ERROR(MakeWritable(ctx, 1 + s, slots[s]));
      table->slots[s] = slots[s]->flat<Weight>().data();
    }
    return absl::OkStatus();
  }

  absl::Status MakeWritable(OpKernelContext* ctx, size_t input, Tensor* tensor) {
    TF_RETURN_IF_ERROR(OwnValue(ctx, tensor));
    huge_pages_.Use(input, tensor->data(), tensor->TotalBytes());
    return absl::OkStatus();
  }

  RowReducer<Stored> reduce_;
  RowUpdater<Stored> update_ = nullptr;
  RuleInfo info_{};
  HugePages huge_pages_;
  std::vector<int> columns_;
  bool round_at_random_ = false;
};

#define TFREC_REGISTER(T, Id)                                           \
  REGISTER_KERNEL_BUILDER(Name("TfrecEfficient>ResourceRowUpdate")      \
                              .Device(tensorflow::DEVICE_CPU)           \
                              .TypeConstraint<T>("dtype")               \
                              .TypeConstraint<Id>("Tids")               \
                              .TypeConstraint<WeightOf<T>>("Tweights"), \
                          RowUpdateOp<T, Id>)
TFREC_REGISTER(Eigen::half, int32_t);
TFREC_REGISTER(Eigen::half, int64_t);
TFREC_REGISTER(Eigen::bfloat16, int32_t);
TFREC_REGISTER(Eigen::bfloat16, int64_t);
TFREC_REGISTER(float, int32_t);
TFREC_REGISTER(float, int64_t);
TFREC_REGISTER(double, int32_t);
TFREC_REGISTER(double, int64_t);

}  // namespace
}  // namespace tfrec
