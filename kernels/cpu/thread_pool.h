// A persistent pool of threads for one Kernels instance; the calling thread takes part.
//
// Ownership: the pool owns its threads and joins them when it goes. Thread safety: ParallelFor from
// one thread at a time, never from inside a body. Errors: a thread that cannot be started leaves
// the pool smaller (threads() tells). Cost: handing work over takes about a microsecond while the
// threads still spin, a wake-up by the kernel (tens of microseconds) once they sleep, nothing for
// one chunk. A thread that has not woken when the work is done is not waited for.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <type_traits>
#include <vector>

namespace metattn::cpu {

class ThreadPool {
 public:
  // `threads` counts the caller. spin: idle threads poll for kSpinMicroseconds before they sleep;
  // otherwise they sleep at once (threads exceed the cores).
  ThreadPool(int threads, bool spin);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  static constexpr int kSpinMicroseconds = 50;

  int threads() const { return static_cast<int>(workers_.size()) + 1; }

  // Where share i of `shares` of `count` chunks begins; i = shares: where the last one ends.
  static std::int64_t ShareBegin(std::int64_t count, std::int64_t shares, std::int64_t i) {
    const std::int64_t larger = count % shares;
    return count / shares * i + (i < larger ? i : larger);
  }

  // Calls body(begin, end, worker) for consecutive pieces of [0, n), each `chunk` long (the last
  // may be shorter), on any thread in any order, and returns when all are done. Worker w starts
  // with the w-th of threads() equal shares and helps others when that is finished, so that a job
  // which is repeated finds its data in the same cores' caches. 0 <= worker < threads(); no two
  // calls with one worker number run at a time; the caller is worker 0.
  template <typename Body>
  void ParallelFor(std::int64_t n, std::int64_t chunk, Body&& body) {
    using B = std::remove_reference_t<Body>;
    Run(
        n, chunk,
        [](void* context, std::int64_t begin, std::int64_t end, int worker) {
          (*static_cast<B*>(context))(begin, end, worker);
        },
        const_cast<void*>(static_cast<const void*>(&body)));
  }

 private:
  using Function = void (*)(void* context, std::int64_t begin, std::int64_t end, int worker);

  // What ParallelFor runs. Written by the caller while no worker is inside (state_ says so).
  struct Job {
    Function function = nullptr;
    void* context = nullptr;
    std::int64_t n = 0;
    std::int64_t chunk = 1;
  };

  // One worker's share of a job, in chunks: those from `next` to `end` have not been taken.
  struct alignas(64) Share {
    std::atomic<std::int64_t> next{0};
    std::int64_t end = 0;  // written like job_
  };

  void Run(std::int64_t n, std::int64_t chunk, Function function, void* context);
  void Divide(const Job& job);
  void TakeChunks(const Job& job, int worker);
  void Publish();
  void CloseAndWait();
  void WorkerLoop(int worker);
  // Waits for a job newer than `generation` that can still be joined; joins it. 0 means stop.
  std::uint64_t Join(std::uint64_t generation);
  bool TryJoin(std::uint64_t* generation);
  void Leave();

  const bool spin_;
  Job job_;
  std::vector<Share> shares_;
  alignas(64) std::atomic<std::uint64_t> state_{0};  // generation | open bit | workers inside
  alignas(64) std::atomic<int> sleepers_{0};
  std::atomic<bool> caller_sleeps_{false};
  std::atomic<bool> stop_{false};
  std::mutex mutex_;
  std::condition_variable work_;  // sleeping workers
  std::condition_variable done_;  // a caller that waits for the last worker
  std::vector<std::thread> workers_;
};

}  // namespace metattn::cpu
