#include <cstdlib>
#include <fstream>
#include <iostream>
#include <sstream>

#include "absl/strings/str_cat.h"
#include "engine/bench.h"
#include "rpc/bench_text.h"
#include "rpc/bring_up.h"
#include "rpc/commands.h"
#include "rpc/flags.h"
#include "spdlog/spdlog.h"

namespace metattn {
namespace {

struct Flags {
  ModelOptions model;
  RouteOptions route;
  std::string against;
  BenchOptions bench;
  std::string text;
  std::int64_t kv_cache_bytes = 0;
  bool json = false;
};

void AddFlags(CLI::App& app, Flags* f) {
  AddModelFlags(app, &f->model);
  AddRouteFlags(app, &f->route);
  AddFlag(app, "--against", f->against,
          "route to time in turn with --route on its own K/V, for example full; empty: none")
      ->check(CLI::IsMember({"", "full", "linear", "local", "routed"}));
  AddFlag(app, "--prompt-tokens", f->bench.prompt_tokens, "tokens of the timed prefill; 0: none")
      ->check(CLI::Range(0, 1 << 24));
  AddFlag(app, "--decode-tokens", f->bench.decode_tokens, "timed decode steps; 0: none")
      ->check(CLI::Range(0, 1 << 24));
  AddFlag(app, "--context", f->bench.context, "tokens cached before the timed decode")
      ->check(CLI::Range(0, 1 << 24));
  AddFlag(app, "--sequences", f->bench.sequences, "sequences at once")
      ->check(CLI::Range(1, 1 << 16));
  AddFlag(app, "--repeats", f->bench.repeats, "timed runs")->check(CLI::Range(1, 1000));
  AddFlag(app, "--max-num-batched-tokens", f->bench.rows_per_step, "tokens of one prefill step")
      ->check(CLI::Range(1, 1 << 20));
  AddFlag(app, "--text", f->text, "file with the text to read; empty: a text of our own");
  AddFlag(app, "--kv-cache-memory", f->kv_cache_bytes,
          "bytes per rank; 0: a quarter of the host's free memory, nine tenths of a GPU's")
      ->transform(CLI::AsSizeValue(false));
  AddSwitch(app, "--json", f->json, "one JSON object on standard output");
}

absl::StatusOr<std::vector<std::int32_t>> BenchText(const Flags& flags,
                                                    const Tokenizer& tokenizer) {
  std::string text(kBenchText);
  if (!flags.text.empty()) {
    std::ifstream file(flags.text, std::ios::binary);
    if (!file) return absl::NotFoundError(absl::StrCat("--text: cannot read ", flags.text));
    std::ostringstream all;
    all << file.rdbuf();
    text = all.str();
  }
  return tokenizer.Encode(text, EncodeOptions{.add_special = false});
}

void Print(const std::string& label, const BenchTimings& t) {
  std::cout << label << "prefill " << t.prefill_tokens_per_s << " tokens/s, decode "
            << t.decode_tokens_per_s << " tokens/s, step p50 " << t.decode_step_p50_ms
            << " ms, p99 " << t.decode_step_p99_ms << " ms, attention " << t.decode_attention_ms
            << " ms, controller " << t.decode_controller_ms << " ms\n";
}

absl::Status RunRoot(const Flags& flags, Runtime& runtime) {
  for (const std::string& line : runtime.worker->descriptions()) spdlog::info("{}", line);
  auto text = BenchText(flags, *runtime.tokenizer);
  if (!text.ok()) return text.status();
  BenchOptions options = flags.bench;
  auto policy = ResolvePolicy(flags.route, runtime.worker->controller());
  if (!policy.ok()) return policy.status();
  options.policy = *policy;
  if (!flags.against.empty()) {
    if (flags.model.force_share || !flags.model.replay_decisions.empty()) {
      return absl::InvalidArgumentError(
          "--against: --force-share and --replay-decisions would "
          "decide for both");
    }
    auto baseline =
        ResolvePolicy({.route = RouteByName(flags.against)}, runtime.worker->controller());
    if (!baseline.ok()) return baseline.status();
    options.baseline = *baseline;
  }
  options.progress = [](const std::string& line) { spdlog::info("{}", line); };
  auto report = RunBench(*runtime.worker, *text, options);
  if (!report.ok()) return report.status();
  if (flags.json) {
    std::cout << ToJson(*report) << std::endl;
  } else {
    Print("", report->timings);
    if (report->baseline) Print(flags.against + ": ", *report->baseline);
    std::cout << report->ranks << " rank(s) x " << report->threads_per_rank << " thread(s), "
              << report->isa << std::endl;
  }
  return runtime.worker->Stop();
}

}  // namespace

int CommandBench(int argc, char** argv) {
  Flags flags;
  CLI::App app("Time prefill and decode of a model on this machine.", "metattn bench");
  AddConfigFlag(app);
  AddFlags(app, &flags);
  if (auto code = Parse(app, argc, argv)) return *code;
  auto comm = JoinWorld(flags.model);
  StartLogging(comm.ok() ? (*comm)->rank() : 0, comm.ok() ? (*comm)->size() : 1);
  if (!comm.ok()) return Conclude(comm.status(), nullptr);
  if (!flags.against.empty()) flags.bench.baseline.emplace();  // room for its K/V
  WorkerLimits limits = LimitsForBench(flags.bench);
  limits.kv_cache_bytes = flags.kv_cache_bytes;
  auto runtime = Load(flags.model, limits, **comm);
  if (!runtime.ok()) return Conclude(runtime.status(), comm->get());
  return Conclude(runtime->root() ? RunRoot(flags, *runtime) : runtime->worker->Serve(),
                  comm->get());
}

}  // namespace metattn
