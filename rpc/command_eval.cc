#include <cstdlib>
#include <fstream>
#include <iostream>
#include <sstream>

#include "absl/strings/str_cat.h"
#include "engine/eval.h"
#include "rpc/bring_up.h"
#include "rpc/commands.h"
#include "rpc/flags.h"
#include "spdlog/spdlog.h"

namespace metattn {
namespace {

struct Flags {
  ModelOptions model;
  RouteOptions route;
  EvalOptions eval;
  std::string text;
  std::int64_t kv_cache_bytes = 0;
  bool json = false;
};

void AddFlags(CLI::App& app, Flags* f) {
  AddModelFlags(app, &f->model);
  AddRouteFlags(app, &f->route);
  AddFlag(app, "--text", f->text, "file with the text to predict")->required();
  AddFlag(app, "--context", f->eval.context, "tokens of a window")->check(CLI::Range(2, 1 << 24));
  AddFlag(app, "--max-tokens", f->eval.max_tokens, "tokens of the text to use; 0: all");
  AddFlag(app, "--max-num-batched-tokens", f->eval.rows_per_step, "tokens of one step")
      ->check(CLI::Range(1, 1 << 20));
  AddFlag(app, "--kv-cache-memory", f->kv_cache_bytes,
          "bytes per rank; 0: a quarter of the host's free memory, nine tenths of a GPU's")
      ->transform(CLI::AsSizeValue(false));
  AddSwitch(app, "--json", f->json, "one JSON object on standard output");
}

absl::Status RunRoot(const Flags& flags, Runtime& runtime) {
  std::ifstream file(flags.text, std::ios::binary);
  if (!file) return absl::NotFoundError(absl::StrCat("--text: cannot read ", flags.text));
  std::ostringstream text;
  text << file.rdbuf();
  auto tokens = runtime.tokenizer->Encode(text.str(), EncodeOptions{.add_special = false});
  if (!tokens.ok()) {
    return absl::Status(tokens.status().code(),
                        absl::StrCat("--text ", flags.text, ": ", tokens.status().message()));
  }
  EvalOptions options = flags.eval;
  auto policy = ResolvePolicy(flags.route, runtime.worker->controller());
  if (!policy.ok()) return policy.status();
  options.policy = *policy;
  options.progress = [](std::int64_t done, std::int64_t windows) {
    spdlog::info("window {} of {}", done, windows);
  };
  auto report = Evaluate(*runtime.worker, *tokens, options);
  if (!report.ok()) return report.status();
  if (flags.json) {
    std::cout << ToJson(*report) << std::endl;
  } else {
    std::cout << "nll " << report->nll << " nats per token over " << report->predictions
              << " predictions in " << report->windows << " window(s)" << std::endl;
  }
  return runtime.worker->Stop();
}

}  // namespace

int CommandEval(int argc, char** argv) {
  Flags flags;
  CLI::App app("Negative log-likelihood of a text and what attention read for it.", "metattn eval");
  AddConfigFlag(app);
  AddFlags(app, &flags);
  if (auto code = Parse(app, argc, argv)) return *code;
  auto comm = JoinWorld(flags.model);
  StartLogging(comm.ok() ? (*comm)->rank() : 0, comm.ok() ? (*comm)->size() : 1);
  if (!comm.ok()) return Conclude(comm.status(), nullptr);
  WorkerLimits limits = LimitsForEval(flags.eval);
  limits.kv_cache_bytes = flags.kv_cache_bytes;
  auto runtime = Load(flags.model, limits, **comm);
  if (!runtime.ok()) return Conclude(runtime.status(), comm->get());
  return Conclude(runtime->root() ? RunRoot(flags, *runtime) : runtime->worker->Serve(),
                  comm->get());
}

}  // namespace metattn
