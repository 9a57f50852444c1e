// The cuda backend: every op of `Kernels` as kernels on one GPU (CUDA runtime, sm_80 and later).
//
// What products read is bf16, their results, the residual and all sums are f32, in an order that
// depends on the row alone. Near and FarFull round queries and softmax weights to bf16 for tensor
// cores; in steps of many rows Linear rounds decoded weights too and takes some sums in cuBLASLt's
// order, unless deterministic: then results are batch independent. Ownership, thread safety and
// errors as in kernels/kernels.h and cuda_device.h; what fails on the device is reported by the
// stream's Synchronize. Scratch (linear states at block boundaries, triples of chunks of far spans)
// grows with the largest step and is kept.
#pragma once

#include <memory>

#include "kernels/cuda/cuda_device.h"
#include "kernels/cuda/gemm.h"
#include "kernels/cuda/params.h"
#include "kernels/kernels.h"

namespace metattn::cuda {

class CudaKernels final : public Kernels {
 public:
  // Errors as CudaDevice::Create.
  static absl::StatusOr<std::unique_ptr<CudaKernels>> Create(const KernelsOptions& options);

  std::string_view name() const override { return "cuda"; }
  std::string_view isa() const override { return "cuda"; }
  int threads() const override { return 1; }
  Device& device() override { return *device_; }

  std::int64_t PageBytes(int head_dim) const override;
  DType activation_dtype() const override { return DType::kBF16; }
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
  CudaKernels(bool exact, std::unique_ptr<CudaDevice> device, std::unique_ptr<Stream> loading)
      : exact_(exact), device_(std::move(device)), loading_(std::move(loading)) {}
  // y = x W^T of a part in bf16 by cuBLASLt; false where it is not for that (LaunchLinear is).
  bool Multiply(const LinearParams& p, CudaStream& stream);
  // Scratch of at least so many bytes; false (and a noted error) without memory.
  bool Grow(Buffer& scratch, std::int64_t bytes, const char* what, CudaStream& stream);
  // The op's shape with room for its boundary states; false as Grow.
  bool WithBoundaries(const LinearShape& shape, CudaStream& stream, LinearAttention* out);

  const bool exact_;
  std::unique_ptr<CudaDevice> device_;
  std::unique_ptr<Stream> loading_;  // weights go up on it
  std::unique_ptr<Gemm> gemm_;       // where a weight has a part in bf16, unless exact
  Buffer boundaries_;                // linear states
  // The states, of one layer, that LinearOdds has filled boundaries_ from; FarLinear comes next and
  // takes them as they are. Null: it has none, or they were used.
  const float* boundaries_of_ = nullptr;
  Buffer chunks_;  // triples of far attention
};

}  // namespace metattn::cuda
