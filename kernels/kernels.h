// The one interface of compute backends: coarse ops on device memory, a few dozen virtual calls per
// layer and step.
//
// Bodies: kernels/ref (plain loops: the definition of correct), kernels/cpu (SIMD chosen at start),
// kernels/cuda. Every op is enqueued on the given stream; shapes are checked by CHECK (a wrong
// shape is our own bug, files and requests are checked long before). Sizes of zero (no rows, no
// heads, empty lists) are allowed everywhere and do nothing. K and V are stored in pages as bf16
// and read only as stored. Ownership: Matrix belongs to the caller and must outlive its use. Thread
// safety: one caller at a time per instance (a rank has one); an instance may run its own threads.
// Batch independence: with Options.deterministic each output row depends on its own inputs only,
// bit for bit, whatever else is in the batch.
//
// Notation: T rows (tokens of the step), D hidden size, H local KV heads, g query heads per KV
// head, d head size; act: values of the backend's activation_dtype().
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/attention_types.h"
#include "kernels/device.h"
#include "kernels/dispatch_ops.h"
#include "kernels/routing_ops.h"
#include "kernels/types.h"

namespace metattn {

// A weight packed by a backend for its own ops: y = x W^T, W [rows, cols], one output value per row
// of W.
class Matrix {
 public:
  virtual ~Matrix() = default;
  virtual std::int64_t rows() const = 0;
  virtual std::int64_t cols() const = 0;
  // Bytes that one multiplication with a single row of x reads.
  virtual std::int64_t bytes() const = 0;
};

// Consecutive rows of W as they lie in a file: row r starts at data + r * row_stride_bytes and
// holds `cols` values.
struct MatrixPart {
  DType dtype = DType::kF32;
  const std::byte* data = nullptr;
  std::int64_t rows = 0;
  std::int64_t row_stride_bytes = 0;
};

struct EmbedArgs {
  const Matrix* table = nullptr;  // [rows, D]: this rank's slice of the vocabulary
  std::int64_t first_id = 0;      // token id of the table's row 0; other ranks' ids give zeros
  View ids;                       // [T] i32
  View out;                       // [T, D] f32
  std::int64_t tokens = 0;
};

struct NormArgs {
  View residual;  // [T, D] f32, in and out: residual += delta
  View delta;     // [T, D] f32 or absent
  View weight;    // [D] f32
  View out;       // [T, D] act = residual / sqrt(mean(residual^2) + eps) * weight
  std::int64_t tokens = 0;
  std::int64_t dim = 0;
  float eps = 1e-5f;
};

struct LinearArgs {
  const Matrix* weight = nullptr;  // [N, K]; K = 0 gives the bias, or zeros
  View x;                          // [T, K] act
  View bias;                       // [N] f32 or absent
  View out;                        // [T, N] f32, or act
  std::int64_t tokens = 0;
  bool rounded = false;  // out is act
};

struct RopeAppendArgs {
  AttentionRows rows;
  PageTable pages;
  int group = 1;        // g
  View qkv;             // [T, (H*g + 2*H) * d] f32: q heads, then k heads, then v heads
  View q_norm, k_norm;  // [d] f32 or absent: RMSNorm of each head before RoPE
  float norm_eps = 1e-6f;
  View cos_sin;              // [positions, rotary_dim / 2, 2] f32: (cos, sin), scaling included
  int rotary_dim = 0;        // even, <= d; dimensions past it are left alone
  bool interleaved = false;  // pairs (2i, 2i+1) as in GGUF's llama, else (i, i + rotary_dim/2)
  View q;                    // out [T, H*g, d] f32, rotated, not scaled
};

// What local, full and linear decide: one byte per (row, KV head), values of Mechanism.
struct ForcedRouteArgs {
  AttentionRows rows;
  int heads = 0;
  View route;      // [T] u8: Mechanism per row (the request's policy)
  View decisions;  // out [T, H] u8; a row that is not eligible gets kLocal
};

struct CompactArgs {
  AttentionRows rows;
  int heads = 0;
  Mechanism mechanism = Mechanism::kFull;
  bool mixtures = false;  // rows of kMixture too
  View decisions;         // [T, H] u8
  WorkList list;          // out
};

struct NearArgs {
  AttentionRows rows;
  PageTable pages;
  int group = 1;
  float scale = 1.0f;  // score = scale * q.k
  View q;              // [T, H*g, d] f32
  Partial out;
  // [T, H*g, 2] f32 or absent: log-sum-exp of the scores of the sinks (-inf without sinks), and the
  // mean score, sum_j p_j score_j. Only of eligible rows; others are left alone.
  View stats;
};

struct FarFullArgs {
  AttentionRows rows;
  PageTable pages;
  int group = 1;
  float scale = 1.0f;
  View q;  // [T, H*g, d] f32
  WorkList list;
  Partial
      partial;  // in and out: merged with [sinks, far_end), span by span on the kSpanTokens grid
};

struct NormalizeArgs {
  Partial partial;
  std::int64_t tokens = 0;
  int heads = 0;  // H*g
  int head_dim = 0;
  View out;  // [T, H*g*d] act = o / l
};

struct SwiGluArgs {
  View gate_up;  // [T, 2F] act: gate, then up
  View out;      // [T, F] act = silu(gate) * up
  std::int64_t tokens = 0;
  std::int64_t dim = 0;  // F
};

struct GatherArgs {
  View x;     // [T, D] act
  View rows;  // [n] i32
  View out;   // [n, D] act
  std::int64_t count = 0;
  std::int64_t dim = 0;
};

// The largest of a row's values and the lowest index that has it; {-inf, 0} where there is nothing
// but -inf and NaN, or nothing at all.
struct Largest {
  float value = 0;
  std::int32_t index = 0;
};

struct ArgMaxArgs {
  View x;    // [T, n] f32
  View out;  // [T] Largest
  std::int64_t rows = 0;
  std::int64_t dim = 0;  // n
};

class Kernels {
 public:
  virtual ~Kernels() = default;

  virtual std::string_view name() const = 0;  // "ref", "cpu", "cuda"
  virtual std::string_view isa() const = 0;   // "scalar", "avx2", "avx512", ...
  virtual int threads() const = 0;
  virtual Device& device() = 0;

  // Bytes of one page: kBlockTokens keys and values of one head, in the backend's own layout.
  virtual std::int64_t PageBytes(int head_dim) const = 0;

  // What matrix products read, and give where nothing is added to it: f32 or bf16. The residual and
  // what is added to it is f32 everywhere.
  virtual DType activation_dtype() const { return DType::kF32; }

  // Packs W from the parts stacked in order, each with the same number of columns (a multiple of
  // its type's block). Copies: the parts may go afterwards. Quantised parts stay quantised.
  // RESOURCE_EXHAUSTED when memory ends.
  virtual absl::StatusOr<std::unique_ptr<Matrix>> Pack(std::span<const MatrixPart> parts,
                                                       std::int64_t cols) = 0;
  // Brings W [d, d] bf16 of a query's feature map (y = W q, a row per output) into the order in
  // which LinearOdds reads it, in place and on the host, before it is copied to the device.
  virtual void ArrangeQueryMap(std::span<std::uint16_t> /*w*/, int /*head_dim*/) const {}

  virtual void Embed(const EmbedArgs& args, Stream& stream) = 0;
  virtual void Norm(const NormArgs& args, Stream& stream) = 0;
  virtual void Linear(const LinearArgs& args, Stream& stream) = 0;
  virtual void RopeAppend(const RopeAppendArgs& args, Stream& stream) = 0;
  virtual void ForcedRoute(const ForcedRouteArgs& args, Stream& stream) = 0;
  virtual void Compact(const CompactArgs& args, Stream& stream) = 0;
  virtual void Near(const NearArgs& args, Stream& stream) = 0;
  virtual void FarFull(const FarFullArgs& args, Stream& stream) = 0;
  virtual void LinearAbsorb(const LinearAbsorbArgs& args, Stream& stream) = 0;
  virtual void LinearOdds(const LinearOddsArgs& args, Stream& stream) = 0;
  virtual void FarLinear(const FarLinearArgs& args, Stream& stream) = 0;
  // Pairs that do not wait for one another, with the results of one after the other: Near, then
  // LinearOdds of its partial; FarFull, then FarLinear of lists without a row in common.
  virtual void NearAndOdds(const NearArgs& near, const LinearOddsArgs& odds, Stream& stream) {
    Near(near, stream);
    LinearOdds(odds, stream);
  }
  virtual void Far(const FarFullArgs& full, const FarLinearArgs& linear, Stream& stream) {
    FarFull(full, stream);
    FarLinear(linear, stream);
  }
  virtual void Control(const ControlArgs& args, Stream& stream) = 0;
  virtual void Mix(const MixArgs& args, Stream& stream) = 0;
  virtual void Dispatch(const DispatchArgs& args, Stream& stream) = 0;
  virtual void Normalize(const NormalizeArgs& args, Stream& stream) = 0;
  virtual void SwiGlu(const SwiGluArgs& args, Stream& stream) = 0;
  virtual void Gather(const GatherArgs& args, Stream& stream) = 0;
  virtual void ArgMax(const ArgMaxArgs& args, Stream& stream) = 0;
};

struct KernelsOptions {
  std::string backend = "cpu";  // "ref", "cpu" or, where it is linked in, "cuda"
  std::string
      isa;  // cpu only: "avx2", "avx512", ...; empty: METATTN_CPU_ISA, else the best there is
  int threads = 1;  // including the caller
  int device = 0;   // cuda only: which GPU
  double memory_fraction =
      0.9;  // cuda only: of the GPU's memory, for all that this process allocates there
  bool deterministic = false;  // every row through batch-independent kernels
  bool spin = true;  // threads spin briefly before they sleep; false when threads exceed the cores
};

// INVALID_ARGUMENT for an unknown backend or ISA and for one this machine lacks; the message lists
// what there is.
absl::StatusOr<std::unique_ptr<Kernels>> MakeKernels(const KernelsOptions& options);

}  // namespace metattn
