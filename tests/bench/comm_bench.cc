// What the communicator costs between the ranks it is started with, verified before it is timed:
//   mpirun -np 2 comm_bench            plain sums
//   mpirun -np 2 comm_bench ordered    ordered sums
//   mpirun -np 2 comm_bench idle       a receiver's CPU share while idle, and how late it notices
// One line per figure on rank 0; times are in microseconds over all ranks' operations on rank 0.
// Idle latencies compare clocks of one host only.
#include <sys/resource.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <string_view>
#include <thread>
#include <vector>

#include "parallel/bootstrap.h"
#include "parallel/topology.h"
#include "tests/parallel/host_world.h"

namespace metattn {
namespace {

using Clock = std::chrono::steady_clock;

double Micros(Clock::duration d) { return std::chrono::duration<double, std::micro>(d).count(); }

struct Quantiles {
  double p50, p99, max;
};

Quantiles Of(std::vector<double> v) {
  std::sort(v.begin(), v.end());
  return {v[v.size() / 2], v[v.size() * 99 / 100], v.back()};
}

void MustBeOk(const absl::Status& s) {
  if (s.ok()) return;
  std::fprintf(stderr, "%s\n", s.ToString().c_str());
  EndWorld(1);
}

void Print(const Communicator& comm, const char* what, const std::vector<double>& micros) {
  if (comm.rank() != 0) return;
  const Quantiles q = Of(micros);
  std::printf("%-34s p50 %9.2f  p99 %9.2f  max %9.1f us  (%zu)\n", what, q.p50, q.p99, q.max,
              micros.size());
}

void AllReduce(Communicator& comm, std::int64_t count, int repeats) {
  InlineStream stream;
  Buffer buffer = HostFloats(count);
  auto* data = reinterpret_cast<float*>(buffer.data());
  std::fill_n(data, count, static_cast<float>(comm.rank()));
  MustBeOk(comm.AllReduceSum({&buffer, 0}, count, stream));
  const auto sum = static_cast<float>(comm.size() * (comm.size() - 1) / 2);
  if (data[0] != sum || data[count - 1] != sum) MustBeOk(absl::InternalError("wrong sum"));
  std::fill_n(data, count, 0.0f);
  std::vector<double> micros;
  for (int i = 0; i < repeats; ++i) {
    const auto start = Clock::now();
    MustBeOk(comm.AllReduceSum({&buffer, 0}, count, stream));
    micros.push_back(Micros(Clock::now() - start));
  }
  char what[64];
  std::snprintf(what, sizeof(what), "all-reduce %lld floats", static_cast<long long>(count));
  Print(comm, what, micros);
}

// Back to back: broadcast of a plan, gather of a record: the frame of an empty step.
void StepFrame(Communicator& comm, int repeats) {
  std::vector<double> micros;
  std::vector<std::byte> plan, record(96), all(comm.rank() == 0 ? 96 * comm.size() : 0);
  for (int i = 0; i < repeats; ++i) {
    const auto start = Clock::now();
    if (comm.rank() == 0) plan.assign(2000, std::byte{1});
    MustBeOk(comm.Broadcast(plan));
    MustBeOk(comm.GatherRecords(record, all));
    micros.push_back(Micros(Clock::now() - start));
  }
  Print(comm, "broadcast 2000 B + gather 96 B", micros);
}

void Logits(Communicator& comm, std::int64_t rows, int repeats) {
  InlineStream stream;
  const std::int64_t vocab = 49152;
  std::vector<std::int64_t> counts(comm.size());
  for (int r = 0; r < comm.size(); ++r) {
    counts[r] = rows * (vocab * (r + 1) / comm.size() - vocab * r / comm.size());
  }
  Buffer mine = HostFloats(counts[comm.rank()]);
  std::memset(mine.data(), 0, mine.bytes());
  Buffer all = comm.rank() == 0 ? HostFloats(rows * vocab) : Buffer();
  std::vector<double> micros;
  for (int i = 0; i < repeats; ++i) {
    const auto start = Clock::now();
    MustBeOk(
        comm.GatherV({&mine, 0}, comm.rank() == 0 ? View{&all, 0} : View{}, counts, 0, stream));
    micros.push_back(Micros(Clock::now() - start));
  }
  char what[64];
  std::snprintf(what, sizeof(what), "gather logits of %lld rows", static_cast<long long>(rows));
  Print(comm, what, micros);
}

// Around the ring: every rank sends and receives one message of this size.
void Ring(Communicator& comm, std::int64_t bytes, int repeats) {
  InlineStream stream;
  Buffer out = HostBytes(static_cast<std::size_t>(bytes));
  Buffer in = HostBytes(static_cast<std::size_t>(bytes));
  const int ranks = comm.size(), before = (comm.rank() + ranks - 1) % ranks;
  const Transfer send = {(comm.rank() + 1) % ranks, {&out}, bytes}, recv = {before, {&in}, bytes};
  std::memset(out.data(), comm.rank() + 1, out.bytes());
  std::memset(in.data(), 0, in.bytes());
  MustBeOk(comm.Exchange({&send, 1}, {&recv, 1}, stream));
  if (std::memcmp(in.data(), std::vector<std::byte>(in.bytes(), std::byte(before + 1)).data(),
                  in.bytes()) != 0) {
    MustBeOk(absl::InternalError("wrong message"));
  }
  std::vector<double> micros;
  for (int i = 0; i < repeats; ++i) {
    const auto start = Clock::now();
    MustBeOk(comm.Exchange({&send, 1}, {&recv, 1}, stream));
    micros.push_back(Micros(Clock::now() - start));
  }
  char what[64];
  std::snprintf(what, sizeof(what), "exchange %lld B around", static_cast<long long>(bytes));
  Print(comm, what, micros);
}

double CpuSeconds() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  const auto seconds = [](const timeval& t) {
    return static_cast<double>(t.tv_sec) + static_cast<double>(t.tv_usec) * 1e-6;
  };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

// Rank 0 sends its clock after pauses; receivers note how old it is on arrival. Rank 1's figures
// come back to rank 0 as a record.
void Idle(Communicator& comm, int rounds) {
  struct Figures {
    double p50, p99, max, cpu_share;
  } mine{};
  std::vector<double> micros;
  const double cpu = CpuSeconds();
  const auto begin = Clock::now();
  for (int i = 0; i < rounds; ++i) {
    std::vector<std::byte> message(sizeof(Clock::rep));
    if (comm.rank() == 0) {
      std::this_thread::sleep_for(std::chrono::microseconds(20000 + i * 37 % 1000));
      const Clock::rep now = Clock::now().time_since_epoch().count();
      std::memcpy(message.data(), &now, sizeof(now));
    }
    MustBeOk(comm.Broadcast(message));
    Clock::rep sent = 0;
    std::memcpy(&sent, message.data(), sizeof(sent));
    micros.push_back(Micros(Clock::now().time_since_epoch() - Clock::duration(sent)));
  }
  std::vector<std::byte> message;
  const double cpu_busy = CpuSeconds();
  const auto idle = Clock::now();
  if (comm.rank() == 0) std::this_thread::sleep_for(std::chrono::seconds(5));
  MustBeOk(comm.Broadcast(message));
  const Quantiles q = Of(micros);
  mine = {q.p50, q.p99, q.max, (CpuSeconds() - cpu_busy) / Micros(Clock::now() - idle) * 1e6};
  const double busy_share = (cpu_busy - cpu) / Micros(idle - begin) * 1e6;
  std::vector<Figures> all(comm.rank() == 0 ? comm.size() : 0);
  MustBeOk(comm.GatherRecords(std::as_bytes(std::span(&mine, 1)),
                              std::as_writable_bytes(std::span(all))));
  for (std::size_t r = 1; r < all.size(); ++r) {
    std::printf(
        "rank %zu notices a broadcast after p50 %.0f p99 %.0f max %.0f us; idle for 5 s it "
        "takes %.2f %% of a core\n",
        r, all[r].p50, all[r].p99, all[r].max, 100 * all[r].cpu_share);
  }
  if (comm.rank() == 1) {
    std::printf("rank 1 while a message comes every 20 ms: %.2f %% of a core\n", 100 * busy_share);
  }
}

void PrintStats(Communicator& comm) {
  const CommStats s = comm.TakeStats();
  std::printf("rank %d: wait %.3f s, transfer %.3f s, %.1f MB, %lld calls\n", comm.rank(),
              s.wait_seconds, s.transfer_seconds, static_cast<double>(s.bytes) / 1e6,
              static_cast<long long>(s.calls));
}

int Main(std::string_view mode) {
  CommOptions options;
  options.ordered_sum = mode == "ordered";
  options.spin = !LooksOversubscribed(1);
  auto world = MakeWorld(options);
  MustBeOk(world.status());
  Communicator& comm = **world;
  if (comm.rank() == 0) {
    std::printf("%d ranks over %s, %s sums, waiting %s\n", comm.size(),
                std::string(comm.transport()).c_str(), options.ordered_sum ? "ordered" : "plain",
                options.spin ? "spins" : "sleeps");
  }
  if (mode == "idle") {
    Idle(comm, 250);
    return 0;
  }
  AllReduce(comm, 576, 20000);
  AllReduce(comm, 16 * 576, 3000);
  AllReduce(comm, 512 * 576, 300);
  StepFrame(comm, 5000);
  Logits(comm, 1, 1000);
  Logits(comm, 16, 100);
  Ring(comm, 576 * 4, 10000);
  Ring(comm, 64 * 1024, 2000);
  Ring(comm, 1024 * 1024, 300);
  PrintStats(comm);
  return 0;
}

}  // namespace
}  // namespace metattn

int main(int argc, char** argv) { return metattn::Main(argc > 1 ? argv[1] : ""); }
