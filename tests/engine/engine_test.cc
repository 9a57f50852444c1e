#include "engine/engine.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <cmath>
#include <limits>
#include <numeric>
#include <thread>

#include "tests/engine/engine_fixture.h"

namespace metattn {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using namespace std::chrono_literals;

TEST_F(EngineTest, AGreedyRequestGetsTheTokensOfItsPromptAlone) {
  Start();
  const GenerationRequest request = Prompt(100, 30);
  Recorder recorder;
  Submit(request, recorder);
  ASSERT_TRUE(recorder.WaitDone());
  EXPECT_EQ(recorder.tokens(), Replay(request, 30, 1));
  const GenerationEvent last = recorder.last();
  EXPECT_TRUE(last.status.ok());
  EXPECT_EQ(last.usage.prompt_tokens, 100);
  EXPECT_EQ(last.usage.generated_tokens, static_cast<int>(recorder.tokens().size()));
  EXPECT_EQ(last.usage.cached_tokens, 0);
  EXPECT_EQ(last.seed, 1u);
  EXPECT_GE(last.timings.time_to_first_token, last.timings.queue);
  EXPECT_GE(last.timings.total, last.timings.time_to_first_token);
  EXPECT_GT(last.timings.total, 0);
  EXPECT_EQ(recorder.violation(), "");
}

TEST_F(EngineTest, GenerationEndsWithLengthAfterMaxTokens) {
  Start();
  GenerationRequest request = Prompt(5, 3);
  request.sampling.ignore_eos = true;
  Recorder recorder;
  Submit(request, recorder);
  ASSERT_TRUE(recorder.WaitDone());
  EXPECT_EQ(recorder.last().finish, FinishReason::kLength);
  EXPECT_EQ(recorder.tokens().size(), 3u);
  for (const auto& event : recorder.events()) EXPECT_EQ(event.tokens.size(), 1u);
}

TEST_F(EngineTest, MaxTokensZeroOrHugeGoesToTheEndOfTheContext) {
  options_.max_model_len = 50;
  Start();
  EXPECT_EQ(engine_->max_context(), 50);
  for (const std::int32_t max_tokens : {0, std::numeric_limits<std::int32_t>::max()}) {
    GenerationRequest request = Prompt(20, max_tokens);
    request.sampling.ignore_eos = true;
    Recorder recorder;
    Submit(request, recorder);
    ASSERT_TRUE(recorder.WaitDone());
    EXPECT_EQ(recorder.last().finish, FinishReason::kLength);
    EXPECT_EQ(recorder.tokens().size(), 30u);
  }
}

TEST_F(EngineTest, MemoryBoundsTheLengthWhereItIsLessThanTheContext) {
  Start(/*blocks=*/2);
  GenerationRequest request = Prompt(100, 0);
  request.sampling.ignore_eos = true;
  Recorder recorder;
  Submit(request, recorder);
  ASSERT_TRUE(recorder.WaitDone());
  EXPECT_EQ(recorder.tokens().size(), 29u);  // 128 positions; the last token takes none
  EXPECT_EQ(recorder.tokens(), Replay(request, 29, 1));
  ExpectRefused(Prompt(129, 1), absl::StatusCode::kResourceExhausted, "--kv-cache-memory");
}

TEST_F(EngineTest, AStopTokenEndsTheGenerationAndItsTextIsNotShown) {
  Start();
  GenerationRequest request = Prompt(10, 200);
  request.sampling.ignore_eos = true;
  const auto all = Replay(request, 5, 1);
  request.sampling.stop_token_ids = {all[3]};
  request.special_tokens = true;
  Recorder recorder;
  Submit(request, recorder);
  ASSERT_TRUE(recorder.WaitDone());
  const GenerationEvent last = recorder.last();
  EXPECT_EQ(last.finish, FinishReason::kStop);
  EXPECT_EQ(last.stop_match, "");
  EXPECT_EQ(recorder.tokens(), Replay(request, 200, 1));
  EXPECT_EQ(recorder.tokens().back(), all[3]);
  StreamDecoder decoder(tokenizer_, true);
  std::string text;
  for (std::size_t i = 0; i + 1 < recorder.tokens().size(); ++i) {
    text += decoder.Push(recorder.tokens()[i]);
  }
  EXPECT_EQ(recorder.text(), text + decoder.Flush());
}

TEST_F(EngineTest, NoStopTokenComesBeforeMinTokens) {
  Start();
  GenerationRequest request = Prompt(10, 100);
  request.sampling.stop_token_ids.resize(200);  // most of the vocabulary ends it
  std::iota(request.sampling.stop_token_ids.begin(), request.sampling.stop_token_ids.end(), 0);
  request.sampling.min_tokens = 40;
  Recorder recorder;
  Submit(request, recorder);
  ASSERT_TRUE(recorder.WaitDone());
  EXPECT_EQ(recorder.last().finish, FinishReason::kStop);
  EXPECT_GT(recorder.tokens().size(), 40u);
  EXPECT_EQ(recorder.tokens(), Replay(request, 100, 1));
}

// Tokens chosen by bias, so that the text is known: `word` ids follow 255.
class EngineTextTest : public EngineTest {
 protected:
  // Generates exactly these ids, by a penalty that makes each come once in the order of its bias.
  GenerationRequest Saying(const std::vector<std::int32_t>& ids) {
    GenerationRequest request = Prompt(5, static_cast<int>(ids.size()));
    double bias = 100.0 + 20.0 * static_cast<double>(ids.size());
    for (const std::int32_t id : ids) request.sampling.logit_bias.push_back({id, bias -= 20});
    request.sampling.presence_penalty = 2;
    request.sampling.repetition_penalty = 1e6;
    return request;
  }
};

TEST_F(EngineTextTest, AStopStringAcrossTokensEndsTheTextBeforeIt) {
  tokenizer_ = ByteTokenizer({"hello", " wor", "ld! STO", "P now", "never"});
  Start();
  GenerationRequest request = Saying({256, 257, 258, 259, 260});
  request.sampling.stop = {"STOP"};
  Recorder recorder;
  Submit(request, recorder);
  ASSERT_TRUE(recorder.WaitDone());
  EXPECT_THAT(recorder.tokens(), ElementsAre(256, 257, 258, 259));
  EXPECT_EQ(recorder.text(), "hello world! ");
  EXPECT_EQ(recorder.last().finish, FinishReason::kStop);
  EXPECT_EQ(recorder.last().stop_match, "STOP");
  const auto events = recorder.events();
  ASSERT_EQ(events.size(), 4u);
  EXPECT_EQ(events[0].text, "hello");  // nothing is held back without need
  EXPECT_EQ(events[2].text, "ld! ");
  EXPECT_EQ(events[3].text, "");
}

TEST_F(EngineTextTest, HeldBackTextComesOutAtTheEnd) {
  tokenizer_ = ByteTokenizer({"a ST", "O"});
  Start();
  GenerationRequest request = Saying({256, 257});
  request.sampling.stop = {"STOP"};
  Recorder recorder;
  Submit(request, recorder);
  ASSERT_TRUE(recorder.WaitDone());
  EXPECT_EQ(recorder.text(), "a STO");
  EXPECT_EQ(recorder.last().finish, FinishReason::kLength);
}

TEST_F(EngineTextTest, CharactersAreNeverCutAndBadBytesAreReplaced) {
  Start();
  // é in two tokens, a stray continuation byte, the beginning of a character at the end.
  GenerationRequest request = Saying({0xc3, 0xa9, 0x80, 0xe2});
  Recorder recorder;
  Submit(request, recorder);
  ASSERT_TRUE(recorder.WaitDone());
  const auto events = recorder.events();
  ASSERT_EQ(events.size(), 4u);
  EXPECT_EQ(events[0].text, "");
  EXPECT_EQ(events[1].text, "é");
  EXPECT_EQ(recorder.text(), "é\xEF\xBF\xBD\xEF\xBF\xBD");
}

TEST_F(EngineTest, EachBadRequestIsRefusedByName) {
  options_.max_model_len = 100;
  Start();
  GenerationRequest request;
  ExpectRefused(request, absl::StatusCode::kInvalidArgument, "prompt is empty");
  ExpectRefused(Prompt(100, 1), absl::StatusCode::kInvalidArgument, "prompt has 100 tokens");
  request = Prompt(5, 1);
  request.prompt[3] = kFakeVocab;
  ExpectRefused(request, absl::StatusCode::kInvalidArgument, "prompt[3]");
  request.prompt[3] = -1;
  ExpectRefused(request, absl::StatusCode::kInvalidArgument, "prompt[3]");
  request = Prompt(5, 1);
  request.wish.route = Route::kLinear;
  ExpectRefused(request, absl::StatusCode::kInvalidArgument, "route");
  request = Prompt(5, 1);
  request.deadline_s = std::nan("");
  ExpectRefused(request, absl::StatusCode::kInvalidArgument, "deadline_s");
  request = Prompt(5, 1);
  request.sampling.temperature = std::nan("");
  ExpectRefused(request, absl::StatusCode::kInvalidArgument, "temperature");
  EXPECT_EQ(worker_->steps, 0);
}

TEST_F(EngineTest, BadOptionsAreRefusedByFlag) {
  const auto refused = [&](const char* flag, const std::function<void(EngineOptions&)>& change) {
    EngineOptions options = options_;
    change(options);
    OracleWorker worker(4, 4, 4);
    const auto engine = Engine::Create(options, {}, config_, worker, tokenizer_, nullptr);
    ASSERT_FALSE(engine.ok()) << flag;
    EXPECT_EQ(engine.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(engine.status().message()), HasSubstr(flag));
  };
  refused("--max-num-seqs", [](EngineOptions& o) { o.max_num_seqs = 0; });
  refused("--max-num-batched-tokens", [](EngineOptions& o) { o.max_num_batched_tokens = -1; });
  refused("--max-queue", [](EngineOptions& o) { o.max_queue = -1; });
  refused("--max-model-len", [](EngineOptions& o) { o.max_model_len = 1025; });
  OracleWorker none(0, 4, 4);
  EXPECT_EQ(Engine::Create(options_, {}, config_, none, tokenizer_, nullptr).status().code(),
            absl::StatusCode::kResourceExhausted);
}

}  // namespace
}  // namespace metattn
