#include "custom_ops/common/kernel.h"

#include <vector>

#include "custom_ops/casting/casting.h"

namespace tfrec {
namespace {

template <typename Id>
class CastIndicesOp final : public OpKernel {
 public:
  explicit CastIndicesOp(OpKernelConstruction* ctx) : OpKernel(ctx) {
    int tables = 0;
    OP_REQUIRES_OK(ctx, ctx->GetAttr("num_tables", &tables));
    OP_REQUIRES_OK(ctx, GetTableOf(ctx, tables, &table_of_));
    OP_REQUIRES_OK(ctx, ctx->GetAttr("padding_ids", &padding_ids_));
    int features = 0;
    OP_REQUIRES_OK(ctx, ctx->GetAttr("num_features", &features));
    const size_t size = features;
    OP_REQUIRES(ctx, table_of_.size() == size && padding_ids_.size() == size,
                absl::InvalidArgumentError(
                    "`table_of` and `padding_ids` must have an entry for each of `ids`."));
  }

  void Compute(OpKernelContext* ctx) override {
    for (int i = 0; i < ctx->num_inputs(); ++i) {
      const int rank = ctx->input(i).dims();
      OP_REQUIRES(
          ctx, rank == 1 || rank == 2,
          absl::InvalidArgumentError(absl::StrCat("`", ListEntry("ids", i, ctx->num_inputs()),
                                                  "` must have rank 1 or 2. Received: shape ",
                                                  ctx->input(i).shape().DebugString())));
    }
    const Parallel parallel = ParallelOf(ctx);
    std::vector<absl::Status> statuses(ctx->num_outputs());
    // Few tables are cast in turn, each by all threads.
    if (ctx->num_outputs() < parallel.threads) {
      for (int table = 0; table < ctx->num_outputs(); ++table) {
        statuses[table] = CastTable(ctx, table, parallel);
      }
    } else {
      parallel.run(ctx->num_outputs(),
                   [&](int64_t table) { statuses[table] = CastTable(ctx, table, Parallel()); });
    }
    for (const absl::Status& status : statuses) OP_REQUIRES_OK(ctx, status);
  }

 private:
  absl::Status CastTable(OpKernelContext* ctx, int table, const Parallel& parallel) const {
    TableLookups<Id> lookups;
    std::vector<int> inputs;
    for (int i = 0; i < ctx->num_inputs(); ++i) {
      if (table_of_[i] != table) continue;
      Bags<Id> bags{};
      bags.ids = ctx->input(i).flat<Id>().data();
      bags.lookups = ctx->input(i).NumElements();
      bags.has_padding = padding_ids_[i] != std::numeric_limits<int64_t>::min();
      bags.padding_id = padding_ids_[i];
      lookups.features.push_back(bags);
      inputs.push_back(i);
    }
    const int64_t total = lookups.Total();
    Tensor* casting = nullptr;
    const TensorShape shape =
        inputs.size() == 1 ? ctx->input(inputs[0]).shape() : TensorShape({total});
    TF_RETURN_IF_ERROR(ctx->allocate_output(table, shape, &casting));
    std::vector<int64_t> kept_in_block;
    const IdScan scan = ScanIds(lookups, parallel, parallel.Blocks(total, 16384), &kept_in_block);
    if (scan.negative) return DescribeNegative(ctx, inputs);
    if (BitsFor(static_cast<uint64_t>(scan.largest) + 1) + BitsFor(static_cast<uint64_t>(total)) >
        63) {
      return absl::InvalidArgumentError(absl::StrCat(
          "`ids` up to ", scan.largest, " in ", total,
          " lookups do not pack into 63 bits; use a smaller batch or a smaller table."));
    }
    Tensor scratch;
    TF_RETURN_IF_ERROR(ctx->allocate_temp(tensorflow::DT_INT64, TensorShape({total}), &scratch));
    Cast(lookups, scan, kept_in_block, parallel, scratch.flat<int64_t>().data(),
         casting->flat<int64_t>().data());
    return absl::OkStatus();
  }

  absl::Status DescribeNegative(OpKernelContext* ctx, const std::vector<int>& inputs) const {
    for (const int i : inputs) {
      const Tensor& ids = ctx->input(i);
      const auto flat = ids.flat<Id>();
      for (int64_t k = 0; k < flat.size(); ++k) {
        if (flat(k) >= 0 || static_cast<int64_t>(flat(k)) == padding_ids_[i]) continue;
        const std::string name = ListEntry("ids", i, ctx->num_inputs());
        return absl::InvalidArgumentError(absl::StrCat(
            "`", name, "` must not be negative. Received: ", Entry(name, ids, k, flat(k))));
      }
    }
    return absl::InternalError("A negative id was seen, and is gone.");
  }

  std::vector<int> table_of_;
  std::vector<int64_t> padding_ids_;
};

#define TFREC_REGISTER(Id)                                    \
  REGISTER_KERNEL_BUILDER(Name("TfrecEfficient>CastIndices")  \
                              .Device(tensorflow::DEVICE_CPU) \
                              .TypeConstraint<Id>("Tids"),    \
                          CastIndicesOp<Id>)
TFREC_REGISTER(int32_t);
TFREC_REGISTER(int64_t);

}  // namespace
}  // namespace tfrec
