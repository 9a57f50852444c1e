// How a job runs. state_ holds three things in one word, so that one compare-and-swap can see them
// together: the job's generation, whether it may still be joined, and how many workers are inside.
// The caller writes job_, opens a new generation and takes chunks itself; a worker that sees the
// open generation joins (count + 1), takes chunks and leaves (count - 1). When no chunks are left
// the caller closes the generation and waits for the count to reach zero, after which nobody can be
// reading job_ any more: the next job may overwrite it.
#include "kernels/cpu/thread_pool.h"

#include <chrono>
#include <system_error>

namespace metattn::cpu {
namespace {

constexpr std::uint64_t kOpen = std::uint64_t{1} << 15;
constexpr std::uint64_t kCount = kOpen - 1;
constexpr int kGenerationShift = 16;  // 48 bits last for centuries at 40,000 jobs a second

std::uint64_t Generation(std::uint64_t state) { return state >> kGenerationShift; }

void Pause() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#endif
}

// Polls `ready` for up to kSpinMicroseconds; the clock is read every few polls only.
template <typename Ready>
bool SpinUntil(Ready ready) {
  constexpr int kPollsPerLook = 16;
  const auto end =
      std::chrono::steady_clock::now() + std::chrono::microseconds(ThreadPool::kSpinMicroseconds);
  do {
    for (int i = 0; i < kPollsPerLook; ++i) {
      if (ready()) return true;
      Pause();
    }
  } while (std::chrono::steady_clock::now() < end);
  return false;
}

}  // namespace

ThreadPool::ThreadPool(int threads, bool spin)
    : spin_(spin), shares_(static_cast<std::size_t>(threads < 1 ? 1 : threads)) {
  for (int worker = 1; worker < threads; ++worker) {
    try {
      workers_.emplace_back([this, worker] { WorkerLoop(worker); });
    } catch (const std::system_error&) {
      break;  // the system gives no more threads: work with those there are
    }
  }
}

ThreadPool::~ThreadPool() {
  {
    std::lock_guard lock(mutex_);
    stop_.store(true);
  }
  work_.notify_all();
  for (std::thread& t : workers_) t.join();
}

void ThreadPool::Run(std::int64_t n, std::int64_t chunk, Function function, void* context) {
  if (n <= 0) return;
  if (chunk < 1) chunk = 1;
  const Job job{function, context, n, chunk};
  if (workers_.empty() || n <= chunk) {
    for (std::int64_t begin = 0; begin < n; begin += chunk) {
      function(context, begin, begin + chunk < n ? begin + chunk : n, 0);
    }
    return;
  }
  job_ = job;
  Divide(job);
  Publish();
  TakeChunks(job, 0);
  CloseAndWait();
}

void ThreadPool::Divide(const Job& job) {
  const std::int64_t chunks = (job.n + job.chunk - 1) / job.chunk;
  const auto shares = static_cast<std::int64_t>(shares_.size());
  for (std::int64_t i = 0; i < shares; ++i) {
    Share& share = shares_[static_cast<std::size_t>(i)];
    share.next.store(ShareBegin(chunks, shares, i), std::memory_order_relaxed);
    share.end = ShareBegin(chunks, shares, i + 1);
  }
}

void ThreadPool::TakeChunks(const Job& job, int worker) {
  const std::size_t shares = shares_.size();
  for (std::size_t i = 0; i < shares; ++i) {
    Share& share = shares_[(static_cast<std::size_t>(worker) + i) % shares];
    for (;;) {
      const std::int64_t taken = share.next.fetch_add(1, std::memory_order_relaxed);
      if (taken >= share.end) break;
      const std::int64_t begin = taken * job.chunk;
      const std::int64_t end = begin + job.chunk < job.n ? begin + job.chunk : job.n;
      job.function(job.context, begin, end, worker);
    }
  }
}

void ThreadPool::Publish() {
  const std::uint64_t generation = Generation(state_.load(std::memory_order_relaxed)) + 1;
  // Sequentially consistent with the worker that counts itself a sleeper and then looks at state_:
  // either it sees this job or we see the sleeper.
  state_.store(generation << kGenerationShift | kOpen, std::memory_order_seq_cst);
  if (sleepers_.load(std::memory_order_seq_cst) > 0) {
    { std::lock_guard lock(mutex_); }  // a sleeper between its look and its wait holds the lock
    work_.notify_all();
  }
}

void ThreadPool::CloseAndWait() {
  const auto empty = [this] { return (state_.load(std::memory_order_acquire) & kCount) == 0; };
  const std::uint64_t before = state_.fetch_and(~kOpen, std::memory_order_acq_rel);
  if ((before & kCount) == 0 || (spin_ && SpinUntil(empty))) return;
  std::unique_lock lock(mutex_);
  caller_sleeps_.store(true, std::memory_order_seq_cst);
  done_.wait(lock, [this] { return (state_.load(std::memory_order_seq_cst) & kCount) == 0; });
  caller_sleeps_.store(false, std::memory_order_relaxed);
}

bool ThreadPool::TryJoin(std::uint64_t* generation) {
  std::uint64_t state = state_.load(std::memory_order_seq_cst);
  while ((state & kOpen) != 0 && Generation(state) != *generation) {
    if (state_.compare_exchange_weak(state, state + 1, std::memory_order_acq_rel,
                                     std::memory_order_acquire)) {
      *generation = Generation(state);
      return true;
    }
  }
  return false;
}

void ThreadPool::Leave() {
  const std::uint64_t before = state_.fetch_sub(1, std::memory_order_seq_cst);
  if ((before & kCount) != 1 || (before & kOpen) != 0) return;
  if (!caller_sleeps_.load(std::memory_order_seq_cst)) return;
  { std::lock_guard lock(mutex_); }
  done_.notify_one();
}

std::uint64_t ThreadPool::Join(std::uint64_t generation) {
  const auto joined = [&] { return TryJoin(&generation); };
  if (spin_ && SpinUntil(joined)) return generation;
  std::unique_lock lock(mutex_);
  sleepers_.fetch_add(1, std::memory_order_seq_cst);
  bool stop = false;
  while (!joined()) {
    stop = stop_.load();
    if (stop) break;
    work_.wait(lock);
  }
  sleepers_.fetch_sub(1, std::memory_order_relaxed);
  return stop ? 0 : generation;
}

void ThreadPool::WorkerLoop(int worker) {
  std::uint64_t generation = 0;
  while ((generation = Join(generation)) != 0) {
    const Job job = job_;
    TakeChunks(job, worker);
    Leave();
  }
}

}  // namespace metattn::cpu
