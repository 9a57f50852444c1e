// AMX tiles as this backend uses them: all eight of 16 rows by 64 bytes. Level amx only.
//
// Ownership: the configuration belongs to the thread; set it where a thread starts a job and
// release it (_tile_release) at the job's end. Errors: none. Cost: tens of cycles.
#pragma once

#if defined(__AMX_BF16__)

#include <cstdint>

#include "kernels/cpu/vec.h"

namespace metattn::cpu::METATTN_ISA {

inline constexpr int kTileSide = 16;  // rows of a tile, and its columns of 32 bits

struct alignas(64) TileConfig {
  std::uint8_t palette = 1, start_row = 0;
  std::uint8_t reserved[14] = {};
  std::uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  std::uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
static_assert(sizeof(TileConfig) == 64);

METATTN_INLINE void ConfigureTiles() {
  const TileConfig config;
  // GCC 12 believes that the instruction reads 8 bytes and would drop the other stores.
  __asm__ volatile("" ::"r"(&config) : "memory");
  _tile_loadconfig(&config);
}

// GCC 12 does not know that a tile load reads memory: stores it may still hold back must be done.
METATTN_INLINE void StoresBeforeTileLoads() { __asm__ volatile("" ::: "memory"); }

}  // namespace metattn::cpu::METATTN_ISA

#endif  // __AMX_BF16__
