// Test helpers: host buffers with known contents, an inline stream, and ranks as threads.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <functional>
#include <latch>
#include <memory>
#include <span>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "parallel/local_communicator.h"

namespace metattn {

class InlineStream final : public Stream {
 public:
  absl::Status Synchronize() override { return absl::OkStatus(); }
  int Mark() override { return 0; }
  double SecondsBetween(int, int) const override { return 0; }
  void ResetMarks() override {}
};

// `count` floats on the heap exactly, so that a sanitizer sees every step outside.
inline Buffer HostFloats(std::int64_t count) {
  const std::size_t bytes = static_cast<std::size_t>(count) * sizeof(float);
  return Buffer(std::malloc(bytes), bytes, [](void* p) { std::free(p); });
}

// Runs body(rank's end) on one thread per rank, all started at once; statuses in rank order. An end
// is destroyed when its body returns, as a rank's would be.
inline std::vector<absl::Status> RunRanks(int ranks, const CommOptions& options,
                                          const std::function<absl::Status(Communicator&)>& body) {
  std::vector<std::unique_ptr<Communicator>> ends = MakeLocalCommunicators(ranks, options);
  std::vector<absl::Status> statuses(ranks);
  std::vector<std::thread> threads;
  std::latch started(ranks);
  for (int r = 0; r < ranks; ++r) {
    threads.emplace_back([&, r] {
      started.arrive_and_wait();  // a slow thread start is not a late rank
      statuses[r] = body(*ends[r]);
      ends[r].reset();
    });
  }
  for (std::thread& t : threads) t.join();
  return statuses;
}

}  // namespace metattn
