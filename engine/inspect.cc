#include "engine/inspect.h"

#include <algorithm>
#include <map>
#include <memory>
#include <utility>

#include "engine/formats/checkpoint.h"
#include "engine/formats/status_macros.h"
#include "engine/model/chat_template.h"
#include "engine/model/tokenizer.h"
#include "engine/model/weights.h"

namespace metattn {
namespace {

constexpr std::int64_t kTokens = 1000;

void AddTensors(const Checkpoint& checkpoint, InspectReport& report) {
  std::map<DType, TypeTotal> totals;
  for (const TensorInfo& tensor : checkpoint.tensors()) {
    const auto bytes = static_cast<std::int64_t>(tensor.data.size());
    const DTypeInfo info = Info(tensor.dtype);
    report.tensors.push_back({tensor.name, std::string(info.name), tensor.shape, bytes});
    TypeTotal& total = totals[tensor.dtype];
    total.type = info.name;
    ++total.tensors;
    total.parameters += bytes / info.block_bytes * info.block_values;
    total.bytes += bytes;
  }
  for (auto& [dtype, total] : totals) {
    report.parameters += total.parameters;
    report.bytes += total.bytes;
    report.types.push_back(std::move(total));
  }
  std::stable_sort(report.types.begin(), report.types.end(),
                   [](const TypeTotal& a, const TypeTotal& b) { return a.bytes > b.bytes; });
}

TokenizerFacts FactsOf(const Checkpoint& checkpoint) {
  TokenizerFacts facts;
  const auto tokenizer = Tokenizer::FromCheckpoint(checkpoint);
  if (!tokenizer.ok()) {
    facts.error = std::string(tokenizer.status().message());
    return facts;
  }
  facts.pre_tokenizer = (*tokenizer)->pre_tokenizer();
  facts.vocab = (*tokenizer)->vocab_size();
  facts.bos_id = (*tokenizer)->bos_id();
  facts.stop_ids = (*tokenizer)->stop_ids();
  if (const auto chat = ChatTemplate::Choose(**tokenizer, ""); chat.ok()) {
    facts.chat_template = chat->name();
  }
  return facts;
}

absl::StatusOr<std::vector<RankNeed>> NeedsOf(const Checkpoint& checkpoint,
                                              const ModelConfig& config,
                                              const TransformerOptions& options,
                                              const std::vector<double>& weights) {
  METATTN_ASSIGN_OR_RETURN(const auto slices, PlanSlices(ShapeOf(config, checkpoint), weights));
  std::vector<RankNeed> needs;
  for (const Slice& slice : slices) {
    METATTN_ASSIGN_OR_RETURN(const MemoryNeed need,
                             EstimateMemory(checkpoint, config, slice, options));
    needs.push_back({slice, need.weights, need.scratch, need.per_block * kTokens / kBlockTokens});
  }
  return needs;
}

RankPlan PlanFor(const Checkpoint& checkpoint, const ModelConfig& config,
                 const TransformerOptions& options, std::vector<double> weights) {
  RankPlan plan;
  auto needs = NeedsOf(checkpoint, config, options, weights);
  plan.weights = std::move(weights);
  if (needs.ok()) {
    plan.ranks = *std::move(needs);
  } else {
    plan.error = std::string(needs.status().message());
  }
  return plan;
}

}  // namespace

absl::StatusOr<InspectReport> Inspect(const InspectOptions& options) {
  for (const int ranks : options.ranks) {
    if (ranks < 1 || ranks > 4096) {
      return absl::InvalidArgumentError("--ranks: a rank count must be from 1 to 4096");
    }
  }
  METATTN_ASSIGN_OR_RETURN(const auto checkpoint, Checkpoint::Open(options.model));
  InspectReport report;
  report.path = checkpoint->path();
  report.format = checkpoint->format() == Checkpoint::Format::kGguf ? "gguf" : "huggingface";
  METATTN_ASSIGN_OR_RETURN(report.config, ModelConfig::FromCheckpoint(*checkpoint));
  AddTensors(*checkpoint, report);
  report.tokenizer = FactsOf(*checkpoint);
  if (!options.rank_weights.empty()) {
    report.plans.push_back(
        PlanFor(*checkpoint, report.config, options.transformer, options.rank_weights));
    return report;
  }
  for (const int ranks : options.ranks) {
    report.plans.push_back(PlanFor(*checkpoint, report.config, options.transformer,
                                   std::vector<double>(static_cast<std::size_t>(ranks), 1.0)));
  }
  return report;
}

}  // namespace metattn
