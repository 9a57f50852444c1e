#include "kernels/cpu/scratch.h"

#include "kernels/check.h"

namespace metattn::cpu {

std::byte* Scratch::Grow(std::size_t area, std::size_t bytes) {
  METATTN_CHECK(area < areas_.size(), "no such worker");
  Area& a = areas_[area];
  if (bytes <= a.bytes) return a.data.get();
  constexpr std::size_t kAlign = 64;
  const std::size_t rounded = (bytes + kAlign - 1) / kAlign * kAlign;
  a.data.reset();
  a.data.reset(static_cast<std::byte*>(std::aligned_alloc(kAlign, rounded)));
  METATTN_CHECK(a.data != nullptr, "out of memory for kernel scratch");
  a.bytes = rounded;
  return a.data.get();
}

}  // namespace metattn::cpu
