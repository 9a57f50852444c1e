// What is wrong with a kernel is printed with file and line, whatever the thread order.

#include "kernels/cuda/launch.h"
#include "tests/emu/self/support.h"
#include "tests/emu/self/test_kernels.h"

namespace emu::self {
namespace {

class EmuMisuseDeathTest : public EmuTest {
 protected:
  void ExpectReport(Bug bug, const char* report) {
    const DeviceArray<float> out(32);
    ForEachOrder([&](const char* order) {
      EXPECT_DEATH(static_cast<void>(Misuse(bug, out.get(), nullptr)), report) << order;
    });
  }
};

TEST_F(EmuMisuseDeathTest, CopyThatIsNeverWaitedFor) {
  ExpectReport(Bug::kUnwaitedCopy, "exits with asynchronous copies");
}

TEST_F(EmuMisuseDeathTest, MisalignedCopy) {
  ExpectReport(Bug::kMisalignedCopy, "not aligned to 16 at test_kernels.cu:[0-9]+");
}

TEST_F(EmuMisuseDeathTest, CopyOutOfSharedMemory) {
  ExpectReport(Bug::kSharedOverrun, "not in this block's shared memory at test_kernels.cu:[0-9]+");
}

TEST_F(EmuMisuseDeathTest, ShuffleFromALaneOutsideTheMask) {
  ExpectReport(Bug::kForeignLane, "not in the mask at test_kernels.cu:[0-9]+");
}

TEST_F(EmuMisuseDeathTest, DifferentCollectivesOfOneMask) {
  ExpectReport(Bug::kMixedCalls,
               "divergence: .* at test_kernels.cu:[0-9]+ at test_kernels.cu:[0-9]+");
}

TEST_F(EmuMisuseDeathTest, HalfAWarpInAnMma) {
  // Whichever half runs first: it waits for ever, or finds the other gone.
  ExpectReport(Bug::kMmaOfHalfWarp,
               "(16 threads.*wait in mma_bf16_16816|names a lane that has exited) at "
               "test_kernels.cu:[0-9]+");
}

TEST_F(EmuMisuseDeathTest, ShortLastWarp) {
  ExpectReport(Bug::kMmaInShortWarp, "needs all 32 lanes, .* at test_kernels.cu:[0-9]+");
  ExpectReport(Bug::kLaneBeyondBlock, "a lane that the block's last warp does not have");
}

TEST_F(EmuMisuseDeathTest, MatrixRowsElsewhere) {
  ExpectReport(Bug::kMisalignedRow, "row not aligned to 16 bytes at test_kernels.cu:[0-9]+");
  ExpectReport(Bug::kForeignRow, "not in this block's shared memory at test_kernels.cu:[0-9]+");
}

TEST_F(EmuMisuseDeathTest, TooMuchStaticSharedMemory) {
  ExpectReport(Bug::kTooMuchStatic, "static shared memory beyond the emulation's 16 KB");
}

TEST_F(EmuMisuseDeathTest, Trap) { ExpectReport(Bug::kTrap, "__trap"); }

TEST_F(EmuMisuseDeathTest, CallerOutsideItsMask) {
  ExpectReport(Bug::kNotInMask, "calling lane is not in its mask at test_kernels.cu:[0-9]+");
}

TEST_F(EmuMisuseDeathTest, BarrierAfterAThreadHasLeft) {
  ExpectReport(Bug::kExitedLane, "deadlock in block .*31 threads.*wait in __syncthreads at");
}

// No kernel for a GPU: nvcc refuses so much local memory.
void UseStack(float* out, int depth) {
  volatile float local[2048];
  local[depth] = *out;
  if (depth > 0) UseStack(out, depth - 1);
  *out = local[depth];
}

TEST_F(EmuMisuseDeathTest, StackOverflow) {
  const DeviceArray<float> out(1);
  const auto launch = [&](int depth) {
    return metattn::gpu::launch(UseStack, dim3(1), dim3(1), 0, nullptr, out.get(), depth);
  };
  EXPECT_CUDA(launch(10));
  EXPECT_DEATH(static_cast<void>(launch(100)),
               kAddressSanitizer || kThreadSanitizer ? "stack-overflow|SEGV" : "stack overflow");
}

TEST_F(EmuMisuseDeathTest, WriteAfterAStaticArray) {
  ExpectReport(Bug::kStaticOverrun,
               kAddressSanitizer ? "use-after-poison.*test_kernels.cu"
                                 : "shared memory overrun: .* after the end of a static array");
}

}  // namespace
}  // namespace emu::self
