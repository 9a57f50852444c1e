// Doubles for the engine's tests.
//
// OracleWorker keeps its own block store (PlanChecker) and derives the logits of a row from the
// tokens it reads back through the row's block table. So whatever the scheduler does (chunks,
// shared prefixes, preemption), a request's tokens must equal Replay's, which knows only the
// prompt. ByteTokenizer maps a small vocabulary to byte strings.
#pragma once

#include <atomic>
#include <condition_variable>
#include <functional>
#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "engine/engine.h"
#include "tests/engine/plan_checker.h"

namespace metattn {

inline constexpr std::int64_t kFakeVocab = 300;
inline constexpr std::int32_t kFakeEos = 299;

class OracleWorker final : public Worker {
 public:
  OracleWorker(std::int64_t blocks, int max_sequences, int max_batch_tokens,
               const ControllerFile* controller = nullptr)
      : blocks_(blocks),
        controller_(controller),
        checker_(blocks, max_sequences, max_batch_tokens,
                 {controller == nullptr ? 0 : max_sequences + EngineOptions{}.state_snapshots,
                  window()}) {}

  absl::StatusOr<StepOutput> Step(const StepPlan& plan) override;
  absl::Status Stop() override {
    ++stops;
    return absl::OkStatus();
  }
  absl::Status Serve() override { return absl::OkStatus(); }
  int rank() const override { return 0; }
  int ranks() const override { return 1; }
  int threads() const override { return 1; }
  std::string isa() const override { return "oracle"; }
  int window() const override { return 256; }
  int sinks() const override { return 4; }
  const ControllerFile* controller() const override { return controller_; }
  std::int64_t blocks() const override { return blocks_; }
  std::int64_t weight_bytes() const override { return 0; }
  const std::vector<std::string>& descriptions() const override { return descriptions_; }

  // The logits that follow these tokens.
  static std::vector<float> Logits(const std::vector<std::int32_t>& tokens);

  // Steps block while the gate is closed.
  void CloseGate();
  void OpenGate();

  std::function<void(const StepPlan&)> on_step;  // set before the first request
  std::atomic<int> fail_at_step{-1};
  std::atomic<int> steps{0};
  std::atomic<int> stops{0};
  std::atomic<int> rows{0};
  std::atomic<int> largest_batch{0};  // sequences of one step
  std::string error;                  // the first bad plan; read when the engine is gone

 private:
  const std::int64_t blocks_;
  const ControllerFile* const controller_;
  PlanChecker checker_;
  std::vector<std::string> descriptions_;
  std::mutex mutex_;
  std::condition_variable opened_;
  bool closed_ = false;
};

class ByteTokenizer final : public Tokenizer {
 public:
  // Ids 0 .. 255 are single bytes, `words` follow; the last id is EOS.
  explicit ByteTokenizer(std::vector<std::string> words = {}) : words_(std::move(words)) {}

  absl::StatusOr<std::vector<std::int32_t>> Encode(std::string_view text,
                                                   const EncodeOptions&) const override;
  std::string TokenBytes(std::int32_t id, bool special) const override;
  absl::StatusOr<std::string> Decode(std::span<const std::int32_t> ids,
                                     bool special) const override;
  std::int64_t vocab_size() const override { return kFakeVocab; }
  std::int32_t bos_id() const override { return -1; }
  const std::vector<std::int32_t>& stop_ids() const override { return stop_ids_; }
  std::int32_t IdOf(std::string_view) const override { return -1; }
  std::string_view pre_tokenizer() const override { return "none"; }
  std::string_view chat_template() const override { return ""; }

 private:
  std::vector<std::string> words_;
  std::vector<std::int32_t> stop_ids_ = {kFakeEos};
};

// What one request received. Checks the contract of a sink: in order, one last event, none after.
class Recorder {
 public:
  EventSink Sink();
  bool WaitDone(double seconds = 20);
  bool WaitTokens(std::size_t count, double seconds = 20);

  // After WaitDone.
  std::vector<std::int32_t> tokens() const;
  std::string text() const;
  GenerationEvent last() const;
  std::string violation() const;
  std::vector<GenerationEvent> events() const;

 private:
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<GenerationEvent> events_;
  std::string violation_;
  bool done_ = false;
};

// The tokens of a request, computed alone and without any engine. Ends with the stop token, if one
// comes.
std::vector<std::int32_t> Replay(const GenerationRequest& request, std::int32_t max_tokens,
                                 std::uint64_t seed);

}  // namespace metattn
