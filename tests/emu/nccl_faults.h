// Faults that the emulated NCCL can be told to have: a rank that is lost, a rank that is late, an
// error that NCCL notices by itself.
//
// Ownership: none. Thread safety: set before communicators are made. Errors: aborts on unknown
// values of environment variables. Cost: none.
//
// Environment, read at the first use: EMU_NCCL_LOST=RANK@N: that rank takes no part from its N-th
// operation on (0: not even in starting a communicator); EMU_NCCL_ERROR_MS=T: an operation that
// waits for others for T ms makes an asynchronous ncclRemoteError; EMU_NCCL_LATE=RANK@T: that
// rank's operations begin T ms late.
#pragma once

namespace emu {

struct NcclFaults {
  int lost_rank = -1, lost_from = 0;  // operations are counted from 1
  int error_ms = -1;                  // -1: NCCL notices nothing
  int late_rank = -1, late_ms = 0;
};
NcclFaults NcclFaultsFromEnvironment();
void SetNcclFaults(const NcclFaults& faults);
const NcclFaults& CurrentNcclFaults();

}  // namespace emu
