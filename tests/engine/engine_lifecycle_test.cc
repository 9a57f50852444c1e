// Queue, cancellation, deadlines, failure, drain, preemption: the life of requests and engine.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <thread>

#include "engine/engine.h"
#include "tests/engine/engine_fixture.h"

namespace metattn {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using namespace std::chrono_literals;

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
