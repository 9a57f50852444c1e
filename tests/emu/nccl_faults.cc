#include "tests/emu/nccl_faults.h"

#include <cstdio>
#include <cstdlib>

namespace emu {
namespace {

// "RANK@VALUE", or nothing.
void ReadPair(const char* name, int* rank, int* value) {
  const char* text = std::getenv(name);
  if (text == nullptr || *text == '\0') return;
  int used = 0;
  if (std::sscanf(text, "%d@%d%n", rank, value, &used) == 2 && text[used] == '\0' && *rank >= 0 &&
      *value >= 0) {
    return;
  }
  std::fprintf(stderr, "emu: %s=%s is not RANK@NUMBER\n", name, text);
  std::abort();
}

NcclFaults& Faults() {
  static NcclFaults faults = NcclFaultsFromEnvironment();
  return faults;
}

}  // namespace

NcclFaults NcclFaultsFromEnvironment() {
  NcclFaults faults;
  ReadPair("EMU_NCCL_LOST", &faults.lost_rank, &faults.lost_from);
  ReadPair("EMU_NCCL_LATE", &faults.late_rank, &faults.late_ms);
  if (const char* text = std::getenv("EMU_NCCL_ERROR_MS")) faults.error_ms = std::atoi(text);
  return faults;
}

void SetNcclFaults(const NcclFaults& faults) { Faults() = faults; }
const NcclFaults& CurrentNcclFaults() { return Faults(); }

}  // namespace emu
