// The fixture of the engine's tests: an engine on an OracleWorker, and a small language around it.
#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <thread>

#include "tests/engine/engine_fakes.h"

namespace metattn {

class CountingObserver final : public EngineObserver {
 public:
  void OnStep(const StepOutput& output, int rows) override {
    ++steps, this->rows += rows, ranks = static_cast<int>(output.per_rank.size());
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
                                             options_.max_num_batched_tokens, controller_);
    auto engine =
        Engine::Create(options_, model_options_, config_, *worker_, tokenizer_, &observer_);
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
    EXPECT_THAT(std::string(status.message()), testing::HasSubstr(names));
  }

  void WaitFor(const std::function<bool()>& condition) {
    for (int i = 0; i < 10000 && !condition(); ++i)
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    EXPECT_TRUE(condition());
  }

  EngineOptions options_;
  ModelOptions model_options_;
  const ControllerFile* controller_ = nullptr;
  ModelConfig config_;
  ByteTokenizer tokenizer_;
  CountingObserver observer_;
  std::unique_ptr<OracleWorker> worker_;
  std::unique_ptr<Engine> engine_;
};

}  // namespace metattn
