// How much memory this host can still give, for sizing the K/V cache and for saying no before the
// kernel does.
#pragma once

#include <cstdint>

namespace metattn {

// Bytes available without swapping: /proc/meminfo's MemAvailable, bounded by the process's control
// group limit when there is one. Read at each call. 0 when neither can be read.
std::int64_t AvailableMemoryBytes();

}  // namespace metattn
