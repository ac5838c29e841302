#include "custom_ops/common/kernel.h"

#include <atomic>
#include <vector>

#include "custom_ops/casting/casting.h"
#include "custom_ops/pim/grouped_reducer.h"
#include "custom_ops/pim/partial_sums.h"
#include "custom_ops/pim/placement.h"
#include "custom_ops/pim/rank_events.h"

namespace tfrec {
namespace {

// The placement that attributes say, with the hot rows that the input says.
class PlacementOfOp {
 public:
  absl::Status Read(OpKernelConstruction* ctx) {
    TF_RETURN_IF_ERROR(ctx->GetAttr("groups", &groups_));
    TF_RETURN_IF_ERROR(ctx->GetAttr("first_group", &first_group_));
    TF_RETURN_IF_ERROR(ctx->GetAttr("by_table", &by_table_));
    if (groups_ > kMostGroups) {
      return absl::InvalidArgumentError(
          absl::StrCat("`groups` must be at most ", kMostGroups, ". Received: ", groups_));
    }
    if (first_group_ < groups_) return absl::OkStatus();
    return absl::InvalidArgumentError(
        absl::StrCat("`first_group` must be in `[0, ", groups_, ")`. Received: ", first_group_));
  }
  static absl::Status CheckHotIds(const Tensor& hot_ids) {
    const auto flat = hot_ids.flat<int64_t>();
    for (int64_t i = 0; i < flat.size(); ++i) {
      if (flat(i) > (i == 0 ? -1 : flat(i - 1))) continue;
      return absl::InvalidArgumentError(absl::StrCat(
          "`hot_ids` must rise and not be negative. Received: `hot_ids[", i, "]=", flat(i), "`"));
    }
    return absl::OkStatus();
  }
  Placement WithHotIds(const Tensor& hot_ids) const {
    return {groups_, first_group_, by_table_, hot_ids.flat<int64_t>().data(),
            hot_ids.NumElements()};
  }

 private:
  // Each of the threads that sum has two arrays of as many, and each group arrays of its own.
  static constexpr int64_t kMostGroups = int64_t{1} << 20;

  int64_t groups_ = 1;
  int64_t first_group_ = 0;
  bool by_table_ = false;
};

template <typename T, typename Id>
class PimGatherReduceOp final : public BagKernel<T, Id> {
 public:
  using typename BagKernel<T, Id>::Stored;
  using typename BagKernel<T, Id>::Weight;

  explicit PimGatherReduceOp(OpKernelConstruction* ctx) : BagKernel<T, Id>(ctx) {
    if (!ctx->status().ok()) return;
    OP_REQUIRES_OK(ctx, placement_.Read(ctx));
    int tables = 0;
    OP_REQUIRES_OK(ctx, ctx->GetAttr("num_tables", &tables));
    OP_REQUIRES(ctx, tables == 1 && this->features() == 1,
                absl::InvalidArgumentError("`tables` and `ids` must have one entry each."));
  }

  void Compute(OpKernelContext* ctx) override { OP_REQUIRES_OK(ctx, Sum(ctx)); }

 private:
  absl::Status Sum(OpKernelContext* ctx) {
    const Tensor* tensor = &ctx->input(0);
    LockedVariables variables(/*exclusive=*/false);
    if (ctx->input_dtype(0) == tensorflow::DT_RESOURCE) {
      TF_RETURN_IF_ERROR(variables.Add(ctx, HandleFromInput(ctx, 0)));
      variables.Lock();
      Tensor* value = nullptr;
      TF_RETURN_IF_ERROR(variables.Get(0, "table", DataTypeToEnum<T>::value, &value));
      tensor = value;
      huge_pages_.Use(0, tensor->data(), tensor->TotalBytes());
    }
    if (!TensorShapeUtils::IsMatrix(tensor->shape())) {
      return absl::InvalidArgumentError(absl::StrCat("`table` must have rank 2. Received: shape ",
                                                     tensor->shape().DebugString()));
    }
    const Table<Stored> table{CoreData<T>(*tensor), tensor->dim_size(0), tensor->dim_size(1)};
    std::vector<Feature<Stored, Id>> features;
    TF_RETURN_IF_ERROR(this->ReadFeatures(ctx, &features));
    const Tensor& hot_ids = ctx->input(ctx->num_inputs() - 1);
    TF_RETURN_IF_ERROR(PlacementOfOp::CheckHotIds(hot_ids));
    const Placement placement = placement_.WithHotIds(hot_ids);
    const Feature<Stored, Id>& feature = features[0];
    TensorShape shape;
    TF_RETURN_IF_ERROR(TensorShape::BuildTensorShape({feature.bags.count, table.dim}, &shape));
    Tensor* output = nullptr;
    TF_RETURN_IF_ERROR(ctx->allocate_output(0, shape, &output));
    auto* const out = CoreData<T>(output);
    if (feature.bags.lookups == 0) {  // the bags may be more than can be counted
      std::fill_n(out, output->NumElements(), Stored{});
      return absl::OkStatus();
    }
    const int64_t lookups_per_bag = 1 + feature.bags.lookups / feature.bags.count;
    std::atomic<bool> ok{true};
    ParallelFor(ctx, feature.bags.count, lookups_per_bag * LookupCost<T>(table.dim),
                [&](int64_t first, int64_t last) {
                  if (!SumByGroups(table, feature.bags, feature.weights, feature.combiner,
                                   placement, reduce_, first, last, out)) {
                    ok = false;
                  }
                });
    if (ok) return absl::OkStatus();
    const Fault fault = FindFault(feature.bags, table.rows, feature.weights);
    return this->Describe(ctx, fault, 0, feature, table.rows);
  }

  const GroupedReducer<Stored> reduce_ = SelectGroupedReducer<Stored>(BestIsa());
  PlacementOfOp placement_;
  HugePages huge_pages_;
};

template <typename Id>
class PimEventsOp final : public BagKernel<float, Id> {
 public:
  explicit PimEventsOp(OpKernelConstruction* ctx) : BagKernel<float, Id>(ctx) {
    if (!ctx->status().ok()) return;
    OP_REQUIRES_OK(ctx, placement_.Read(ctx));
    OP_REQUIRES_OK(ctx, ctx->GetAttr("rows_per_page", &memory_.rows_per_page));
    OP_REQUIRES_OK(ctx, ctx->GetAttr("pages_per_row", &memory_.pages_per_row));
    OP_REQUIRES_OK(ctx, ctx->GetAttr("banks", &memory_.banks));
    OP_REQUIRES_OK(ctx, ctx->GetAttr("cached_rows", &memory_.cached_rows));
    OP_REQUIRES(ctx, this->features() == 1,
                absl::InvalidArgumentError("`ids` must have one entry."));
  }

  void Compute(OpKernelContext* ctx) override { OP_REQUIRES_OK(ctx, Count(ctx)); }

 private:
  absl::Status Count(OpKernelContext* ctx) const {
    std::vector<Feature<float, Id>> features;
    TF_RETURN_IF_ERROR(this->ReadFeatures(ctx, &features));
    const Bags<Id>& bags = features[0].bags;
    const Tensor& rows = ctx->input(ctx->num_inputs() - 1);
    if (rows.NumElements() != 1) {
      return absl::InvalidArgumentError(
          absl::StrCat("`rows` must be one number. Received: shape ", rows.shape().DebugString()));
    }
    const float* const no_weights = nullptr;
    const int64_t row_count = rows.flat<int64_t>()(0);
    if (row_count < 0) {
      return absl::InvalidArgumentError(
          absl::StrCat("`rows` must be 0 or more. Received: ", row_count));
    }
    const Fault fault = FindFault(bags, row_count, no_weights);
    if (fault.kind != Fault::kNone) return this->Describe(ctx, fault, 0, features[0], row_count);
    const Tensor& hot_ids = ctx->input(ctx->num_inputs() - 2);
    TF_RETURN_IF_ERROR(PlacementOfOp::CheckHotIds(hot_ids));
    const Placement placement = placement_.WithHotIds(hot_ids);
    std::vector<RankEvents> events(placement.groups());
    CountForward(bags, placement, memory_, events.data());
    OpInputList castings;
    TF_RETURN_IF_ERROR(ctx->input_list("castings", &castings));
    if (castings.size() > 0) {
      Casting casting;
      TF_RETURN_IF_ERROR(CheckCasting(features, castings[0], ParallelOf(ctx), &casting));
      CountBackward(bags, casting, placement, memory_, events.data());
    }
    Tensor* output = nullptr;
    TF_RETURN_IF_ERROR(
        ctx->allocate_output(0, TensorShape({placement.groups(), kEventKinds}), &output));
    std::memcpy(output->data(), events.data(), output->TotalBytes());
    return absl::OkStatus();
  }

  PlacementOfOp placement_;
  RankMemory memory_{};
};

#define TFREC_REGISTER(NAME, T, Id)                                     \
  REGISTER_KERNEL_BUILDER(Name("TfrecEfficient>" NAME)                  \
                              .Device(tensorflow::DEVICE_CPU)           \
                              .TypeConstraint<T>("dtype")               \
                              .TypeConstraint<Id>("Tids")               \
                              .TypeConstraint<WeightOf<T>>("Tweights"), \
                          PimGatherReduceOp<T, Id>)
#define TFREC_REGISTER_FAMILY(T)                         \
  TFREC_REGISTER("PimGatherReduce", T, int32_t);         \
  TFREC_REGISTER("PimGatherReduce", T, int64_t);         \
  TFREC_REGISTER("ResourcePimGatherReduce", T, int32_t); \
  TFREC_REGISTER("ResourcePimGatherReduce", T, int64_t)
TFREC_REGISTER_FAMILY(Eigen::half);
TFREC_REGISTER_FAMILY(Eigen::bfloat16);
TFREC_REGISTER_FAMILY(float);
TFREC_REGISTER_FAMILY(double);

#define TFREC_REGISTER_EVENTS(Id)                                 \
  REGISTER_KERNEL_BUILDER(Name("TfrecEfficient>PimEvents")        \
                              .Device(tensorflow::DEVICE_CPU)     \
                              .TypeConstraint<Id>("Tids")         \
                              .TypeConstraint<float>("Tweights"), \
                          PimEventsOp<Id>)
TFREC_REGISTER_EVENTS(int32_t);
TFREC_REGISTER_EVENTS(int64_t);

}  // namespace
}  // namespace tfrec
