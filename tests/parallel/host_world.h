// Test helpers: host buffers with known contents, an inline stream, a device of both, and ranks as
// threads.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <latch>
#include <memory>
#include <span>
#include <string_view>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "parallel/local_communicator.h"

namespace metattn {

class InlineStream final : public Stream {
 public:
  absl::Status Synchronize() override { return absl::OkStatus(); }
  int Mark() override { return 0; }
  double SecondsBetween(int, int) const override { return 0; }
  void ResetMarks() override {}
};

// On the heap exactly, so that a sanitizer sees every step outside.
inline Buffer HostBytes(std::size_t bytes) {
  return Buffer(std::malloc(bytes), bytes, [](void* p) { std::free(p); });
}
inline Buffer HostFloats(std::int64_t count) {
  return HostBytes(static_cast<std::size_t>(count) * sizeof(float));
}

// Host memory as a Device for the contract.
class HostTestDevice final : public Device {
 public:
  std::string_view name() const override { return "host"; }
  absl::StatusOr<Buffer> Allocate(std::size_t bytes) override { return HostBytes(bytes); }
  absl::StatusOr<std::unique_ptr<Stream>> NewStream() override {
    return std::make_unique<InlineStream>();
  }
  void CopyIn(const void* host, View to, std::size_t bytes, Stream&) override {
    if (bytes > 0) std::memcpy(to.As<std::byte>(), host, bytes);
  }
  void CopyOut(View from, void* host, std::size_t bytes, Stream&) override {
    if (bytes > 0) std::memcpy(host, from.As<std::byte>(), bytes);
  }
  void Copy(View from, View to, std::size_t bytes, Stream&) override {
    if (bytes > 0) std::memcpy(to.As<std::byte>(), from.As<std::byte>(), bytes);
  }
};

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
