#include "rpc/metrics_http.h"

#include <unistd.h>

#include <array>
#include <cstdio>
#include <exception>
#include <map>
#include <mutex>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/types.h"
#include "prometheus/counter.h"
#include "prometheus/exposer.h"
#include "prometheus/gauge.h"
#include "prometheus/histogram.h"
#include "prometheus/registry.h"
#include "rpc/server.h"

namespace metattn {
namespace {

using prometheus::Counter;
using prometheus::Family;
using prometheus::Gauge;
using prometheus::Histogram;
using Buckets = Histogram::BucketBoundaries;

// The field's standard bucket lists, so that dashboards and SLO tiles carry over.
const Buckets kTimeToFirstToken = {.001, .005, .01, .02, .04, .06, .08, .1, .25, .5,  .75,
                                   1,    2.5,  5,   7.5, 10,  20,  40,  80, 160, 640, 2560};
const Buckets kInterToken = {.01, .025, .05, .075, .1,  .15, .2, .3, .4, .5,
                             .75, 1,    2.5, 5,    7.5, 10,  20, 40, 80};
const Buckets kRequest = {.3, .5, .8, 1,  1.5, 2,   2.5, 5,   10,   15,  20,
                          30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680};
const Buckets kStepRows = {1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384};
const Buckets kStepSeconds = {.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30};

// 1, 2, 5, 10, 20, 50 ... up to and including the first that is >= limit.
Buckets OneTwoFive(double limit) {
  Buckets buckets;
  for (double decade = 1;; decade *= 10) {
    for (const double step : {1.0, 2.0, 5.0}) {
      buckets.push_back(step * decade);
      if (step * decade >= limit) return buckets;
    }
  }
}

std::string_view ReasonName(FinishReason reason) {
  switch (reason) {
    case FinishReason::kStop:
      return "stop";
    case FinishReason::kLength:
      return "length";
    case FinishReason::kCancelled:
      return "cancelled";
    case FinishReason::kDeadline:
      return "deadline";
    case FinishReason::kError:
    case FinishReason::kNone:
      break;
  }
  return "error";
}
constexpr std::array kReasons = {FinishReason::kStop, FinishReason::kLength,
                                 FinishReason::kCancelled, FinishReason::kDeadline,
                                 FinishReason::kError};

double ResidentBytes() {
  long pages = 0, resident = 0;
  if (std::FILE* file = std::fopen("/proc/self/statm", "r")) {
    if (std::fscanf(file, "%ld %ld", &pages, &resident) != 2) resident = 0;
    std::fclose(file);
  }
  return static_cast<double>(resident) * static_cast<double>(sysconf(_SC_PAGESIZE));
}

// Series of one rank.
struct RankSeries {
  Counter* step;
  Counter* attention;
  Counter* wait;
  Counter* transfer;
  Counter* helped;
  Counter* bytes_read;
  Counter* bytes_dense;
  Counter* controller;
  std::array<Counter*, kMechanisms> routed;
  Counter* mixed;
};

// Series of one layer.
struct LayerSeries {
  std::array<Counter*, kMechanisms> routed;
  Counter* mixed;
  std::array<Counter*, kMechanisms> soft;
  Counter* expected_cost;
};

constexpr std::array<const char*, kMechanisms> kMechanismNames = {"full", "linear", "local"};
constexpr const char* kMixtureName = "mixture";

class PrometheusMetrics final : public Metrics, public prometheus::Collectable {
 public:
  explicit PrometheusMetrics(const std::string& version) {
    GaugeFamily("metattn_build_info", "1, with the version of this program.")
        .Add({{"version", version}})
        .Set(1);
    serving_ = &GaugeFamily("metattn_serving", "1 while health is SERVING.").Add({});
    resident_ = &GaugeFamily("metattn_process_resident_memory_bytes",
                             "Resident memory of rank 0's process.")
                     .Add({});
    calls_ = &CounterFamily("metattn_grpc_calls_total", "Finished gRPC calls.");
    calls_->Add({{"method", "Generate"}, {"code", "OK"}});
  }

  absl::Status Listen(const MetricsOptions& options) {
    if (auto s = CheckPortFree(options.host, options.port, "--metrics-port"); !s.ok()) return s;
    const bool v6 = options.host.find(':') != std::string::npos;
    const std::string address =
        absl::StrCat(v6 ? "[" : "", options.host, v6 ? "]:" : ":", options.port);
    try {  // the library throws when it cannot listen
      exposer_ = std::make_unique<prometheus::Exposer>(address, 2);
    } catch (const std::exception& e) {
      return absl::FailedPreconditionError(absl::StrCat(
          "cannot listen on ", address, ": ", e.what(), "; choose another with --metrics-port"));
    }
    self_ = std::shared_ptr<prometheus::Collectable>(this, [](prometheus::Collectable*) {});
    exposer_->RegisterCollectable(self_);
    const std::vector<int> ports = exposer_->GetListeningPorts();
    port_ = ports.empty() ? options.port : ports.front();
    return absl::OkStatus();
  }

  ~PrometheusMetrics() override { exposer_.reset(); }

  int port() const override { return port_; }

  void Attach(const MetricsSources& sources) override {
    const prometheus::Labels model = {{"model_name", sources.model}};
    std::lock_guard lock(mutex_);
    sources_ = sources;
    AddGauges(model);
    AddRequestSeries(model, sources.max_context);
    AddStepSeries(model);
    AddRouting(model, sources.layers);
    for (int rank = 0; rank < sources.ranks; ++rank) AddRank(model, rank);
    attached_ = true;
  }

  void Detach() override {
    std::lock_guard lock(mutex_);
    sources_.engine = nullptr;
    sources_.jobs_waiting = nullptr;
    sources_.jobs_running = nullptr;
    sources_.serving = nullptr;
  }

  std::vector<prometheus::MetricFamily> Collect() const override {
    {
      std::lock_guard lock(mutex_);
      ReadGauges();
    }
    return registry_.Collect();
  }

  void OnStep(const StepOutput& output, int rows) override {
    step_rows_->Observe(rows);
    if (output.per_rank.empty()) return;
    step_seconds_->Observe(output.per_rank[0].step_seconds);
    for (std::size_t r = 0; r < output.per_rank.size() && r < ranks_.size(); ++r) {
      const StepResult& result = output.per_rank[r];
      ranks_[r].step->Increment(result.step_seconds);
      ranks_[r].attention->Increment(result.attention_seconds);
      ranks_[r].controller->Increment(result.controller_seconds);
      ranks_[r].wait->Increment(result.wait_seconds);
      ranks_[r].transfer->Increment(result.transfer_seconds);
      ranks_[r].helped->Increment(static_cast<double>(result.helped_rows));
    }
    for (std::size_t r = 0; r < output.rank_routing.size() && r < ranks_.size(); ++r) {
      const RoutingCounts& counts = output.rank_routing[r];
      ranks_[r].bytes_read->Increment(static_cast<double>(counts.bytes_read));
      ranks_[r].bytes_dense->Increment(static_cast<double>(counts.bytes_dense));
      for (std::size_t k = 0; k < counts.rows.size(); ++k) {
        ranks_[r].routed[k]->Increment(static_cast<double>(counts.rows[k]));
      }
      ranks_[r].mixed->Increment(static_cast<double>(counts.mixture_rows));
    }
    CountLayers(output.routing);
  }
  void OnFirstToken(double seconds) override { first_token_->Observe(seconds); }
  void OnInterToken(double seconds) override { inter_token_->Observe(seconds); }
  void OnPreemption() override { preemptions_->Increment(); }
  void OnFinish(const GenerationEvent& last) override {
    finished_.at(last.finish == FinishReason::kNone ? FinishReason::kError : last.finish)
        ->Increment();
    prompt_tokens_->Increment(last.usage.prompt_tokens);
    cached_tokens_->Increment(last.usage.cached_tokens);
    generated_tokens_->Increment(last.usage.generated_tokens);
    end_to_end_->Observe(last.timings.total);
    queue_time_->Observe(last.timings.queue);
    request_prompt_->Observe(last.usage.prompt_tokens);
    request_generated_->Observe(last.usage.generated_tokens);
  }
  void OnCall(std::string_view method, std::string_view code) override {
    calls_->Add({{"method", std::string(method)}, {"code", std::string(code)}}).Increment();
  }

 private:
  Family<Gauge>& GaugeFamily(const char* name, const char* help) {
    return prometheus::BuildGauge().Name(name).Help(help).Register(registry_);
  }
  Family<Counter>& CounterFamily(const char* name, const char* help) {
    return prometheus::BuildCounter().Name(name).Help(help).Register(registry_);
  }
  Histogram* AddHistogram(const char* name, const char* help, const prometheus::Labels& model,
                          const Buckets& buckets) {
    return &prometheus::BuildHistogram().Name(name).Help(help).Register(registry_).Add(model,
                                                                                       buckets);
  }

  void AddGauges(const prometheus::Labels& model) {
    queued_ = &GaugeFamily("metattn_requests_queued", "Requests waiting to run.").Add(model);
    running_ = &GaugeFamily("metattn_requests_running", "Requests being run.").Add(model);
    kv_usage_ =
        &GaugeFamily("metattn_kv_cache_usage_ratio", "K/V blocks in use, 0 to 1.").Add(model);
    jobs_waiting_ =
        &GaugeFamily("metattn_jobs_waiting", "Stored jobs not yet in the engine.").Add(model);
    jobs_running_ = &GaugeFamily("metattn_jobs_running", "Stored jobs in the engine.").Add(model);
    step_age_ =
        &GaugeFamily("metattn_step_age_seconds", "Age of the step that runs now; 0 when idle.")
             .Add(model);
    cost_weight_ = &GaugeFamily("metattn_routing_cost_weight",
                                "Lambda now of a routed request that names none.")
                        .Add(model);
    force_full_ =
        &GaugeFamily("metattn_routing_force_full", "1 while the kill switch is on.").Add(model);
    prometheus::Labels labels = model;
    labels["block_size"] = std::to_string(kBlockTokens);
    const std::int64_t blocks = sources_.engine ? sources_.engine().blocks_capacity : 0;
    labels["num_blocks"] = std::to_string(blocks);
    GaugeFamily("metattn_cache_config_info", "1, with tokens per block and number of blocks.")
        .Add(labels)
        .Set(1);
  }

  void AddRequestSeries(const prometheus::Labels& model, int max_context) {
    auto& requests = CounterFamily("metattn_requests_total", "Ended requests by finish reason.");
    for (const FinishReason reason : kReasons) {
      prometheus::Labels labels = model;
      labels["reason"] = std::string(ReasonName(reason));
      finished_[reason] = &requests.Add(labels);
    }
    prompt_tokens_ =
        &CounterFamily("metattn_prompt_tokens_total", "Prompt tokens of ended requests.")
             .Add(model);
    cached_tokens_ = &CounterFamily("metattn_prompt_tokens_cached_total",
                                    "Of those, tokens taken from reused blocks.")
                          .Add(model);
    generated_tokens_ =
        &CounterFamily("metattn_generation_tokens_total", "Tokens generated by ended requests.")
             .Add(model);
    preemptions_ = &CounterFamily("metattn_preemptions_total",
                                  "Sequences whose blocks were taken away for others.")
                        .Add(model);
    first_token_ = AddHistogram("metattn_time_to_first_token_seconds",
                                "From submission to the first token.", model, kTimeToFirstToken);
    inter_token_ = AddHistogram("metattn_inter_token_latency_seconds",
                                "Between two tokens of a request.", model, kInterToken);
    end_to_end_ = AddHistogram("metattn_e2e_request_latency_seconds", "From submission to the end.",
                               model, kRequest);
    queue_time_ = AddHistogram("metattn_request_queue_time_seconds",
                               "From submission to the first step.", model, kRequest);
    request_prompt_ = AddHistogram("metattn_request_prompt_tokens", "Prompt length.", model,
                                   OneTwoFive(max_context));
    request_generated_ = AddHistogram("metattn_request_generation_tokens", "Output length.", model,
                                      OneTwoFive(max_context));
  }

  void AddStepSeries(const prometheus::Labels& model) {
    step_rows_ =
        AddHistogram("metattn_iteration_tokens", "Rows (tokens) of a step.", model, kStepRows);
    step_seconds_ = AddHistogram("metattn_step_seconds", "Forward pass of a step on rank 0.", model,
                                 kStepSeconds);
    rank_step_ = &CounterFamily("metattn_rank_step_seconds_total", "Time in forward passes.");
    rank_attention_ = &CounterFamily("metattn_rank_attention_seconds_total",
                                     "Time in attention: append, near, far, merge.");
    rank_wait_ = &CounterFamily("metattn_rank_collective_wait_seconds_total",
                                "Time waiting for other ranks in collectives.");
    rank_transfer_ = &CounterFamily("metattn_rank_collective_transfer_seconds_total",
                                    "Time moving data in collectives.");
    rank_helped_ = &CounterFamily("metattn_rank_helped_rows_total",
                                  "(row, KV head, layer) of a rank whose far pages another rank "
                                  "read (--attention-helpers).");
    rank_read_ = &CounterFamily("metattn_rank_attention_read_bytes_total",
                                "K/V bytes read, per (row, KV head).");
    rank_dense_ = &CounterFamily("metattn_rank_attention_dense_bytes_total",
                                 "K/V bytes that full attention would have read.");
    rank_controller_ = &CounterFamily("metattn_rank_controller_seconds_total",
                                      "Time in the meta-controller's decisions.");
    rank_routed_ = &CounterFamily(
        "metattn_rank_routed_rows_total",
        "(row, KV head, layer) with something to decide, by the mechanism they took.");
  }

  void AddRank(const prometheus::Labels& model, int rank) {
    prometheus::Labels labels = model;
    labels["rank"] = std::to_string(rank);
    RankSeries series = {&rank_step_->Add(labels),
                         &rank_attention_->Add(labels),
                         &rank_wait_->Add(labels),
                         &rank_transfer_->Add(labels),
                         &rank_helped_->Add(labels),
                         &rank_read_->Add(labels),
                         &rank_dense_->Add(labels),
                         &rank_controller_->Add(labels),
                         {},
                         nullptr};
    for (std::size_t k = 0; k < series.routed.size(); ++k) {
      labels["mechanism"] = kMechanismNames[k];
      series.routed[k] = &rank_routed_->Add(labels);
    }
    labels["mechanism"] = kMixtureName;
    series.mixed = &rank_routed_->Add(labels);
    ranks_.push_back(series);
  }

  void AddRouting(const prometheus::Labels& model, int layers) {
    auto& family =
        CounterFamily("metattn_layer_routed_rows_total",
                      "Rows with something to decide, by layer and mechanism, all KV heads.");
    auto& soft = CounterFamily("metattn_layer_soft_rows_total",
                               "Sum of softmax(score) over decisions of the meta-controller.");
    auto& cost =
        CounterFamily("metattn_layer_expected_cost_total",
                      "Sum over the same of what those weights cost; 1 is full attention.");
    for (int layer = 0; layer < layers; ++layer) {
      prometheus::Labels labels = model;
      labels["layer"] = std::to_string(layer);
      LayerSeries& series = layers_.emplace_back();
      series.expected_cost = &cost.Add(labels);
      for (std::size_t k = 0; k < kMechanismNames.size(); ++k) {
        labels["mechanism"] = kMechanismNames[k];
        series.routed[k] = &family.Add(labels);
        series.soft[k] = &soft.Add(labels);
      }
      labels["mechanism"] = kMixtureName;
      series.mixed = &family.Add(labels);
    }
    auto& shadow = prometheus::BuildHistogram()
                       .Name("metattn_shadow_relative_error")
                       .Help("|routed - full| / |full| of a layer's attention, on watched rows.")
                       .Register(registry_);
    for (int layer = 0; layer < layers; ++layer) {
      prometheus::Labels labels = model;
      labels["layer"] = std::to_string(layer);
      shadow_.push_back(&shadow.Add(labels, Buckets(kShadowBounds.begin(), kShadowBounds.end())));
    }
    Buckets bounds;
    for (int i = 1; i <= kUncertaintyBuckets; ++i) {
      bounds.push_back(static_cast<double>(i) / kUncertaintyBuckets);
    }
    uncertainty_ = AddHistogram("metattn_routing_uncertainty",
                                "U of decisions by the meta-controller.", model, bounds);
  }

  void CountLayers(const StepRouting& routing) {
    for (std::size_t i = 0; i < routing.layers.size() && i < layers_.size(); ++i) {
      const RoutingCounts& counts = routing.layers[i];
      for (std::size_t k = 0; k < kMechanismNames.size(); ++k) {
        layers_[i].routed[k]->Increment(static_cast<double>(counts.rows[k]));
        layers_[i].soft[k]->Increment(counts.weights[k]);
      }
      layers_[i].mixed->Increment(static_cast<double>(counts.mixture_rows));
      layers_[i].expected_cost->Increment(counts.expected_cost);
    }
    for (std::size_t i = 0; i < routing.shadow.size() && i < shadow_.size(); ++i) {
      const ShadowErrors& errors = routing.shadow[i];
      shadow_[i]->ObserveMultiple({errors.counts.begin(), errors.counts.end()}, errors.sum);
    }
    if (uncertainty_ == nullptr) return;
    std::vector<double> counts(routing.histogram.begin(), routing.histogram.end());
    counts.push_back(0);  // nothing lies above 1
    uncertainty_->ObserveMultiple(counts, routing.Total().uncertainty);
  }

  void ReadGauges() const {
    resident_->Set(ResidentBytes());
    serving_->Set(sources_.serving && sources_.serving() ? 1 : 0);
    if (!attached_) return;
    const EngineSnapshot now = sources_.engine ? sources_.engine() : EngineSnapshot();
    queued_->Set(now.queued);
    running_->Set(now.running);
    kv_usage_->Set(now.blocks_capacity > 0 ? static_cast<double>(now.blocks_used) /
                                                 static_cast<double>(now.blocks_capacity)
                                           : 0);
    step_age_->Set(now.seconds_in_current_step);
    cost_weight_->Set(now.cost_weight);
    force_full_->Set(now.force_full ? 1 : 0);
    jobs_waiting_->Set(sources_.jobs_waiting ? sources_.jobs_waiting() : 0);
    jobs_running_->Set(sources_.jobs_running ? sources_.jobs_running() : 0);
  }

  prometheus::Registry registry_;
  mutable std::mutex mutex_;  // protects sources_
  MetricsSources sources_;
  bool attached_ = false;
  Gauge *serving_, *resident_;
  Gauge *queued_, *running_, *kv_usage_, *jobs_waiting_, *jobs_running_, *step_age_, *cost_weight_,
      *force_full_;
  Family<Counter>* calls_;
  std::map<FinishReason, Counter*> finished_;
  Counter *prompt_tokens_, *cached_tokens_, *generated_tokens_, *preemptions_;
  Histogram *first_token_, *inter_token_, *end_to_end_, *queue_time_;
  Histogram *request_prompt_, *request_generated_, *step_rows_, *step_seconds_;
  Family<Counter>*rank_step_, *rank_attention_, *rank_wait_, *rank_transfer_, *rank_helped_;
  Family<Counter>*rank_read_, *rank_dense_, *rank_controller_, *rank_routed_;
  std::vector<RankSeries> ranks_;
  std::vector<LayerSeries> layers_;
  Histogram* uncertainty_ = nullptr;
  std::vector<Histogram*> shadow_;

  std::shared_ptr<prometheus::Collectable> self_;
  std::unique_ptr<prometheus::Exposer> exposer_;
  int port_ = 0;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Metrics>> Metrics::Start(const MetricsOptions& options,
                                                        const std::string& version) {
  auto metrics = std::make_unique<PrometheusMetrics>(version);
  if (auto s = metrics->Listen(options); !s.ok()) return s;
  return metrics;
}

}  // namespace metattn
