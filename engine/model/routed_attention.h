// Attention of one layer on one rank: append, near partial, decision per (row, KV head), compacted
// work list, far span.
//
// Owns the scratch of one step and the K/V pages of every layer; borrows Kernels. One caller. Cost:
// the near partial for every row, far pages only for rows whose decision is full (design section
// 3).
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/model/config.h"
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
};

class RoutedAttention {
 public:
  static absl::StatusOr<std::unique_ptr<RoutedAttention>> Create(const ModelConfig& config,
                                                                 const RoutedAttentionShape& shape,
                                                                 Kernels& kernels);
  static std::int64_t ScratchBytes(const ModelConfig& config, const RoutedAttentionShape& shape);
  static std::int64_t BytesPerBlock(const ModelConfig& config, const RoutedAttentionShape& shape,
                                    const Kernels& kernels);

  // Clears the step's counters; call once before the first layer.
  void BeginStep(Stream& stream);
  // qkv: [T, (H*g + 2H) * d] f32; out: [T, H*g*d] f32.
  void Layer(int layer, const LayerWeights& weights, const StepBatch& batch, View qkv, View out,
             Stream& stream);

  // Totals of the step over layers and KV heads; waits for the stream.
  struct Totals {
    std::int64_t full_rows = 0;   // (row, KV head, layer) routed to full
    std::int64_t far_tokens = 0;  // far K/V read for them
  };
  absl::StatusOr<Totals> EndStep(Stream& stream);

  std::int64_t page_bytes() const { return static_cast<std::int64_t>(pages_.bytes()); }

 private:
  RoutedAttention(const ModelConfig& config, const RoutedAttentionShape& shape, Kernels& kernels)
      : config_(&config), shape_(shape), kernels_(&kernels) {}
  absl::Status Allocate();
  absl::Status LoadRope();
  WorkList List(int layer) const;

  const ModelConfig* config_;
  RoutedAttentionShape shape_;
  Kernels* kernels_;
  Buffer pages_;
  Buffer cos_sin_;      // [max_context, rotary_dim / 2, 2] f32
  Buffer q_;            // [T, H*g, d] f32
  Buffer o_, m_, l_;    // partial triple
  Buffer decisions_;    // [T, H] u8
  Buffer list_rows_;    // [H, T] i32, reused by every layer
  Buffer list_counts_;  // [layers, H] i32
  Buffer far_tokens_;   // [layers, H] i64
  std::vector<std::byte>
      zeros_;  // what the counters are cleared from; lives as long as a copy may run
};

}  // namespace metattn
