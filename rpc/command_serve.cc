// metattn serve: rank 0 serves over gRPC, the others compute; how they start and end together.
#include <unistd.h>

#include <algorithm>
#include <condition_variable>
#include <cstdlib>
#include <mutex>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "google/protobuf/stubs/logging.h"
#include "parallel/bootstrap.h"
#include "rpc/admin_service.h"
#include "rpc/bring_up.h"
#include "rpc/commands.h"
#include "rpc/flags.h"
#include "rpc/inference_service.h"
#include "rpc/job_service.h"
#include "rpc/membership.h"
#include "rpc/metrics_http.h"
#include "rpc/serve_loop.h"
#include "rpc/server.h"
#include "rpc/version.h"
#include "spdlog/spdlog.h"

namespace metattn {
namespace {

constexpr unsigned kExitBoundSeconds = 5;   // a process that must end and does not is killed
constexpr double kLastMessagesSeconds = 1;  // for the ends of streams to reach their clients

struct Flags {
  ModelOptions model;
  EngineOptions engine;
  ServerOptions server;
  MetricsOptions metrics;
  JobRunnerOptions jobs;
  std::string jobs_db;
  double drain_timeout_s = 30;
  double step_timeout_s = 30;
};

void AddFlags(CLI::App& app, Flags* f) {
  AddModelFlags(app, &f->model);
  AddEngineFlags(app, &f->engine);
  AddRoutingFlags(app, &f->engine);
  AddFlag(app, "--host", f->server.host, "address to listen on, for gRPC and metrics");
  AddFlag(app, "--grpc-port", f->server.port, "0: any free")->check(CLI::Range(0, 65535));
  AddFlag(app, "--metrics-port", f->metrics.port, "0: any free")->check(CLI::Range(0, 65535));
  AddFlag(app, "--max-message-bytes", f->server.max_message_bytes,
          "bytes of a request (16MiB, ...); larger ones are refused")
      ->transform(CLI::AsSizeValue(false));
  AddFlag(app, "--jobs-db", f->jobs_db,
          "SQLite file of the jobs; empty: ~/.local/state/metattn/jobs-PORT.sqlite, or memory with "
          "--grpc-port 0");
  AddFlag(app, "--max-jobs", f->jobs.max_waiting, "jobs that may wait or run; more are refused")
      ->check(CLI::Range(1, 1 << 24));
  AddFlag(app, "--drain-timeout", f->drain_timeout_s,
          "seconds that running requests get after SIGTERM")
      ->check(CLI::Range(0.0, 86400.0));
  AddFlag(app, "--step-timeout", f->step_timeout_s,
          "seconds after which a step counts as wedged and health as NOT_SERVING")
      ->check(CLI::Range(0.1, 86400.0));
}

std::string DefaultJobsPath(int port_flag) {
  if (port_flag == 0) return ":memory:";  // nobody would find the file again
  const char* state = std::getenv("XDG_STATE_HOME");
  const char* home = std::getenv("HOME");
  const std::string base = state != nullptr && *state != 0 ? std::string(state)
                           : home != nullptr               ? absl::StrCat(home, "/.local/state")
                                                           : std::string(".");
  return absl::StrCat(base, "/metattn/jobs-", port_flag, ".sqlite");
}

// A lost rank or a second signal: nobody waits for anybody any more.
[[noreturn]] void EndNow(int code, bool alone) {
  alarm(kExitBoundSeconds);  // SIGALRM kills, should ending hang
  if (!alone) EndWorld(code);
  _exit(code);
}

// Rank 0's parts that listen; made before the model is loaded, so that a port in use is known at
// once and health can be asked.
struct FrontEnd {
  ServingGate gate;
  std::unique_ptr<Metrics> metrics;
  std::unique_ptr<JobStore> store;
  std::unique_ptr<InferenceService> inference;
  std::unique_ptr<JobService> jobs;
  std::unique_ptr<AdminService> admin;
  std::unique_ptr<Server> server;

  absl::Status Open(const Flags& flags) {
    MetricsOptions metrics_options = flags.metrics;
    metrics_options.host = flags.server.host;
    auto started = Metrics::Start(metrics_options, kVersion);
    if (!started.ok()) return started.status();
    metrics = *std::move(started);
    inference = std::make_unique<InferenceService>(&gate, metrics.get());
    jobs = std::make_unique<JobService>(&gate, metrics.get());
    admin = std::make_unique<AdminService>(&gate, metrics.get());
    auto listening = Server::Start(flags.server, {inference.get(), jobs.get(), admin.get()});
    if (!listening.ok()) return listening.status();
    server = *std::move(listening);
    const std::string path =
        flags.jobs_db.empty() ? DefaultJobsPath(flags.server.port) : flags.jobs_db;
    auto opened = JobStore::Open(path);
    if (!opened.ok()) return opened.status();
    store = *std::move(opened);
    spdlog::info("jobs are stored in {}", path == ":memory:" ? "memory only" : path);
    return absl::OkStatus();
  }
};

// Rank 0 from "loaded" to "drained".
class Coordinator {
 public:
  Coordinator(const Flags& flags, FrontEnd& front, Membership& membership)
      : flags_(flags), front_(front), membership_(membership) {}

  // From the signal thread.
  void RequestStop() {
    if (membership_.lost()) return;  // mpirun's SIGTERM after a rank's death: EndNow is on its way
    {
      std::lock_guard lock(mutex_);
      stop_ = true;
    }
    changed_.notify_all();
  }

  absl::Status Run(Runtime& runtime) {
    auto engine = Engine::Create(flags_.engine, flags_.model, runtime.config, *runtime.worker,
                                 *runtime.tokenizer, front_.metrics.get());
    if (!engine.ok()) return engine.status();
    auto described = Describe(runtime, flags_.engine, engine->get());
    if (!described.ok()) return described.status();
    auto served = std::make_shared<const ServedModel>(*std::move(described));
    AttachMetrics(*served, **engine);
    JobRunnerOptions jobs = flags_.jobs;
    jobs.max_in_engine = flags_.engine.max_num_seqs;
    auto runner = JobRunner::Create(jobs, front_.store.get(), served);
    if (!runner.ok()) {
      front_.metrics->Detach();
      return runner.status();
    }
    SetRunner(*std::move(runner));
    front_.jobs->SetRunner(Runner());
    front_.gate.Open(served);
    front_.server->SetServing(true);
    Announce(*served);
    const absl::Status status = WatchUntilStop(**engine);
    WindDown(**engine, status);
    return status;  // the engine goes now, and with it the other ranks
  }

 private:
  void AttachMetrics(const ServedModel& served, Engine& engine) {
    MetricsSources sources;
    sources.model = served.name;
    sources.ranks = served.ranks;
    sources.layers = served.config.layers;
    sources.max_context = served.max_context;
    sources.engine = [&engine] { return engine.Snapshot(); };
    sources.jobs_waiting = [this] {
      const auto runner = Runner();
      return runner ? runner->waiting() : 0;
    };
    sources.jobs_running = [this] {
      const auto runner = Runner();
      return runner ? runner->running() : 0;
    };
    sources.serving = [server = front_.server.get()] { return server->serving(); };
    front_.metrics->Attach(sources);
  }

  void Announce(const ServedModel& served) {
    spdlog::info(
        "model '{}' ({}), context {} tokens, chat template: {}", served.name,
        served.config.architecture, served.max_context,
        served.chat_template.empty() ? "none, " + served.chat_error : served.chat_template);
    spdlog::info("ready: gRPC on {}:{}, metrics on http://{}:{}/metrics", flags_.server.host,
                 front_.server->port(), flags_.server.host, front_.metrics->port());
  }

  // Keeps health truthful; returns when asked to stop, or with the reason why nothing can run.
  absl::Status WatchUntilStop(const Engine& engine) {
    std::unique_lock lock(mutex_);
    while (!changed_.wait_for(lock, std::chrono::milliseconds(250), [this] { return stop_; })) {
      const EngineSnapshot now = engine.Snapshot();
      if (now.failed) return absl::UnavailableError("a step failed; this server ends");
      const bool healthy = IsHealthy(now, flags_.step_timeout_s);
      if (healthy == front_.server->serving()) continue;
      front_.server->SetServing(healthy);
      spdlog::warn("health is {}: the current step runs for {:.1f} s",
                   healthy ? "SERVING again" : "NOT_SERVING", now.seconds_in_current_step);
    }
    return absl::OkStatus();
  }

  void WindDown(Engine& engine, const absl::Status& status) {
    front_.server->SetServing(false);
    front_.gate.Close(status.ok() ? "the server is draining" : "the server failed");
    Runner()->Drain();
    if (status.ok()) {
      const EngineSnapshot now = engine.Snapshot();
      spdlog::info("draining: {} requests running, {} queued, at most {} s", now.running,
                   now.queued, flags_.drain_timeout_s);
      const bool all = engine.Drain(flags_.drain_timeout_s);
      spdlog::info("{}", all ? "drained" : "drain timeout: what was left is cancelled");
    }
    front_.server->Shutdown(kLastMessagesSeconds);
    front_.jobs->SetRunner(nullptr);
    front_.metrics->Detach();
    SetRunner(nullptr);  // stores what came last
    if (status.ok()) membership_.Leave();
  }

  std::shared_ptr<JobRunner> Runner() {
    std::lock_guard lock(mutex_);
    return runner_;
  }
  void SetRunner(std::shared_ptr<JobRunner> runner) {
    std::unique_lock lock(mutex_);
    runner_.swap(runner);
    lock.unlock();  // the old one goes without it
  }

  const Flags& flags_;
  FrontEnd& front_;
  Membership& membership_;
  std::mutex mutex_;  // protects runner_ and stop_
  std::shared_ptr<JobRunner> runner_;
  std::condition_variable changed_;
  bool stop_ = false;
};

absl::Status RunRoot(const Flags& flags, FrontEnd& front, Membership& membership,
                     Communicator& comm) {
  const bool alone = comm.size() == 1;
  Coordinator coordinator(flags, front, membership);
  StopWatcher signals([&] { coordinator.RequestStop(); },
                      [alone, &membership] {
                        if (membership.lost()) return;
                        spdlog::error("second signal: stopping at once");
                        EndNow(EXIT_FAILURE, alone);
                      });
  auto limits = LimitsForServing(flags.engine, flags.model);
  if (!limits.ok()) return limits.status();
  auto runtime = Load(flags.model, *limits, comm);
  if (!runtime.ok()) return runtime.status();
  for (const std::string& line : runtime->worker->descriptions()) spdlog::info("{}", line);
  return coordinator.Run(*runtime);
}

absl::Status RunWorker(const Flags& flags, Membership& membership, Communicator& comm) {
  // Rank 0 decides when to stop; a signal to all ranks must not tear this one out of a step.
  StopWatcher signals(
      [] { spdlog::info("this rank ends when rank 0 does; signal again to force"); },
      [] { EndNow(EXIT_FAILURE, false); });
  auto limits = LimitsForServing(flags.engine, flags.model);
  if (!limits.ok()) return limits.status();
  auto runtime = Load(flags.model, *limits, comm);
  if (!runtime.ok()) return runtime.status();
  const absl::Status status = runtime->worker->Serve();
  if (status.ok()) membership.Leave();
  return status;
}

}  // namespace

int CommandServe(int argc, char** argv) {
  Flags flags;
  CLI::App app("Serve a model over gRPC. Under mpirun rank 0 serves and all ranks compute.",
               "metattn serve");
  AddConfigFlag(app);
  AddFlags(app, &flags);
  if (auto code = Parse(app, argc, argv)) return *code;
  BlockStopSignals();
  google::protobuf::SetLogHandler(nullptr);  // what clients send is answered, not logged
  auto comm = JoinWorld(flags.model);
  StartLogging(comm.ok() ? (*comm)->rank() : 0, comm.ok() ? (*comm)->size() : 1);
  if (!comm.ok()) return Conclude(comm.status(), nullptr);
  const bool alone = (*comm)->size() == 1;
  FrontEnd front;
  const absl::Status problem = (*comm)->rank() == 0 ? front.Open(flags) : absl::OkStatus();
  MembershipOptions options;
  options.on_lost = [alone](const std::string& what) {
    spdlog::error("{}; every rank ends now", what);
    EndNow(kPeerLostExit, alone);
  };
  auto membership = Membership::Join(options, problem, **comm);
  if (!membership.ok()) {
    if ((*comm)->rank() == 0 ? problem.ok() : !IsFromRoot(membership.status())) {
      return Conclude(membership.status(), comm->get());
    }
    // Rank 0 told everyone, so all leave the world in order.
    if ((*comm)->rank() == 0) spdlog::error("{}", std::string(membership.status().message()));
    return EXIT_FAILURE;
  }
  const absl::Status status = (*comm)->rank() == 0 ? RunRoot(flags, front, **membership, **comm)
                                                   : RunWorker(flags, **membership, **comm);
  if (status.ok()) {
    spdlog::info("done");
  } else {
    (*membership)->Leave();  // the reason follows; that this rank goes is none
  }
  return Conclude(status, comm->get());
}

}  // namespace metattn
