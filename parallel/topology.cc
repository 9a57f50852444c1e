#include "parallel/topology.h"

#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "parallel/exchange.h"
#include "parallel/launch_env.h"

namespace metattn {
namespace {

using CpuMask = std::bitset<kMaxCpus>;

CpuMask CpusOfThisProcess() {
  // Larger than cpu_set_t's 1024, for the kernel refuses a mask that is too short for the machine.
  unsigned long words[kMaxCpus / (8 * sizeof(unsigned long))] = {};
  CpuMask cpus;
  if (sched_getaffinity(0, sizeof(words), reinterpret_cast<cpu_set_t*>(words)) == 0) {
    constexpr int kBits = 8 * sizeof(unsigned long);
    for (int i = 0; i < kMaxCpus; ++i) cpus[i] = (words[i / kBits] >> (i % kBits)) & 1;
  }
  if (cpus.none()) cpus.set(0);  // it runs somewhere
  return cpus;
}

RankRecord ThisRank(int threads) {
  RankRecord record;
  if (gethostname(record.host, sizeof(record.host) - 1) != 0) std::strcpy(record.host, "unknown");
  record.pid = getpid();
  record.threads = threads;
  record.cpus = CpusOfThisProcess();
  return record;
}

bool SameHost(const RankRecord& a, const RankRecord& b) { return std::strcmp(a.host, b.host) == 0; }

}  // namespace

std::vector<RankPlace> PlaceRanks(std::span<const RankRecord> records) {
  std::vector<RankPlace> table;
  for (std::size_t r = 0; r < records.size(); ++r) {
    const RankRecord& record = records[r];
    RankPlace place;
    place.rank = static_cast<int>(r);
    place.host = record.host;
    place.pid = record.pid;
    place.cores = static_cast<int>(record.cpus.count());
    CpuMask host_cpus;
    for (const RankRecord& other : records) {
      if (!SameHost(record, other)) continue;
      if (&other < &record) ++place.rank_on_host;
      ++place.ranks_on_host;
      host_cpus |= other.cpus;
    }
    place.cores_of_host = static_cast<int>(host_cpus.count());
    place.threads = record.threads > 0
                        ? record.threads
                        : std::clamp(place.cores_of_host / place.ranks_on_host, 1, place.cores);
    table.push_back(std::move(place));
  }
  for (std::size_t r = 0; r < records.size(); ++r) {
    RankPlace& place = table[r];
    for (std::size_t other = 0; other < records.size(); ++other) {
      if (SameHost(records[r], records[other])) place.threads_on_host += table[other].threads;
    }
    place.oversubscribed =
        place.threads_on_host > place.cores_of_host || place.threads > place.cores;
  }
  return table;
}

absl::StatusOr<std::vector<RankPlace>> ExchangeTopology(Communicator& comm, int threads) {
  auto exchanged = ExchangeRecords(comm, ThisRank(threads));
  if (!exchanged.ok()) return exchanged.status();
  std::vector<RankRecord> records = *std::move(exchanged);
  for (RankRecord& record : records) record.host[sizeof(record.host) - 1] = '\0';
  return PlaceRanks(records);
}

int CoresOfThisProcess() { return static_cast<int>(CpusOfThisProcess().count()); }

bool LooksOversubscribed(int threads) {
  const LaunchEnv env = ReadLaunchEnv();
  const int cores = CoresOfThisProcess();
  const int sharing = env.bound ? 1 : env.local_size;  // ranks on these cores
  return std::max(threads, 1) * sharing > cores;
}

}  // namespace metattn
