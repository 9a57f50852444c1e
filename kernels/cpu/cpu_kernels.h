// The cpu backend: checks an op's arguments and calls the body of the instruction set chosen at
// start.
//
// Ownership, thread safety and errors as in kernels/kernels.h; owns a pool of threads and scratch
// memory. Cost: a check and an indirect call per op.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string_view>

#include "absl/status/statusor.h"
#include "kernels/cpu/op_table.h"
#include "kernels/cpu/pack.h"
#include "kernels/cpu/scratch.h"
#include "kernels/cpu/thread_pool.h"
#include "kernels/cpu/weight_arena.h"
#include "kernels/kernels.h"

namespace metattn::cpu {

class CpuKernels final : public Kernels {
 public:
  // INVALID_ARGUMENT as SelectIsa.
  static absl::StatusOr<std::unique_ptr<CpuKernels>> Create(const KernelsOptions& options);

  CpuKernels(const OpTable& ops, const KernelsOptions& options);

  std::string_view name() const override { return "cpu"; }
  std::string_view isa() const override { return ops_.name; }
  int threads() const override { return pool_.threads(); }
  Device& device() override { return *device_; }

  std::int64_t PageBytes(int head_dim) const override;
  absl::StatusOr<std::unique_ptr<Matrix>> Pack(std::span<const MatrixPart> parts,
                                               std::int64_t cols) override;

  void ArrangeQueryMap(std::span<std::uint16_t> w, int head_dim) const override {
    PackQueryMap(w, head_dim);
  }
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
  void NearAndOdds(const NearArgs& near, const LinearOddsArgs& odds, Stream& stream) override;
  void Far(const FarFullArgs& full, const FarLinearArgs& linear, Stream& stream) override;
  void Control(const ControlArgs& args, Stream& stream) override;
  void Mix(const MixArgs& args, Stream& stream) override;
  void Dispatch(const DispatchArgs& args, Stream& stream) override;
  void Normalize(const NormalizeArgs& args, Stream& stream) override;
  void SwiGlu(const SwiGluArgs& args, Stream& stream) override;
  void Gather(const GatherArgs& args, Stream& stream) override;
  void ArgMax(const ArgMaxArgs& args, Stream& stream) override;

 private:
  const OpTable& ops_;
  std::unique_ptr<Device> device_;
  WeightArena arena_;
  ThreadPool pool_;
  Scratch scratch_;
  OpContext context_;
};

}  // namespace metattn::cpu
