// Many requests of every kind at once, from several threads: whoever ends by itself must have got
// exactly the tokens of its prompt alone.
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <random>
#include <thread>

#include "tests/engine/engine_fakes.h"

namespace metattn {
namespace {

using namespace std::chrono_literals;
using Clock = std::chrono::steady_clock;

GenerationRequest RandomRequest(std::mt19937& random) {
  const auto one_in = [&](unsigned n) { return random() % n == 0; };
  GenerationRequest request;
  const auto family = static_cast<std::int32_t>(random() % 3);
  const auto shared = one_in(2) ? 0u : random() % 200;
  for (unsigned i = 0; i < shared; ++i) {
    request.prompt.push_back(static_cast<std::int32_t>((i * 5) % 250) + family);
  }
  for (unsigned i = random() % 60 + 1; i > 0; --i) {
    request.prompt.push_back(static_cast<std::int32_t>(random() % 256));
  }
  SamplingParams& p = request.sampling;
  p.seed = random();
  p.max_tokens = static_cast<std::int32_t>(1 + random() % 60);
  if (one_in(2)) p.temperature = 0.8;
  if (one_in(3)) p.top_k = 20;
  if (one_in(3)) p.top_p = 0.9;
  if (one_in(3)) p.frequency_penalty = 0.5;
  if (one_in(3)) p.min_tokens = p.max_tokens / 2;
  p.ignore_eos = one_in(4);
  request.priority = one_in(4) ? 1 : 0;
  return request;
}

TEST(EngineLoad, ConcurrentRequestsGetTheTokensOfTheirPromptAlone) {
  EngineOptions options;
  options.max_num_seqs = 16;
  options.max_num_batched_tokens = 96;
  options.max_queue = 10000;
  ModelConfig config;
  config.vocab = kFakeVocab;
  config.max_positions = 512;
  constexpr int kThreads = 3, kEach = 60;
  OracleWorker worker(/*blocks=*/24, 16, 96);
  const ByteTokenizer tokenizer;
  auto engine = Engine::Create(options, {}, config, worker, tokenizer, nullptr);
  ASSERT_TRUE(engine.ok());

  struct Job {
    GenerationRequest request;
    Recorder recorder;
  };
  std::vector<Job> jobs(kThreads * kEach);
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      std::mt19937 random(static_cast<unsigned>(t));
      for (int i = 0; i < kEach; ++i) {
        Job& job = jobs[static_cast<std::size_t>(t * kEach + i)];
        job.request = RandomRequest(random);
        const auto id = (*engine)->Submit(job.request, job.recorder.Sink());
        ASSERT_TRUE(id.ok()) << id.status();
        if (random() % 8 == 0) (*engine)->Cancel(*id);
        (*engine)->Snapshot();
        if (random() % 4 == 0) std::this_thread::sleep_for(1ms);
      }
    });
  }
  for (std::thread& t : threads) t.join();
  int complete = 0, reused = 0, preempted = 0;
  for (Job& job : jobs) {
    ASSERT_TRUE(job.recorder.WaitDone(60));
    const GenerationEvent last = job.recorder.last();
    EXPECT_EQ(job.recorder.violation(), "");
    EXPECT_NE(last.finish, FinishReason::kError) << last.status;
    const auto tokens = job.recorder.tokens();
    const auto expected =
        Replay(job.request, job.request.sampling.max_tokens, *job.request.sampling.seed);
    ASSERT_LE(tokens.size(), expected.size());
    EXPECT_TRUE(std::equal(tokens.begin(), tokens.end(), expected.begin()));
    if (last.finish == FinishReason::kCancelled) continue;
    EXPECT_EQ(tokens.size(), expected.size());
    ++complete;
    reused += last.usage.cached_tokens > 0 ? 1 : 0;
    preempted += last.usage.preemptions > 0 ? 1 : 0;
  }
  EXPECT_GT(complete, kThreads * kEach / 2);
  EXPECT_GT(reused, 0);
  EXPECT_GT(preempted, 0);
  EXPECT_GT(worker.largest_batch, 4);
  engine->reset();
  EXPECT_EQ(worker.error, "");
}

// From Submit to the worker's Step, on an idle engine. The best of many, because the machine that
// runs the test may be busy.
TEST(EngineLoad, AnIdleEngineStartsARequestWithinAMillisecond) {
  EngineOptions options;
  ModelConfig config;
  config.vocab = kFakeVocab;
  config.max_positions = 512;
  OracleWorker worker(/*blocks=*/24, 64, 512);
  std::atomic<std::int64_t> stepped_at{0};
  worker.on_step = [&](const StepPlan&) { stepped_at = Clock::now().time_since_epoch().count(); };
  const ByteTokenizer tokenizer;
  auto engine = Engine::Create(options, {}, config, worker, tokenizer, nullptr);
  ASSERT_TRUE(engine.ok());
  std::vector<double> delays;
  for (int i = 0; i < 30; ++i) {
    std::this_thread::sleep_for(5ms);
    GenerationRequest request;
    request.prompt = {i, 2, 3};
    request.sampling.max_tokens = 1;
    Recorder recorder;
    const auto submitted = Clock::now().time_since_epoch().count();
    ASSERT_TRUE((*engine)->Submit(request, recorder.Sink()).ok());
    ASSERT_TRUE(recorder.WaitDone());
    delays.push_back(
        std::chrono::duration<double>(Clock::duration(stepped_at - submitted)).count());
  }
  std::sort(delays.begin(), delays.end());
  RecordProperty("median_us", static_cast<int>(delays[delays.size() / 2] * 1e6));
  EXPECT_LT(delays[delays.size() / 4], 1e-3);
}

}  // namespace
}  // namespace metattn
