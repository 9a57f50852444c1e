#include "kernels/cuda/cuda_kernels.h"

#include <algorithm>
#include <cstddef>
#include <utility>

#include "absl/strings/str_format.h"
#include "kernels/check_args.h"
#include "kernels/cuda/cuda_matrix.h"
#include "kernels/cuda/launchers.h"
#include "kernels/cuda/resolve.h"
#include "kernels/cuda_backend.h"
#include "kernels/types.h"

namespace metattn::cuda {
namespace {

static_assert(kBlockTokens == 64 && kSpanTokens == 256,
              "pages.h, attention_far.cu, attention_tile.h, launchers.h");
static_assert(static_cast<int>(DType::kQ4_1) == 5, "decode.h");
static_assert(sizeof(Largest) == sizeof(LargestValue) &&
                  offsetof(Largest, index) == offsetof(LargestValue, index),
              "params.h");

CudaStream& Cuda(Stream& stream) { return static_cast<CudaStream&>(stream); }

// A card that this program was not built for would fail at its first kernel, without a word on why.
absl::Status CheckArchitecture(int device) {
  const cudaError_t error = FindKernels();
  if (error == cudaSuccess) return absl::OkStatus();
  if (error != cudaErrorNoKernelImageForDevice)
    return FromCuda(error, "looking for kernels", device);
  int major = 0, minor = 0;
  (void)cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  (void)cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
  return absl::FailedPreconditionError(absl::StrFormat(
      "CUDA device %d has compute capability %d.%d, which this program was not built for: it needs "
      "8.0 or later, and its architecture in CMAKE_CUDA_ARCHITECTURES",
      device, major, minor));
}

}  // namespace

absl::StatusOr<std::unique_ptr<CudaKernels>> CudaKernels::Create(const KernelsOptions& options) {
  auto cuda = CudaDevice::Create(options.device, options.memory_fraction);
  if (!cuda.ok()) return cuda.status();
  if (absl::Status s = CheckArchitecture(options.device); !s.ok()) return s;
  auto stream = (*cuda)->NewStream();
  if (!stream.ok()) return stream.status();
  return std::unique_ptr<CudaKernels>(
      new CudaKernels(options.deterministic, std::move(*cuda), std::move(*stream)));
}

std::int64_t CudaKernels::PageBytes(int head_dim) const {
  return std::int64_t{2} * kBlockTokens * head_dim * 2;
}

absl::StatusOr<std::unique_ptr<Matrix>> CudaKernels::Pack(std::span<const MatrixPart> parts,
                                                          std::int64_t cols) {
  CheckParts(parts, cols);
  auto matrix = CudaMatrix::Create(parts, cols, *device_, *loading_);
  if (!matrix.ok()) return matrix.status();
  const auto is_bf16 = [](const MatrixPart& part) { return part.dtype == DType::kBF16; };
  if (!exact_ && gemm_ == nullptr && std::ranges::any_of(parts, is_bf16)) {
    auto gemm = Gemm::Create(*device_);
    if (!gemm.ok()) return gemm.status();
    gemm_ = *std::move(gemm);
  }
  return std::unique_ptr<Matrix>(std::move(*matrix));
}

void CudaKernels::Embed(const EmbedArgs& args, Stream& stream) {
  CheckArgs(args);
  bool clear = true;
  for (const auto& part : static_cast<const CudaMatrix&>(*args.table).parts()) {
    const EmbedParams p = {part.weight,
                           args.first_id + part.first_row,
                           args.ids.As<std::int32_t>(),
                           args.out.As<float>(),
                           args.tokens,
                           std::exchange(clear, false)};
    Cuda(stream).Note(LaunchEmbed(p, Cuda(stream).get()), "embed");
  }
}

void CudaKernels::Norm(const NormArgs& args, Stream& stream) {
  CheckArgs(args, activation_dtype());
  const NormParams p = {args.residual.As<float>(),
                        args.delta.As<float>(),
                        args.weight.As<float>(),
                        args.out.As<__nv_bfloat16>(),
                        args.tokens,
                        args.dim,
                        args.eps};
  Cuda(stream).Note(LaunchNorm(p, Cuda(stream).get()), "norm");
}

void CudaKernels::Linear(const LinearArgs& args, Stream& stream) {
  CheckArgs(args, activation_dtype());
  const auto& matrix = static_cast<const CudaMatrix&>(*args.weight);
  for (const auto& part : matrix.parts()) {
    const LinearParams p = {part.weight,
                            part.first_row,
                            matrix.rows(),
                            args.x.As<__nv_bfloat16>(),
                            args.bias.As<float>(),
                            args.rounded ? nullptr : args.out.As<float>(),
                            args.rounded ? args.out.As<__nv_bfloat16>() : nullptr,
                            args.tokens,
                            exact_};
    if (Multiply(p, Cuda(stream))) continue;
    Cuda(stream).Note(LaunchLinear(p, Cuda(stream).get()), "linear");
  }
}

bool CudaKernels::Multiply(const LinearParams& p, CudaStream& stream) {
  if (gemm_ == nullptr || p.part.dtype != static_cast<int>(DType::kBF16)) return false;
  if (p.tokens < kTensorRows || p.part.rows == 0 || p.part.cols == 0) return false;
  return gemm_->Multiply(p, stream);
}

void CudaKernels::RopeAppend(const RopeAppendArgs& args, Stream& stream) {
  CheckArgs(args);
  const RopeAppendParams p = {
      Resolve(args.rows),      Resolve(args.pages),     args.group,        args.qkv.As<float>(),
      args.q_norm.As<float>(), args.k_norm.As<float>(), args.norm_eps,     args.cos_sin.As<float>(),
      args.rotary_dim,         args.interleaved,        args.q.As<float>()};
  Cuda(stream).Note(LaunchRopeAppend(p, Cuda(stream).get()), "rope and append");
}

void CudaKernels::ForcedRoute(const ForcedRouteArgs& args, Stream& stream) {
  CheckArgs(args);
  const RouteParams p = {Resolve(args.rows), args.heads, args.route.As<std::uint8_t>(),
                         args.decisions.As<std::uint8_t>()};
  Cuda(stream).Note(LaunchForcedRoute(p, Cuda(stream).get()), "forced route");
}

void CudaKernels::Compact(const CompactArgs& args, Stream& stream) {
  CheckArgs(args);
  const CompactParams p = {args.rows.tokens,
                           args.heads,
                           static_cast<std::uint8_t>(args.mechanism),
                           args.mixtures,
                           args.decisions.As<std::uint8_t>(),
                           Resolve(args.list)};
  Cuda(stream).Note(LaunchCompact(p, Cuda(stream).get()), "compact");
}

void CudaKernels::Near(const NearArgs& args, Stream& stream) {
  CheckArgs(args);
  const NearParams p = {
      Resolve(args.rows), Resolve(args.pages),   args.group, args.scale, args.q.As<float>(),
      Resolve(args.out),  args.stats.As<float>()};
  Cuda(stream).Note(LaunchNear(p, Cuda(stream).get()), "near attention");
}

void CudaKernels::FarFull(const FarFullArgs& args, Stream& stream) {
  CheckArgs(args);
  FarParams p = {
      Resolve(args.rows), Resolve(args.pages),   args.group, args.scale, args.q.As<float>(),
      Resolve(args.list), Resolve(args.partial), {}};
  // Only a row alone of its sequence is split.
  const int sequences = args.rows.sequences;
  if (sequences <= kFarChunkSequences && (sequences > 1 || args.rows.tokens == 1)) {
    const std::int64_t triples =
        std::int64_t{sequences} * kFarChunks * args.pages.heads * args.group;
    const std::int64_t values = triples * args.pages.head_dim;
    if (!Grow(chunks_, (values + 2 * triples) * 4, "chunks of far attention", Cuda(stream))) return;
    auto* const o = reinterpret_cast<float*>(chunks_.data());
    p.chunks = {o, o + values, o + values + triples};
  }
  Cuda(stream).Note(LaunchFarFull(p, Cuda(stream).get()), "far attention");
}

bool CudaKernels::Grow(Buffer& scratch, std::int64_t bytes, const char* what, CudaStream& stream) {
  if (bytes <= static_cast<std::int64_t>(scratch.bytes())) return true;
  if (stream.recording()) {  // Repeat runs a step before it records it
    stream.Note(cudaErrorStreamCaptureUnsupported, what);
    return false;
  }
  stream.Note(cudaStreamSynchronize(stream.get()), what);  // may be in use
  stream.Forget();
  auto buffer = device_->Allocate(static_cast<std::size_t>(bytes));
  if (!buffer.ok()) {
    stream.Note(cudaErrorMemoryAllocation, what);
    return false;
  }
  scratch = std::move(*buffer);
  return true;
}

bool CudaKernels::WithBoundaries(const LinearShape& shape, CudaStream& stream,
                                 LinearAttention* out) {
  *out = Resolve(shape);
  const std::int64_t bytes = BoundaryPlaces(shape.rows.tokens, shape.rows.sequences) *
                             shape.pages.heads * StateBytes(out->features, shape.pages.head_dim);
  if (!Grow(boundaries_, bytes, "boundary states of linear attention", stream)) return false;
  out->boundaries = reinterpret_cast<float*>(boundaries_.data());
  return true;
}

void CudaKernels::LinearAbsorb(const LinearAbsorbArgs& args, Stream& stream) {
  CheckArgs(args);
  Cuda(stream).Note(LaunchAbsorb(Resolve(args.shape), Cuda(stream).get()), "linear absorb");
}

void CudaKernels::LinearOdds(const LinearOddsArgs& args, Stream& stream) {
  CheckArgs(args);
  LinearAttention shape;
  if (!WithBoundaries(args.shape, Cuda(stream), &shape)) return;
  boundaries_of_ = shape.states;
  const OddsParams p = {shape,
                        args.w_q.As<const __nv_bfloat16>(),
                        args.log_gain.As<float>(),
                        args.kappa.As<float>(),
                        args.q.As<float>(),
                        Resolve(args.near),
                        args.phi_q.As<float>(),
                        args.lse_far.As<float>()};
  Cuda(stream).Note(LaunchOdds(p, Cuda(stream).get()), "odds of linear attention");
}

void CudaKernels::FarLinear(const FarLinearArgs& args, Stream& stream) {
  CheckArgs(args);
  LinearAttention shape;
  if (!WithBoundaries(args.shape, Cuda(stream), &shape)) return;
  const FarLinearParams p = {shape,
                             args.phi_q.As<float>(),
                             args.lse_far.As<float>(),
                             Resolve(args.list),
                             Resolve(args.partial),
                             args.alone,
                             std::exchange(boundaries_of_, nullptr) == shape.states};
  Cuda(stream).Note(LaunchFarLinear(p, Cuda(stream).get()), "linear attention");
}

void CudaKernels::Control(const ControlArgs& args, Stream& stream) {
  CheckArgs(args, activation_dtype());
  Cuda(stream).Note(LaunchControl(Resolve(args), Cuda(stream).get()), "control");
}

void CudaKernels::Mix(const MixArgs& args, Stream& stream) {
  CheckArgs(args);
  const MixParams p = {args.tokens,
                       args.heads,
                       args.group,
                       args.head_dim,
                       static_cast<int>(args.step),
                       args.decisions.As<std::uint8_t>(),
                       args.weights.As<float>(),
                       Resolve(args.partial),
                       Resolve(args.kept),
                       args.sum.As<float>()};
  Cuda(stream).Note(LaunchMix(p, Cuda(stream).get()), "mix");
}

void CudaKernels::Dispatch(const DispatchArgs& args, Stream& stream) {
  CheckArgs(args);
  Cuda(stream).Note(LaunchDispatch(Resolve(args), Cuda(stream).get()), "dispatch");
}

void CudaKernels::Normalize(const NormalizeArgs& args, Stream& stream) {
  CheckArgs(args, activation_dtype());
  const NormalizeParams p = {Resolve(args.partial), args.tokens * args.heads, args.head_dim,
                             args.out.As<__nv_bfloat16>()};
  Cuda(stream).Note(LaunchNormalize(p, Cuda(stream).get()), "normalize");
}

void CudaKernels::SwiGlu(const SwiGluArgs& args, Stream& stream) {
  CheckArgs(args, activation_dtype());
  const SwiGluParams p = {args.gate_up.As<__nv_bfloat16>(), args.out.As<__nv_bfloat16>(),
                          args.tokens, args.dim};
  Cuda(stream).Note(LaunchSwiGlu(p, Cuda(stream).get()), "SwiGLU");
}

void CudaKernels::Gather(const GatherArgs& args, Stream& stream) {
  CheckArgs(args, activation_dtype());
  const GatherParams p = {args.x.As<__nv_bfloat16>(), args.rows.As<std::int32_t>(),
                          args.out.As<__nv_bfloat16>(), args.count, args.dim};
  Cuda(stream).Note(LaunchGather(p, Cuda(stream).get()), "gather");
}

void CudaKernels::ArgMax(const ArgMaxArgs& args, Stream& stream) {
  CheckArgs(args);
  const ArgMaxParams p = {args.x.As<float>(), args.out.As<LargestValue>(), args.rows, args.dim};
  Cuda(stream).Note(LaunchArgMax(p, Cuda(stream).get()), "argmax");
}

}  // namespace metattn::cuda

namespace metattn {

absl::StatusOr<std::unique_ptr<Kernels>> MakeCudaKernels(const KernelsOptions& options) {
  auto kernels = cuda::CudaKernels::Create(options);
  if (!kernels.ok()) return kernels.status();
  return std::unique_ptr<Kernels>(*std::move(kernels));
}

}  // namespace metattn
