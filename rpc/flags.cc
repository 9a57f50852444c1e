#include "rpc/flags.h"

#include <cctype>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iostream>
#include <iterator>
#include <map>
#include <sstream>
#include <thread>

#include "absl/strings/str_cat.h"
#include "rpc/version.h"

namespace metattn {
namespace {

const std::map<std::string, Route> kRoutes = {{"full", Route::kFull},
                                              {"linear", Route::kLinear},
                                              {"local", Route::kLocal},
                                              {"routed", Route::kRouted}};

// mpirun's number of this process; 0 without mpirun.
bool IsFirstRank() {
  const char* rank = std::getenv("OMPI_COMM_WORLD_RANK");
  return rank == nullptr || std::strcmp(rank, "0") == 0;
}

absl::StatusOr<std::string> ReadPrompt(const GenerateFlags& flags, std::istream& input) {
  if (!flags.prompt.empty() && !flags.prompt_file.empty()) {
    return absl::InvalidArgumentError("give the prompt as an argument or with --prompt-file");
  }
  if (!flags.prompt.empty()) return flags.prompt;
  if (flags.prompt_file.empty() || flags.prompt_file == "-") {
    return std::string(std::istreambuf_iterator<char>(input), {});
  }
  std::ifstream file(flags.prompt_file, std::ios::binary);
  if (!file)
    return absl::NotFoundError(absl::StrCat("--prompt-file: cannot read ", flags.prompt_file));
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

}  // namespace

std::string EnvironmentName(const std::string& flag) {
  std::string name = "METATTN_";
  for (const char c : flag.substr(flag.find_first_not_of('-'))) {
    name += c == '-' ? '_' : static_cast<char>(std::toupper(static_cast<unsigned char>(c)));
  }
  return name;
}

CLI::Option* AddSwitch(CLI::App& app, const std::string& name, bool& value,
                       const std::string& help) {
  return app.add_flag(name, value, help)->envname(EnvironmentName(name));
}

void AddConfigFlag(CLI::App& app) {
  app.set_config("--config", "", "TOML file with flags by their names");
  app.allow_config_extras(CLI::config_extras_mode::error);
  app.set_version_flag("--version", kVersion);
}

void AddModelFlags(CLI::App& app, ModelOptions* options) {
  AddFlag(app, "--model", options->model, "GGUF file or Hugging Face directory")->required();
  AddFlag(app, "--device", options->device,
          "cpu (SIMD), ref (plain loops) or cuda (a GPU for each rank, where it is built in)")
      ->check(CLI::IsMember({"cpu", "ref", "cuda"}));
  AddFlag(app, "--rank-devices", options->rank_devices,
          "GPU of each rank, for example 0,2; default: a rank's number on its host")
      ->delimiter(',');
  AddFlag(app, "--device-memory-fraction", options->device_memory_fraction,
          "part of each GPU's memory that a rank may use, 0 to 1, with --device cuda")
      ->check(CLI::Range(0.01, 1.0));
  AddFlag(app, "--cpu-isa", options->isa, "instruction set to use; empty: the best there is");
  AddFlag(app, "--threads", options->threads, "threads of a rank; 0: cores / ranks of this host")
      ->check(CLI::Range(0, 1024));
  AddFlag(app, "--rank-weights", options->rank_weights,
          "share of each rank, for example 2,1; default: equal, or as --probe-ranks measures")
      ->delimiter(',');
  AddFlag(
      app, "--probe-ranks", options->probe_ranks,
      "true or false: measure at start how fast each rank reads weights, and give it that share; "
      "default: with --device cuda");
  AddSwitch(app, "--attention-helpers", options->attention_helpers,
            "ranks with fewer KV heads than their share read far pages for ranks with more, in "
            "steps of one token a sequence; their pages are stored twice");
  AddFlag(app, "--controller", options->controller,
          "controller directory (controller.json, controller.safetensors); empty: none");
  AddFlag(app, "--window", options->window,
          "tokens every row reads exactly, at least; 0: the controller's, else 256")
      ->check(CLI::Range(0, 1 << 20));
  AddFlag(app, "--sinks", options->sinks,
          "first tokens every row reads exactly; -1: the controller's, else 4")
      ->check(CLI::Range(-1, 1 << 20));
  AddFlag(app, "--record-decisions", options->record_decisions,
          "directory for the decisions of every row, a file per rank; empty: none");
  AddFlag(app, "--replay-decisions", options->replay_decisions,
          "directory of recorded decisions to use instead of the controller's; empty: none");
  AddFlag(app, "--force-share", options->force_share,
          "0 to 1: share of rows that read everything, drawn at random; the others are linear with "
          "--controller, else local")
      ->check(CLI::Range(0.0, 1.0));
  AddFlag(app, "--force-share-seed", options->force_share_seed, "seed of that draw");
  AddSwitch(app, "--deterministic", options->deterministic,
            "bitwise equal results whatever the batch, chunking or prefix reuse (slower)");
  AddFlag(app, "--collective-timeout", options->collective_timeout_s,
          "seconds an exchange between ranks may take before this process ends")
      ->check(CLI::Range(0.1, 86400.0));
}

std::optional<Route> RouteByName(const std::string& name) {
  const auto found = kRoutes.find(name);
  if (found == kRoutes.end()) return std::nullopt;
  return found->second;
}

void AddRouteFlags(CLI::App& app, RouteOptions* route) {
  AddFlag(app, "--route", route->route,
          "attention of every token: full, local, linear or routed (by the controller); default: "
          "routed with --controller, else full")
      ->type_name("ROUTE")
      ->transform(CLI::CheckedTransformer(kRoutes, CLI::ignore_case)
                      .description("{full,linear,local,routed}"));
  AddFlag(app, "--cost-weight", route->cost_weight,
          "lambda >= 0: how much the bytes of a mechanism count; default: the controller's")
      ->check(CLI::Range(0.0, 1e3));
  AddFlag(
      app, "--eta", route->eta,
      "0 to 1: a row as uncertain as this reads everything; 1: never; default: the controller's")
      ->check(CLI::Range(0.0, 1.0));
}

void AddRoutingFlags(CLI::App& app, EngineOptions* options) {
  RoutingChange* routing = &options->routing;
  app.add_option_function<std::vector<Route>>(
         "--allowed-routes",
         [routing](const std::vector<Route>& routes) { routing->allowed_routes = routes; },
         "routes a request may name, for example full,routed; default: all there are")
      ->type_name("ROUTES")
      ->delimiter(',')
      ->transform(CLI::CheckedTransformer(kRoutes, CLI::ignore_case)
                      .description("{full,linear,local,routed}"))
      ->envname(EnvironmentName("--allowed-routes"));
  AddFlag(app, "--min-cost-weight", routing->min_cost_weight,
          "smallest lambda a request may name; default: 0")
      ->check(CLI::Range(0.0, 1e3));
  AddFlag(app, "--max-cost-weight", routing->max_cost_weight,
          "largest lambda a request may name and elastic mode goes to; default: 1000")
      ->check(CLI::Range(0.0, 1e3));
  AddFlag(app, "--min-eta", routing->min_eta, "smallest eta a request may name; default: 0")
      ->check(CLI::Range(0.0, 1.0));
  AddFlag(app, "--max-eta", routing->max_eta, "largest eta a request may name; default: 1")
      ->check(CLI::Range(0.0, 1.0));
  app.add_flag_function(
         "--elastic", [routing](std::int64_t on) { routing->elastic = on > 0; },
         "under load lambda goes up over the controller's levels, and back when load is gone")
      ->envname(EnvironmentName("--elastic"));
  AddFlag(app, "--elastic-queue-wait", routing->queue_wait_s,
          "seconds; a request that waits longer is load; default: 2")
      ->check(CLI::Range(0.001, kMaxTargetSeconds));
  AddFlag(app, "--elastic-inter-token", routing->inter_token_s,
          "seconds between two tokens; more is load; default: 0.25")
      ->check(CLI::Range(0.001, kMaxTargetSeconds));
  AddFlag(app, "--elastic-raise-after", options->elastic_raise_after_s,
          "seconds of load after which lambda goes a level up")
      ->check(CLI::Range(0.0, 86400.0));
  AddFlag(app, "--elastic-lower-after", options->elastic_lower_after_s,
          "seconds without load (half of both targets) after which it goes a level down")
      ->check(CLI::Range(0.0, 86400.0));
}

void AddEngineFlags(CLI::App& app, EngineOptions* options) {
  AddFlag(app, "--served-model-name", options->served_model_name,
          "name for clients; empty: the model's own");
  AddFlag(app, "--max-model-len", options->max_model_len,
          "tokens of prompt and output; 0: the model's own")
      ->check(CLI::Range(0, 1 << 24));
  AddFlag(app, "--max-num-seqs", options->max_num_seqs, "sequences of one step")
      ->check(CLI::Range(1, 1 << 16));
  AddFlag(app, "--max-num-batched-tokens", options->max_num_batched_tokens, "tokens of one step")
      ->check(CLI::Range(1, 1 << 20));
  AddFlag(app, "--linear-state-snapshots", options->state_snapshots,
          "linear attention states kept for prompts that begin alike, with --controller")
      ->check(CLI::Range(0, 1 << 16));
  AddFlag(app, "--max-queue", options->max_queue, "requests that may wait; more are refused")
      ->check(CLI::Range(1, 1 << 24));
  AddFlag(app, "--kv-cache-memory", options->kv_cache_bytes,
          "bytes per rank (512MiB, 2GiB, ...); 0: a quarter of what the host has free, nine tenths "
          "of what a GPU has")
      ->transform(CLI::AsSizeValue(false));
  app.add_flag_function(
         "--no-prefix-reuse", [options](std::int64_t on) { options->prefix_reuse = on <= 0; },
         "compute every prompt from its start")
      ->envname(EnvironmentName("--no-prefix-reuse"));
  AddRouteFlags(app, &options->route);
  AddFlag(app, "--shadow-rate", options->shadow_rate,
          "0 to 1: share of routed decode rows that are also computed in full, for the metric "
          "metattn_shadow_relative_error; 0: off")
      ->check(CLI::Range(0.0, 1.0));
  AddFlag(app, "--chat-template", options->chat_template,
          "name of a built-in template; empty: recognised from the model");
}

void AddGenerateFlags(CLI::App& app, GenerateFlags* f) {
  app.add_option("prompt", f->prompt, "the prompt; without it --prompt-file or standard input");
  AddFlag(app, "--prompt-file", f->prompt_file, "file with the prompt; -: standard input");
  AddSwitch(app, "--chat", f->chat, "the prompt is a user's message (chat template)");
  AddFlag(app, "--system", f->system, "system message, with --chat");
  AddFlag(app, "--temperature", f->temperature, ">= 0; 0: greedy");
  AddFlag(app, "--top-k", f->top_k, "0: off");
  AddFlag(app, "--top-p", f->top_p, "(0, 1]");
  AddFlag(app, "--min-p", f->min_p, "[0, 1]");
  AddFlag(app, "--repetition-penalty", f->repetition_penalty, "> 0; 1: none");
  AddFlag(app, "--presence-penalty", f->presence_penalty, "[-2, 2]");
  AddFlag(app, "--frequency-penalty", f->frequency_penalty, "[-2, 2]");
  AddFlag(app, "--seed", f->seed, "seed of the draws; none: drawn and reported");
  AddFlag(app, "--stop", f->stop, "text that ends the output (repeatable)")
      ->take_all()
      ->expected(1);
  AddFlag(app, "--stop-token-ids", f->stop_token_ids, "token ids that end the output")
      ->delimiter(',');
  AddSwitch(app, "--ignore-eos", f->ignore_eos, "go on past the end-of-text token");
  AddFlag(app, "--max-tokens", f->max_tokens, "tokens; none: to the end of the context");
  AddFlag(app, "--min-tokens", f->min_tokens, "tokens before a stop token may end the output");
  AddFlag(app, "--logprobs", f->logprobs, "log probabilities of the n likeliest, 0 to 20");
  AddFlag(app, "--deadline", f->deadline_s, "seconds after which the request ends");
  AddFlag(app, "--request-id", f->request_id, "for the server's log");
}

absl::StatusOr<v1::GenerateRequest> BuildRequest(const GenerateFlags& f, std::istream& input) {
  auto prompt = ReadPrompt(f, input);
  if (!prompt.ok()) return prompt.status();
  if (prompt->empty()) return absl::InvalidArgumentError("the prompt is empty");
  v1::GenerateRequest request;
  request.set_model(f.model);
  if (f.chat) {
    auto add = [&](const char* role, const std::string& content) {
      v1::ChatMessage* message = request.mutable_chat()->add_messages();
      message->set_role(role);
      message->set_content(content);
    };
    if (!f.system.empty()) add("system", f.system);
    add("user", *prompt);
  } else {
    request.set_text(*prompt);
  }
  v1::SamplingParams* s = request.mutable_sampling();
  if (f.temperature) s->set_temperature(*f.temperature);
  if (f.top_k) s->set_top_k(*f.top_k);
  if (f.top_p) s->set_top_p(*f.top_p);
  if (f.min_p) s->set_min_p(*f.min_p);
  if (f.repetition_penalty) s->set_repetition_penalty(*f.repetition_penalty);
  if (f.presence_penalty) s->set_presence_penalty(*f.presence_penalty);
  if (f.frequency_penalty) s->set_frequency_penalty(*f.frequency_penalty);
  if (f.seed) s->set_seed(*f.seed);
  for (const std::string& stop : f.stop) s->add_stop(stop);
  for (const int id : f.stop_token_ids) s->add_stop_token_ids(id);
  if (f.ignore_eos) s->set_ignore_eos(true);
  if (f.max_tokens) s->set_max_tokens(*f.max_tokens);
  if (f.min_tokens) s->set_min_tokens(*f.min_tokens);
  if (f.logprobs) s->set_logprobs(*f.logprobs);
  if (f.route == "full") request.set_route(v1::ROUTE_FULL);
  if (f.route == "local") request.set_route(v1::ROUTE_LOCAL);
  if (f.route == "linear") request.set_route(v1::ROUTE_LINEAR);
  if (f.route == "routed") request.set_route(v1::ROUTE_ROUTED);
  if (f.cost_weight) request.set_cost_weight(*f.cost_weight);
  if (f.eta) request.set_eta(*f.eta);
  request.set_priority(f.priority);
  if (f.deadline_s) request.set_deadline_seconds(*f.deadline_s);
  request.set_request_id(f.request_id);
  return request;
}

std::optional<int> Parse(CLI::App& app, int argc, char** argv) {
  try {  // the library reports by exceptions; they end here
    app.parse(argc, argv);
    return std::nullopt;
  } catch (const CLI::ParseError& error) {
    if (!IsFirstRank()) {
      // mpirun ends the others when the first one fails: rank 0 must have said why by then.
      std::this_thread::sleep_for(std::chrono::seconds(1));
      return error.get_exit_code();
    }
    return app.exit(error, std::cout, std::cerr);
  }
}

}  // namespace metattn
