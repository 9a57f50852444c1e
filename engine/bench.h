// Times prefill and decode of a model on this machine: what `metattn bench` prints.
//
// Prefill: every sequence's prompt of P tokens from nothing, chunked as the server would. Decode: C
// tokens of context are cached first (untimed), then N steps of one token per sequence, continuing
// the real text. Sequences read distinct text. Each repeat starts anew; figures are over all
// repeats (rates: total tokens over total seconds). Runs on rank 0 while the other ranks Serve.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>

#include "absl/status/statusor.h"
#include "engine/worker.h"

namespace metattn {

struct BenchOptions {
  std::int32_t prompt_tokens = 512;  // P; 0: no prefill timing
  std::int32_t decode_tokens = 64;   // N; 0: no decode timing
  std::int32_t context = 0;          // C
  std::int32_t sequences = 1;        // S
  std::int32_t repeats = 3;          // R, after one warm-up of each kind
  std::int32_t rows_per_step = 512;  // prefill chunk
  RoutePolicy policy;
  std::optional<RoutePolicy> baseline;  // timed too, in turn with `policy`, on its own K/V
  std::function<void(const std::string&)> progress;  // may be empty
};

struct BenchTimings {
  double prefill_tokens_per_s = 0;
  double prefill_attention_ms = 0;  // mean per repeat, the slowest rank; the controller apart
  double decode_tokens_per_s = 0;   // sum over sequences
  double decode_step_p50_ms = 0, decode_step_p99_ms = 0;
  double decode_attention_ms = 0;   // mean per step, the slowest rank; the controller apart
  double decode_controller_ms = 0;  // likewise: projections and decisions
  double decode_helped_rows = 0;  // mean per step: (row, KV head, layer) that another rank has read
  double decode_wait_ms = 0;      // mean per step in collectives' waiting, mean over ranks
  std::int64_t attention_bytes_read = 0;   // of the timed decode, sum over ranks
  std::int64_t attention_bytes_dense = 0;  // the same rows, were all of them full
};

struct BenchReport {
  int ranks = 1;
  int threads_per_rank = 1;
  std::string isa;
  std::int64_t weight_bytes = 0;  // read per decode step, sum over ranks
  BenchTimings timings;
  std::optional<BenchTimings> baseline;  // with options.baseline
};

WorkerLimits LimitsForBench(const BenchOptions& options);

// text: tokens of real text; sequence s reads it from its own place on, around the end if need be.
absl::StatusOr<BenchReport> RunBench(Worker& worker, std::span<const std::int32_t> text,
                                     const BenchOptions& options);
std::string ToJson(const BenchReport& report);

}  // namespace metattn
