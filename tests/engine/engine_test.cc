#include "engine/engine.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <cmath>
#include <limits>
#include <numeric>
#include <thread>

#include "tests/engine/engine_fakes.h"

namespace metattn {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using namespace std::chrono_literals;

class CountingObserver final : public EngineObserver {
 public:
  void OnStep(std::span<const StepResult> per_rank, int rows) override {
    ++steps, this->rows += rows, ranks = static_cast<int>(per_rank.size());
  }
  void OnFirstToken(double) override { ++first_tokens; }
  void OnInterToken(double) override { ++inter_tokens; }
  void OnPreemption() override { ++preemptions; }
  void OnFinish(const GenerationEvent& last) override {
    ++finished;
    usage_preemptions += last.usage.preemptions;
  }
  int steps = 0, rows = 0, ranks = 0, first_tokens = 0, inter_tokens = 0, preemptions = 0,
      finished = 0, usage_preemptions = 0;
};

class EngineTest : public testing::Test {
 protected:
  EngineTest() {
    options_.max_num_seqs = 8;
    options_.max_num_batched_tokens = 128;
    config_.name = "fake";
    config_.vocab = kFakeVocab;
    config_.max_positions = 1024;
  }

  void Start(std::int64_t blocks = 64) {
    worker_ = std::make_unique<OracleWorker>(blocks, options_.max_num_seqs,
                                             options_.max_num_batched_tokens);
    auto engine = Engine::Create(options_, {}, config_, *worker_, tokenizer_, &observer_);
    ASSERT_TRUE(engine.ok()) << engine.status();
    engine_ = *std::move(engine);
  }

  void TearDown() override {
    engine_.reset();
    if (worker_) {
      EXPECT_EQ(worker_->error, "");
    }
  }

  static GenerationRequest Prompt(int tokens, int max_tokens, int first = 0) {
    GenerationRequest request;
    for (int i = 0; i < tokens; ++i) request.prompt.push_back((first + i * 7) % 256);
    request.sampling.max_tokens = max_tokens;
    request.sampling.seed = 1;
    return request;
  }

  std::uint64_t Submit(const GenerationRequest& request, Recorder& recorder) {
    const auto id = engine_->Submit(request, recorder.Sink());
    EXPECT_TRUE(id.ok()) << id.status();
    return id.ok() ? *id : 0;
  }

  absl::Status Refusal(const GenerationRequest& request) {
    return engine_->Submit(request, [](const GenerationEvent&) {}).status();
  }

  void ExpectRefused(const GenerationRequest& request, absl::StatusCode code, const char* names) {
    const absl::Status status = Refusal(request);
    EXPECT_EQ(status.code(), code) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(names));
  }

  void WaitFor(const std::function<bool()>& condition) {
    for (int i = 0; i < 10000 && !condition(); ++i) std::this_thread::sleep_for(1ms);
    EXPECT_TRUE(condition());
  }

  EngineOptions options_;
  ModelConfig config_;
  ByteTokenizer tokenizer_;
  CountingObserver observer_;
  std::unique_ptr<OracleWorker> worker_;
  std::unique_ptr<Engine> engine_;
};

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
  request.route = Mechanism::kLinear;
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

TEST_F(EngineTest, AFullQueueRefusesAndTakesAgainWhenThereIsRoom) {
  options_.max_num_seqs = 1;
  options_.max_queue = 2;
  Start();
  worker_->CloseGate();
  std::vector<Recorder> recorders(3);
  for (Recorder& r : recorders) Submit(Prompt(5, 3), r);
  ExpectRefused(Prompt(5, 3), absl::StatusCode::kResourceExhausted, "queue is full");
  worker_->OpenGate();
  for (Recorder& r : recorders) ASSERT_TRUE(r.WaitDone());
  Recorder again;
  WaitFor([&] { return engine_->Snapshot().running + engine_->Snapshot().queued == 0; });
  Submit(Prompt(5, 3), again);
  EXPECT_TRUE(again.WaitDone());
}

TEST_F(EngineTest, CancelEndsARunningAndAWaitingRequest) {
  options_.max_num_seqs = 1;
  Start();
  worker_->on_step = [](const StepPlan&) { std::this_thread::sleep_for(1ms); };
  GenerationRequest request = Prompt(5, 1000);
  request.sampling.ignore_eos = true;
  Recorder running, waiting;
  const std::uint64_t first = Submit(request, running);
  const std::uint64_t second = Submit(request, waiting);
  ASSERT_TRUE(running.WaitTokens(3));
  engine_->Cancel(second);
  ASSERT_TRUE(waiting.WaitDone());
  EXPECT_EQ(waiting.last().finish, FinishReason::kCancelled);
  EXPECT_TRUE(waiting.tokens().empty());
  EXPECT_EQ(waiting.last().timings.time_to_first_token, 0);
  EXPECT_GT(waiting.last().timings.queue, 0);
  engine_->Cancel(first);
  engine_->Cancel(first);
  engine_->Cancel(12345);
  ASSERT_TRUE(running.WaitDone());
  EXPECT_EQ(running.last().finish, FinishReason::kCancelled);
  EXPECT_EQ(running.last().status.code(), absl::StatusCode::kCancelled);
  WaitFor([&] { return engine_->Snapshot().blocks_used == 0; });
  EXPECT_EQ(running.violation(), "");
}

TEST_F(EngineTest, DeadlinesEndRequestsInTheQueueAndBetweenSteps) {
  options_.max_num_seqs = 1;
  Start();
  worker_->on_step = [](const StepPlan&) { std::this_thread::sleep_for(2ms); };
  GenerationRequest request = Prompt(5, 1000);
  request.sampling.ignore_eos = true;
  request.deadline_s = 0.1;
  Recorder running, waiting, late;
  Submit(request, running);
  request.deadline_s = 0.02;
  Submit(request, waiting);
  request.deadline_s = -1;
  Submit(request, late);
  for (Recorder* r : {&late, &waiting, &running}) {
    ASSERT_TRUE(r->WaitDone());
    EXPECT_EQ(r->last().finish, FinishReason::kDeadline);
    EXPECT_EQ(r->last().status.code(), absl::StatusCode::kDeadlineExceeded);
    EXPECT_THAT(std::string(r->last().status.message()), HasSubstr("deadline_s"));
  }
  EXPECT_TRUE(waiting.tokens().empty());
  EXPECT_TRUE(late.tokens().empty());
  EXPECT_FALSE(running.tokens().empty());
  EXPECT_LT(running.last().timings.total, 1.0);
}

TEST_F(EngineTest, AFailedStepEndsEverythingAndTheEngine) {
  Start();
  worker_->fail_at_step = 3;
  GenerationRequest request = Prompt(5, 100);
  request.sampling.ignore_eos = true;
  std::vector<Recorder> recorders(3);
  worker_->CloseGate();
  for (Recorder& r : recorders) Submit(request, r);
  worker_->OpenGate();
  for (Recorder& r : recorders) {
    ASSERT_TRUE(r.WaitDone());
    EXPECT_EQ(r.last().finish, FinishReason::kError);
    EXPECT_EQ(r.last().status.code(), absl::StatusCode::kInternal);
    EXPECT_THAT(std::string(r.last().status.message()), HasSubstr("rank 1 is gone"));
  }
  EXPECT_TRUE(engine_->Snapshot().failed);
  ExpectRefused(Prompt(5, 1), absl::StatusCode::kUnavailable, "rank 1 is gone");
  engine_->Cancel(1);
  EXPECT_TRUE(engine_->Drain(1));
  WaitFor([&] { return engine_->Snapshot().seconds_in_current_step == 0; });
  engine_.reset();
  EXPECT_EQ(worker_->stops, 0);  // nothing may be sent to ranks that failed
  EXPECT_EQ(worker_->steps, 4);
}

TEST_F(EngineTest, DrainLetsRequestsEndAndRefusesNewOnes) {
  Start();
  worker_->on_step = [](const StepPlan&) { std::this_thread::sleep_for(1ms); };
  GenerationRequest request = Prompt(5, 40);
  request.sampling.ignore_eos = true;
  Recorder recorder;
  Submit(request, recorder);
  EXPECT_TRUE(engine_->Drain(20));
  ASSERT_TRUE(recorder.WaitDone(0));
  EXPECT_EQ(recorder.last().finish, FinishReason::kLength);
  EXPECT_TRUE(engine_->Snapshot().draining);
  ExpectRefused(request, absl::StatusCode::kUnavailable, "shutting down");
}

TEST_F(EngineTest, DrainCancelsWhatTakesTooLong) {
  Start();
  worker_->on_step = [](const StepPlan&) { std::this_thread::sleep_for(1ms); };
  GenerationRequest request = Prompt(5, 0);
  request.sampling.ignore_eos = true;
  Recorder recorder;
  Submit(request, recorder);
  ASSERT_TRUE(recorder.WaitTokens(1));
  EXPECT_FALSE(engine_->Drain(0.02));
  ASSERT_TRUE(recorder.WaitDone(0));
  EXPECT_EQ(recorder.last().finish, FinishReason::kCancelled);
}

TEST_F(EngineTest, TheDestructorCancelsAndStopsTheRanksOnce) {
  Start();
  GenerationRequest request = Prompt(5, 0);
  request.sampling.ignore_eos = true;
  Recorder recorder;
  worker_->on_step = [](const StepPlan&) { std::this_thread::sleep_for(1ms); };
  Submit(request, recorder);
  ASSERT_TRUE(recorder.WaitTokens(1));
  engine_.reset();
  ASSERT_TRUE(recorder.WaitDone(0));
  EXPECT_EQ(recorder.last().finish, FinishReason::kCancelled);
  EXPECT_EQ(worker_->stops, 1);
}

TEST_F(EngineTest, ASinkMayCallTheEngine) {
  Start();
  Recorder second;
  std::atomic<bool> submitted{false};
  const auto id = engine_->Submit(Prompt(5, 2), [&](const GenerationEvent& event) {
    engine_->Snapshot();
    engine_->Cancel(999);
    if (event.finish == FinishReason::kNone) return;
    EXPECT_TRUE(engine_->Submit(Prompt(6, 2), second.Sink()).ok());
    submitted = true;
  });
  ASSERT_TRUE(id.ok());
  EXPECT_TRUE(second.WaitDone());
  EXPECT_TRUE(submitted);
}

TEST_F(EngineTest, UrgentRequestsAreServedFirst) {
  options_.max_num_seqs = 1;
  Start();
  worker_->CloseGate();
  std::vector<int> order;  // written by the engine's thread
  Recorder last;
  const auto submit = [&](int name, int priority) {
    GenerationRequest request = Prompt(5, 1, name);
    request.priority = priority;
    ASSERT_TRUE(
        engine_->Submit(request, [&order, name](const GenerationEvent&) { order.push_back(name); })
            .ok());
  };
  submit(0, 0);
  WaitFor([&] { return engine_->Snapshot().seconds_in_current_step > 0; });  // 0 runs
  submit(1, 0);
  submit(2, -5);
  submit(3, 0);
  GenerationRequest end = Prompt(5, 1);
  end.priority = 100;
  Submit(end, last);
  worker_->OpenGate();
  ASSERT_TRUE(last.WaitDone());
  EXPECT_THAT(order, ElementsAre(0, 2, 1, 3));
}

TEST_F(EngineTest, ASecondRequestReusesThePrefixAndGetsTheSameTokens) {
  Start();
  const GenerationRequest request = Prompt(200, 10);
  Recorder first, second;
  Submit(request, first);
  ASSERT_TRUE(first.WaitDone());
  Submit(request, second);
  ASSERT_TRUE(second.WaitDone());
  EXPECT_EQ(first.last().usage.cached_tokens, 0);
  EXPECT_EQ(second.last().usage.cached_tokens, 192);
  EXPECT_EQ(first.tokens(), second.tokens());
}

TEST_F(EngineTest, PreemptionChangesNothingInTheOutput) {
  options_.prefix_reuse = false;
  Start(/*blocks=*/6);
  worker_->CloseGate();
  std::vector<Recorder> recorders(4);
  std::vector<GenerationRequest> requests;
  for (int i = 0; i < 4; ++i) {
    requests.push_back(Prompt(60, 150, i));
    requests.back().sampling.ignore_eos = true;
    Submit(requests.back(), recorders[static_cast<std::size_t>(i)]);
  }
  worker_->OpenGate();
  int preemptions = 0;
  for (std::size_t i = 0; i < 4; ++i) {
    ASSERT_TRUE(recorders[i].WaitDone());
    EXPECT_EQ(recorders[i].tokens(), Replay(requests[i], 150, 1));
    preemptions += recorders[i].last().usage.preemptions;
  }
  EXPECT_GT(preemptions, 0);
  engine_.reset();
  EXPECT_EQ(observer_.preemptions, preemptions);
  EXPECT_EQ(observer_.usage_preemptions, preemptions);
  EXPECT_EQ(observer_.finished, 4);
  EXPECT_EQ(observer_.first_tokens, 4);
  EXPECT_EQ(observer_.inter_tokens, 4 * 149);
  EXPECT_EQ(observer_.steps, worker_->steps);
  EXPECT_EQ(observer_.rows, worker_->rows);
  EXPECT_EQ(observer_.ranks, 1);
}

TEST_F(EngineTest, WithoutASeedOneIsDrawnAndReportedAndRepeatsTheRun) {
  Start();
  GenerationRequest request = Prompt(5, 20);
  request.sampling.temperature = 1;
  request.sampling.seed.reset();
  Recorder first, other, repeated;
  Submit(request, first);
  Submit(request, other);
  ASSERT_TRUE(first.WaitDone() && other.WaitDone());
  EXPECT_NE(first.last().seed, other.last().seed);
  EXPECT_NE(first.tokens(), other.tokens());
  request.sampling.seed = first.last().seed;
  Submit(request, repeated);
  ASSERT_TRUE(repeated.WaitDone());
  EXPECT_EQ(repeated.tokens(), first.tokens());
}

TEST_F(EngineTest, TheSnapshotShowsWhatWaitsAndRuns) {
  options_.max_num_seqs = 1;
  Start();
  EXPECT_EQ(engine_->Snapshot().blocks_capacity, 64);
  EXPECT_EQ(engine_->Snapshot().seconds_in_current_step, 0);
  Recorder running, waiting;
  GenerationRequest request = Prompt(5, 3);
  worker_->CloseGate();
  Submit(request, running);
  Submit(request, waiting);
  WaitFor([&] { return engine_->Snapshot().seconds_in_current_step > 0.01; });
  EXPECT_EQ(engine_->Snapshot().queued + engine_->Snapshot().running, 2);
  worker_->OpenGate();
  ASSERT_TRUE(running.WaitDone() && waiting.WaitDone());
  WaitFor([&] { return engine_->Snapshot().seconds_in_current_step == 0; });
  EXPECT_EQ(engine_->Snapshot().queued + engine_->Snapshot().running, 0);
  EXPECT_EQ(engine_->Snapshot().blocks_used, 0);
  EXPECT_GT(engine_->Snapshot().steps, 0u);
}

}  // namespace
}  // namespace metattn
