// Says what a fault (SIGSEGV) in emulated work means before the process dies of it: which CUDA
// thread read past an allocation, that host code touched device memory, that a CUDA thread's stack
// is full.
//
// Ownership: none. Thread safety: any thread. Errors: none. Cost: at the first call of each thread.
// Does nothing under sanitizers, which report faults themselves; a handler that was there before
// still runs afterwards.
#pragma once

namespace emu {

// Installs the report for the process, and a stack for it for this thread.
void ReportFaults();

}  // namespace emu
