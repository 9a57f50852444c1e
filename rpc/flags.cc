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

const std::map<std::string, Mechanism> kRoutes = {{"full", Mechanism::kFull},
                                                  {"local", Mechanism::kLocal}};

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
  AddFlag(app, "--device", options->device, "cpu (SIMD) or ref (plain loops)")
      ->check(CLI::IsMember({"cpu", "ref"}));
  AddFlag(app, "--cpu-isa", options->isa, "instruction set to use; empty: the best there is");
  AddFlag(app, "--threads", options->threads, "threads of a rank; 0: cores / ranks of this host")
      ->check(CLI::Range(0, 1024));
  AddFlag(app, "--rank-weights", options->rank_weights, "share of each rank, for example 2,1")
      ->delimiter(',');
  AddFlag(app, "--window", options->window, "tokens every row reads exactly, at least")
      ->check(CLI::Range(1, 1 << 20));
  AddFlag(app, "--sinks", options->sinks, "first tokens every row reads exactly")
      ->check(CLI::Range(0, 1 << 20));
  AddSwitch(app, "--deterministic", options->deterministic,
            "bitwise equal results whatever the batch, chunking or prefix reuse (slower)");
  AddFlag(app, "--collective-timeout", options->collective_timeout_s,
          "seconds an exchange between ranks may take before this process ends")
      ->check(CLI::Range(0.1, 86400.0));
}

void AddRouteFlag(CLI::App& app, Mechanism* route) {
  AddFlag(app, "--route", *route, "attention of every token: full or local")
      ->type_name("MECHANISM")
      ->transform(CLI::CheckedTransformer(kRoutes, CLI::ignore_case).description("{full,local}"))
      ->default_str(*route == Mechanism::kLocal ? "local" : "full");
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
  AddFlag(app, "--max-queue", options->max_queue, "requests that may wait; more are refused")
      ->check(CLI::Range(1, 1 << 24));
  AddFlag(app, "--kv-cache-memory", options->kv_cache_bytes,
          "bytes per rank (512MiB, 2GiB, ...); 0: a quarter of what is free")
      ->transform(CLI::AsSizeValue(false));
  app.add_flag_function(
         "--no-prefix-reuse", [options](std::int64_t on) { options->prefix_reuse = on <= 0; },
         "compute every prompt from its start")
      ->envname(EnvironmentName("--no-prefix-reuse"));
  AddRouteFlag(app, &options->route);
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
