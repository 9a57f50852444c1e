#include "kernels/cpu/isa.h"

#include <cstdint>
#include <cstdlib>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "kernels/check.h"
#include "kernels/cpu/op_table.h"

#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace metattn::cpu {

// Each lies in its level's table.cc object; declared here because ops.h belongs to those objects.
namespace avx2 {
const OpTable& Table();
}
namespace avx512 {
const OpTable& Table();
}
namespace avx512_bf16 {
const OpTable& Table();
}
namespace amx {
const OpTable& Table();
}

namespace {

struct Level {
  std::string_view name;
  bool available;
  const OpTable& (*table)();
};

#if defined(__x86_64__)

struct Cpuid {
  std::uint32_t eax = 0, ebx = 0, ecx = 0, edx = 0;
};

Cpuid Ask(std::uint32_t leaf, std::uint32_t subleaf) {
  Cpuid r;
  __get_cpuid_count(leaf, subleaf, &r.eax, &r.ebx, &r.ecx, &r.edx);  // unknown leaf: zeros
  return r;
}

bool Has(std::uint32_t word, int bit) { return (word >> bit & 1u) != 0; }

// Register state that the operating system saves (XCR0); zero without XSAVE.
std::uint64_t SavedState(const Cpuid& leaf1) {
  constexpr int kOsXsave = 27;
  if (!Has(leaf1.ecx, kOsXsave)) return 0;
  std::uint32_t low = 0;
  std::uint32_t high = 0;
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return std::uint64_t{high} << 32 | low;
}

// Linux gives a process the 8 KB of tile data only when it asks; threads inherit the permission.
bool AskForTiles() {
  constexpr long kArchReqXcompPerm = 0x1023;
  constexpr long kTileData = 18;
  return syscall(SYS_arch_prctl, kArchReqXcompPerm, kTileData) == 0;
}

std::vector<Level> Detect() {
  constexpr std::uint64_t kYmm = 0x6, kZmm = 0xe6, kTiles = 0x60000;
  const Cpuid one = Ask(1, 0), seven = Ask(7, 0), seven_one = Ask(7, 1);
  const std::uint64_t saved = SavedState(one);
  const bool fma = Has(one.ecx, 12), f16c = Has(one.ecx, 29), avx2 = Has(seven.ebx, 5);
  const bool f = Has(seven.ebx, 16), dq = Has(seven.ebx, 17), bw = Has(seven.ebx, 30);
  const bool vl = Has(seven.ebx, 31), bf16 = Has(seven_one.eax, 5);
  const bool amx_bf16 = Has(seven.edx, 22), amx_tile = Has(seven.edx, 24);

  const bool level1 = fma && f16c && avx2 && (saved & kYmm) == kYmm;
  const bool level2 = level1 && f && dq && bw && vl && (saved & kZmm) == kZmm;
  [[maybe_unused]] const bool level3 = level2 && bf16;
  [[maybe_unused]] const bool level4 =
      level3 && amx_bf16 && amx_tile && (saved & kTiles) == kTiles && AskForTiles();
  std::vector<Level> levels = {{"avx2", level1, &avx2::Table}};
#ifdef METATTN_LEVEL_avx512
  levels.push_back({"avx512", level2, &avx512::Table});
#else  // some builds for tests leave levels out (METATTN_CPU_LEVELS)
  levels.push_back({"avx512", false, nullptr});
#endif
#ifdef METATTN_LEVEL_avx512_bf16
  levels.push_back({"avx512_bf16", level3, &avx512_bf16::Table});
#else
  levels.push_back({"avx512_bf16", false, nullptr});
#endif
#ifdef METATTN_LEVEL_amx
  levels.push_back({"amx", level4, &amx::Table});
#else
  levels.push_back({"amx", false, nullptr});
#endif
  return levels;
}

#else

std::vector<Level> Detect() { return {}; }

#endif

const std::vector<Level>& Levels() {
  static const std::vector<Level> levels = Detect();
  return levels;
}

std::string Names(const std::vector<std::string_view>& names) {
  return absl::StrJoin(names, ", ", [](std::string* out, std::string_view name) {
    out->append(name.data(), name.size());
  });
}

}  // namespace

const std::vector<std::string_view>& AvailableIsas() {
  static const std::vector<std::string_view> names = [] {
    std::vector<std::string_view> r;
    for (const Level& level : Levels()) {
      if (level.available) r.push_back(level.name);
    }
    return r;
  }();
  return names;
}

absl::StatusOr<std::string_view> ChooseIsa(const IsaChoice& choice) {
  if (choice.available.empty()) {
    return absl::InvalidArgumentError(
        "the cpu backend needs AVX2, FMA and F16C, which this machine lacks; use backend ref");
  }
  const bool by_option = !choice.option.empty();
  const std::string_view wanted = by_option ? choice.option : choice.environment;
  if (wanted.empty()) return choice.available.back();
  for (const std::string_view name : choice.available) {
    if (name == wanted) return name;
  }
  const std::string source = by_option ? "instruction set" : "METATTN_CPU_ISA";
  const std::string have =
      absl::StrCat("this machine runs: ", Names(choice.available), "; leave it empty for the best");
  for (const std::string_view name : choice.known) {
    if (name != wanted) continue;
    return absl::InvalidArgumentError(absl::StrCat(source, ": \"", std::string(wanted),
                                                   "\" is not supported by this machine; ", have));
  }
  return absl::InvalidArgumentError(absl::StrCat(source, ": unknown value \"", std::string(wanted),
                                                 "\"; known: ", Names(choice.known), "; ", have));
}

absl::StatusOr<const OpTable*> SelectIsa(std::string_view wanted) {
  const char* variable = std::getenv("METATTN_CPU_ISA");
  std::vector<std::string_view> known;
  for (const Level& level : Levels()) known.push_back(level.name);
  const absl::StatusOr<std::string_view> name =
      ChooseIsa({wanted, variable == nullptr ? "" : variable, known, AvailableIsas()});
  if (!name.ok()) return name.status();
  for (const Level& level : Levels()) {
    if (level.name == *name) return &level.table();
  }
  METATTN_CHECK(false, "a level that was chosen is gone");
}

}  // namespace metattn::cpu
