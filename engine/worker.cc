#include "engine/worker.h"

#include <algorithm>
#include <cstring>
#include <limits>

#include "absl/strings/str_format.h"
#include "engine/formats/status_macros.h"
#include "engine/host_memory.h"
#include "engine/model/far_helpers.h"
#include "engine/model/helper_plan.h"
#include "engine/model/weights.h"
#include "engine/rank_device.h"
#include "engine/rank_speed.h"
#include "kernels/kernels.h"
#include "parallel/exchange.h"
#include "parallel/nccl_communicator.h"
#include "parallel/shard_planner.h"
#include "parallel/topology.h"

namespace metattn {
namespace {

// What each rank tells rank 0 before and after it has allocated; sent as bytes.
struct RankRecord {
  std::int64_t blocks = 0;  // it can hold; max for a rank without heads
  std::int64_t weight_bytes = 0;
  std::int64_t page_bytes = 0;
  char error[400] = {};  // empty: fine
};

std::string Gibibytes(std::int64_t bytes) {
  return absl::StrFormat("%.2f GiB", bytes / 1073741824.0);
}

class RankWorker final : public Worker {
 public:
  RankWorker(const ModelConfig& config, const ModelOptions& options, const WorkerLimits& limits,
             Communicator& comm)
      : config_(config), options_(options), limits_(limits), comm_(comm) {}

  absl::Status Init(const Checkpoint& checkpoint);
  absl::StatusOr<StepOutput> Step(const StepPlan& plan) override;
  absl::Status Stop() override;
  absl::Status Serve() override;

  int rank() const override { return comm_.rank(); }
  int ranks() const override { return comm_.size(); }
  int threads() const override { return kernels_->threads(); }
  std::string isa() const override { return std::string(kernels_->isa()); }
  int window() const override { return transformer_options_.window; }
  int sinks() const override { return transformer_options_.sinks; }
  const ControllerFile* controller() const override { return controller_.get(); }
  std::int64_t blocks() const override { return blocks_; }
  std::int64_t weight_bytes() const override { return weight_bytes_; }
  const std::vector<std::string>& descriptions() const override { return descriptions_; }

 private:
  const RankPlace& place() const { return places_[comm_.rank()]; }
  absl::StatusOr<int> ChooseDevice() const;
  absl::Status MakeBackend();
  absl::Status JoinDevices();
  absl::Status WeighRanks();
  Communicator& tensors() const { return device_comm_ == nullptr ? comm_ : *device_comm_; }
  absl::Status Plan(const Checkpoint& checkpoint);
  absl::StatusOr<std::int64_t> BlocksThatFit(const Checkpoint& checkpoint);
  absl::Status AgreeOnBlocks(const absl::StatusOr<std::int64_t>& mine);
  absl::Status ReportUp(const absl::Status& status);
  std::string Describe(int rank, const RankRecord& record) const;
  absl::Status OpenController(const Checkpoint& checkpoint);
  absl::Status OpenDecisions();
  absl::Status PlanHelp();
  absl::Status JoinHelpers();
  std::string Reads(int rank) const;
  std::int64_t CopiesPerBlock() const;
  absl::Status Run(const StepPlan& plan, StepOutput* output);
  absl::Status GatherOutput(const StepResult& result, const StepRouting& mine, StepOutput* output);

  ModelConfig config_;
  ModelOptions options_;
  WorkerLimits limits_;
  Communicator& comm_;
  std::vector<RankPlace> places_;
  std::unique_ptr<ControllerFile> controller_;
  std::unique_ptr<DecisionSource> source_;
  std::unique_ptr<DecisionRecorder> recorder_;
  TransformerOptions transformer_options_;
  std::unique_ptr<Kernels> kernels_;
  int device_ = 0;                             // of the cuda backend
  std::unique_ptr<Communicator> device_comm_;  // null: tensors go over comm_, as all else does
  std::vector<double> weights_;                // of the ranks
  std::vector<Slice> slices_;
  std::vector<HelperLink> helpers_;           // empty: nobody reads for another rank
  std::unique_ptr<Communicator> background_;  // null: likewise
  std::unique_ptr<Transformer> transformer_;
  std::int64_t blocks_ = 0;
  std::int64_t weight_bytes_ = 0;
  std::vector<std::string> descriptions_;
};

absl::StatusOr<int> RankWorker::ChooseDevice() const {
  if (options_.device != "cuda") {
    if (options_.rank_devices.empty()) return 0;
    return absl::InvalidArgumentError(
        absl::StrFormat("--rank-devices is for --device cuda, not %s", options_.device));
  }
  if (options_.deterministic && comm_.size() > 1) {
    return absl::InvalidArgumentError(
        "--deterministic with --device cuda runs on one rank only: sums over NCCL have no fixed "
        "order");
  }
  return RankDevice(options_.rank_devices, places_, comm_.rank());
}

absl::Status RankWorker::MakeBackend() {
  METATTN_ASSIGN_OR_RETURN(places_, ExchangeTopology(comm_, options_.threads));
  METATTN_ASSIGN_OR_RETURN(device_, ChooseDevice());
  absl::StatusOr<std::unique_ptr<Kernels>> kernels =
      MakeKernels({.backend = options_.device,
                   .isa = options_.isa,
                   .threads = place().threads,
                   .device = device_,
                   .memory_fraction = options_.device_memory_fraction,
                   .deterministic = options_.deterministic,
                   .spin = !place().oversubscribed});
  if (absl::IsNotFound(kernels.status())) {
    return absl::NotFoundError(absl::StrFormat(
        "rank %d, number %d of %d on host %s: %s; start fewer ranks there, or name devices with "
        "--rank-devices",
        comm_.rank(), place().rank_on_host, place().ranks_on_host, place().host,
        std::string(kernels.status().message())));
  }
  if (!kernels.ok()) return kernels.status();
  kernels_ = *std::move(kernels);
  return absl::OkStatus();
}

// Collective: what exchanges tensors in the memory of GPUs. Control messages stay on comm_.
absl::Status RankWorker::JoinDevices() {
  if (options_.device != "cuda" || comm_.size() == 1) return absl::OkStatus();
  if (!HasNcclCommunicator()) {
    return absl::FailedPreconditionError(
        "this program was built without NCCL: --device cuda runs on one rank only");
  }
  METATTN_ASSIGN_OR_RETURN(
      device_comm_,
      MakeNcclCommunicator(comm_, device_, {.deadline_s = options_.collective_timeout_s}));
  return absl::OkStatus();
}

// Collective: what part of the model each rank gets.
absl::Status RankWorker::WeighRanks() {
  const auto ranks = static_cast<std::size_t>(comm_.size());
  weights_ = options_.rank_weights;
  if (!weights_.empty() && weights_.size() != ranks) {
    return absl::InvalidArgumentError(
        absl::StrFormat("--rank-weights: %d weights for %d ranks", weights_.size(), ranks));
  }
  if (!weights_.empty()) return absl::OkStatus();
  weights_.assign(ranks, 1.0);
  const bool probes = options_.probe_ranks.value_or(options_.device == "cuda");
  if (!probes || ranks == 1) return absl::OkStatus();
  const absl::StatusOr<double> mine = MeasureSpeed(*kernels_, 2 * config_.ffn, config_.hidden);
  METATTN_ASSIGN_OR_RETURN(const std::vector<double> speeds,
                           ExchangeRecords(comm_, mine.value_or(0)));
  weights_ = WeightsOfSpeeds(speeds);
  return mine.status();
}

// A flag that was given must agree with the controller: it was trained for one window only.
absl::Status CheckAgainstController(const char* flag, int asked, int trained) {
  if (asked == trained) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrFormat(
      "%s %d: the controller was trained with %d; leave the flag out", flag, asked, trained));
}

absl::Status RankWorker::OpenController(const Checkpoint& checkpoint) {
  if (options_.controller.empty()) {
    if (options_.window == 0) options_.window = 256;
    if (options_.sinks < 0) options_.sinks = 4;
    return absl::OkStatus();
  }
  METATTN_ASSIGN_OR_RETURN(controller_,
                           ControllerFile::Open(options_.controller, checkpoint, config_));
  const ControllerSpec& spec = controller_->spec();
  if (options_.window == 0) options_.window = spec.window;
  if (options_.sinks < 0) options_.sinks = spec.sinks;
  METATTN_RETURN_IF_ERROR(CheckAgainstController("--window", options_.window, spec.window));
  return CheckAgainstController("--sinks", options_.sinks, spec.sinks);
}

absl::Status RankWorker::OpenDecisions() {
  if (options_.force_share && !options_.replay_decisions.empty()) {
    return absl::InvalidArgumentError("--force-share and --replay-decisions exclude each other");
  }
  if (options_.force_share) {
    const Mechanism rest = controller_ == nullptr ? Mechanism::kLocal : Mechanism::kLinear;
    source_ = ForceShare(*options_.force_share, rest, options_.force_share_seed);
  }
  if (!options_.replay_decisions.empty()) {
    METATTN_ASSIGN_OR_RETURN(
        source_, ReplayDecisions(options_.replay_decisions, config_.layers, config_.kv_heads));
  }
  if (options_.record_decisions.empty()) return absl::OkStatus();
  const Slice& slice = slices_[static_cast<std::size_t>(comm_.rank())];
  METATTN_ASSIGN_OR_RETURN(recorder_,
                           RecordDecisions({options_.record_decisions, comm_.rank(), config_.layers,
                                            config_.kv_heads, slice.head_begin, slice.head_end}));
  return absl::OkStatus();
}

absl::Status RankWorker::PlanHelp() {
  if (!options_.attention_helpers) return absl::OkStatus();
  if (options_.deterministic) {
    return absl::InvalidArgumentError(
        "--attention-helpers and --deterministic exclude each other: which rows another rank reads "
        "depends on the batch, and their sums have another order");
  }
  helpers_ = PlanHelpers(slices_, weights_);
  return absl::OkStatus();
}

// Collective. What copies of pages go over.
absl::Status RankWorker::JoinHelpers() {
  if (helpers_.empty()) return absl::OkStatus();
  METATTN_ASSIGN_OR_RETURN(background_, tensors().NewChannel());
  transformer_options_.background = background_.get();
  return absl::OkStatus();
}

std::int64_t RankWorker::CopiesPerBlock() const {
  return FarHelpers::BytesPerBlock(helpers_, comm_.rank(), config_.layers,
                                   kernels_->PageBytes(config_.head_dim));
}

absl::Status RankWorker::Plan(const Checkpoint& checkpoint) {
  METATTN_RETURN_IF_ERROR(OpenController(checkpoint));
  absl::StatusOr<std::vector<Slice>> slices = PlanSlices(ShapeOf(config_, checkpoint), weights_);
  if (!slices.ok()) return slices.status();
  slices_ = *std::move(slices);
  METATTN_RETURN_IF_ERROR(OpenDecisions());
  METATTN_RETURN_IF_ERROR(PlanHelp());
  transformer_options_ = {
      .window = options_.window,
      .sinks = options_.sinks,
      .max_batch_tokens = limits_.max_batch_tokens,
      .max_sequences = limits_.max_sequences,
      .state_snapshots = limits_.state_snapshots,
      .max_logit_rows = limits_.max_logit_rows,
      .max_context = limits_.max_context == 0 ? config_.max_positions : limits_.max_context,
      .controller = controller_.get(),
      .source = source_.get(),
      .recorder = recorder_.get(),
      .max_shadow_rows = limits_.max_shadow_rows,
      .helpers = helpers_,
      .perturb = limits_.perturb,
      .perturb_seed = limits_.perturb_seed};
  return absl::OkStatus();
}

// K/V blocks this rank has memory for: what was asked for, or what WorkerLimits says of the memory
// of its device.
absl::StatusOr<std::int64_t> RankWorker::BlocksThatFit(const Checkpoint& checkpoint) {
  absl::StatusOr<MemoryNeed> need =
      EstimateMemory(checkpoint, config_, slices_[comm_.rank()], transformer_options_);
  if (!need.ok()) return need.status();
  need->per_block += CopiesPerBlock();
  const std::int64_t fixed = need->weights + need->scratch;
  const std::optional<std::int64_t> own = kernels_->device().MemoryLeft();
  const std::int64_t available = own ? *own : AvailableMemoryBytes() / place().ranks_on_host;
  std::int64_t budget = limits_.kv_cache_bytes;
  if (budget == 0) {  // kernels of a GPU keep scratch of their own; a host has other programs
    const std::int64_t rest = std::max<std::int64_t>(0, available - fixed);
    budget = own ? rest / 10 * 9 : rest / 4;
  }
  if (fixed + (limits_.kv_cache_bytes == 0 ? 0 : budget) > available) {
    return absl::ResourceExhaustedError(absl::StrFormat(
        "rank %d: weights and scratch %s + K/V %s do not fit into the %s it may use%s",
        comm_.rank(), Gibibytes(fixed), Gibibytes(limits_.kv_cache_bytes), Gibibytes(available),
        own ? absl::StrFormat(" of CUDA device %d (--device-memory-fraction)", device_) : ""));
  }
  std::int64_t blocks =
      limits_.max_blocks > 0 ? limits_.max_blocks : std::numeric_limits<std::int32_t>::max();
  if (need->per_block > 0) blocks = std::min(blocks, budget / need->per_block);
  if (blocks < limits_.min_blocks) {
    return absl::ResourceExhaustedError(absl::StrFormat(
        "rank %d: K/V memory of %s holds %d tokens, %d are needed (%s); raise --kv-cache-memory or "
        "lower "
        "--max-model-len",
        comm_.rank(), Gibibytes(budget), blocks * kBlockTokens, limits_.min_blocks * kBlockTokens,
        Gibibytes(limits_.min_blocks * need->per_block)));
  }
  return blocks;
}

// Every rank learns whether any failed, so that all leave Create together and the message reaches
// rank 0's log.
absl::Status RankWorker::ReportUp(const absl::Status& status) {
  RankRecord record;
  const std::string text(status.message());
  if (!status.ok())
    absl::SNPrintF(record.error, sizeof(record.error), "%s",
                   text.empty() ? "failed" : text.c_str());
  absl::StatusOr<std::vector<RankRecord>> all = ExchangeRecords(comm_, record);
  if (!status.ok()) return status;
  if (!all.ok()) return all.status();
  for (const RankRecord& r : *all) {
    if (r.error[0] != 0) return absl::FailedPreconditionError(r.error);
  }
  return absl::OkStatus();
}

absl::Status RankWorker::AgreeOnBlocks(const absl::StatusOr<std::int64_t>& mine) {
  RankRecord record;
  record.blocks = mine.value_or(0);
  absl::StatusOr<std::vector<RankRecord>> all = ExchangeRecords(comm_, record);
  if (!mine.ok()) return mine.status();
  if (!all.ok()) return all.status();
  blocks_ = std::numeric_limits<std::int64_t>::max();
  for (const RankRecord& r : *all) blocks_ = std::min(blocks_, r.blocks);
  const std::int64_t most_useful =
      std::int64_t{limits_.max_sequences} *
      ((transformer_options_.max_context + kBlockTokens - 1) / kBlockTokens);
  blocks_ = std::min(blocks_, std::max(most_useful, limits_.min_blocks));
  transformer_options_.blocks = blocks_;
  return absl::OkStatus();
}

// What a rank reads for others.
std::string RankWorker::Reads(int rank) const {
  std::string text;
  for (const HelperLink& link : helpers_) {
    if (link.helper != rank) continue;
    absl::StrAppendFormat(&text, ", reads %.2f of KV head %d for rank %d", link.share, link.head,
                          link.home);
  }
  return text;
}

std::string RankWorker::Describe(int rank, const RankRecord& record) const {
  const RankPlace& place = places_[rank];
  const Slice& s = slices_[rank];
  const std::string transport(tensors().transport());
  return absl::StrFormat(
      "rank %d/%d: host %s, pid %d, cores %d, threads %d, %s %s, KV heads %d..%d, MLP columns "
      "%d..%d, vocabulary "
      "%d..%d (share %g), transport %s, weights %s, K/V %s (%d blocks of %d tokens)%s",
      rank, comm_.size(), place.host, place.pid, place.cores, place.threads,
      std::string(kernels_->name()), isa(), s.head_begin, s.head_end, s.ffn_begin, s.ffn_end,
      s.vocab_begin, s.vocab_end, weights_[rank], transport, Gibibytes(record.weight_bytes),
      Gibibytes(record.page_bytes), blocks_, kBlockTokens, Reads(rank));
}

absl::Status RankWorker::Init(const Checkpoint& checkpoint) {
  if (absl::Status s = ReportUp(MakeBackend()); !s.ok()) return s;
  if (absl::Status s = ReportUp(JoinDevices()); !s.ok()) return s;
  if (absl::Status s = ReportUp(WeighRanks()); !s.ok()) return s;
  if (absl::Status s = ReportUp(Plan(checkpoint)); !s.ok()) return s;
  if (absl::Status s = ReportUp(JoinHelpers()); !s.ok()) return s;
  const absl::StatusOr<std::int64_t> fit = BlocksThatFit(checkpoint);
  if (absl::Status s = ReportUp(fit.status()); !s.ok()) return s;
  if (absl::Status s = AgreeOnBlocks(fit); !s.ok()) return s;
  absl::StatusOr<std::unique_ptr<Transformer>> transformer =
      Transformer::Create(checkpoint, config_, slices_, transformer_options_, *kernels_, tensors());
  if (absl::Status s = ReportUp(transformer.status()); !s.ok()) return s;
  transformer_ = *std::move(transformer);
  RankRecord record;
  record.weight_bytes = transformer_->weight_bytes();
  record.page_bytes = transformer_->page_bytes() + blocks_ * CopiesPerBlock();
  absl::StatusOr<std::vector<RankRecord>> all = ExchangeRecords(comm_, record);
  if (!all.ok()) return all.status();
  for (int r = 0; r < comm_.size(); ++r) {
    weight_bytes_ += (*all)[r].weight_bytes;
    descriptions_.push_back(Describe(r, (*all)[r]));
  }
  return absl::OkStatus();
}

// Rank 0 receives every rank's times and counts. The records are equally long, because the plan
// and the model decide their length.
absl::Status RankWorker::GatherOutput(const StepResult& result, const StepRouting& mine,
                                      StepOutput* output) {
  std::vector<std::byte> record(sizeof(result));
  std::memcpy(record.data(), &result, sizeof(result));
  const std::vector<std::byte> counts = mine.Encode();
  record.insert(record.end(), counts.begin(), counts.end());
  const auto ranks = static_cast<std::size_t>(comm_.size());
  std::vector<std::byte> all(output == nullptr ? 0 : record.size() * ranks);
  METATTN_RETURN_IF_ERROR(comm_.GatherRecords(record, all));
  if (output == nullptr) return absl::OkStatus();
  output->per_rank.resize(ranks);
  const StepRouting zero =
      StepRouting::Zero(mine.layers.size(), mine.sequences.size(), mine.shadow.size());
  output->routing = zero;
  for (std::size_t r = 0; r < ranks; ++r) {
    const auto from = std::span(all).subspan(r * record.size(), record.size());
    std::memcpy(&output->per_rank[r], from.data(), sizeof(result));
    StepRouting theirs = zero;
    if (!theirs.Merge(from.subspan(sizeof(result)))) {
      return absl::InternalError("a rank's record has another size");
    }
    output->rank_routing.push_back(theirs.Total());
    output->routing.Add(theirs);
  }
  return absl::OkStatus();
}

absl::Status RankWorker::Run(const StepPlan& plan, StepOutput* output) {
  StepResult result;
  StepRouting routing;
  METATTN_RETURN_IF_ERROR(
      transformer_->Forward(plan, {.logits = output == nullptr ? nullptr : &output->logits,
                                   .best = output == nullptr ? nullptr : &output->best,
                                   .result = &result,
                                   .routing = &routing}));
  return GatherOutput(result, routing, output);
}

absl::StatusOr<StepOutput> RankWorker::Step(const StepPlan& plan) {
  StepOutput output;
  if (comm_.size() > 1) {
    std::vector<std::byte> message = plan.Encode();
    if (absl::Status s = comm_.Broadcast(message); !s.ok()) return s;
  }
  if (absl::Status s = Run(plan, &output); !s.ok()) return s;
  return output;
}

absl::Status RankWorker::Stop() {
  if (comm_.size() == 1) return absl::OkStatus();
  StepPlan plan;
  plan.kind = StepKind::kStop;
  std::vector<std::byte> message = plan.Encode();
  return comm_.Broadcast(message);
}

absl::Status RankWorker::Serve() {
  std::vector<std::byte> message;
  for (;;) {
    if (absl::Status s = comm_.Broadcast(message); !s.ok()) return s;
    absl::StatusOr<StepPlan> plan = StepPlan::Decode(message);
    if (!plan.ok()) return plan.status();
    if (plan->kind == StepKind::kStop) return absl::OkStatus();
    if (absl::Status s = Run(*plan, nullptr); !s.ok()) return s;
  }
}

}  // namespace

absl::StatusOr<std::unique_ptr<Worker>> Worker::Create(const Checkpoint& checkpoint,
                                                       const ModelConfig& config,
                                                       const ModelOptions& options,
                                                       const WorkerLimits& limits,
                                                       Communicator& comm) {
  auto worker = std::make_unique<RankWorker>(config, options, limits, comm);
  if (absl::Status s = worker->Init(checkpoint); !s.ok()) return s;
  return worker;
}

}  // namespace metattn
