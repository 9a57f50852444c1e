// Decisions that come from elsewhere than a meta-controller: drawn at a fixed share, or replayed;
// and the recorder whose files are replayed. For benchmarks and for comparing placements.
//
// A rank has its own recorder and source. One caller. Errors name the file and what is wrong. A
// decision belongs to (request, position, layer, KV head), so it does not matter on how many ranks,
// in which batches or chunks it was recorded.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/types.h"

namespace metattn {

// Rows of a step and which part of the model decides here.
struct DecisionRows {
  std::span<const std::uint64_t> request;  // [T] id of the row's sequence
  std::span<const std::int32_t> position;  // [T]
  std::span<const std::uint8_t> eligible;  // [T] 0: the row has nothing to decide
  int layers = 0;
  int head_begin = 0, head_end = 0;  // this rank's KV heads
  int heads() const { return head_end - head_begin; }
};

class DecisionSource {
 public:
  virtual ~DecisionSource() = default;
  // decisions: [layers, T, heads] values of Mechanism; kLocal where the row is not eligible.
  [[nodiscard]] virtual absl::Status Decide(const DecisionRows& rows,
                                            std::span<std::uint8_t> decisions) = 0;
};

// Full with probability `share`, else `otherwise`; the draw is a hash of seed, request, position,
// layer and KV head.
std::unique_ptr<DecisionSource> ForceShare(double share, Mechanism otherwise, std::uint64_t seed);

// Everything that was recorded into the directory, by however many ranks, for a model of `layers`
// layers and `kv_heads` KV heads. A row that was not recorded is NOT_FOUND; one that mixed
// mechanisms is UNIMPLEMENTED, because a log has no weights. Keeps all in memory.
absl::StatusOr<std::unique_ptr<DecisionSource>> ReplayDecisions(const std::string& directory,
                                                                int layers, int kv_heads);

// Writes DIRECTORY/rank-R.decisions: a header, then one record per row (request, position, [layers,
// heads] bytes, [layers, heads] f32 margins). The directory is created; a file of that name is
// replaced.
class DecisionRecorder {
 public:
  virtual ~DecisionRecorder() = default;
  // margins: how far the best score was ahead of the second, as decisions; 0 where no controller
  // decided. Empty: none did.
  [[nodiscard]] virtual absl::Status Record(const DecisionRows& rows,
                                            std::span<const std::uint8_t> decisions,
                                            std::span<const float> margins) = 0;
};
struct RecorderArgs {
  std::string directory;
  int rank = 0;
  int layers = 0, kv_heads = 0;
  int head_begin = 0, head_end = 0;
};
absl::StatusOr<std::unique_ptr<DecisionRecorder>> RecordDecisions(const RecorderArgs& args);

}  // namespace metattn
