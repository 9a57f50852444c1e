// The reference backend: plain loops, the definition of correct that other backends are judged by.
//
// Sums are taken in double, in a fixed order per output value, so results are batch independent and
// carry one rounding. One op family per file, named as its twin in kernels/cpu. Single threaded.
// Ownership, thread safety and errors as in kernels/kernels.h. Cost: about 1 GFLOP/s; for tests and
// for tiny models.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string_view>

#include "absl/status/statusor.h"
#include "kernels/device.h"
#include "kernels/kernels.h"

namespace metattn::ref {

class RefKernels final : public Kernels {
 public:
  RefKernels() : device_(MakeHostDevice()) {}

  std::string_view name() const override { return "ref"; }
  std::string_view isa() const override { return "scalar"; }
  int threads() const override { return 1; }
  Device& device() override { return *device_; }

  std::int64_t PageBytes(int head_dim) const override;
  absl::StatusOr<std::unique_ptr<Matrix>> Pack(std::span<const MatrixPart> parts,
                                               std::int64_t cols) override;

  void Embed(const EmbedArgs& args, Stream& stream) override;
  void Norm(const NormArgs& args, Stream& stream) override;
  void Linear(const LinearArgs& args, Stream& stream) override;
  void RopeAppend(const RopeAppendArgs& args, Stream& stream) override;
  void ForcedRoute(const ForcedRouteArgs& args, Stream& stream) override;
  void Compact(const CompactArgs& args, Stream& stream) override;
  void Near(const NearArgs& args, Stream& stream) override;
  void FarFull(const FarFullArgs& args, Stream& stream) override;
  void LinearAbsorb(const LinearAbsorbArgs& args, Stream& stream) override;
  void LinearOdds(const LinearOddsArgs& args, Stream& stream) override;
  void FarLinear(const FarLinearArgs& args, Stream& stream) override;
  void Control(const ControlArgs& args, Stream& stream) override;
  void Mix(const MixArgs& args, Stream& stream) override;
  void Dispatch(const DispatchArgs& args, Stream& stream) override;
  void Normalize(const NormalizeArgs& args, Stream& stream) override;
  void SwiGlu(const SwiGluArgs& args, Stream& stream) override;
  void Gather(const GatherArgs& args, Stream& stream) override;
  void ArgMax(const ArgMaxArgs& args, Stream& stream) override;

 private:
  std::unique_ptr<Device> device_;
};

}  // namespace metattn::ref
