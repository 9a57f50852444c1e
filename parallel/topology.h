// Who sits where: host, process and cores of every rank, and whether a host has more threads than
// cores.
//
// ExchangeTopology is collective (one small gather, one broadcast); every rank gets the same table,
// in rank order. Errors: those of the communicator. Cost: start of a program only.
#pragma once

#include <bitset>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "parallel/communicator.h"

namespace metattn {

inline constexpr int kMaxCpus = 4096;

// What a rank tells the others. Fixed layout: all ranks run the same program.
struct RankRecord {
  char host[64] = {};  // ends with a zero
  std::int32_t pid = 0;
  std::int32_t threads = 0;    // 0: its share of the host's cores
  std::bitset<kMaxCpus> cpus;  // that it may run on; at least one
};

struct RankPlace {
  int rank = 0;
  std::string host;  // name, cut after 63 bytes
  int pid = 0;
  int cores = 0;                // logical CPUs this process may run on (affinity mask)
  int threads = 0;              // compute threads asked for, or chosen when 0 was asked
  int ranks_on_host = 0;        // this one included
  int rank_on_host = 0;         // its number among them, in rank order
  int cores_of_host = 0;        // CPUs that any rank of this host may run on
  int threads_on_host = 0;      // sum over the ranks of this host
  bool oversubscribed = false;  // more threads than CPUs on the host, or than this rank may use:
                                // waiting must yield or sleep
};

// The pure part: records in rank order to places in rank order.
std::vector<RankPlace> PlaceRanks(std::span<const RankRecord> records);

// threads: of this rank; 0 chooses its share of the host's cores, at least 1. Two hosts of one name
// count as one.
absl::StatusOr<std::vector<RankPlace>> ExchangeTopology(Communicator& comm, int threads);

// CPUs this process may run on; at least 1.
int CoresOfThisProcess();

// A guess before any exchange, from launcher's environment and affinity mask alone, for options
// that must be set before ranks can talk (CommOptions.spin). threads: per rank; 0 never
// oversubscribes unless ranks alone do.
bool LooksOversubscribed(int threads);

}  // namespace metattn
