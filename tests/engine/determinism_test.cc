// The promise of --deterministic: for a given rank count and instruction set, an answer's tokens
// and log-probabilities are the same bits whatever else runs, however prompts are cut, whatever is
// reused or recomputed, and after a restart. The real engine over the real model code.
#include <gtest/gtest.h>

#include <future>
#include <ostream>

#include "tests/engine/serving_support.h"

namespace metattn::test {
namespace {

struct Place {
  int ranks = 1;
  std::string isa;
  int threads = 1;
};

std::ostream& operator<<(std::ostream& out, const Place& p) {
  return out << p.ranks << " ranks, " << p.threads << " threads, " << p.isa;
}

std::vector<Place> Places() {
  const std::vector<std::string> isas = Isas();
  std::vector<Place> places;
  for (int ranks = 1; ranks <= (kBestIsaOnly ? 2 : 3); ++ranks)
    places.push_back({ranks, isas.empty() ? "" : isas.back(), 1});
  for (std::size_t i = 0; i + 1 < isas.size(); ++i) places.push_back({1, isas[i], 2});
  return places;
}

class Deterministic : public ::testing::TestWithParam<Place> {
 protected:
  Deterministic() {
    options_.model = ServingModel();
    options_.ranks = GetParam().ranks;
    options_.isa = GetParam().isa;
    options_.threads = GetParam().threads;
    options_.deterministic = true;
    options_.prefix_reuse = false;
  }

  // Each request alone on a server of its own kind.
  std::vector<Answer> Alone(const LocalServerOptions& options) {
    std::vector<Answer> answers;
    const auto server = Started(options);
    for (const GenerationRequest& r : requests_) answers.push_back(server->Generate(r));
    EXPECT_TRUE(server->End().ok());
    return answers;
  }

  void ExpectSame(const std::vector<Answer>& expected, const std::vector<Answer>& actual) {
    ASSERT_EQ(expected.size(), actual.size());
    for (std::size_t i = 0; i < expected.size(); ++i) {
      EXPECT_EQ(FirstDifference(expected[i], actual[i]), "") << "request " << i;
    }
  }

  // Whatever cannot go on is recomputed: the answer to `request` where K/V memory holds 8 blocks
  // and one that came first needs more and more of them.
  Answer SqueezedOut(LocalServer& server, const GenerationRequest& request) {
    std::promise<std::shared_ptr<Pending>> started;
    const auto first = server.Submit(Greedy(Prompt(31, 120), 200), [&](std::size_t so_far) {
      if (so_far == 1) started.set_value(server.Submit(request));
    });
    Answer answer = started.get_future().get()->Wait();
    first->Wait();
    return answer;
  }

  // The same, pushed aside by a more urgent request.
  Answer PushedAside(LocalServer& server, const GenerationRequest& request) {
    GenerationRequest urgent = Greedy(Prompt(32, 250), 30);
    urgent.priority = -1;
    std::promise<std::shared_ptr<Pending>> started;
    Answer answer = server
                        .Submit(request,
                                [&](std::size_t so_far) {
                                  if (so_far == 10) started.set_value(server.Submit(urgent));
                                })
                        ->Wait();
    started.get_future().get()->Wait();
    return answer;
  }

  LocalServerOptions options_;
  const std::vector<GenerationRequest> requests_ = {Greedy(Prompt(1)), Sampled(Prompt(2, 283))};
};

TEST_P(Deterministic, AnswersDoNotDependOnTheBatchOrTheChunks) {
  const std::vector<Answer> expected = Alone(options_);
  for (int budget : {16, 64, 512}) {
    SCOPED_TRACE("max_num_batched_tokens " + std::to_string(budget));
    options_.max_num_batched_tokens = budget;
    ExpectSame(expected, Alone(options_));
    const auto server = Started(options_);
    ExpectSame(expected, AmongOthers(*server, requests_));
  }
}

TEST_P(Deterministic, AnswersDoNotDependOnReusedBlocks) {
  const std::vector<Answer> expected = Alone(options_);
  options_.prefix_reuse = true;
  const auto server = Started(options_);
  std::vector<std::int32_t> sibling = requests_[0].prompt;
  sibling.resize(150);
  server->Generate(Greedy(sibling, 5));
  std::vector<Answer> answers = {server->Generate(requests_[0]), server->Generate(requests_[1])};
  EXPECT_EQ(answers[0].last.usage.cached_tokens, 128);
  EXPECT_EQ(answers[1].last.usage.cached_tokens, 0);
  ExpectSame(expected, answers);

  answers = {server->Generate(requests_[0]), server->Generate(requests_[1])};
  for (const Answer& a : answers) EXPECT_EQ(a.last.usage.cached_tokens, 256);
  ExpectSame(expected, answers);

  answers = AmongOthers(*server, requests_);
  for (const Answer& a : answers) EXPECT_EQ(a.last.usage.cached_tokens, 256);
  ExpectSame(expected, answers);
}

TEST_P(Deterministic, BlocksFilledByDecodingEqualThoseOfPrefill) {
  const std::vector<Answer> first = Alone(options_);
  const GenerationRequest next = Greedy(Continued(requests_[0], first[0]));
  options_.prefix_reuse = true;
  const auto fresh = Started(options_);
  const Answer expected = fresh->Generate(next);
  EXPECT_EQ(expected.last.usage.cached_tokens, 0);

  const auto used = Started(options_);
  used->Generate(requests_[0]);
  const Answer actual = used->Generate(next);
  EXPECT_EQ(actual.last.usage.cached_tokens, 320);  // the last block is the answer's
  EXPECT_EQ(FirstDifference(expected, actual), "");
}

TEST_P(Deterministic, AnswersAreTheSameAfterARestart) {
  const std::vector<Answer> expected = Alone(options_);
  for (int restart = 0; restart < 2; ++restart) {
    const auto server = Started(options_);
    server->Generate(Sampled(Prompt(40 + restart, 33), 3));  // another past
    ExpectSame(expected, {server->Generate(requests_[0]), server->Generate(requests_[1])});
    EXPECT_TRUE(server->End().ok());
  }
}

TEST_P(Deterministic, AnswersAreTheSameAfterPreemption) {
  const std::vector<Answer> expected = Alone(options_);
  options_.blocks = 8;
  for (bool reuse : {false, true}) {
    SCOPED_TRACE(reuse ? "with prefix reuse" : "without prefix reuse");
    options_.prefix_reuse = reuse;
    for (std::size_t i = 0; i < requests_.size(); ++i) {
      const auto server = Started(options_);
      for (const Answer& answer :
           {SqueezedOut(*server, requests_[i]), PushedAside(*server, requests_[i])}) {
        EXPECT_GT(answer.last.usage.preemptions, 0);
        EXPECT_EQ(FirstDifference(expected[i], answer), "") << "request " << i;
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Places, Deterministic, ::testing::ValuesIn(Places()),
                         [](const auto& info) {
                           return "ranks" + std::to_string(info.param.ranks) + "_threads" +
                                  std::to_string(info.param.threads) + "_" + info.param.isa;
                         });

}  // namespace
}  // namespace metattn::test
