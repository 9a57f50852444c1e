// The commands of `metattn`. Each parses its own flags and returns the process's exit code; none
// throws. argv[0] is the command's name.
#pragma once

namespace metattn {

int CommandServe(int argc, char** argv);
int CommandGenerate(int argc, char** argv);
int CommandBench(int argc, char** argv);
int CommandEval(int argc, char** argv);
int CommandInspect(int argc, char** argv);

}  // namespace metattn
