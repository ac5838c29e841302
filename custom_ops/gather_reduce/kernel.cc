// TensorFlow kernels over the pure core: they check shapes, allocate, and spread the work over the
// thread pool of the session.

#include "custom_ops/common/kernel.h"

#include <atomic>
#include <vector>

#include "custom_ops/casting/casting.h"
#include "custom_ops/gather_reduce/gather_reduce.h"
#include "custom_ops/gather_reduce/row_reducer.h"
#include "custom_ops/gather_reduce/table_gradient.h"

namespace tfrec {
namespace {

// int8 rows are pooled in float; they have no gradient.
template <typename T>
using PooledType = std::conditional_t<std::is_same_v<T, int8_t>, float, T>;

// The forward op and the weight gradient read tables, which are tensors or variables.
template <typename T, typename Id>
class TableKernel : public BagKernel<T, Id> {
 public:
  using typename BagKernel<T, Id>::Stored;

  explicit TableKernel(OpKernelConstruction* ctx)
      : BagKernel<T, Id>(ctx), reduce_(SelectRowReducer<Stored>(BestIsa())) {
    if (!ctx->status().ok()) return;
    OP_REQUIRES_OK(ctx, ctx->GetAttr("num_tables", &num_tables_));
    OP_REQUIRES_OK(ctx, GetTableOf(ctx, num_tables_, &table_of_));
    OP_REQUIRES(ctx, static_cast<int>(table_of_.size()) == this->features(),
                absl::InvalidArgumentError("`table_of` must have an entry for each of `ids`."));
  }

  void Compute(OpKernelContext* ctx) override {
    std::vector<Table<Stored>> tables;
    LockedVariables variables(/*exclusive=*/false);
    OP_REQUIRES_OK(ctx, ReadTables(ctx, &variables, &tables));
    std::vector<Feature<Stored, Id>> features;
    OP_REQUIRES_OK(ctx, this->ReadFeatures(ctx, &features));
    int64_t width = 0;
    for (int i = 0; i < this->features(); ++i) {
      features[i].column = width;
      width += tables[table_of_[i]].dim;
    }
    OP_REQUIRES_OK(ctx, ComputeFeatures(ctx, tables, features, width));
  }

 protected:
  virtual absl::Status ComputeFeatures(OpKernelContext* ctx,
                                       const std::vector<Table<Stored>>& tables,
                                       const std::vector<Feature<Stored, Id>>& features,
                                       int64_t width) = 0;

  // Runs work(i, first, last) over ranges of bags of each feature i; work is false for a fault.
  template <typename Work>
  absl::Status OverBags(OpKernelContext* ctx, const std::vector<Table<Stored>>& tables,
                        const std::vector<Feature<Stored, Id>>& features, const Work& work) const {
    const int64_t batch = features[0].bags.count;
    int64_t cost = 0;
    for (int i = 0; i < this->features(); ++i) {
      const int64_t lookups_per_bag = 1 + features[i].bags.lookups / std::max<int64_t>(1, batch);
      cost += lookups_per_bag * LookupCost<T>(TableOf(i, tables).dim);
    }
    // All features write to the same rows of the output, which should stay cached meanwhile; but
    // with few bags at a time there is nothing to prefetch.
    const int64_t block = this->features() == 1 ? std::max<int64_t>(1, batch) : 512;
    std::atomic<bool> ok{true};
    ParallelFor(ctx, batch, cost, [&](int64_t first, int64_t last) {
      for (int64_t bag = first; bag < last; bag += block) {
        for (int i = 0; i < this->features(); ++i) {
          if (!work(i, bag, std::min(bag + block, last))) ok = false;
        }
      }
    });
    for (int i = 0; !ok && i < this->features(); ++i) {
      const int64_t rows = TableOf(i, tables).rows;
      const Fault fault = FindFault(features[i].bags, rows, features[i].weights);
      if (fault.kind != Fault::kNone) return this->Describe(ctx, fault, i, features[i], rows);
    }
    return absl::OkStatus();
  }

  const Table<Stored>& TableOf(int feature, const std::vector<Table<Stored>>& tables) const {
    return tables[table_of_[feature]];
  }
  RowReducer<Stored> reduce() const { return reduce_; }

 private:
  absl::Status ReadTables(OpKernelContext* ctx, LockedVariables* variables,
                          std::vector<Table<Stored>>* tables) {
    OpInputList inputs, scales;
    TF_RETURN_IF_ERROR(ctx->input_list("tables", &inputs));
    constexpr bool kQuantized = std::is_same_v<T, int8_t>;
    if (kQuantized) TF_RETURN_IF_ERROR(ctx->input_list("scales", &scales));
    const bool is_resource = ctx->input_dtype(0) == tensorflow::DT_RESOURCE;
    for (int i = 0; is_resource && i < inputs.size(); ++i) {
      TF_RETURN_IF_ERROR(variables->Add(ctx, HandleFromInput(ctx, i)));
    }
    for (int i = 0; kQuantized && i < inputs.size(); ++i) {
      TF_RETURN_IF_ERROR(variables->Add(ctx, HandleFromInput(ctx, inputs.size() + i)));
    }
    variables->Lock();
    for (int i = 0; i < inputs.size(); ++i) {
      const std::string name = ListEntry("table", i, inputs.size());
      const Tensor* tensor = &inputs[i];
      if (is_resource) {
        Tensor* value = nullptr;
        TF_RETURN_IF_ERROR(variables->Get(i, name, DataTypeToEnum<T>::value, &value));
        tensor = value;
        huge_pages_.Use(i, tensor->data(), tensor->TotalBytes());
      }
      if (!TensorShapeUtils::IsMatrix(tensor->shape())) {
        return absl::InvalidArgumentError(absl::StrCat(
            "`", name, "` must have rank 2. Received: shape ", tensor->shape().DebugString()));
      }
      Table<Stored> table{CoreData<T>(*tensor), tensor->dim_size(0), tensor->dim_size(1)};
      if (kQuantized) {
        Tensor* value = nullptr;
        TF_RETURN_IF_ERROR(
            variables->Get(inputs.size() + i, "scales", tensorflow::DT_FLOAT, &value));
        if (value->shape() != TensorShape({table.rows})) {
          return absl::InvalidArgumentError(
              absl::StrCat("`scales` must have an entry for each of the ", table.rows,
                           " rows. Received: shape ", value->shape().DebugString()));
        }
        table.scales = value->flat<float>().data();
      }
      tables->push_back(table);
    }
    return absl::OkStatus();
  }

  RowReducer<Stored> reduce_;
  HugePages huge_pages_;
  int num_tables_ = 0;
  std::vector<int> table_of_;
};

template <typename T, typename Id>
class GatherReduceOp final : public TableKernel<T, Id> {
 public:
  using typename BagKernel<T, Id>::Stored;
  using TableKernel<T, Id>::TableKernel;

 private:
  absl::Status ComputeFeatures(OpKernelContext* ctx, const std::vector<Table<Stored>>& tables,
                               const std::vector<Feature<Stored, Id>>& features,
                               int64_t width) override {
    TensorShape shape;
    TF_RETURN_IF_ERROR(TensorShape::BuildTensorShape({features[0].bags.count, width}, &shape));
    Tensor* output = nullptr;
    TF_RETURN_IF_ERROR(ctx->allocate_output(0, shape, &output));
    auto* const out = CoreData<PooledType<T>>(output);
    int64_t lookups = 0;
    for (const auto& feature : features) lookups += feature.bags.lookups;
    if (lookups == 0) {  // the bags may be more than can be counted
      std::fill_n(out, output->NumElements(), Pooled<Stored>{});
      return absl::OkStatus();
    }
    return this->OverBags(ctx, tables, features, [&](int i, int64_t first, int64_t last) {
      const Feature<Stored, Id>& feature = features[i];
      if (!feature.weights && !feature.bags.has_padding && !this->TableOf(i, tables).scales) {
        return GatherReducePlain(this->TableOf(i, tables), feature.bags, feature.combiner,
                                 reduce_ids_, first, last, width, out + feature.column);
      }
      return GatherReduce(this->TableOf(i, tables), feature.bags, feature.weights, feature.combiner,
                          this->reduce(), first, last, width, out + feature.column);
    });
  }

  const IdReducer<Stored, Id> reduce_ids_ = SelectIdReducer<Stored, Id>(BestIsa());
};

template <typename T, typename Id>
class GatherReduceWeightGradOp final : public TableKernel<T, Id> {
 public:
  using typename BagKernel<T, Id>::Stored;
  using typename BagKernel<T, Id>::Weight;
  using TableKernel<T, Id>::TableKernel;

 private:
  absl::Status ComputeFeatures(OpKernelContext* ctx, const std::vector<Table<Stored>>& tables,
                               const std::vector<Feature<Stored, Id>>& features,
                               int64_t width) override {
    OpInputList weights;
    OpOutputList weight_grads;
    TF_RETURN_IF_ERROR(ctx->input_list("weights", &weights));
    TF_RETURN_IF_ERROR(ctx->output_list("weight_grads", &weight_grads));
    const Tensor& grads = ctx->input(ctx->num_inputs() - 1);
    TF_RETURN_IF_ERROR(this->CheckGrads(grads, features[0].bags.count, width));
    std::vector<Weight*> outs;
    for (int i = 0; i < this->features(); ++i) {
      Tensor* output = nullptr;
      TF_RETURN_IF_ERROR(weight_grads.allocate(i, weights[i].shape(), &output));
      outs.push_back(output->flat<Weight>().data());
    }
    return this->OverBags(ctx, tables, features, [&](int i, int64_t first, int64_t last) {
      const Feature<Stored, Id>& feature = features[i];
      if (!feature.weights || feature.bags.lookups == 0) return true;
      return GatherReduceWeightGrad(this->TableOf(i, tables), feature.bags, feature.weights,
                                    feature.combiner, CoreData<T>(grads) + feature.column, width,
                                    first, last, outs[i]);
    });
  }
};

template <typename T, typename Id>
class GatherReduceGradOp final : public BagKernel<T, Id> {
 public:
  using typename BagKernel<T, Id>::Stored;

  explicit GatherReduceGradOp(OpKernelConstruction* ctx)
      : BagKernel<T, Id>(ctx), reduce_(SelectRowReducer<Stored>(BestIsa())) {
    if (!ctx->status().ok()) return;
    int tables = 0;
    OP_REQUIRES_OK(ctx, ctx->GetAttr("num_tables", &tables));
    OP_REQUIRES_OK(ctx, GetTableOf(ctx, tables, &table_of_));
    OP_REQUIRES_OK(ctx, ctx->GetAttr("dims", &dims_));
    OP_REQUIRES(ctx,
                static_cast<int>(table_of_.size()) == this->features() &&
                    static_cast<int>(dims_.size()) == tables,
                absl::InvalidArgumentError("`table_of` must have an entry for each of `ids`, and "
                                           "`dims` for each of `castings`."));
  }

  void Compute(OpKernelContext* ctx) override {
    std::vector<Feature<Stored, Id>> features;
    OP_REQUIRES_OK(ctx, this->ReadFeatures(ctx, &features));
    const Tensor& grads = ctx->input(0);
    OP_REQUIRES(ctx, TensorShapeUtils::IsMatrix(grads.shape()),
                this->CheckGrads(grads, features[0].bags.count, -1));
    const int tables = dims_.size();
    std::vector<int64_t> dims;
    for (const int dim : dims_) dims.push_back(dim < 0 ? grads.dim_size(1) : dim);
    int64_t width = 0;
    for (int i = 0; i < this->features(); ++i) {
      features[i].column = width;
      width += dims[table_of_[i]];
    }
    OP_REQUIRES_OK(ctx, this->CheckGrads(grads, features[0].bags.count, width));
    const Parallel parallel = ParallelOf(ctx);
    std::vector<absl::Status> statuses(tables);
    const auto compute = [&](int table, const Parallel& threads) {
      std::vector<Feature<Stored, Id>> of_table;
      for (int i = 0; i < this->features(); ++i) {
        if (table_of_[i] == table) of_table.push_back(features[i]);
      }
      statuses[table] = ComputeTable(ctx, table, of_table, grads, dims[table], threads);
    };
    // Few tables are computed in turn, each by all threads.
    if (tables < parallel.threads) {
      for (int table = 0; table < tables; ++table) compute(table, parallel);
    } else {
      parallel.run(tables, [&](int64_t table) { compute(table, Parallel()); });
    }
    for (const absl::Status& status : statuses) OP_REQUIRES_OK(ctx, status);
  }

 private:
  absl::Status ComputeTable(OpKernelContext* ctx, int table,
                            const std::vector<Feature<Stored, Id>>& features, const Tensor& grads,
                            int64_t dim, const Parallel& parallel) const {
    OpInputList castings;
    OpOutputList ids_out, values_out;
    TF_RETURN_IF_ERROR(ctx->input_list("castings", &castings));
    TF_RETURN_IF_ERROR(ctx->output_list("unique_ids", &ids_out));
    TF_RETURN_IF_ERROR(ctx->output_list("values", &values_out));
    Casting casting;
    TF_RETURN_IF_ERROR(CheckCasting(features, castings[table], parallel, &casting));

    // By pairs, not by segments: one hot id may own most of the pairs.
    const int64_t blocks = parallel.Blocks(casting.count, 1024);
    std::vector<int64_t> segments(blocks);
    parallel.Split(casting.count, blocks, [&](int64_t block, int64_t first, int64_t last) {
      segments[block] = CountSegments(casting, first, last);
    });
    int64_t total = 0;
    for (int64_t& of_block : segments) total += std::exchange(of_block, total);
    Tensor* unique_ids = nullptr;
    Tensor* values = nullptr;
    TensorShape shape;
    TF_RETURN_IF_ERROR(TensorShape::BuildTensorShape({total, dim}, &shape));
    TF_RETURN_IF_ERROR(ids_out.allocate(table, TensorShape({total}), &unique_ids));
    TF_RETURN_IF_ERROR(values_out.allocate(table, shape, &values));
    const GradientRows<Stored> gradient(features, CoreData<T>(grads), grads.dim_size(1), dim,
                                        parallel);
    parallel.Split(casting.count, blocks, [&](int64_t block, int64_t first, int64_t last) {
      CoalescedGradient(casting, gradient, dim, reduce_, first, last,
                        unique_ids->flat<Id>().data() + segments[block],
                        CoreData<T>(values) + segments[block] * dim);
    });
    return absl::OkStatus();
  }

  RowReducer<Stored> reduce_;
  std::vector<int> table_of_;
  std::vector<int> dims_;
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

TFREC_REGISTER_FAMILY(Eigen::half, int32_t);
TFREC_REGISTER_FAMILY(Eigen::half, int64_t);
TFREC_REGISTER_FAMILY(Eigen::bfloat16, int32_t);
TFREC_REGISTER_FAMILY(Eigen::bfloat16, int64_t);
TFREC_REGISTER_FAMILY(float, int32_t);
TFREC_REGISTER_FAMILY(float, int64_t);
TFREC_REGISTER_FAMILY(double, int32_t);
TFREC_REGISTER_FAMILY(double, int64_t);

#define TFREC_REGISTER_QUANTIZED(Id)                                           \
  REGISTER_KERNEL_BUILDER(Name("TfrecEfficient>ResourceQuantizedGatherReduce") \
                              .Device(tensorflow::DEVICE_CPU)                  \
                              .TypeConstraint<Id>("Tids")                      \
                              .TypeConstraint<float>("Tweights"),              \
                          GatherReduceOp<int8_t, Id>)
TFREC_REGISTER_QUANTIZED(int32_t);
TFREC_REGISTER_QUANTIZED(int64_t);

}  // namespace
}  // namespace tfrec
