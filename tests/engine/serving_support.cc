#include "tests/engine/serving_support.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <cmath>
#include <future>
#include <map>
#include <random>
#include <utility>

#include "absl/strings/str_format.h"
#include "kernels/cpu/isa.h"
#include "tests/support/tiny_model.h"

namespace metattn::test {
namespace {

// Longer than anything it keeps company.
constexpr std::int32_t kLongAnswer = 600;
constexpr std::int32_t kGap = 4;  // tokens of one request before the next one starts

std::uint32_t Bits(float value) { return std::bit_cast<std::uint32_t>(value); }

bool SameBits(const GeneratedToken& a, const GeneratedToken& b) {
  const auto same = [](const TokenLogprob& x, const TokenLogprob& y) {
    return x.id == y.id && Bits(x.logprob) == Bits(y.logprob);
  };
  return a.id == b.id && a.logprob.has_value() == b.logprob.has_value() &&
         (!a.logprob || Bits(*a.logprob) == Bits(*b.logprob)) &&
         std::equal(a.top.begin(), a.top.end(), b.top.begin(), b.top.end(), same);
}

using Handle = std::shared_ptr<Pending>;

// State of one AmongOthers. Hooks run on the engine's thread; what they need of the requests that
// the test's thread submitted comes through the promise.
struct Company {
  Company(LocalServer& server, const std::vector<GenerationRequest>& requests)
      : server(server), requests(requests), left(requests.size()), handles(requests.size()) {}

  void StartRequest(std::size_t i) {
    const auto tokens = static_cast<std::size_t>(requests[i].sampling.max_tokens);
    handles[i].set_value(server.Submit(requests[i], [this, i, tokens](std::size_t so_far) {
      if (so_far == kGap && i + 1 < requests.size()) StartRequest(i + 1);
      if (so_far == kGap && i == 0) StartLate();
      if (so_far == tokens && --left == 0) EndOthers();
    }));
  }
  void StartLate() {
    late = server.Submit(Sampled(Prompt(902, 150), kLongAnswer, 6));
    if (requests.size() == 1) return;
    brief = server.Submit(Greedy(Prompt(903, 70), kGap));
  }
  void EndOthers() {
    others_ran = !early.get_future().get()->done() && late != nullptr && !late->done();
  }

  LocalServer& server;
  const std::vector<GenerationRequest>& requests;
  std::size_t left;  // engine's thread
  std::promise<Handle> early;
  std::vector<std::promise<Handle>> handles;
  Handle late, brief;       // written by the engine's thread before the last answer ends
  bool others_ran = false;  // likewise
};

}  // namespace

const std::string& ServingModel() {
  struct File {
    std::string path;
    ~File() { unlink(path.c_str()); }
  };
  static const File file = [] {
    TinyModelOptions options;
    options.layers = 3;
    options.hidden = 192;
    options.heads = 9;
    options.kv_heads = 3;
    options.head_dim = 64;
    options.ffn = 320;
    options.vocab = 352;
    options.max_positions = 1024;
    options.dtype = DType::kQ4_1;
    options.seed = 3;
    return File{WriteTinyModel(
        options, absl::StrFormat("%sserving-%d.gguf", ::testing::TempDir(), getpid()))};
  }();
  return file.path;
}

std::vector<std::string> Isas() {
  const auto& names = cpu::AvailableIsas();
  return {kBestIsaOnly && !names.empty() ? names.end() - 1 : names.begin(), names.end()};
}

std::vector<std::int32_t> Prompt(std::uint64_t seed, std::int32_t tokens) {
  std::mt19937_64 random(seed);
  std::vector<std::int32_t> prompt(static_cast<std::size_t>(tokens));
  for (std::int32_t& id : prompt) id = static_cast<std::int32_t>(3 + random() % 256);  // bytes
  return prompt;
}

GenerationRequest Greedy(std::vector<std::int32_t> prompt, std::int32_t tokens) {
  GenerationRequest request;
  request.prompt = std::move(prompt);
  request.sampling.max_tokens = tokens;
  request.sampling.ignore_eos = true;
  request.sampling.logprobs = 5;
  return request;
}

GenerationRequest Sampled(std::vector<std::int32_t> prompt, std::int32_t tokens,
                          std::uint64_t seed) {
  GenerationRequest request = Greedy(std::move(prompt), tokens);
  request.sampling.temperature = 0.9;
  request.sampling.top_k = 100;
  request.sampling.top_p = 0.95;
  request.sampling.repetition_penalty = 1.1;
  request.sampling.seed = seed;
  return request;
}

std::vector<std::int32_t> Continued(const GenerationRequest& request, const Answer& answer) {
  std::vector<std::int32_t> tokens = request.prompt;
  for (const GeneratedToken& token : answer.tokens) tokens.push_back(token.id);
  return tokens;
}

std::unique_ptr<LocalServer> Started(const LocalServerOptions& options) {
  auto server = LocalServer::Start(options);
  EXPECT_TRUE(server.ok()) << server.status();
  return server.ok() ? *std::move(server) : nullptr;
}

std::vector<Answer> AmongOthers(LocalServer& server,
                                const std::vector<GenerationRequest>& requests) {
  Company company(server, requests);
  const Handle early =
      server.Submit(Sampled(Prompt(901, 90), kLongAnswer, 5), [&company](std::size_t so_far) {
        if (so_far == kGap) company.StartRequest(0);
      });
  company.early.set_value(early);
  std::vector<Answer> answers;
  for (auto& handle : company.handles) answers.push_back(handle.get_future().get()->Wait());
  EXPECT_TRUE(company.others_ran) << "the others ended too early to prove anything";
  for (const Handle& other : {early, company.late}) {
    server.engine().Cancel(other->id);
    other->Wait();
  }
  if (company.brief) company.brief->Wait();
  return answers;
}

std::string FirstDifference(const Answer& expected, const Answer& actual) {
  if (actual.last.finish == FinishReason::kNone || !actual.last.status.ok()) {
    return "no answer: " + actual.last.status.ToString();
  }
  if (expected.tokens.size() != actual.tokens.size()) {
    return absl::StrFormat("%d tokens instead of %d", actual.tokens.size(), expected.tokens.size());
  }
  for (std::size_t i = 0; i < expected.tokens.size(); ++i) {
    const GeneratedToken &a = expected.tokens[i], &b = actual.tokens[i];
    if (SameBits(a, b)) continue;
    return absl::StrFormat("step %d: token %d (log-probability %.9g) instead of %d (%.9g)", i, b.id,
                           b.logprob.value_or(NAN), a.id, a.logprob.value_or(NAN));
  }
  if (expected.text != actual.text) return "the same tokens, but another text";
  return expected.last.finish == actual.last.finish ? "" : "another finish reason";
}

std::string Agreement::Describe(double bound) const {
  return absl::StrFormat(
      "%d answers, %d steps compared (%d not bitwise equal), worst log-probability difference "
      "%.3g, bound %.3g; near ties %d, tokens that differ there %d",
      answers, steps, unequal, worst, bound, near_ties, flips);
}

void Compare(const Answer& expected, const Answer& actual, double bound, Agreement& so_far) {
  ++so_far.answers;
  const auto fail = [&](const std::string& what) {
    if (so_far.error.empty()) so_far.error = what;
  };
  if (expected.tokens.size() != actual.tokens.size()) return fail("another number of tokens");
  for (std::size_t i = 0; i < expected.tokens.size(); ++i) {
    const GeneratedToken &a = expected.tokens[i], &b = actual.tokens[i];
    if (a.top.size() < 2 || b.top.size() != a.top.size()) return fail("log-probabilities missing");
    ++so_far.steps;
    so_far.unequal += SameBits(a, b) ? 0 : 1;
    std::map<std::int32_t, float> other;  // near ties may change the order of `top`
    for (const TokenLogprob& t : b.top) other[t.id] = t.logprob;
    for (const TokenLogprob& t : a.top) {
      const auto found = other.find(t.id);
      if (found == other.end()) continue;
      const double difference = std::abs(static_cast<double>(t.logprob) - found->second);
      so_far.worst = std::max(so_far.worst, difference);
      if (difference <= bound) continue;
      fail(absl::StrFormat("step %d, token %d: log-probability %.7g instead of %.7g, bound %.3g", i,
                           t.id, found->second, t.logprob, bound));
    }
    const double gap = static_cast<double>(a.top[0].logprob) - a.top[1].logprob;
    so_far.near_ties += gap < bound ? 1 : 0;
    if (a.id == b.id) continue;
    if (gap >= bound) {
      fail(
          absl::StrFormat("step %d: token %d instead of %d, although the best two lie %.3g apart "
                          "(bound %.3g)",
                          i, b.id, a.id, gap, bound));
    }
    ++so_far.flips;
    return;
  }
}

}  // namespace metattn::test
