#include <condition_variable>
#include <deque>
#include <iostream>
#include <mutex>
#include <utility>

#include "rpc/bring_up.h"
#include "rpc/commands.h"
#include "rpc/convert.h"
#include "rpc/flags.h"
#include "rpc/generate_output.h"
#include "spdlog/spdlog.h"

namespace metattn {
namespace {

struct Flags {
  ModelOptions model;
  EngineOptions engine;
  GenerateFlags generate;
  bool json = false;
};

// Events cross from the engine's thread to this one, so that a slow terminal never blocks a step.
class EventQueue {
 public:
  void Push(const GenerationEvent& event) {
    {
      std::lock_guard lock(mutex_);
      events_.push_back(event);
    }
    ready_.notify_one();
  }
  GenerationEvent Pop() {
    std::unique_lock lock(mutex_);
    ready_.wait(lock, [this] { return !events_.empty(); });
    GenerationEvent event = std::move(events_.front());
    events_.pop_front();
    return event;
  }

 private:
  std::mutex mutex_;
  std::condition_variable ready_;
  std::deque<GenerationEvent> events_;
};

absl::Status RunRoot(const Flags& flags, Runtime& runtime, const v1::GenerateRequest& wire) {
  for (const std::string& line : runtime.worker->descriptions()) spdlog::info("{}", line);
  EventQueue queue;  // outlives the engine, whose thread fills it
  auto engine = Engine::Create(flags.engine, flags.model, runtime.config, *runtime.worker,
                               *runtime.tokenizer, nullptr);
  if (!engine.ok()) return engine.status();
  const auto served = Describe(runtime, flags.engine, engine->get());
  if (!served.ok()) return served.status();
  auto request = ToEngine(wire, *served);
  if (!request.ok()) return request.status();
  GenerateOutput output(flags.json, std::cout, std::cerr);
  auto id = (*engine)->Submit(*std::move(request),
                              [&queue](const GenerationEvent& event) { queue.Push(event); });
  if (!id.ok()) return id.status();
  for (;;) {
    const GenerationEvent event = queue.Pop();
    v1::GenerateResponse response;
    AppendEvent(event, *runtime.tokenizer, &response);
    output.Add(response);
    if (event.finish == FinishReason::kNone) continue;
    output.End();
    return FinalStatus(event);  // the engine goes here and stops the other ranks
  }
}

}  // namespace

int CommandGenerate(int argc, char** argv) {
  Flags flags;
  flags.engine.max_num_seqs = 1;
  CLI::App app("Continue a prompt with a model, without a server.", "metattn generate");
  AddConfigFlag(app);
  AddModelFlags(app, &flags.model);
  AddEngineFlags(app, &flags.engine);
  AddGenerateFlags(app, &flags.generate);
  AddSwitch(app, "--json", flags.json, "one JSON object on standard output");
  if (auto code = Parse(app, argc, argv)) return *code;
  auto comm = JoinWorld(flags.model);
  StartLogging(comm.ok() ? (*comm)->rank() : 0, comm.ok() ? (*comm)->size() : 1);
  if (!comm.ok()) return Conclude(comm.status(), nullptr);
  absl::StatusOr<v1::GenerateRequest> request = v1::GenerateRequest();
  if ((*comm)->rank() == 0) request = BuildRequest(flags.generate, std::cin);
  if (!request.ok()) return Conclude(request.status(), comm->get());
  auto limits = LimitsForServing(flags.engine, flags.model);
  if (!limits.ok()) return Conclude(limits.status(), comm->get());
  auto runtime = Load(flags.model, *limits, **comm);
  if (!runtime.ok()) return Conclude(runtime.status(), comm->get());
  return Conclude(runtime->root() ? RunRoot(flags, *runtime, *request) : runtime->worker->Serve(),
                  comm->get());
}

}  // namespace metattn
