#include "kernels/cpu/cpu_kernels.h"

#include <utility>
#include <vector>

#include "kernels/check.h"
#include "kernels/check_args.h"
#include "kernels/cpu/isa.h"
#include "kernels/cpu/pack.h"
#include "kernels/cpu/packed_matrix.h"
#include "kernels/cpu/weight_arena.h"

namespace metattn::cpu {
namespace {

constexpr std::int64_t kPackChunkBytes = 64 << 10;
constexpr std::int64_t kSegmentAlignment = 64;

const PackedMatrix& Packed(const Matrix* matrix, const OpTable& ops) {
  const auto* packed = dynamic_cast<const PackedMatrix*>(matrix);
  METATTN_CHECK(packed != nullptr && packed->panel_rows() == ops.panel_rows,
                "the matrix was packed by another backend or instruction set");
  return *packed;
}

// Segments of `parts` with their place in the packed memory (as an offset in `offsets`); returns
// the bytes of all.
std::int64_t Layout(std::span<const MatrixPart> parts, std::int64_t cols, int panel_rows,
                    std::vector<Segment>& segments, std::vector<std::int64_t>& offsets) {
  for (const MatrixPart& part : parts) {
    if (part.rows == 0) continue;
    if (segments.empty() || segments.back().dtype != part.dtype) {
      Segment s;
      s.dtype = part.dtype;
      if (!segments.empty()) s.first_row = segments.back().first_row + segments.back().rows;
      segments.push_back(s);
    }
    segments.back().rows += part.rows;
  }
  std::int64_t bytes = 0, panel = 0;
  for (Segment& s : segments) {
    s.panels = (s.rows + panel_rows - 1) / panel_rows;
    s.first_panel = panel;
    s.panel_bytes = PanelBytes(s.dtype, cols, panel_rows);
    panel += s.panels;
    offsets.push_back(bytes);
    bytes += s.panels * s.panel_bytes;
    bytes = (bytes + kSegmentAlignment - 1) / kSegmentAlignment * kSegmentAlignment;
  }
  return bytes;
}

// Start of matrix row `row` in the file.
const std::byte* FileRow(std::span<const MatrixPart> parts, std::int64_t row) {
  for (const MatrixPart& part : parts) {
    if (row < part.rows) return part.data + row * part.row_stride_bytes;
    row -= part.rows;
  }
  METATTN_CHECK(false, "row outside the parts");
}

}  // namespace

absl::StatusOr<std::unique_ptr<CpuKernels>> CpuKernels::Create(const KernelsOptions& options) {
  const absl::StatusOr<const OpTable*> ops = SelectIsa(options.isa);
  if (!ops.ok()) return ops.status();
  return std::make_unique<CpuKernels>(**ops, options);
}

CpuKernels::CpuKernels(const OpTable& ops, const KernelsOptions& options)
    : ops_(ops),
      device_(MakeHostDevice()),
      arena_(*device_),
      pool_(options.threads, options.spin),
      scratch_(options.threads),
      context_{pool_, scratch_, options.deterministic} {}

std::int64_t CpuKernels::PageBytes(int head_dim) const { return ops_.page_bytes(head_dim); }

absl::StatusOr<std::unique_ptr<Matrix>> CpuKernels::Pack(std::span<const MatrixPart> parts,
                                                         std::int64_t cols) {
  CheckParts(parts, cols);
  const int panel_rows = ops_.panel_rows;
  std::vector<Segment> segments;
  std::vector<std::int64_t> offsets;
  const std::int64_t bytes = Layout(parts, cols, panel_rows, segments, offsets);
  absl::StatusOr<WeightArena::Piece> memory = arena_.Allocate(static_cast<std::size_t>(bytes));
  if (!memory.ok()) return memory.status();
  for (std::size_t i = 0; i < segments.size(); ++i) {
    Segment& s = segments[i];
    std::byte* data = memory->data + offsets[i];
    s.data = data;
    const std::int64_t chunk = s.panel_bytes == 0 ? s.panels : kPackChunkBytes / s.panel_bytes + 1;
    pool_.ParallelFor(s.panels, chunk, [&](std::int64_t begin, std::int64_t end, int) {
      for (std::int64_t p = begin; p < end; ++p) {
        const std::int64_t left = s.rows - p * panel_rows;
        PanelSource source{.dtype = s.dtype, .cols = cols, .panel_rows = panel_rows};
        source.count = static_cast<int>(left < panel_rows ? left : panel_rows);
        for (int r = 0; r < source.count; ++r) {
          source.rows[r] = FileRow(parts, s.first_row + p * panel_rows + r);
        }
        PackPanel(source, data + p * s.panel_bytes);
      }
    });
  }
  return std::make_unique<PackedMatrix>(std::move(segments), cols, panel_rows, std::move(*memory));
}

void CpuKernels::Embed(const EmbedArgs& args, Stream&) {
  CheckArgs(args);
  ops_.embed(Packed(args.table, ops_), args, context_);
}

void CpuKernels::Linear(const LinearArgs& args, Stream&) {
  CheckArgs(args);
  ops_.linear(Packed(args.weight, ops_), args, context_);
}

void CpuKernels::Norm(const NormArgs& args, Stream&) {
  CheckArgs(args);
  ops_.norm(args, context_);
}

void CpuKernels::RopeAppend(const RopeAppendArgs& args, Stream&) {
  CheckArgs(args);
  ops_.rope_append(args, context_);
}

void CpuKernels::ForcedRoute(const ForcedRouteArgs& args, Stream&) {
  CheckArgs(args);
  ops_.forced_route(args, context_);
}

void CpuKernels::Compact(const CompactArgs& args, Stream&) {
  CheckArgs(args);
  ops_.compact(args, context_);
}

void CpuKernels::Near(const NearArgs& args, Stream&) {
  CheckArgs(args);
  ops_.near(args, context_);
}

void CpuKernels::FarFull(const FarFullArgs& args, Stream&) {
  CheckArgs(args);
  ops_.far_full(args, context_);
}

void CpuKernels::LinearAbsorb(const LinearAbsorbArgs& args, Stream&) {
  CheckArgs(args);
  ops_.linear_absorb(args, context_);
}

void CpuKernels::LinearOdds(const LinearOddsArgs& args, Stream&) {
  CheckArgs(args);
  ops_.linear_odds(args, context_);
}

void CpuKernels::FarLinear(const FarLinearArgs& args, Stream&) {
  CheckArgs(args);
  ops_.far_linear(args, context_);
}

void CpuKernels::NearAndOdds(const NearArgs& near, const LinearOddsArgs& odds, Stream&) {
  CheckArgs(near);
  CheckArgs(odds);
  ops_.near_and_odds(near, odds, context_);
}

void CpuKernels::Far(const FarFullArgs& full, const FarLinearArgs& linear, Stream&) {
  CheckArgs(full);
  CheckArgs(linear);
  ops_.far(full, linear, context_);
}

void CpuKernels::Control(const ControlArgs& args, Stream&) {
  CheckArgs(args);
  ops_.control(args, context_);
}

void CpuKernels::Mix(const MixArgs& args, Stream&) {
  CheckArgs(args);
  ops_.mix(args, context_);
}

void CpuKernels::Dispatch(const DispatchArgs& args, Stream&) {
  CheckArgs(args);
  ops_.dispatch(args, context_);
}

void CpuKernels::Normalize(const NormalizeArgs& args, Stream&) {
  CheckArgs(args);
  ops_.normalize(args, context_);
}

void CpuKernels::SwiGlu(const SwiGluArgs& args, Stream&) {
  CheckArgs(args);
  ops_.swiglu(args, context_);
}

void CpuKernels::Gather(const GatherArgs& args, Stream&) {
  CheckArgs(args);
  ops_.gather(args, context_);
}

void CpuKernels::ArgMax(const ArgMaxArgs& args, Stream&) {
  CheckArgs(args);
  ops_.argmax(args, context_);
}

}  // namespace metattn::cpu
