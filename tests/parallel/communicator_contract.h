// The contract of parallel/communicator.h as checks that every body must pass: run by ranks as
// threads (local_communicator_test) and by ranks as processes under mpirun (mpi_ranks, nccl_ranks).
//
// Each check is collective: all ranks call it with their own end, in the same order, and the device
// whose memory the body exchanges (host_world.h has one of host memory). It returns the
// first difference as a Status that names rank, place, expected and actual.
#pragma once

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "kernels/device.h"
#include "parallel/communicator.h"

namespace metattn {

struct ContractCheck {
  std::string name;
  absl::Status (*run)(Communicator& comm, Device& device, bool ordered);
};

const std::vector<ContractCheck>& ContractChecks();  // those below included

std::vector<ContractCheck> ExchangeChecks();  // of operations between all ranks' tensors
std::vector<ContractCheck> ChannelChecks();   // of second channels, and of what is refused

}  // namespace metattn
