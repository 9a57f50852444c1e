#include "engine/model/transformer.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <map>
#include <string>
#include <utility>

#include "absl/strings/str_format.h"
#include "engine/formats/status_macros.h"
#include "engine/model/far_helpers.h"
#include "engine/model/gathered_head.h"
#include "engine/model/meta_controller.h"
#include "engine/model/perturbation.h"
#include "engine/model/routed_attention.h"
#include "engine/model/step_batch.h"
#include "engine/model/weights.h"

namespace metattn {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::int64_t kLargestValues = sizeof(Largest) / sizeof(float);  // as it travels

// Activations of the largest step, [rows, width] each: f32, or what products read (act).
struct Scratch {
  Buffer residual, delta;  // D
  Buffer hidden;           // D act
  Buffer qkv;              // (H*g + 2H) * d
  Buffer attention;        // H*g*d act
  Buffer gate_up;          // 2F act
  Buffer ffn;              // F act
  Buffer picked;           // D act, rows of the logits
  Buffer logits;           // V of this rank
  Buffer best;             // Largest of this rank's logits
  Buffer all_logits;       // rank 0 of several: V
  Buffer all_best;         // rank 0 of several: a Largest of each rank
};

struct Widths {
  std::int64_t qkv, attention, ffn, vocab;
};

Widths WidthsOf(const ModelConfig& c, const Slice& s) {
  const std::int64_t d = c.head_dim;
  return {(s.heads() * c.group() + 2 * s.heads()) * d, s.heads() * c.group() * d,
          s.ffn_end - s.ffn_begin, s.vocab_end - s.vocab_begin};
}

std::int64_t ActivationBytes(const ModelConfig& c, const Slice& s, const TransformerOptions& o,
                             bool gathers) {
  const Widths w = WidthsOf(c, s);
  const std::int64_t per_row = 3 * c.hidden + w.qkv + w.attention + 3 * w.ffn;
  const std::int64_t per_logit_row = c.hidden + w.vocab + kLargestValues + (gathers ? c.vocab : 0);
  return 4 * (o.max_batch_tokens * per_row + o.max_logit_rows * per_logit_row);
}

int StateSlots(const TransformerOptions& o) { return o.max_sequences + o.state_snapshots; }

RoutedAttentionShape AttentionShape(const ModelConfig& c, const Slice& s,
                                    const TransformerOptions& o) {
  const ControllerSpec* spec = o.controller == nullptr ? nullptr : &o.controller->spec();
  return {.layers = c.layers,
          .heads = s.heads(),
          .max_rows = o.max_batch_tokens,
          .blocks = o.blocks,
          .max_context = o.max_context,
          .head_begin = s.head_begin,
          .source = o.source,
          .recorder = o.recorder,
          .max_shadow_rows = o.max_shadow_rows,
          .near_stats = spec != nullptr && spec->features == ControlFeatures::kRetrofit,
          .mixtures = spec != nullptr && spec->uncertain == UncertainPolicy::kMixture};
}

// Between which marks of the stream a step did what.
struct StepMarks {
  std::vector<std::pair<int, int>> attention;  // with the controller's share
  std::vector<std::pair<int, int>> controller;
};

double SecondsOf(const std::vector<std::pair<int, int>>& marks, const Stream& stream) {
  double seconds = 0;
  for (const auto& [begin, end] : marks) seconds += stream.SecondsBetween(begin, end);
  return seconds;
}

class DenseTransformer final : public Transformer {
 public:
  DenseTransformer(const ModelConfig& config, std::span<const Slice> slices,
                   const TransformerOptions& options, Kernels& kernels, Communicator& comm)
      : config_(config),
        slices_(slices.begin(), slices.end()),
        slice_(slices_[comm.rank()]),
        options_(options),
        kernels_(kernels),
        comm_(comm),
        widths_(WidthsOf(config, slice_)),
        perturbation_(options.perturb, options.perturb_seed) {}

  absl::Status Init(const Checkpoint& checkpoint);
  absl::Status Forward(const StepPlan& plan, const Outputs& out) override;

  std::int64_t weight_bytes() const override { return weights_.bytes_per_step(); }
  std::int64_t page_bytes() const override { return attention_->page_bytes(); }

 private:
  absl::Status AllocateScratch();
  absl::Status Reduce(View x, std::uint64_t place);
  absl::Status Embed();
  absl::Status Layer(int index);
  absl::Status Compute();
  absl::Status ComputeOrRepeat();
  absl::Status ComputeHead();
  absl::Status GatherHead();
  void CopyHead();
  void TakeHead(const Outputs& out);
  absl::Status Fill(const StepPlan& plan, const Outputs& out);
  absl::Status MakeAttention();
  std::int64_t rows() const { return batch_->rows().tokens; }

  ModelConfig config_;
  std::vector<Slice> slices_;
  Slice slice_;
  TransformerOptions options_;
  Kernels& kernels_;
  Communicator& comm_;
  Widths widths_;
  Perturbation perturbation_;
  Weights weights_;
  Scratch scratch_;
  std::unique_ptr<Stream> stream_;
  bool padded_ = false;  // steps worth recording, see StepBatchLimits
  std::unique_ptr<StepBatch> batch_;
  std::unique_ptr<MetaController> controller_;  // null: routes are forced
  std::unique_ptr<FarHelpers> helpers_;         // null: every rank reads its own pages only
  std::unique_ptr<RoutedAttention> attention_;
  std::vector<float> host_logits_;  // of the last step, as the ranks gave them
  std::vector<Largest> host_best_;
  std::vector<std::int32_t> positions_;  // of the step's rows, for the perturbation only
  StepMarks marks_;
  std::map<std::string, StepMarks> recorded_marks_;  // of shapes that the stream has recorded
};

absl::Status DenseTransformer::Init(const Checkpoint& checkpoint) {
  absl::StatusOr<std::unique_ptr<Stream>> stream = kernels_.device().NewStream();
  if (!stream.ok()) return stream.status();
  stream_ = *std::move(stream);
  padded_ = stream_->records() && !perturbation_.active();
  absl::StatusOr<Weights> weights = Weights::Load(checkpoint, config_, slice_, kernels_);
  if (!weights.ok()) return weights.status();
  weights_ = *std::move(weights);
  const ControllerFile* controller = options_.controller;
  const StepBatchLimits limits = {
      .max_rows = options_.max_batch_tokens,
      .max_sequences = options_.max_sequences,
      .max_logit_rows = options_.max_logit_rows,
      .max_context = options_.max_context,
      .blocks = options_.blocks,
      .vocab = config_.vocab,
      .window = options_.window,
      .sinks = options_.sinks,
      .exact_window = controller != nullptr && controller->spec().exact_window,
      .linear_all = controller != nullptr && controller->spec().linear_all,
      .state_slots = controller == nullptr ? 0 : StateSlots(options_),
      .padded = padded_};
  absl::StatusOr<std::unique_ptr<StepBatch>> batch = StepBatch::Create(limits, kernels_.device());
  if (!batch.ok()) return batch.status();
  batch_ = *std::move(batch);
  if (absl::Status status = MakeAttention(); !status.ok()) return status;
  return AllocateScratch();
}

absl::Status DenseTransformer::MakeAttention() {
  if (options_.controller != nullptr) {
    absl::StatusOr<std::unique_ptr<MetaController>> controller = MetaController::Create(
        *options_.controller, config_, slice_,
        {options_.max_batch_tokens, StateSlots(options_) + (padded_ ? 1 : 0)}, kernels_);
    if (!controller.ok()) return controller.status();
    controller_ = *std::move(controller);
  }
  const std::int64_t most = PaddedSize(options_.max_sequences, options_.max_batch_tokens);
  METATTN_ASSIGN_OR_RETURN(
      helpers_, FarHelpers::Create({.layers = config_.layers,
                                    .group = config_.group(),
                                    .head_dim = config_.head_dim,
                                    .max_rows = static_cast<int>(most),
                                    .blocks = options_.blocks,
                                    .head_begin = slice_.head_begin,
                                    .heads = slice_.heads()},
                                   options_.helpers, kernels_, {&comm_, options_.background}));
  RoutedAttentionShape shape = AttentionShape(config_, slice_, options_);
  shape.blocks += padded_ ? 1 : 0;
  shape.helpers = helpers_.get();
  absl::StatusOr<std::unique_ptr<RoutedAttention>> attention =
      RoutedAttention::Create(config_, shape, controller_.get(), kernels_);
  if (!attention.ok()) return attention.status();
  attention_ = *std::move(attention);
  options_.controller = nullptr;  // only lent for this
  return absl::OkStatus();
}

absl::Status DenseTransformer::AllocateScratch() {
  const std::int64_t rows = options_.max_batch_tokens, picked = options_.max_logit_rows;
  const bool gathers = comm_.rank() == 0 && comm_.size() > 1;
  constexpr DType kWide = DType::kF32;
  const DType act = kernels_.activation_dtype();
  const struct {
    Buffer* buffer;
    std::int64_t values;
    DType dtype;
  } wanted[] = {
      {&scratch_.residual, rows * config_.hidden, kWide},
      {&scratch_.hidden, rows * config_.hidden, act},
      {&scratch_.delta, rows * config_.hidden, kWide},
      {&scratch_.qkv, rows * widths_.qkv, kWide},
      {&scratch_.attention, rows * widths_.attention, act},
      {&scratch_.gate_up, rows * 2 * widths_.ffn, act},
      {&scratch_.ffn, rows * widths_.ffn, act},
      {&scratch_.picked, picked * config_.hidden, act},
      {&scratch_.logits, picked * widths_.vocab, kWide},
      {&scratch_.best, picked * kLargestValues, kWide},
      {&scratch_.all_logits, gathers ? picked * config_.vocab : 0, kWide},
      {&scratch_.all_best, gathers ? picked * kLargestValues * comm_.size() : 0, kWide},
  };
  for (const auto& w : wanted) {
    absl::StatusOr<Buffer> buffer =
        kernels_.device().Allocate(static_cast<std::size_t>(BytesFor(w.dtype, w.values)));
    if (!buffer.ok()) return buffer.status();
    *w.buffer = *std::move(buffer);
  }
  return absl::OkStatus();
}

// Sums a [T, D] activation over the ranks. `place` numbers the sums of a step for the perturbation.
absl::Status DenseTransformer::Reduce(View x, std::uint64_t place) {
  if (comm_.size() > 1) {
    if (absl::Status s = comm_.AllReduceSum(x, rows() * config_.hidden, *stream_); !s.ok())
      return s;
  }
  return perturbation_.Apply(x, positions_, config_.hidden, place, kernels_.device(), *stream_);
}

absl::Status DenseTransformer::Embed() {
  kernels_.Embed({weights_.embedding.get(),
                  slice_.vocab_begin,
                  batch_->token_ids(),
                  {&scratch_.residual},
                  rows()},
                 *stream_);
  return Reduce({&scratch_.residual}, 0);
}

// residual, delta -> residual + delta; leaves the layer's MLP output in delta for the next norm.
absl::Status DenseTransformer::Layer(int index) {
  const LayerWeights& w = weights_.layers[index];
  const View residual = {&scratch_.residual}, hidden = {&scratch_.hidden},
             delta = {&scratch_.delta};
  const View qkv = {&scratch_.qkv}, attention = {&scratch_.attention};
  const View bias = w.qkv_bias.bytes() == 0 ? View{} : View{&w.qkv_bias};
  auto norm = [&](const Buffer& weight, View add) {
    kernels_.Norm({residual, add, {&weight}, hidden, rows(), config_.hidden, config_.norm_eps},
                  *stream_);
  };

  norm(w.attn_norm, index == 0 ? View{} : delta);
  if (slice_.heads() > 0) {
    kernels_.Linear({w.qkv.get(), hidden, bias, qkv, rows()}, *stream_);
    const int begin = stream_->Mark();
    const RoutedAttention::Io io = {hidden, qkv, attention};
    METATTN_RETURN_IF_ERROR(attention_->Layer(index, w, *batch_, io, *stream_));
    marks_.attention.emplace_back(begin, stream_->Mark());
  } else if (helpers_ != nullptr && helpers_->active()) {
    METATTN_RETURN_IF_ERROR(helpers_->Send(index, *batch_, {}, *stream_));
    METATTN_RETURN_IF_ERROR(helpers_->Merge(*batch_, {}, *stream_));
  }
  kernels_.Linear({w.attn_output.get(), attention, {}, delta, rows()}, *stream_);
  if (absl::Status s = Reduce(delta, 2 * index + 1); !s.ok()) return s;

  norm(w.ffn_norm, delta);
  kernels_.Linear({w.gate_up.get(), hidden, {}, {&scratch_.gate_up}, rows(), true}, *stream_);
  kernels_.SwiGlu({{&scratch_.gate_up}, {&scratch_.ffn}, rows(), widths_.ffn}, *stream_);
  kernels_.Linear({w.down.get(), {&scratch_.ffn}, {}, delta, rows()}, *stream_);
  return Reduce(delta, 2 * index + 2);
}

// Everything between the copies to the device and those back: enqueues, and waits for nothing.
absl::Status DenseTransformer::Compute() {
  marks_ = {};
  if (absl::Status s = Embed(); !s.ok()) return s;
  for (int i = 0; i < config_.layers; ++i) {
    if (absl::Status s = Layer(i); !s.ok()) return s;
  }
  if (controller_ != nullptr) marks_.controller = controller_->marks();
  return ComputeHead();
}

// A decode step is one launch where the stream can record it. The perturbation is made on the host.
absl::Status DenseTransformer::ComputeOrRepeat() {
  std::string shape = perturbation_.active() ? std::string() : batch_->shape();
  if (shape.empty()) return Compute();
  if (helpers_ != nullptr && helpers_->active()) shape += ", helped";
  absl::Status status;
  const Repeated how = stream_->Repeat(shape, [&] { status = Compute(); });
  if (!status.ok()) return status;
  comm_.AfterRepeat(shape, how, *stream_);
  if (how == Repeated::kRecorded) recorded_marks_[shape] = marks_;
  if (how == Repeated::kReplayed) marks_ = recorded_marks_[shape];
  return absl::OkStatus();
}

// Logits of the wanted rows, and which is the largest where no more is wanted; with several ranks
// all of it on rank 0.
absl::Status DenseTransformer::ComputeHead() {
  const int count = batch_->head_count(), logits = batch_->padded_logits();
  if (count == 0) return absl::OkStatus();
  kernels_.Norm({{&scratch_.residual},
                 {&scratch_.delta},
                 {&weights_.output_norm},
                 {&scratch_.hidden},
                 rows(),
                 config_.hidden,
                 config_.norm_eps},
                *stream_);
  kernels_.Gather(
      {{&scratch_.hidden}, batch_->head_rows(), {&scratch_.picked}, count, config_.hidden},
      *stream_);
  kernels_.Linear({&weights_.output(), {&scratch_.picked}, {}, {&scratch_.logits}, count},
                  *stream_);
  const View behind = {&scratch_.logits, static_cast<std::size_t>(logits * widths_.vocab) * 4};
  kernels_.ArgMax({behind, {&scratch_.best}, batch_->padded_best(), widths_.vocab}, *stream_);
  return comm_.size() == 1 ? absl::OkStatus() : GatherHead();
}

absl::Status DenseTransformer::GatherHead() {
  const bool root = comm_.rank() == 0;
  if (batch_->logit_count() > 0) {
    std::vector<std::int64_t> sizes;
    for (const Slice& s : slices_) {
      sizes.push_back(batch_->padded_logits() * (s.vocab_end - s.vocab_begin));
    }
    const View all = root ? View{&scratch_.all_logits} : View{};
    if (absl::Status s = comm_.GatherV({&scratch_.logits}, all, sizes, 0, *stream_); !s.ok())
      return s;
  }
  if (batch_->best_count() == 0) return absl::OkStatus();
  const std::vector<std::int64_t> sizes(slices_.size(), batch_->padded_best() * kLargestValues);
  const View all = root ? View{&scratch_.all_best} : View{};
  return comm_.GatherV({&scratch_.best}, all, sizes, 0, *stream_);
}

// On rank 0: enqueues the copies of what TakeHead reads: of each rank the wanted rows.
void DenseTransformer::CopyHead() {
  const bool root = comm_.rank() == 0, several = comm_.size() > 1;
  const auto logits = static_cast<std::size_t>(batch_->logit_count());
  const auto best = static_cast<std::size_t>(batch_->best_count());
  host_logits_.resize(root ? logits * static_cast<std::size_t>(config_.vocab) : 0);
  host_best_.resize(root ? best * slices_.size() : 0);
  if (!root) return;
  Device& device = kernels_.device();
  float* to_logits = host_logits_.data();
  Largest* to_best = host_best_.data();
  std::size_t from_logits = 0, from_best = 0;
  for (const Slice& s : slices_) {
    const auto width = static_cast<std::size_t>(s.vocab_end - s.vocab_begin);
    device.CopyOut({several ? &scratch_.all_logits : &scratch_.logits, from_logits}, to_logits,
                   logits * width * sizeof(float), *stream_);
    device.CopyOut({several ? &scratch_.all_best : &scratch_.best, from_best}, to_best,
                   best * sizeof(Largest), *stream_);
    to_logits += logits * width;
    to_best += best;
    from_logits += static_cast<std::size_t>(batch_->padded_logits()) * width * sizeof(float);
    from_best += static_cast<std::size_t>(batch_->padded_best()) * sizeof(Largest);
  }
}

// After the stream was waited for.
void DenseTransformer::TakeHead(const Outputs& out) {
  if (out.logits != nullptr) out.logits->clear();
  if (out.best != nullptr) out.best->clear();
  if (comm_.rank() != 0) return;
  if (batch_->best_count() > 0) *out.best = BestOfRanks(slices_, host_best_);
  if (batch_->logit_count() == 0) return;
  if (comm_.size() == 1) {
    std::swap(*out.logits, host_logits_);
  } else {
    *out.logits = SideBySide(slices_, host_logits_);
  }
}

absl::Status DenseTransformer::Fill(const StepPlan& plan, const Outputs& out) {
  absl::StatusOr<StepRouting> routing = attention_->EndStep(*batch_);
  if (!routing.ok()) return routing.status();
  if (out.routing != nullptr) *out.routing = *std::move(routing);
  if (out.result == nullptr) return absl::OkStatus();
  const CommStats comm = comm_.TakeStats();
  *out.result = StepResult{};
  out.result->step = plan.step;
  out.result->controller_seconds = SecondsOf(marks_.controller, *stream_);
  out.result->attention_seconds =
      SecondsOf(marks_.attention, *stream_) - out.result->controller_seconds;
  out.result->wait_seconds = comm.wait_seconds;
  out.result->transfer_seconds = comm.transfer_seconds;
  out.result->helped_rows = helpers_ == nullptr ? 0 : helpers_->sent();
  return absl::OkStatus();
}

absl::Status DenseTransformer::Forward(const StepPlan& plan, const Outputs& out) {
  const Clock::time_point start = Clock::now();
  stream_->ResetMarks();
  comm_.TakeStats();
  if (absl::Status s = batch_->Load(plan, *stream_); !s.ok()) return s;
  positions_.clear();
  if (perturbation_.active()) {
    for (const StepSequence& s : plan.sequences) {
      for (std::int32_t i = 0; i < s.rows; ++i) positions_.push_back(s.start + i);
    }
  }
  if (controller_ != nullptr) controller_->BeginStep(plan, *stream_);
  if (absl::Status s = attention_->BeginStep(*batch_, *stream_); !s.ok()) return s;
  if (helpers_ != nullptr) helpers_->BeginStep(*batch_, *stream_);
  if (absl::Status s = ComputeOrRepeat(); !s.ok()) return s;
  if (controller_ != nullptr) controller_->EndStep(plan, *stream_);
  CopyHead();
  attention_->CopyOut(*batch_, *stream_);
  if (helpers_ != nullptr) helpers_->CopyOut(*stream_);
  if (absl::Status s = stream_->Synchronize(); !s.ok()) return s;
  if (helpers_ != nullptr) {  // behind it: the host waits for no copies
    METATTN_RETURN_IF_ERROR(helpers_->EndStep(*batch_, attention_->Pages(0), *stream_));
  }
  TakeHead(out);
  if (absl::Status s = Fill(plan, out); !s.ok()) return s;
  if (out.result != nullptr) {
    out.result->step_seconds = std::chrono::duration<double>(Clock::now() - start).count();
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<Transformer>> Transformer::Create(
    const Checkpoint& checkpoint, const ModelConfig& config, std::span<const Slice> slices,
    const TransformerOptions& options, Kernels& kernels, Communicator& comm) {
  if (static_cast<int>(slices.size()) != comm.size()) {
    return absl::InvalidArgumentError(
        absl::StrFormat("%d slices for %d ranks", static_cast<int>(slices.size()), comm.size()));
  }
  TransformerOptions resolved = options;
  if (resolved.max_context == 0) resolved.max_context = config.max_positions;
  if (resolved.max_context > config.max_positions) {
    return absl::InvalidArgumentError(
        absl::StrFormat("--max-model-len %d: the model was made for %d", resolved.max_context,
                        config.max_positions));
  }
  auto transformer = std::make_unique<DenseTransformer>(config, slices, resolved, kernels, comm);
  if (absl::Status s = transformer->Init(checkpoint); !s.ok()) return s;
  return transformer;
}

absl::StatusOr<MemoryNeed> EstimateMemory(const Checkpoint& checkpoint, const ModelConfig& config,
                                          const Slice& slice, const TransformerOptions& options) {
  absl::StatusOr<std::int64_t> weights = StoredBytes(checkpoint, config, slice);
  if (!weights.ok()) return weights.status();
  TransformerOptions resolved = options;
  if (resolved.max_context == 0) resolved.max_context = config.max_positions;
  MemoryNeed need;
  need.weights = *weights;
  need.scratch = ActivationBytes(config, slice, resolved, slice.vocab_begin == 0) +
                 RoutedAttention::ScratchBytes(config, AttentionShape(config, slice, resolved));
  if (options.controller != nullptr) {
    need.scratch += MetaController::Bytes(options.controller->spec(), config, slice.heads(),
                                          {resolved.max_batch_tokens, StateSlots(resolved) + 1});
  }
  const std::int64_t padded_dim = (config.head_dim + 15) / 16 * 16;
  need.per_block = std::int64_t{config.layers} * slice.heads() * kBlockTokens * padded_dim * 4;
  need.scratch += need.per_block;  // the block, and above the slot, of rows that pad a GPU's steps
  return need;
}

}  // namespace metattn
