// Ranks as threads of one process: a full Communicator, so that distributed logic is tested without
// mpirun.
//
// MakeLocalCommunicators(n) returns the n ends; each belongs to one thread. They share state that
// goes with the last. A rank that is missing (or whose end is destroyed) makes the others return
// DEADLINE_EXCEEDED or ABORTED naming it; ranks that call different operations, or whose messages
// to each other do not fit, get INTERNAL naming both. A channel has errors of its own. The first
// error is what every rank returns from then on.
// Waiting always sleeps (condition variable), whatever Options.spin says. AllReduceSum adds in rank
// order whether asked or not. With one rank every operation is free.
// Cost: two meetings of all ranks per operation; between them every rank sums or copies its share
// straight from the others' memory.
#pragma once

#include <memory>
#include <vector>

#include "parallel/communicator.h"

namespace metattn {

std::vector<std::unique_ptr<Communicator>> MakeLocalCommunicators(int size,
                                                                  const CommOptions& options);

}  // namespace metattn
