// metattn: serve, generate, bench, eval, inspect.
#include <array>
#include <cstdio>
#include <exception>
#include <string_view>

#include "rpc/commands.h"
#include "rpc/version.h"

namespace {

struct Command {
  std::string_view name;
  int (*run)(int, char**);
  const char* what;
};

constexpr std::array kCommands = {
    Command{"serve", metattn::CommandServe, "serve a model over gRPC"},
    Command{"generate", metattn::CommandGenerate, "continue a prompt, without a server"},
    Command{"bench", metattn::CommandBench, "time prefill and decode"},
    Command{"eval", metattn::CommandEval, "negative log-likelihood of a text"},
    Command{"inspect", metattn::CommandInspect, "what is in a model file and what it needs"},
};

int Usage(std::FILE* out, int code) {
  std::fputs("usage: metattn COMMAND [FLAGS]   (under mpirun: one process per rank)\n\n", out);
  for (const Command& c : kCommands) {
    std::fprintf(out, "  %-10.*s %s\n", static_cast<int>(c.name.size()), c.name.data(), c.what);
  }
  std::fputs("\nmetattn COMMAND --help lists the flags; metattn --version\n", out);
  return code;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2) return Usage(stderr, 2);
  const std::string_view name = argv[1];
  if (name == "--help" || name == "-h") return Usage(stdout, 0);
  if (name == "--version") return std::puts(metattn::kVersion) < 0;
  for (const Command& command : kCommands) {
    if (command.name != name) continue;
    try {  // only for what libraries throw against their documentation
      return command.run(argc - 1, argv + 1);
    } catch (const std::exception& e) {
      std::fprintf(stderr, "metattn %s: unexpected exception: %s\n", argv[1], e.what());
      return 70;
    }
  }
  std::fprintf(stderr, "metattn: there is no command '%s'\n\n", argv[1]);
  return Usage(stderr, 2);
}
