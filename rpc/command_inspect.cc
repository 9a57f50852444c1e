#include <cstdlib>
#include <iostream>

#include "engine/inspect.h"
#include "rpc/commands.h"
#include "rpc/flags.h"

namespace metattn {

int CommandInspect(int argc, char** argv) {
  InspectOptions options;
  bool tensors = false, json = false;
  CLI::App app("What a model file holds and what serving it needs, per rank.", "metattn inspect");
  AddConfigFlag(app);
  app.add_option("model,--model", options.model, "GGUF file or Hugging Face directory")
      ->envname(EnvironmentName("--model"))
      ->required();
  AddFlag(app, "--ranks", options.ranks, "rank counts to plan for, for example 1,2,4")
      ->delimiter(',')
      ->check(CLI::Range(1, 4096));
  AddFlag(app, "--rank-weights", options.rank_weights,
          "share of each rank, for example 2,1: this plan instead")
      ->delimiter(',');
  AddFlag(app, "--max-model-len", options.transformer.max_context,
          "tokens of prompt and output; 0: the model's own")
      ->check(CLI::Range(0, 1 << 24));
  AddFlag(app, "--max-num-seqs", options.transformer.max_sequences, "sequences of one step")
      ->check(CLI::Range(1, 1 << 16));
  AddFlag(app, "--max-num-batched-tokens", options.transformer.max_batch_tokens,
          "tokens of one step")
      ->check(CLI::Range(1, 1 << 20));
  AddFlag(app, "--controller", options.controller,
          "controller directory: counted in scratch memory and in --device-model; empty: none");
  AddFlag(app, "--device-model", options.device,
          "print the times that a step would take at the peaks of this card (a100, h100, b200): a "
          "model, not a measurement");
  AddFlag(
      app, "--route-shares", options.route_shares,
      "of --device-model: shares of full, linear and local rows, for example .2,.6,.2; default: "
      "the controller's calibration, without one dense only")
      ->delimiter(',');
  AddSwitch(app, "--tensors", tensors, "one line for each tensor as well");
  AddSwitch(app, "--json", json, "one JSON object on standard output");
  if (auto code = Parse(app, argc, argv)) return *code;
  auto report = Inspect(options);
  if (!report.ok()) {
    std::cerr << "metattn inspect: " << std::string(report.status().message()) << std::endl;
    return EXIT_FAILURE;
  }
  std::cout << (json ? ToJson(*report) : ToText(*report, tensors));
  if (json) std::cout << std::endl;
  return std::cout.good() ? EXIT_SUCCESS : EXIT_FAILURE;
}

}  // namespace metattn
