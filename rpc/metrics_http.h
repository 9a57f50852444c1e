// Prometheus metrics of rank 0 over HTTP. The only user of prometheus-cpp.
//
// rpc/metrics.md lists every metric; a test compares it with what a scrape returns. Observer calls
// (engine's thread, gRPC's threads) are lock-free or take a counter's own lock. Gauges are read
// from `sources` at each scrape, on the HTTP threads, so they must be thread safe; Detach ends
// that before what they read goes away. Errors: a port in use is FAILED_PRECONDITION naming
// --metrics-port.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "engine/metrics.h"
#include "rpc/call.h"

namespace metattn {

struct MetricsOptions {
  std::string host = "127.0.0.1";
  int port = 8002;  // 0: any free
};

// What gauges read. Before Attach (loading) all are 0.
struct MetricsSources {
  std::string model;
  int ranks = 1;
  int layers = 0;
  int max_context = 0;
  std::function<EngineSnapshot()> engine;
  std::function<int()> jobs_waiting;
  std::function<int()> jobs_running;
  std::function<bool()> serving;
};

class Metrics : public EngineObserver, public CallObserver {
 public:
  // `version` is what metattn_build_info reports.
  static absl::StatusOr<std::unique_ptr<Metrics>> Start(const MetricsOptions& options,
                                                        const std::string& version);
  virtual int port() const = 0;
  // Registers the per-rank series and starts to read the gauges.
  virtual void Attach(const MetricsSources& sources) = 0;
  virtual void Detach() = 0;
};

}  // namespace metattn
