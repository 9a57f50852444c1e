// Where the real model (SmolLM2-135M-Instruct as one GGUF file) lies for tests that want it.
// METATTN_TEST_MODEL, else ${METATTN_CACHE:-~/.cache/metattn}/SmolLM2-135M-Instruct.Q4_1.gguf.
#pragma once

#include <string>

namespace metattn::test {

// Empty when there is none: the test then skips with kNoRealModel.
std::string RealModelPath();

inline constexpr char kNoRealModel[] =
    "no real model: set METATTN_TEST_MODEL or run deploy/fetch-model.sh";

}  // namespace metattn::test
