// Attention of one layer on one rank: append, near partial, decision per (row, KV head), compacted
// work lists, far span.
//
// Owns the scratch of one step and the K/V pages of every layer; borrows Kernels and, where the
// model has one, the MetaController that decides. Without it rows go where their policy forces them
// (full or local). One caller. Cost: the near partial for every row, far pages only for rows whose
// decision is full (design section 3); rows that mix pay for all three mechanisms.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/model/config.h"
#include "engine/model/decision_source.h"
#include "engine/model/far_helpers.h"
#include "engine/model/meta_controller.h"
#include "engine/model/routing_counts.h"
#include "engine/model/shadow_check.h"
#include "engine/model/step_batch.h"
#include "engine/model/weights.h"
#include "kernels/kernels.h"

namespace metattn {

struct RoutedAttentionShape {
  int layers = 0;
  int heads = 0;  // H: KV heads of this rank, may be 0
  int max_rows = 0;
  std::int64_t blocks = 0;
  int max_context = 0;
  int head_begin = 0;                    // of the model's KV heads, the first of this rank
  DecisionSource* source = nullptr;      // decides instead of policies; borrowed
  DecisionRecorder* recorder = nullptr;  // borrowed
  int max_shadow_rows = 0;               // of a step; 0: the quality watch is off
  bool near_stats = false;               // the controller wants statistics of the near partial
  bool mixtures = false;                 // uncertain rows mix
  FarHelpers* helpers = nullptr;         // other ranks read far pages too; borrowed
};

class RoutedAttention {
 public:
  static absl::StatusOr<std::unique_ptr<RoutedAttention>> Create(const ModelConfig& config,
                                                                 const RoutedAttentionShape& shape,
                                                                 MetaController* controller,
                                                                 Kernels& kernels);
  static std::int64_t ScratchBytes(const ModelConfig& config, const RoutedAttentionShape& shape);
  static std::int64_t BytesPerBlock(const ModelConfig& config, const RoutedAttentionShape& shape,
                                    const Kernels& kernels);

  // Before the first layer; an error of the decision source.
  [[nodiscard]] absl::Status BeginStep(const StepBatch& batch, Stream& stream);
  // x: [T, D] act (kernels.h), what QKV read; qkv: [T, (H*g + 2H) * d] f32; out: [T, H*g*d] act.
  // Layers in order, each once a step.
  struct Io {
    View x, qkv, out;
  };
  // An error of the ranks that help.
  [[nodiscard]] absl::Status Layer(int layer, const LayerWeights& weights, const StepBatch& batch,
                                   const Io& io, Stream& stream);

  // After the last layer: enqueues the copies of what EndStep reads.
  void CopyOut(const StepBatch& batch, Stream& stream);
  // What the step's layers did; after the stream was waited for.
  absl::StatusOr<StepRouting> EndStep(const StepBatch& batch);

  std::int64_t page_bytes() const { return static_cast<std::int64_t>(pages_.bytes()); }
  PageTable Pages(int layer) const;

 private:
  RoutedAttention(const ModelConfig& config, const RoutedAttentionShape& shape,
                  MetaController* controller, Kernels& kernels)
      : config_(&config), shape_(shape), controller_(controller), kernels_(&kernels) {}
  absl::Status Allocate();
  absl::Status LoadRope();
  WorkList List(Mechanism mechanism) const;
  void Decide(int layer, const StepBatch& batch, const MetaController::Inputs& in, Stream& stream);
  void Compact(Mechanism mechanism, int layer, const StepBatch& batch, Stream& stream);
  absl::Status Far(int layer, const StepBatch& batch, const MetaController::Inputs& in,
                   Stream& stream);
  MetaController::Inputs ControllerInputs(int layer, const StepBatch& batch, const Io& io) const;
  DecisionRows RowsOf(const StepBatch& batch) const;
  bool NeedsOdds(const StepBatch& batch) const;
  bool Mixes(const StepBatch& batch) const;
  void Mix(Mechanism step, int layer, const StepBatch& batch, Stream& stream);
  Partial partial() const { return {{&o_}, {&m_}, {&l_}}; }
  View Decisions(int layer, const StepBatch& batch) const;

  const ModelConfig* config_;
  RoutedAttentionShape shape_;
  MetaController* controller_;  // null: routes are forced
  Kernels* kernels_;
  Buffer pages_;
  Buffer cos_sin_;                       // [max_context, rotary_dim / 2, 2] f32
  Buffer q_;                             // [T, H*g, d] f32
  Buffer o_, m_, l_;                     // partial triple
  Buffer near_stats_;                    // [T, H*g, 2] f32, if the controller wants them
  Buffer kept_o_, kept_m_, kept_l_;      // P0 of rows that mix, while another mechanism is computed
  Buffer mixed_;                         // [T, H*g, d] f32: their sum so far
  Buffer decisions_;                     // [layers, T, H] u8
  std::unique_ptr<ShadowCheck> shadow_;  // null: off
  std::vector<std::uint8_t> given_;      // decisions of the source, [layers, T, H]
  std::vector<std::uint8_t> decided_;    // the step's, [layers, T, H]
  std::vector<float> uncertainty_;       // [layers, T, H], if the controller decided
  std::vector<float> weights_;           // [layers, T, H, kMechanisms]
  std::vector<float> margins_;           // [layers, T, H], if they are recorded
  Buffer list_rows_;                     // [2, H, T] i32: full, linear; reused by every layer
  Buffer list_counts_;                   // [2, H] i32
};

}  // namespace metattn
