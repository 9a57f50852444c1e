// What the tests of the real engine share: a small model, requests, company for them, and judges of
// answers.
//
// The model has what the paths under test need: 3 KV heads (uneven on 2 ranks, none left for the
// fourth of 4), heads of 64, quantised matrices, a window of 64 against prompts of 300 tokens, so
// that near and far attention, whole and partial blocks take part.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "engine/request.h"
#include "tests/support/local_server.h"

namespace metattn::test {

inline constexpr std::int32_t kPromptTokens = 300;  // 4 whole blocks and a part
inline constexpr std::int32_t kAnswerTokens = 40;   // across the border of the next block

// The file; written once per process and removed at its end.
const std::string& ServingModel();
// Under sanitizers everything is ten times slower, and instruction sets add nothing to it.
#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
inline constexpr bool kBestIsaOnly = true;
#else
inline constexpr bool kBestIsaOnly = false;
#endif
// Level names of this machine's cpu backend, best last; the best one only where that says so.
std::vector<std::string> Isas();

std::vector<std::int32_t> Prompt(std::uint64_t seed, std::int32_t tokens = kPromptTokens);
// Both ask for five log-probabilities a step and never stop early.
GenerationRequest Greedy(std::vector<std::int32_t> prompt, std::int32_t tokens = kAnswerTokens);
GenerationRequest Sampled(std::vector<std::int32_t> prompt, std::int32_t tokens = kAnswerTokens,
                          std::uint64_t seed = 77);
// Prompt and answer as one sequence.
std::vector<std::int32_t> Continued(const GenerationRequest& request, const Answer& answer);

// Fails the test if it cannot start.
std::unique_ptr<LocalServer> Started(const LocalServerOptions& options);

// The answers to `requests`, which run among others: one that runs before the first of them starts,
// and one that starts in their midst; both run until the last of `requests` has its last token (a
// failure, if not). Each of `requests` starts some steps after the one before.
std::vector<Answer> AmongOthers(LocalServer& server,
                                const std::vector<GenerationRequest>& requests);

// Empty when both have the same tokens, text and end, and the same log-probabilities bit for bit.
std::string FirstDifference(const Answer& expected, const Answer& actual);

// Greedy answers that may differ by rounding.
struct Agreement {
  int answers = 0;
  int steps = 0;      // compared
  int unequal = 0;    // of these: log-probabilities not bitwise equal
  int near_ties = 0;  // of these: the two best logits lie closer than the bound
  int flips = 0;  // near ties where the tokens differ; the rest of such an answer is not compared
  double worst = 0;   // largest difference of a log-probability
  std::string error;  // the first difference that the bound does not allow
  std::string Describe(double bound) const;
};
void Compare(const Answer& expected, const Answer& actual, double bound, Agreement& so_far);

}  // namespace metattn::test
