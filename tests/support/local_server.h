// The real engine over real workers, in one process: ranks as threads, the engine on rank 0. What
// `metattn serve` puts together, without MPI and gRPC, so that promises about whole answers can be
// tested under the sanitizers too.
//
// Start loads the model and returns the reader's or worker's own error. Submit and Generate may be
// called from any thread. A hook runs on the engine's thread after each token and may call Submit
// and Cancel: the engine holds no lock then, and what it does there happens between the same two
// steps in every run. The destructor ends engine and ranks; answers stay valid.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/engine.h"
#include "engine/formats/checkpoint.h"
#include "engine/model/config.h"
#include "engine/model/tokenizer.h"
#include "engine/worker.h"
#include "parallel/communicator.h"

namespace metattn::test {

struct LocalServerOptions {
  std::string model;  // path
  int ranks = 1;
  int threads = 1;  // per rank
  std::string device = "cpu";
  std::string isa;  // empty: the best
  bool deterministic = false;
  int window = 64;  // tokens
  int sinks = 4;
  int max_num_batched_tokens = 64;
  int max_num_seqs = 8;
  std::int64_t blocks = 0;  // K/V budget; 0: as many as the sequences can use
  bool prefix_reuse = true;
};

// One request's answer, or so much of it as has come.
struct Answer {
  std::vector<GeneratedToken> tokens;
  std::string text;
  GenerationEvent last;  // finish == kNone: it did not end in time
};

using TokenHook = std::function<void(std::size_t tokens_so_far)>;

class Pending {
 public:
  explicit Pending(TokenHook hook) : hook_(std::move(hook)) {}
  void Receive(const GenerationEvent& event);  // the sink
  bool done() const;
  // Until the last event, or so long that a test has failed. An engine that refused the request has
  // ended it with kError and its status.
  Answer Wait();
  std::uint64_t id = 0;  // the engine's; valid once Submit has returned

 private:
  const TokenHook hook_;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  Answer answer_;
};

class LocalServer {
 public:
  static absl::StatusOr<std::unique_ptr<LocalServer>> Start(const LocalServerOptions& options);
  ~LocalServer() { End().IgnoreError(); }

  Engine& engine() { return *engine_; }
  const ModelConfig& config() const { return config_; }
  std::shared_ptr<Pending> Submit(GenerationRequest request, TokenHook hook = nullptr);
  Answer Generate(GenerationRequest request) { return Submit(std::move(request))->Wait(); }
  // Ends engine and ranks, as the destructor does. The first rank's error, if any had one.
  absl::Status End();

 private:
  explicit LocalServer(const LocalServerOptions& options) : options_(options) {}
  absl::Status Init();

  const LocalServerOptions options_;
  std::unique_ptr<Checkpoint> checkpoint_;
  ModelConfig config_;
  std::unique_ptr<Tokenizer> tokenizer_;
  std::vector<std::unique_ptr<Communicator>> comms_;
  std::vector<absl::Status> ends_;  // of the other ranks' threads; read after joining
  std::vector<std::thread> others_;
  std::unique_ptr<Worker> worker_;  // rank 0
  std::unique_ptr<Engine> engine_;
};

}  // namespace metattn::test
