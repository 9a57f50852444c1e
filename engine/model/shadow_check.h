// How far routed attention is from full attention, on rows that were picked to be watched.
//
// For each layer of a step: the full output of the picked rows is computed beside the routed one
// from the same q and pages, and both are kept until the step ends. Owns its scratch; borrows
// Kernels. One caller. Cost: nothing without picked rows; with them a far full pass over those rows
// and copies of the step's partial triples.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/model/step_batch.h"
#include "kernels/kernels.h"

namespace metattn {

// Relative errors |routed - full| / |full| of one layer, over a rank's KV heads of a row: counts up
// to each bound (the last bucket: above all) and their sum.
inline constexpr std::array<double, 10> kShadowBounds = {0.001, 0.003, 0.01, 0.03, 0.06,
                                                         0.1,   0.2,   0.4,  0.8,  1.6};
struct ShadowErrors {
  std::array<std::int64_t, kShadowBounds.size() + 1> counts = {};
  double sum = 0;
  void Note(double error);
  void Add(const ShadowErrors& other);
};

struct ShadowShape {
  int layers = 0;
  int heads = 0;  // KV heads of this rank
  int group = 1, head_dim = 0;
  int max_rows = 0;    // of a step
  int max_picked = 0;  // of a step
};

class ShadowCheck {
 public:
  static absl::StatusOr<std::unique_ptr<ShadowCheck>> Create(const ShadowShape& shape,
                                                             Kernels& kernels);
  static std::int64_t Bytes(const ShadowShape& shape);

  // INVALID_ARGUMENT: more rows are picked than there is room for.
  [[nodiscard]] absl::Status BeginStep(const StepBatch& batch, Stream& stream);
  // After the near partial, before anything is merged into it.
  void Full(int layer, const StepBatch& batch, const NearArgs& near, Stream& stream);
  // After the layer's attention; out: [T, H*g*d] act (kernels.h).
  void Routed(int layer, const StepBatch& batch, View out, Stream& stream);
  // Enqueues the copy of what EndStep counts.
  void CopyOut(const StepBatch& batch, Stream& stream);
  // [layers]; empty without picked rows. After the stream was waited for.
  std::vector<ShadowErrors> EndStep(const StepBatch& batch) const;

 private:
  ShadowCheck(const ShadowShape& shape, Kernels& kernels) : shape_(shape), kernels_(&kernels) {}
  absl::Status Allocate();
  void Keep(const StepBatch& batch, View from, const Buffer& to, int layer, Stream& stream) const;
  std::int64_t width() const { return std::int64_t{shape_.heads} * shape_.group * shape_.head_dim; }
  std::size_t ActBytes(std::int64_t values) const;
  // A value of an array of activations that was copied to the host.
  double Value(const std::vector<std::byte>& activations, std::size_t index) const;

  ShadowShape shape_;
  Kernels* kernels_;
  std::vector<std::int32_t> staging_;
  Buffer o_, m_, l_;      // a second partial triple
  Buffer out_;            // [T, H*g*d] act
  Buffer rows_, counts_;  // work list: the picked rows for every KV head
  Buffer full_, routed_;  // [layers, picked, H*g*d] act
  std::vector<std::byte> host_full_, host_routed_;
};

}  // namespace metattn
