// metattnctl: a client of a running server. No MPI, no engine.
#include <array>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <iostream>
#include <string_view>

#include "rpc/client.h"
#include "rpc/ctl_command.h"
#include "rpc/flags.h"
#include "rpc/generate_output.h"
#include "rpc/version.h"

namespace metattn {
namespace {

constexpr int kExitNotServing = 3;

void PrintJob(const v1::Job& job, bool json) {
  if (json) {
    std::cout << ToJson(job) << std::endl;
    return;
  }
  std::cout << job.id() << " " << v1::JobState_Name(job.state()) << " " << job.token_ids_size()
            << " tokens";
  if (!job.error().empty()) std::cout << " " << job.error();
  std::cout << std::endl;
}

void AddRequestFlags(CLI::App& app, GenerateFlags* flags) {
  AddGenerateFlags(app, flags);
  // Its twin would be METATTN_MODEL, the server's file: this is a name.
  app.add_option("--model", flags->model, "name of the model; empty: the one that is served")
      ->envname("METATTN_MODEL_NAME");
  AddFlag(app, "--route", flags->route,
          "attention of every token: full, local, linear or routed (by the server's controller); "
          "default: the server's")
      ->check(CLI::IsMember({"full", "local", "linear", "routed"}));
  AddFlag(app, "--cost-weight", flags->cost_weight,
          "lambda >= 0, of routed: more lambda, fewer bytes; default: the server's");
  AddFlag(app, "--eta", flags->eta,
          "0 to 1, of routed: a row as uncertain as this reads everything, at 1 none; default: the "
          "server's");
  AddFlag(app, "--priority", flags->priority, "lower is served first");
}

int Generate(int argc, char** argv) {
  Common common;
  GenerateFlags flags;
  CLI::App app("Continue a prompt; the text comes while it is made.", "metattnctl generate");
  AddCommon(app, &common);
  AddRequestFlags(app, &flags);
  if (auto code = Parse(app, argc, argv)) return *code;
  auto request = BuildRequest(flags, std::cin);
  if (!request.ok()) return Report(request.status());
  GenerateOutput output(common.json, std::cout, std::cerr);
  const absl::Status status =
      Client::Connect(common.server)->Generate(*request, [&](const v1::GenerateResponse& response) {
        output.Add(response);
        return std::cout.good();  // a reader that went away (a closed pipe) ends the request
      });
  if (status.ok()) output.End();
  return Report(status);
}

int Submit(int argc, char** argv) {
  Common common;
  GenerateFlags flags;
  std::string key;
  CLI::App app("Store a job; it runs whoever watches.", "metattnctl submit");
  AddCommon(app, &common);
  AddRequestFlags(app, &flags);
  AddFlag(app, "--idempotency-key", key, "the same key and request give the same job");
  if (auto code = Parse(app, argc, argv)) return *code;
  auto request = BuildRequest(flags, std::cin);
  if (!request.ok()) return Report(request.status());
  v1::SubmitJobRequest submit;
  *submit.mutable_request() = *std::move(request);
  submit.set_idempotency_key(key);
  auto job = Client::Connect(common.server)->Submit(submit);
  if (!job.ok()) return Report(job.status());
  PrintJob(*job, common.json);
  return EXIT_SUCCESS;
}

int Watch(int argc, char** argv) {
  Common common;
  v1::WatchJobRequest request;
  std::string id;
  std::int64_t offset = 0;
  CLI::App app("Print a job's text as it comes, until it ends.", "metattnctl watch");
  AddCommon(app, &common);
  app.add_option("job", id, "id of the job")->required();
  AddFlag(app, "--offset", offset, "tokens already seen");
  if (auto code = Parse(app, argc, argv)) return *code;
  request.set_id(id);
  request.set_offset(offset);
  v1::Job last;
  const absl::Status status =
      Client::Connect(common.server)->WatchJob(request, [&](const v1::WatchJobResponse& response) {
        if (!common.json) std::cout << response.text() << std::flush;
        if (response.has_job()) last = response.job();
        return std::cout.good();
      });
  if (!status.ok()) return Report(status);
  if (common.json) {
    std::cout << ToJson(last) << std::endl;
  } else {
    std::cout << std::endl;
    std::cerr << "[" << v1::JobState_Name(last.state()) << ", " << last.token_ids_size()
              << " tokens" << (last.error().empty() ? "" : ", ") << last.error() << "]"
              << std::endl;
  }
  return last.state() == v1::JOB_STATE_SUCCEEDED ? EXIT_SUCCESS : EXIT_FAILURE;
}

int GetOrCancel(int argc, char** argv, bool cancel) {
  Common common;
  std::string id;
  CLI::App app(cancel ? "End a job." : "Show a job.",
               cancel ? "metattnctl cancel" : "metattnctl get");
  AddCommon(app, &common);
  app.add_option("job", id, "id of the job")->required();
  if (auto code = Parse(app, argc, argv)) return *code;
  auto client = Client::Connect(common.server);
  auto job = cancel ? client->CancelJob(id) : client->GetJob(id);
  if (!job.ok()) return Report(job.status());
  PrintJob(*job, common.json);
  if (!cancel && !common.json) std::cout << job->text() << std::endl;
  return EXIT_SUCCESS;
}
int Get(int argc, char** argv) { return GetOrCancel(argc, argv, false); }
int Cancel(int argc, char** argv) { return GetOrCancel(argc, argv, true); }

int Health(int argc, char** argv) {
  Common common;
  double timeout_s = 5;
  std::string service;
  CLI::App app(
      "Exit code 0: serving. 3: alive but not serving (loading, draining, wedged). 1: not "
      "reached.",
      "metattnctl health");
  AddCommon(app, &common);
  AddFlag(app, "--timeout", timeout_s, "seconds")->check(CLI::Range(0.1, 3600.0));
  AddFlag(app, "--service", service, "service to ask for; empty: the whole server");
  if (auto code = Parse(app, argc, argv)) return *code;
  auto status = Client::Connect(common.server)->Health(service, timeout_s);
  if (!status.ok()) return Report(status.status());
  if (common.json) {
    std::cout << "{\"status\": \"" << *status << "\"}" << std::endl;
  } else {
    std::cout << *status << std::endl;
  }
  return *status == "SERVING" ? EXIT_SUCCESS : kExitNotServing;
}

struct Command {
  std::string_view name;
  int (*run)(int, char**);
  const char* what;
};

constexpr std::array kCommands = {
    Command{"generate", Generate, "continue a prompt"},
    Command{"submit", Submit, "store a job"},
    Command{"watch", Watch, "follow a job"},
    Command{"get", Get, "show a job"},
    Command{"cancel", Cancel, "end a job"},
    Command{"routing", CommandRouting, "show (get) or change (set) the server's routing"},
    Command{"health", Health, "whether the server serves"},
};

int Usage(std::FILE* out, int code) {
  std::fputs("usage: metattnctl COMMAND [FLAGS]\n\n", out);
  for (const Command& c : kCommands) {
    std::fprintf(out, "  %-10.*s %s\n", static_cast<int>(c.name.size()), c.name.data(), c.what);
  }
  std::fputs("\nmetattnctl COMMAND --help lists the flags; metattnctl --version\n", out);
  return code;
}

int Main(int argc, char** argv) {
  if (argc < 2) return Usage(stderr, 2);
  const std::string_view name = argv[1];
  if (name == "--help" || name == "-h") return Usage(stdout, 0);
  if (name == "--version") return std::puts(kVersion) < 0;
  std::signal(SIGPIPE, SIG_IGN);  // a closed pipe is a failed write
  for (const Command& command : kCommands) {
    if (command.name == name) return command.run(argc - 1, argv + 1);
  }
  std::fprintf(stderr, "metattnctl: there is no command '%s'\n\n", argv[1]);
  return Usage(stderr, 2);
}

}  // namespace
}  // namespace metattn

int main(int argc, char** argv) {
  try {  // only for what libraries throw against their documentation
    return metattn::Main(argc, argv);
  } catch (const std::exception& e) {
    std::fprintf(stderr, "metattnctl: unexpected exception: %s\n", e.what());
    return 70;
  }
}
