// The serving facade of rank 0: takes requests, runs steps on its own thread, streams events back.
//
// Owns its thread, scheduler and request states; borrows Worker and Tokenizer, which must outlive
// it. Thread safe. A request's sink is called from the engine's thread, in order, never after its
// last event, and must not block. Errors: Submit refuses with INVALID_ARGUMENT (names the field),
// RESOURCE_EXHAUSTED (queue full, could never fit), UNAVAILABLE (draining or failed). A failed step
// ends every request with kError and the engine with `failed`.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/metrics.h"
#include "engine/model/config.h"
#include "engine/model/tokenizer.h"
#include "engine/options.h"
#include "engine/request.h"
#include "engine/routing_policy.h"
#include "engine/worker.h"

namespace metattn {

struct RoutingState {
  RoutingPolicy policy;
  float cost_weight = 0;  // lambda now of a routed request that asks for none
  std::vector<float> cost_weight_levels;
  std::vector<RoutingCounts> layers;  // since the start
  RoutingCounts recent;               // of about the last minute
};

using EventSink = std::function<void(const GenerationEvent&)>;

class Engine {
 public:
  static absl::StatusOr<std::unique_ptr<Engine>> Create(const EngineOptions& options,
                                                        const ModelOptions& model_options,
                                                        const ModelConfig& config, Worker& worker,
                                                        const Tokenizer& tokenizer,
                                                        EngineObserver* observer);  // may be null
  virtual ~Engine() = default;  // cancels what runs, stops the worker's ranks

  // The engine's own id of the request, for Cancel.
  virtual absl::StatusOr<std::uint64_t> Submit(GenerationRequest request, EventSink sink) = 0;
  // Ends a request between steps with kCancelled; unknown and finished ids are ignored.
  virtual void Cancel(std::uint64_t id) = 0;
  virtual EngineSnapshot Snapshot() const = 0;
  // All or nothing, for everything at once from the next step on; the policy that results.
  // INVALID_ARGUMENT names the field.
  virtual absl::StatusOr<RoutingPolicy> SetRouting(const RoutingChange& change) = 0;
  virtual RoutingState Routing() const = 0;
  // Refuses new requests and waits up to `seconds` for those that run; what is left then is
  // cancelled. True: nothing was left.
  virtual bool Drain(double seconds) = 0;
  virtual int max_context() const = 0;  // positions of one sequence
};

}  // namespace metattn
