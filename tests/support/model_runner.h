// Runs a model on ranks as threads and returns logits: the shared instrument of tests that compare
// backends, rank counts, chunkings and routes.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/worker.h"

namespace metattn::test {

struct RunnerOptions {
  int ranks = 1;
  std::vector<double> rank_weights;  // empty: equal
  std::string device = "ref";
  std::string isa;
  int threads = 1;
  bool deterministic = false;
  std::string controller;  // directory; empty: none
  RoutePolicy policy;
  int window = 256;
  int sinks = 4;
  std::int32_t chunk = 64;      // rows of a step
  std::int32_t prompt = 0;      // rows of the first step; 0: as many as of the others
  bool rebuild_states = false;  // every step builds its linear states from the pages
  bool snapshots = false;       // every step loads its linear states from a copy, into other slots
  bool helpers = false;         // --attention-helpers
  int company = 0;      // other sequences in every step, under other policies; not in the output
  bool greedy = false;  // the best token of every position, and no logits
  int repeats = 1;      // the tokens again through the same worker; the last time counts
  std::string record_decisions;  // directories; empty: neither
  std::string replay_decisions;
  double perturb = 0;
  std::uint64_t perturb_seed = 1;
};

struct RunnerOutput {
  std::vector<float> logits;       // [tokens, vocab]
  std::vector<std::int32_t> best;  // [tokens], of greedy runs
  std::int64_t vocab = 0;
  RoutingCounts routing;         // of the sequence, summed over steps and ranks
  std::int64_t helped_rows = 0;  // of all sequences, likewise
};

// Teacher-forced logits of every position of `tokens`.
absl::StatusOr<RunnerOutput> RunModel(const std::string& model_path,
                                      std::span<const std::int32_t> tokens,
                                      const RunnerOptions& options);

// max |a - b|; the sizes must be equal.
double MaxAbsDifference(std::span<const float> a, std::span<const float> b);

// Design section 3: 4 times the largest logit change that a seeded relative perturbation causes,
// over three seeds.
absl::StatusOr<double> MeasuredBound(const std::string& model_path,
                                     std::span<const std::int32_t> tokens,
                                     const RunnerOptions& options, double relative);

}  // namespace metattn::test
