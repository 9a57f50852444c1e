// What of the machine decides how long a decode step takes: what it costs to hand work to other
// threads, and how fast memory is read. On a virtual machine both change while it runs, with the
// cores that its processors lie on: one last-level cache for all makes handing over cheap, several
// give more bandwidth. Run it before and after a measurement to know what was measured on.
//
//   machine_bench [threads=2] [rounds=5]
//
// One line per round: the median of what a job of two pieces of 3 us takes beyond 3 us; GB/s of one
// thread, and of all, that read huge pages front to back.
#include <sys/mman.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_split.h"
#include "kernels/cpu/thread_pool.h"

namespace metattn {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::int64_t kBytes = std::int64_t{256} << 20;
constexpr std::int64_t kChunk = std::int64_t{1} << 20;

[[noreturn]] void Usage(const std::string& what) {
  std::fprintf(stderr, "%s\nusage: machine_bench [threads=2] [rounds=5]\n", what.c_str());
  std::exit(2);
}

[[noreturn]] void Fail(const char* what) {
  std::fprintf(stderr, "machine_bench: %s\n", what);
  std::exit(1);
}

double Since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

void Spend(double seconds) {
  for (const Clock::time_point start = Clock::now(); Since(start) < seconds;) {
  }
}

double HandOver(cpu::ThreadPool& pool) {
  constexpr double kPiece = 3e-6, kPause = 2e-6;
  std::vector<double> times;
  for (int i = 0; i < 10000; ++i) {
    const Clock::time_point start = Clock::now();
    pool.ParallelFor(2, 1, [](std::int64_t, std::int64_t, int) { Spend(kPiece); });
    times.push_back(Since(start) - kPiece);
    Spend(kPause);
  }
  const auto middle = times.begin() + static_cast<std::ptrdiff_t>(times.size() / 2);
  std::nth_element(times.begin(), middle, times.end());
  return *middle;
}

struct Free {
  void operator()(std::uint64_t* p) const { std::free(p); }
};
using Memory = std::unique_ptr<std::uint64_t, Free>;

Memory Touched() {
  Memory memory(static_cast<std::uint64_t*>(std::aligned_alloc(std::size_t{2} << 20, kBytes)));
  if (memory == nullptr) Fail("no memory for 256 MiB to read");
  madvise(memory.get(), kBytes, MADV_HUGEPAGE);
  std::fill_n(memory.get(), kBytes / 8, std::uint64_t{1});
  return memory;
}

// Bytes a second.
double Bandwidth(cpu::ThreadPool& pool, const std::uint64_t* memory) {
  std::vector<std::uint64_t> sums(static_cast<std::size_t>(pool.threads()) * 8);  // a line each
  const Clock::time_point start = Clock::now();
  pool.ParallelFor(kBytes, kChunk, [&](std::int64_t begin, std::int64_t end, int worker) {
    std::uint64_t sum = 0;
    for (std::int64_t i = begin / 8; i < end / 8; ++i) sum += memory[i];
    sums[static_cast<std::size_t>(worker) * 8] += sum;
  });
  const double seconds = Since(start);
  std::uint64_t total = 0;
  for (const std::uint64_t sum : sums) total += sum;
  if (total != kBytes / 8) Fail("the sum of what was read is wrong");  // also keeps the loop
  return static_cast<double>(kBytes) / seconds;
}

int Number(const std::string& text) {
  int value = 0;
  if (!absl::SimpleAtoi(text, &value) || value < 1) Usage("not a positive number: " + text);
  return value;
}

int Main(int argc, char** argv) {
  int threads = 2, rounds = 5;
  for (int i = 1; i < argc; ++i) {
    const std::pair<std::string, std::string> option =
        absl::StrSplit(argv[i], absl::MaxSplits('=', 1));
    if (option.first == "threads") {
      threads = Number(option.second);
    } else if (option.first == "rounds") {
      rounds = Number(option.second);
    } else {
      Usage("unknown setting: " + option.first);
    }
  }
  cpu::ThreadPool one(1, true), all(threads, true);
  const Memory memory = Touched();
  for (int round = 0; round < rounds; ++round) {
    const double hand_over = all.threads() == 1 ? 0.0 : HandOver(all);
    std::printf("hand-over %4.0f ns  1 thread %5.1f GB/s  %d threads %5.1f GB/s\n", hand_over * 1e9,
                Bandwidth(one, memory.get()) * 1e-9, all.threads(),
                Bandwidth(all, memory.get()) * 1e-9);
    std::fflush(stdout);
  }
  return 0;
}

}  // namespace
}  // namespace metattn

int main(int argc, char** argv) { return metattn::Main(argc, argv); }
