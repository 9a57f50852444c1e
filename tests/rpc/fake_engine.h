// Test doubles: a tokenizer whose tokens are bytes, and an engine that answers by rule instead of
// by model, one token per request and step, on a thread of its own like the real one.
//
// The token after `position` is (seed + 31 * position + prompt's first token) mod 26 + 'a', so that
// outputs depend on the request only, and a different seed gives another text.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <map>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/engine.h"
#include "engine/model/tokenizer.h"
#include "rpc/served_model.h"
#include "tests/support/fake_controller.h"

namespace metattn {

inline constexpr std::int64_t kFakeVocab = 300;  // bytes and some that are nothing

class FakeTokenizer final : public Tokenizer {
 public:
  absl::StatusOr<std::vector<std::int32_t>> Encode(std::string_view text,
                                                   const EncodeOptions& options) const override {
    std::vector<std::int32_t> ids;
    if (options.add_special) ids.push_back(256);
    for (const char c : text) ids.push_back(static_cast<unsigned char>(c));
    return ids;
  }
  std::string TokenBytes(std::int32_t id, bool special) const override {
    if (id >= 0 && id < 256) return std::string(1, static_cast<char>(id));
    return special && id == 256 ? "<bos>" : "";
  }
  absl::StatusOr<std::string> Decode(std::span<const std::int32_t> ids,
                                     bool special) const override {
    std::string text;
    for (const std::int32_t id : ids) text += TokenBytes(id, special);
    return text;
  }
  std::int64_t vocab_size() const override { return kFakeVocab; }
  std::int32_t bos_id() const override { return 256; }
  const std::vector<std::int32_t>& stop_ids() const override { return stop_ids_; }
  std::int32_t IdOf(std::string_view token) const override { return token == "<bos>" ? 256 : -1; }
  std::string_view pre_tokenizer() const override { return "bytes"; }
  std::string_view chat_template() const override { return ""; }

 private:
  std::vector<std::int32_t> stop_ids_ = {0};
};

// The default route is full, requests may ask for what they like.
inline RoutingPolicy FakeRouting() {
  const FakeController controller;
  RoutingChange flags;
  flags.route = Route::kFull;
  return *InitialRouting(flags, &controller, false);
}

class FakeEngine final : public Engine {
 public:
  struct Options {
    int max_context = 4096;
    int max_live = 1000;  // queue and running
    std::chrono::microseconds step{200};
    EngineObserver* observer = nullptr;
  };
  FakeEngine() : FakeEngine(Options()) {}
  explicit FakeEngine(const Options& options) : options_(options) {
    thread_ = std::thread([this] { Run(); });
  }
  ~FakeEngine() override {
    {
      std::lock_guard lock(mutex_);
      stop_ = true;
    }
    wake_.notify_all();
    thread_.join();
  }

  static std::int32_t TokenAt(const GenerationRequest& request, int index) {
    const std::uint64_t position = request.prompt.size() + index;
    const std::uint64_t seed = request.sampling.seed.value_or(1);
    return static_cast<std::int32_t>((seed + 31 * position + request.prompt[0]) % 26 + 'a');
  }

  absl::StatusOr<std::uint64_t> Submit(GenerationRequest request, EventSink sink) override {
    std::lock_guard lock(mutex_);
    if (draining_) return absl::UnavailableError("the server is shutting down");
    if (static_cast<int>(live_.size()) >= options_.max_live) {
      return absl::ResourceExhaustedError("the queue is full");
    }
    ++submitted;
    Live live{std::move(request), std::move(sink), std::chrono::steady_clock::now()};
    live_.emplace(++next_, std::move(live));
    wake_.notify_all();
    return next_;
  }
  void Cancel(std::uint64_t id) override {
    std::lock_guard lock(mutex_);
    if (auto it = live_.find(id); it != live_.end()) it->second.cancelled = true;
    wake_.notify_all();
  }
  EngineSnapshot Snapshot() const override {
    std::lock_guard lock(mutex_);
    EngineSnapshot s;
    s.running = static_cast<int>(live_.size());
    s.queued = queued_override;
    s.blocks_capacity = 100;
    s.blocks_used = 25;
    s.seconds_in_current_step = step_seconds_override;
    s.draining = draining_;
    s.failed = failed_override;
    s.cost_weight = routing_.cost_weight;
    s.force_full = routing_.force_full;
    return s;
  }
  absl::StatusOr<RoutingPolicy> SetRouting(const RoutingChange& change) override {
    std::lock_guard lock(mutex_);
    auto next = ChangeRouting(routing_, change, {.controller = true});
    if (next.ok()) routing_ = *next;
    return next;
  }
  RoutingState Routing() const override {
    std::lock_guard lock(mutex_);
    RoutingState state;
    state.policy = routing_;
    state.cost_weight = routing_.cost_weight;
    state.cost_weight_levels = FakeController().spec().cost_weight_levels;
    state.layers = {FakeCounts(), FakeCounts()};
    state.recent = FakeCounts();
    return state;
  }
  bool Drain(double seconds) override {
    std::unique_lock lock(mutex_);
    draining_ = true;
    const bool all = idle_.wait_for(lock, std::chrono::duration<double>(seconds),
                                    [this] { return live_.empty(); });
    for (auto& [id, live] : live_) live.cancelled = true;
    wake_.notify_all();
    idle_.wait(lock, [this] { return live_.empty(); });
    return all;
  }
  int max_context() const override { return options_.max_context; }

  // Of each layer, of the last minute and of each finished request.
  static RoutingCounts FakeCounts() {
    RoutingCounts counts;
    counts.rows = {10, 60, 30};
    counts.routed_rows = 100;
    counts.uncertainty = 25;
    counts.bytes_read = 400;
    counts.bytes_dense = 1000;
    return counts;
  }

  void Pause(bool paused) {
    std::lock_guard lock(mutex_);
    paused_ = paused;
    wake_.notify_all();
  }

  std::atomic<int> submitted = 0;
  std::atomic<int> cancelled = 0;
  std::atomic<int> queued_override = 0;
  std::atomic<double> step_seconds_override = 0;
  std::atomic<bool> failed_override = false;
  // > 0: every request ends with kError after this many tokens.
  std::atomic<int> fail_after = 0;
  std::atomic<bool> routed = false;  // finished requests have counts

 private:
  struct Live {
    GenerationRequest request;
    EventSink sink;
    std::chrono::steady_clock::time_point submitted;
    int generated = 0;
    bool cancelled = false;
  };

  void Run() {
    std::unique_lock lock(mutex_);
    for (;;) {
      wake_.wait(lock, [this] { return stop_ || (!paused_ && !live_.empty()) || AnyCancelled(); });
      if (stop_) {
        for (auto& [id, live] : live_) live.cancelled = true;
      }
      std::vector<std::pair<EventSink, GenerationEvent>> calls;
      for (auto it = live_.begin(); it != live_.end();) {
        if (paused_ && !it->second.cancelled) {
          ++it;
          continue;
        }
        GenerationEvent event = Next(it->second);
        calls.emplace_back(it->second.sink, event);
        it = event.finish == FinishReason::kNone ? std::next(it) : live_.erase(it);
      }
      if (live_.empty()) idle_.notify_all();
      if (stop_ && calls.empty()) return;
      lock.unlock();
      for (auto& [sink, event] : calls) sink(event);
      std::this_thread::sleep_for(options_.step);
      lock.lock();
    }
  }
  bool AnyCancelled() const {
    for (const auto& [id, live] : live_) {
      if (live.cancelled) return true;
    }
    return false;
  }

  GenerationEvent Next(Live& live) {
    GenerationEvent event;
    const double age =
        std::chrono::duration<double>(std::chrono::steady_clock::now() - live.submitted).count();
    event.usage.prompt_tokens = static_cast<int>(live.request.prompt.size());
    event.timings.total = age;
    event.timings.time_to_first_token = age / 2;
    event.seed = live.request.sampling.seed.value_or(1);
    if (live.cancelled) {
      ++cancelled;
      event.finish = FinishReason::kCancelled;
    } else if (fail_after > 0 && live.generated >= fail_after) {
      event.finish = FinishReason::kError;
      event.status = absl::InternalError("a step failed");
    } else if (live.request.deadline_s && age > *live.request.deadline_s) {
      event.finish = FinishReason::kDeadline;
    } else {
      Generate(live, &event);
    }
    event.usage.generated_tokens = live.generated;
    if (event.finish != FinishReason::kNone && routed) event.routing = FakeCounts();
    if (options_.observer != nullptr) {
      if (live.generated == 1) options_.observer->OnFirstToken(age);
      if (event.finish != FinishReason::kNone) options_.observer->OnFinish(event);
    }
    return event;
  }
  void Generate(Live& live, GenerationEvent* event) {
    GeneratedToken token;
    token.id = TokenAt(live.request, live.generated);
    for (int i = 0; i < live.request.sampling.logprobs; ++i)
      token.top.push_back({token.id + i, -1});
    if (live.request.sampling.logprobs >= 0) token.logprob = -0.5f;
    event->text = std::string(1, static_cast<char>(token.id));
    event->tokens.push_back(std::move(token));
    ++live.generated;
    const int room = options_.max_context - static_cast<int>(live.request.prompt.size());
    const int limit = live.request.sampling.max_tokens > 0
                          ? std::min(room, live.request.sampling.max_tokens)
                          : room;
    if (live.generated >= limit) event->finish = FinishReason::kLength;
  }

  const Options options_;
  mutable std::mutex mutex_;
  std::condition_variable wake_, idle_;
  std::map<std::uint64_t, Live> live_;
  std::uint64_t next_ = 0;
  bool stop_ = false, draining_ = false, paused_ = false;
  RoutingPolicy routing_ = FakeRouting();
  std::thread thread_;
};

// What FakeEngine generates for a text prompt: `count` letters.
inline std::string FakeOutput(const std::string& prompt, std::uint64_t seed, int count) {
  GenerationRequest request;
  request.prompt = *FakeTokenizer().Encode(prompt, EncodeOptions());
  request.sampling.seed = seed;
  std::string text;
  for (int i = 0; i < count; ++i) text += static_cast<char>(FakeEngine::TokenAt(request, i));
  return text;
}

inline std::shared_ptr<ServedModel> FakeServed(Engine* engine) {
  static const FakeTokenizer tokenizer;
  auto served = std::make_shared<ServedModel>();
  served->name = "fake";
  served->config.architecture = "llama";
  served->config.vocab = kFakeVocab;
  static const FakeController controller;
  served->tokenizer = &tokenizer;
  served->controller = &controller;
  served->routing = [engine] {
    return engine == nullptr ? FakeRouting() : engine->Routing().policy;
  };
  served->engine = engine;
  served->max_context = engine == nullptr ? 4096 : engine->max_context();
  served->chat_template = "chatml";
  served->apply_chat = [](std::span<const ChatMessage> messages) {
    std::string all;
    for (const ChatMessage& m : messages) all += absl::StrCat(m.role, ":", m.content, "\n");
    return tokenizer.Encode(all, EncodeOptions());
  };
  return served;
}

}  // namespace metattn
