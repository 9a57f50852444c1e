// The test of the tests: five seeded bugs, each of which must be caught. Which means catches which
// is asserted exactly, so that README.md's table stays true:
//
//   bug                                  plain build                       ASan       TSan
//   missing barrier (block)              wrong result: lifo, random        as plain   data race
//   missing barrier (warp)               wrong result: fifo, random        as plain   data race
//   the same before an ldmatrix          not seen                          not seen   data race
//   wrong wait count                     NaN in every order                as plain   as plain
//   overrun of shared memory             report when the block ends        at the line as plain
//   divergent barrier                    report in every order             as plain   as plain
//   forgotten stream wait                wrong result under mask 2         as plain   as plain
//
// Under TSan the races end the process, so those tests expect that instead.

#include <cstdlib>
#include <functional>
#include <set>
#include <string>

#include "tests/emu/self/support.h"
#include "tests/emu/self/test_kernels.h"

namespace emu::self {
namespace {

class EmuSeededBugDeathTest : public EmuTest {
 protected:
  // The orders under which `right` is false.
  std::set<std::string> CaughtIn(const std::function<bool()>& right) {
    std::set<std::string> caught;
    ForEachOrder([&](const char* order) {
      if (!right()) caught.insert(order);
    });
    return caught;
  }

  // ThreadSanitizer must report a race whatever the order.
  void ExpectRace(const std::function<bool()>& run) {
    const auto expect = [&](const char* order) {
      EXPECT_EXIT(
          {
            run();
            std::exit(0);  // TSan makes it 66
          },
          testing::ExitedWithCode(66), "WARNING: ThreadSanitizer: data race")
          << order;
    };
    ForEachOrder(expect, 1);
  }

  bool ReverseIsRight(Bug bug) {
    const std::vector<float> values(128, 1);
    const DeviceArray<float> in(values), out(values.size());
    EXPECT_CUDA(Reverse(bug, in.get(), out.get(), 128, nullptr));
    return out.Read() == values;
  }

  bool ProductIsRight(Bug bug) {
    constexpr int kDepth = 160;
    const std::vector<__nv_bfloat16> ones(16 * kDepth, __float2bfloat16(1));
    std::vector<__nv_bfloat16> rising = ones;  // each tile of b other than the one before
    for (std::size_t i = 0; i < rising.size(); ++i) {
      rising[i] = __float2bfloat16(static_cast<float>(i / 512));
    }
    const DeviceArray<__nv_bfloat16> a(ones), b(rising);
    const DeviceArray<float> c(256);
    EXPECT_CUDA(Product(bug, {a.get(), b.get(), c.get(), kDepth}, nullptr));
    return c.Read() == std::vector<float>(256, 32 * (0 + 1 + 2 + 3 + 4));
  }

  bool LoadIsRight(Bug bug) {
    const std::vector<std::uint16_t> ones(256, 1);
    const DeviceArray<std::uint16_t> in(ones);
    const DeviceArray<std::uint32_t> out(128);
    EXPECT_CUDA(LoadMatrices(bug, false, in.get(), out.get(), nullptr));
    return out.Read() == std::vector<std::uint32_t>(128, 0x10001);
  }

  bool TreeIsRight(Bug bug) {
    const DeviceArray<float> in(std::vector<float>(64, 1)), out(2);
    EXPECT_CUDA(WarpTree(bug, in.get(), out.get(), nullptr));
    return out.Read() == std::vector<float>{32, 32};
  }
};

using Names = std::set<std::string>;
const Names kAll = {"fifo", "lifo", "random"};

TEST_F(EmuSeededBugDeathTest, TheKernelsWithoutABugAreRightInEveryOrder) {
  EXPECT_EQ(CaughtIn([&] { return ReverseIsRight(Bug::kNone); }), Names{});
  EXPECT_EQ(CaughtIn([&] { return ProductIsRight(Bug::kNone); }), Names{});
  EXPECT_EQ(CaughtIn([&] { return TreeIsRight(Bug::kNone); }), Names{});
  EXPECT_EQ(CaughtIn([&] { return LoadIsRight(Bug::kNone); }), Names{});
}

TEST_F(EmuSeededBugDeathTest, MissingBarrier) {
  const auto right = [&] { return ProductIsRight(Bug::kMissingBarrier); };
  if (kThreadSanitizer) {
    ExpectRace(right);
  } else {
    EXPECT_EQ(CaughtIn(right), (Names{"lifo", "random"}));
  }
}

TEST_F(EmuSeededBugDeathTest, MissingBarrierOfAWarp) {
  const auto right = [&] { return TreeIsRight(Bug::kMissingWarpBarrier); };
  if (kThreadSanitizer) {
    ExpectRace(right);
  } else {
    EXPECT_EQ(CaughtIn(right), (Names{"fifo", "random"}));
  }
}

// All lanes meet in ldmatrix, so in the emulation nothing goes wrong; on a GPU it may.
TEST_F(EmuSeededBugDeathTest, MissingBarrierBetweenCopyAndLdmatrixIsSeenByThreadSanitizerOnly) {
  const auto right = [&] { return LoadIsRight(Bug::kMissingWarpBarrier); };
  if (kThreadSanitizer) {
    ExpectRace(right);
  } else {
    EXPECT_EQ(CaughtIn(right), Names{});
  }
}

TEST_F(EmuSeededBugDeathTest, WrongWaitCount) {
  EXPECT_EQ(CaughtIn([&] { return ProductIsRight(Bug::kWrongWaitCount); }), kAll);
}

TEST_F(EmuSeededBugDeathTest, OverrunOfSharedMemory) {
  const char* report = kAddressSanitizer
                           ? "use-after-poison.*test_kernels.cu"
                           : "overrun: written 0 bytes after the end of the dynamic array";
  ForEachOrder([&](const char* order) {
    EXPECT_DEATH(ReverseIsRight(Bug::kSharedOverrun), report) << order;
  });
}

TEST_F(EmuSeededBugDeathTest, DivergentBarrier) {
  ForEachOrder([&](const char* order) {
    EXPECT_DEATH(ReverseIsRight(Bug::kDivergentBarrier),
                 "divergence: __syncthreads, but other threads of it are in __syncthreads at "
                 "test_kernels.cu:[0-9]+ at test_kernels.cu:[0-9]+")
        << order;
  });
}

// A copy and a kernel on one stream, a kernel beside them on another, and back.
float BesideAndBack(unsigned mask, bool forget_wait) {
  Reset(WithMask(mask));
  cudaStream_t main, side;
  cudaEvent_t ready, done;
  float *x = nullptr, *host = nullptr;
  for (cudaStream_t* stream : {&main, &side}) {
    EXPECT_CUDA(cudaStreamCreateWithFlags(stream, cudaStreamNonBlocking));
  }
  for (cudaEvent_t* event : {&ready, &done}) EXPECT_CUDA(cudaEventCreate(event));
  EXPECT_CUDA(cudaMalloc(reinterpret_cast<void**>(&x), 4));
  EXPECT_CUDA(cudaMallocHost(reinterpret_cast<void**>(&host), 4));
  *host = 1;
  EXPECT_CUDA(cudaMemcpyAsync(x, host, 4, cudaMemcpyHostToDevice, main));
  EXPECT_CUDA(cudaEventRecord(ready, main));
  if (!forget_wait) {
    EXPECT_CUDA(cudaStreamWaitEvent(side, ready, 0));
  }
  EXPECT_CUDA(Affine(x, 1, 1, 10, side));
  EXPECT_CUDA(cudaEventRecord(done, side));
  EXPECT_CUDA(cudaStreamWaitEvent(main, done, 0));
  EXPECT_CUDA(cudaMemcpyAsync(host, x, 4, cudaMemcpyDeviceToHost, main));
  EXPECT_CUDA(cudaStreamSynchronize(main));
  const float result = *host;
  for (const cudaStream_t stream : {main, side}) EXPECT_CUDA(cudaStreamDestroy(stream));
  for (const cudaEvent_t event : {ready, done}) EXPECT_CUDA(cudaEventDestroy(event));
  EXPECT_CUDA(cudaFree(x));
  EXPECT_CUDA(cudaFreeHost(host));
  return result;
}

TEST_F(EmuSeededBugDeathTest, ForgottenStreamWait) {
  for (unsigned mask = 0; mask < 4; ++mask) {
    EXPECT_EQ(BesideAndBack(mask, false), 11) << "mask " << mask;
    EXPECT_EQ(BesideAndBack(mask, true) != 11, mask == 2) << "mask " << mask;
  }
}

}  // namespace
}  // namespace emu::self
