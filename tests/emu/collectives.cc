#include "tests/emu/collectives.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <utility>

#include "tests/emu/block.h"
#include "tests/emu/fiber.h"

// The bodies below run once per collective, on the last lane's stack, and read and write what the
// other lanes put on theirs. On a GPU these are registers: none of it orders memory.

namespace emu {
namespace {

constexpr unsigned kFull = ~0U;

template <typename Argument, typename Body>
void ForEachLane(void* const* arguments, unsigned mask, const Body& body) {
  for (int lane = 0; lane < 32; ++lane) {
    if ((mask >> lane & 1U) != 0) body(lane, *static_cast<Argument*>(arguments[lane]));
  }
}

constexpr std::size_t kMaxShuffle = 8;

// Sizes known to the compiler, so that no call of memcpy remains: TSan would take it for one lane's
// access to another's stack.
void CopyRegister(void* to, const void* from, std::size_t bytes) {
  switch (bytes) {
    case 2:
      std::memcpy(to, from, 2);
      return;
    case 4:
      std::memcpy(to, from, 4);
      return;
    default:  // kernel.h lets no other size pass
      std::memcpy(to, from, 8);
  }
}

struct ShuffleArgument {
  unsigned char in[kMaxShuffle];
  unsigned char* value;
  std::size_t bytes;
  int source;
};

void CompleteShuffle(void* const* arguments, unsigned mask) {
  ForEachLane<ShuffleArgument>(arguments, mask, [&](int, ShuffleArgument& me) {
    if (me.source < 0) return;
    if ((mask >> me.source & 1U) == 0) {
      Fail("shuffle: reads from a lane that the block's last warp does not have");
    }
    CopyRegister(me.value, static_cast<ShuffleArgument*>(arguments[me.source])->in, me.bytes);
  });
}

struct VoteArgument {
  bool in;
  unsigned out;
};

void CompleteVote(void* const* arguments, unsigned mask) {
  unsigned ballot = 0;
  ForEachLane<VoteArgument>(arguments, mask, [&](int lane, const VoteArgument& a) {
    ballot |= (a.in ? 1U : 0U) << lane;
  });
  ForEachLane<VoteArgument>(arguments, mask, [&](int, VoteArgument& a) { a.out = ballot; });
}

struct ReduceArgument {
  Reduction how;
  std::int64_t value;
};

std::int64_t Combine(Reduction how, std::int64_t a, std::int64_t b) {
  switch (how) {
    case Reduction::kAdd:
      return a + b;
    case Reduction::kMin:
      return std::min(a, b);
    case Reduction::kMax:
      return std::max(a, b);
    case Reduction::kAnd:
      return a & b;
    case Reduction::kOr:
      return a | b;
    case Reduction::kXor:
      return a ^ b;
  }
  Fail("unknown reduction");
}

void CompleteReduce(void* const* arguments, unsigned mask) {
  const int first = std::countr_zero(mask);
  std::int64_t result = static_cast<ReduceArgument*>(arguments[first])->value;
  ForEachLane<ReduceArgument>(arguments, mask, [&](int lane, const ReduceArgument& a) {
    if (lane != first) result = Combine(a.how, result, a.value);
  });
  ForEachLane<ReduceArgument>(arguments, mask, [&](int, ReduceArgument& a) { a.value = result; });
}

struct MatrixArgument {
  std::uint32_t* r;
  const void* row;
  const std::uint16_t* sources[8];  // of the elements that this lane gets
};

template <bool kTransposed>
void CompleteMatrix(void* const* arguments, unsigned mask) {
  ForEachLane<MatrixArgument>(arguments, mask, [&](int lane, MatrixArgument& me) {
    for (int matrix = 0; matrix < 4; ++matrix) {
      std::uint32_t pair = 0;
      for (int half = 0; half < 2; ++half) {
        int row = lane / 4, column = lane % 4 * 2 + half;
        if (kTransposed) std::swap(row, column);
        const auto* owner = static_cast<MatrixArgument*>(arguments[matrix * 8 + row]);
        const auto* source = static_cast<const std::uint16_t*>(owner->row) + column;
        me.sources[matrix * 2 + half] = source;
        pair |= std::uint32_t{*source} << (16 * half);
      }
      me.r[matrix] = pair;
    }
  });
}

struct MmaArgument {
  float* d;
  const std::uint32_t* a;
  std::uint32_t b[2];
};

float Half(std::uint32_t pair, int half) {
  return std::bit_cast<float>(half == 0 ? pair << 16 : pair & 0xffff0000U);
}

// What register i of a lane's accumulator stands for.
int RowOf(int lane, int i) { return lane / 4 + i / 2 * 8; }
int ColumnOf(int lane, int i) { return lane % 4 * 2 + i % 2; }

void CompleteMma(void* const* arguments, unsigned mask) {
  float a[16][16], b[16][8], c[16][8];
  ForEachLane<MmaArgument>(arguments, mask, [&](int lane, const MmaArgument& me) {
    const int g = lane / 4, t = lane % 4 * 2;
    for (int half = 0; half < 2; ++half) {
      for (int i = 0; i < 4; ++i) a[g + i % 2 * 8][t + i / 2 * 8 + half] = Half(me.a[i], half);
      for (int i = 0; i < 2; ++i) b[t + i * 8 + half][g] = Half(me.b[i], half);
    }
    for (int i = 0; i < 4; ++i) c[RowOf(lane, i)][ColumnOf(lane, i)] = me.d[i];
  });
  // Products of bf16 are exact in fp32. The order of a tensor core's additions is not published.
  for (int row = 0; row < 16; ++row) {
    for (int k = 0; k < 16; ++k) {
      for (int column = 0; column < 8; ++column) c[row][column] += a[row][k] * b[k][column];
    }
  }
  ForEachLane<MmaArgument>(arguments, mask, [&](int lane, const MmaArgument& me) {
    for (int i = 0; i < 4; ++i) me.d[i] = c[RowOf(lane, i)][ColumnOf(lane, i)];
  });
}

}  // namespace

int SyncBlock(const char* name, bool predicate, const Site& site) {
  return Block::Get().SyncBlock(name, predicate, site);
}

void SyncWarp(unsigned mask, const Site& site) {
  Block::Get().SyncWarp({"__syncwarp", mask, nullptr, true}, nullptr, site);
}

void Shuffle(unsigned mask, void* value, std::size_t bytes, int source, const Site& site) {
  ShuffleArgument argument{{}, static_cast<unsigned char*>(value), bytes, source};
  if (source >= 0 && (mask >> source & 1U) == 0) {
    Fail("shuffle: reads from a lane that is not in the mask", site);
  }
  CopyRegister(argument.in, value, bytes);
  Block::Get().SyncWarp({"a shuffle", mask, CompleteShuffle}, &argument, site);
}

unsigned Vote(const char* name, unsigned mask, bool predicate, const Site& site) {
  VoteArgument argument{predicate, 0};
  Block::Get().SyncWarp({name, mask, CompleteVote}, &argument, site);
  return argument.out;
}

std::int64_t Reduce(Reduction how, unsigned mask, std::int64_t value, const Site& site) {
  static constexpr const char* kNames[] = {"__reduce_add_sync", "__reduce_min_sync",
                                           "__reduce_max_sync", "__reduce_and_sync",
                                           "__reduce_or_sync",  "__reduce_xor_sync"};
  ReduceArgument argument{how, value};
  Block::Get().SyncWarp({kNames[static_cast<int>(how)], mask, CompleteReduce}, &argument, site);
  return argument.value;
}

unsigned char* DynamicShared() { return Block::Get().shared().dynamic(); }

void* StaticSharedBytes(const void* key, std::size_t bytes) {
  return Block::Get().shared().Static(key, bytes);
}

void CopyAsync16(void* shared, const void* global, const Site& site) {
  Block::Get().current().copies.Start(shared, global, site);
}

void CommitCopies() { Block::Get().current().copies.Commit(); }

void WaitForCopies(int pending) {
  Block::Get().current().copies.Wait(static_cast<std::size_t>(pending));
}

void LoadMatrixX4(std::uint32_t* r, const void* row, bool transposed, const Site& site) {
  if (reinterpret_cast<std::uintptr_t>(row) % 16 != 0) {
    Fail("ldmatrix_x4: a row not aligned to 16 bytes", site);
  }
  if (!Block::Get().shared().Contains(row, 16)) {
    Fail("ldmatrix_x4: a row that is not in this block's shared memory", site);
  }
  MatrixArgument argument{r, row, {}};
  WarpCall call{"ldmatrix_x4", kFull, CompleteMatrix<false>};
  if (transposed) call = {"ldmatrix_x4<true>", kFull, CompleteMatrix<true>};
  call.aligned = true;
  Block::Get().SyncWarp(call, &argument, site);
  // A lane reads what it gets, not the row that it names: a barrier must order it after the writer.
  for (const std::uint16_t* source : argument.sources) NoteRead(source, sizeof *source);
}

void MmaBf16(float* d, const std::uint32_t* a, std::uint32_t b0, std::uint32_t b1,
             const Site& site) {
  MmaArgument argument{d, a, {b0, b1}};
  Block::Get().SyncWarp({"mma_bf16_16816", kFull, CompleteMma, false, true}, &argument, site);
}

void YieldThread() { Block::Get().Yield(); }

}  // namespace emu
