#include "engine/host_memory.h"

#include <algorithm>
#include <fstream>
#include <limits>
#include <string>

namespace metattn {
namespace {

std::int64_t ReadNumber(const char* path, std::int64_t otherwise) {
  std::ifstream in(path);
  std::int64_t value = 0;
  return in >> value ? value : otherwise;  // control groups write "max" for no limit
}

}  // namespace

std::int64_t AvailableMemoryBytes() {
  std::int64_t available = 0;
  std::ifstream in("/proc/meminfo");
  for (std::string key, rest; in >> key && std::getline(in, rest);) {
    if (key == "MemAvailable:") available = std::stoll(rest) * 1024;
  }
  constexpr std::int64_t kNone = std::numeric_limits<std::int64_t>::max();
  const std::int64_t limit = ReadNumber("/sys/fs/cgroup/memory.max", kNone);
  if (limit == kNone) return available;
  const std::int64_t used = ReadNumber("/sys/fs/cgroup/memory.current", 0);
  return std::clamp<std::int64_t>(limit - used, 0, available);
}

}  // namespace metattn
