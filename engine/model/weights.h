// One rank's slice of a model's weights, packed by its backend; and how much memory they take.
//
// Owns its matrices and vectors; the checkpoint may go after Load. Errors name the tensor: missing,
// wrong shape, a slice that would cut through a quantisation block, no memory. Cost: each byte of
// the slice is read once.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/formats/checkpoint.h"
#include "engine/model/config.h"
#include "kernels/kernels.h"
#include "parallel/shard_planner.h"

namespace metattn {

struct LayerWeights {
  Buffer attn_norm, ffn_norm;           // [D] f32
  Buffer qkv_bias;                      // [(H*g + 2H) * d] f32, empty without bias
  Buffer q_norm, k_norm;                // [d] f32, empty without QK norm
  std::unique_ptr<Matrix> qkv;          // [(H*g + 2H) * d, D]
  std::unique_ptr<Matrix> attn_output;  // [D, H*g*d]
  std::unique_ptr<Matrix> gate_up;      // [2F, D]
  std::unique_ptr<Matrix> down;         // [D, F]
};

struct Weights {
  std::unique_ptr<Matrix> embedding;  // [V, D]
  std::unique_ptr<Matrix> head;       // [V, D]; null: the embedding serves
  Buffer output_norm;                 // [D] f32
  std::vector<LayerWeights> layers;

  const Matrix& output() const { return head ? *head : *embedding; }
  // Bytes that one decode step reads: every matrix once, an untied embedding not at all.
  std::int64_t bytes_per_step() const;

  static absl::StatusOr<Weights> Load(const Checkpoint& checkpoint, const ModelConfig& config,
                                      const Slice& slice, Kernels& kernels);
};

// Bytes of the slice as stored in the checkpoint (packing keeps sizes within a few per cent).
absl::StatusOr<std::int64_t> StoredBytes(const Checkpoint& checkpoint, const ModelConfig& config,
                                         const Slice& slice);

// Smallest column count at which every sliced weight can be cut (1, or the quantisation block).
std::int64_t ColumnUnit(const Checkpoint& checkpoint);

// What PlanSlices needs to know of the model.
SliceShape ShapeOf(const ModelConfig& config, const Checkpoint& checkpoint);

}  // namespace metattn
