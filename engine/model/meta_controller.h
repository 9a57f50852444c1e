// One rank's meta-controllers and feature maps on its device, and the ops they run per layer.
//
// Owns weights, linear states and scratch; borrows Kernels. One caller. The states live in slots
// that the plan names (step_plan.h): a slot belongs to one sequence at a time. Errors: no memory.
// Cost per layer: the controller's projection of every row, phi of every eligible query and of the
// keys that became far; far linear attention for the rows that chose it.
#pragma once

#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/model/config.h"
#include "engine/model/controller_file.h"
#include "engine/model/routing_counts.h"
#include "engine/model/step_batch.h"
#include "engine/model/upload.h"
#include "kernels/kernels.h"
#include "parallel/shard_planner.h"

namespace metattn {

struct MetaControllerShape {
  int max_rows = 0;
  int state_slots = 0;  // of linear states, snapshots included
};

class MetaController {
 public:
  static absl::StatusOr<std::unique_ptr<MetaController>> Create(const ControllerFile& file,
                                                                const ModelConfig& config,
                                                                const Slice& slice,
                                                                const MetaControllerShape& shape,
                                                                Kernels& kernels);
  // Weights, states and scratch of a rank with `heads` KV heads; projections as bf16, at most.
  static std::int64_t Bytes(const ControllerSpec& spec, const ModelConfig& config, int heads,
                            const MetaControllerShape& shape);

  // What a layer's attention has at hand when it decides.
  struct Inputs {
    const StepBatch* batch = nullptr;
    PageTable pages;
    View x;           // [T, D] act, output of the attention pre-norm
    View q;           // [T, H*g, d] f32
    Partial near;     // P0
    View near_stats;  // [T, H*g, 2] f32
  };

  // Brings the snapshots that the plan names into the slots of their sequences.
  void BeginStep(const StepPlan& plan, Stream& stream);
  // Keeps the states that the plan wants kept.
  void EndStep(const StepPlan& plan, Stream& stream);
  // The stream's marks around projections and decisions since BeginStep.
  const std::vector<std::pair<int, int>>& marks() const { return marks_; }
  // Advances the states to the step's first rows: first of all.
  void Absorb(int layer, const Inputs& in, Stream& stream);
  // What linear attention would weigh.
  LinearOddsArgs OddsArgs(int layer, const Inputs& in) const;
  // With the odds: [T, H] u8.
  void Decide(int layer, const Inputs& in, View decisions, Stream& stream);
  // Merges linear attention into the listed rows; leaves the states at the step's last rows, also
  // without decisions, because a later token may be routed.
  FarLinearArgs LinearArgs(int layer, const Inputs& in, const WorkList& list) const;

  // U per (layer, row, KV head) of the step so far, [layers, T, H] f32; zero where not routed.
  View uncertainty() const { return View{&uncertainty_}; }
  // Best score less second best, [layers, T, H] f32; likewise.
  View margin() const { return View{&margin_}; }
  // softmax(score), [layers, T, H, 3] f32; likewise.
  View weights() const { return View{&weights_}; }
  // Of one layer.
  View weights(int layer, std::int64_t tokens) const;

  // What linear attention costs, per KV head. `odds`: they were taken in this step.
  void AddCosts(bool odds, AttentionCosts& costs) const;

 private:
  void CopyState(std::int32_t from, std::int32_t to, Stream& stream);

  struct Layer {
    std::unique_ptr<Matrix> project;  // [R + 3H, D]: W_x, then the skips of this rank's heads
    View w_q, w_k;                    // bf16; absent without maps
    View log_gain, kappa;
    View scalar_mean, scalar_scale, scalars, bias, out, out_bias, scalars_skip, offset;
  };

  MetaController(const ControllerSpec& spec, const ModelConfig& config, int heads,
                 const MetaControllerShape& shape, Kernels& kernels)
      : spec_(spec), config_(&config), heads_(heads), shape_(shape), kernels_(&kernels) {}
  // Both in the order in which a step reads the tensors, the maps first.
  void LoadFeatureMaps(const ControllerFile& file, int index, const Slice& slice,
                       UploadTogether& tensors);
  void LoadLayer(const ControllerFile& file, int index, const Slice& slice,
                 UploadTogether& tensors);
  absl::Status Allocate();
  LinearShape Shape(int layer, const Inputs& in) const;
  absl::Status LoadProjection(const ControllerFile& file, int index, const Slice& slice);
  float state_tokens() const;  // what reading a state costs, in tokens of K/V
  int features() const { return Features(spec_.feature_map, config_->head_dim); }

  ControllerSpec spec_;
  const ModelConfig* config_;
  int heads_;
  MetaControllerShape shape_;
  Kernels* kernels_;
  std::vector<Layer> layers_;
  Buffer tensors_;  // of all layers, projections apart
  std::vector<std::pair<int, int>> marks_;
  Buffer states_;       // [slots, layers, H] states
  Buffer projected_;    // [T, R + 3H] f32
  Buffer phi_q_;        // [T, H*g, f] f32
  Buffer lse_far_;      // [T, H*g] f32
  Buffer uncertainty_;  // [layers, T, H] f32
  Buffer weights_;      // [layers, T, H, 3] f32
  Buffer margin_;       // [layers, T, H] f32
};

}  // namespace metattn
