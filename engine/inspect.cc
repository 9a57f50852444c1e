#include "engine/inspect.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <memory>
#include <string_view>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "engine/device_model.h"
#include "engine/formats/checkpoint.h"
#include "engine/formats/status_macros.h"
#include "engine/model/chat_template.h"
#include "engine/model/controller_file.h"
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

// Bytes of rows of a matrix with D columns as the checkpoint stores it.
double RowBytes(const Checkpoint& checkpoint, const ModelConfig& config, std::int64_t rows,
                std::string_view tensor) {
  const TensorInfo* info = checkpoint.Find(tensor);
  return info == nullptr ? 0 : static_cast<double>(rows * BytesFor(info->dtype, config.hidden));
}

RankWork WorkOf(const Checkpoint& checkpoint, const ModelConfig& config, const RankNeed& need) {
  const Slice& slice = need.slice;
  const std::int64_t vocab = slice.vocab_end - slice.vocab_begin;
  const double table = RowBytes(checkpoint, config, vocab, "token_embd.weight");
  const double head =
      config.tied_embeddings ? table : RowBytes(checkpoint, config, vocab, "output.weight");
  const double width = slice.heads() * config.group() * config.head_dim;
  const double hidden = static_cast<double>(config.hidden);
  const double kv_width = slice.heads() * config.head_dim;
  return {.layer_bytes =
              static_cast<double>(need.weight_bytes) - head - (config.tied_embeddings ? 0 : table),
          .layer_parameters =
              config.layers * hidden *
              (2 * width + 2 * kv_width + 3 * static_cast<double>(slice.ffn_end - slice.ffn_begin)),
          .head_bytes = head,
          .head_parameters = hidden * static_cast<double>(vocab),
          .kv_bytes = 4 * config.layers * kv_width,  // bf16, whatever a CPU pads
          .attention_flops = 4 * config.layers * width};
}

// What the times are computed for beside a rank's work.
struct Expectation {
  const DevicePeaks* device = nullptr;
  const ControllerSpec* controller = nullptr;
  std::vector<double> shares;
  int max_context = 0, max_sequences = 0, chunk = 0;

  bool routed() const { return controller != nullptr || !shares.empty(); }
};

// Shares of a rank's rows: those given, else the mean of its KV heads' calibration.
AttentionReads ReadsOf(const Expectation& e, const ModelConfig& config, const Slice& slice) {
  AttentionReads reads;
  FeatureMap map = FeatureMap::kHedgehog;
  if (e.controller != nullptr) {
    map = e.controller->feature_map;
    reads.window = e.controller->window;
    reads.sinks = e.controller->sinks;
    reads.exact_window = e.controller->exact_window;
    reads.linear_all = e.controller->linear_all;
  }
  reads.state_tokens =
      static_cast<double>(StateBytes(Features(map, config.head_dim), config.head_dim)) /
      (4.0 * config.head_dim);
  if (!e.shares.empty()) {
    reads.linear = e.shares[1];
    reads.local = e.shares[2];
    return reads;
  }
  const double cells = static_cast<double>(config.layers) * slice.heads();
  for (const auto& layer : e.controller->mix) {
    for (int head = slice.head_begin; head < slice.head_end; ++head) {
      reads.linear += static_cast<double>(layer[static_cast<std::size_t>(head)][1]) / cells;
      reads.local += static_cast<double>(layer[static_cast<std::size_t>(head)][2]) / cells;
    }
  }
  return reads;
}

// The slowest rank's.
void AddRank(const Expectation& e, const RankWork& work, const AttentionReads* routed,
             ExpectedTimes* times) {
  const auto slower = [&](ExpectedTime& time, const auto& seconds) {
    time.dense = std::max(time.dense, seconds(AttentionReads{}));
    if (routed != nullptr) time.routed = std::max(time.routed, seconds(*routed));
  };
  for (std::size_t i = 0; i < times->sequences.size(); ++i) {
    slower(times->decode[i], [&](const AttentionReads& reads) {
      return DecodeSeconds(*e.device, work, reads, times->sequences[i], times->context);
    });
  }
  slower(times->prefill, [&](const AttentionReads& reads) {
    return PrefillSeconds(*e.device, work, reads, times->context, e.chunk);
  });
}

// For contexts of 1,024 times powers of 8 and the longest there is; 1, 16, ... sequences.
void AddExpected(const Checkpoint& checkpoint, const ModelConfig& config, const Expectation& e,
                 RankPlan* plan) {
  std::vector<int> contexts, sequences;
  for (std::int64_t c = 1024; c < e.max_context; c *= 8) contexts.push_back(static_cast<int>(c));
  contexts.push_back(e.max_context);
  for (std::int64_t s = 1; s < e.max_sequences; s *= 16) sequences.push_back(static_cast<int>(s));
  sequences.push_back(e.max_sequences);
  for (const int context : contexts) {
    ExpectedTimes times = {.context = context,
                           .sequences = sequences,
                           .decode = std::vector<ExpectedTime>(sequences.size())};
    for (const RankNeed& need : plan->ranks) {
      AttentionReads reads;
      if (e.routed()) reads = ReadsOf(e, config, need.slice);
      AddRank(e, WorkOf(checkpoint, config, need), e.routed() ? &reads : nullptr, &times);
    }
    plan->expected.push_back(std::move(times));
  }
}

absl::Status CheckExpectation(const InspectOptions& options) {
  if (!options.device.empty() && FindDevice(options.device) == nullptr) {
    return absl::InvalidArgumentError(
        absl::StrCat("--device-model: \"", options.device,
                     "\" is not known; there are: ", std::string(DeviceNames())));
  }
  if (options.route_shares.empty()) return absl::OkStatus();
  double sum = 0;
  bool shares = options.route_shares.size() == kMechanisms;
  for (const double share : options.route_shares) {
    shares = shares && share >= 0 && share <= 1;
    sum += share;
  }
  if (shares && std::abs(sum - 1) < 1e-6) return absl::OkStatus();
  return absl::InvalidArgumentError(
      "--route-shares: three shares of full, linear and local, which sum to 1");
}

}  // namespace

absl::StatusOr<InspectReport> Inspect(const InspectOptions& options) {
  for (const int ranks : options.ranks) {
    if (ranks < 1 || ranks > 4096) {
      return absl::InvalidArgumentError("--ranks: a rank count must be from 1 to 4096");
    }
  }
  METATTN_RETURN_IF_ERROR(CheckExpectation(options));
  METATTN_ASSIGN_OR_RETURN(const auto checkpoint, Checkpoint::Open(options.model));
  InspectReport report;
  report.path = checkpoint->path();
  report.format = checkpoint->format() == Checkpoint::Format::kGguf ? "gguf" : "huggingface";
  METATTN_ASSIGN_OR_RETURN(report.config, ModelConfig::FromCheckpoint(*checkpoint));
  AddTensors(*checkpoint, report);
  report.tokenizer = FactsOf(*checkpoint);
  TransformerOptions transformer = options.transformer;
  std::unique_ptr<ControllerFile> controller;
  if (!options.controller.empty()) {
    METATTN_ASSIGN_OR_RETURN(controller,
                             ControllerFile::Open(options.controller, *checkpoint, report.config));
    transformer.controller = controller.get();
  }
  if (!options.rank_weights.empty()) {
    report.plans.push_back(PlanFor(*checkpoint, report.config, transformer, options.rank_weights));
  } else {
    for (const int ranks : options.ranks) {
      report.plans.push_back(PlanFor(*checkpoint, report.config, transformer,
                                     std::vector<double>(static_cast<std::size_t>(ranks), 1.0)));
    }
  }
  if (options.device.empty()) return report;
  const DevicePeaks& device = *FindDevice(options.device);
  report.device = absl::StrFormat("%s: %.0f GB/s, %.0f TFLOP/s bf16", device.card,
                                  device.bytes_per_second / 1e9, device.flops / 1e12);
  report.prefill_chunk = transformer.max_batch_tokens;
  const int longest = transformer.max_context;
  const Expectation expectation = {&device,
                                   controller ? &controller->spec() : nullptr,
                                   options.route_shares,
                                   longest > 0 ? longest : report.config.max_positions,
                                   transformer.max_sequences,
                                   transformer.max_batch_tokens};
  for (RankPlan& plan : report.plans) {
    if (!plan.ranks.empty()) AddExpected(*checkpoint, report.config, expectation, &plan);
  }
  return report;
}

}  // namespace metattn
