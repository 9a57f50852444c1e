// Each collective, intrinsic and wrapper under every thread order, against formulas.

#include <algorithm>
#include <cmath>
#include <functional>

#include "tests/emu/self/support.h"
#include "tests/emu/self/test_kernels.h"

namespace emu::self {
namespace {

class EmuKernel : public EmuTest {};

TEST_F(EmuKernel, PositionsComeFromAllFourVariables) {
  const dim3 grid(3, 2, 2), block(5, 3, 4);
  const std::size_t count = 3 * 2 * 2 * 5 * 3 * 4;
  ForEachOrder([&](const char* order) {
    const DeviceArray<int> out(count);
    ASSERT_CUDA(Positions(out.get(), grid, block, nullptr)) << order;
    const std::vector<int> values = out.Read();
    for (std::size_t i = 0; i < count; ++i) ASSERT_EQ(values[i], static_cast<int>(i)) << order;
  });
}

TEST_F(EmuKernel, WarpCollectivesGiveWhatCudaDefines) {
  using Row = std::function<int(int)>;
  const std::vector<Row> rows = {
      [](int) { return 105; },
      [](int l) { return 100 + (l + 1) % 32; },
      [](int l) { return 100 + l / 8 * 8 + 3; },
      [](int l) { return 100 + (l ^ 1); },
      [](int l) { return 100 + ((l ^ 8) < l ? l ^ 8 : l); },
      [](int l) { return 100 + (l < 2 ? l : l - 2); },
      [](int l) { return 100 + (l % 16 < 2 ? l : l - 2); },
      [](int l) { return 100 + (l > 28 ? l : l + 3); },
      [](int l) { return 100 + (l % 4 == 0 ? l + 3 : l); },
      [](int) { return 0x49249249; },
      [](int) { return 1; },
      [](int) { return 0; },
      [](int) { return 1; },
      [](int) { return 0; },
      [](int) { return 31 * 32 / 2 - 3 * 32; },
      [](int) { return -3; },
      [](int) { return 28; },
      [](int) { return 0x70; },  // every lane has the bits of 0x70, lane 0 no other
      [](int) { return 31; },
      [](int) { return 0; },
      [](int l) { return l < 16 ? 16 : 32; },
      [](int) { return 7; },
      [](int) { return 9; },
  };
  ASSERT_EQ(rows.size(), static_cast<std::size_t>(kWarpCallRows));
  ForEachOrder([&](const char* order) {
    const DeviceArray<int> out(32 * rows.size());
    ASSERT_CUDA(WarpCalls(out.get(), nullptr));
    const std::vector<int> values = out.Read();
    for (std::size_t row = 0; row < rows.size(); ++row) {
      for (int lane = 0; lane < 32; ++lane) {
        ASSERT_EQ(values[32 * row + static_cast<std::size_t>(lane)], rows[row](lane))
            << "call " << row << " lane " << lane << " order " << order;
      }
    }
  });
}

TEST_F(EmuKernel, BlockVotesCountAllThreads) {
  for (const int threads : {1, 31, 96, 1024}) {
    ForEachOrder([&](const char* order) {
      const DeviceArray<int> out(6);
      ASSERT_CUDA(BlockVotes(out.get(), threads, nullptr));
      const std::vector<int> expected = {(threads + 2) / 3, threads == 1 ? 1 : 0, 1, threads, 1, 0};
      EXPECT_EQ(out.Read(), expected) << threads << " threads, " << order;
    });
  }
}

TEST_F(EmuKernel, HelpersAgreeWithFormulas) {
  const DeviceArray<float> out(32 * kHelperRows);
  ASSERT_CUDA(Helpers(out.get(), nullptr));
  const std::vector<float> values = out.Read();
  for (int lane = 0; lane < 32; ++lane) {
    const float x = static_cast<float>(lane) - 10;
    const int quad = lane / 4 * 4, eight = lane / 8 * 8;
    const float expected[kHelperRows] = {
        31.0F * 16 - 320,
        4.0F * static_cast<float>(quad) + 6 - 40,
        10 - static_cast<float>(eight),
        lane == 0 ? 0 : std::exp2(x),
        std::exp(x),
        1 / (x + 0.5F),
        1 / std::sqrt(static_cast<float>(lane + 1)),
        static_cast<float>((lane + 1) / 2),
    };
    for (int row = 0; row < kHelperRows; ++row) {
      // exp_fast rounds x * log2(e) first: |x| * 2^-24 of it, in the exponent.
      EXPECT_NEAR(values[static_cast<std::size_t>(32 * row + lane)], expected[row],
                  std::fabs(expected[row]) * 0x1p-18F)
          << "row " << row << " lane " << lane;
    }
  }
}

TEST_F(EmuKernel, IntrinsicsAgreeWithFormulas) {
  const DeviceArray<float> in(std::vector<float>{1.5F, -2.5F, 3.5F}), out(kIntrinsicCells);
  ASSERT_CUDA(Intrinsics(in.get(), out.get(), nullptr));
  EXPECT_EQ(out.Read(), (std::vector<float>{1.5F, -2.5F, 3.5F, 8, 7, 31, 8, 7, 11, 9, 1, -2}));
}

TEST_F(EmuKernel, AsynchronousCopiesCanGiveZeros) {
  std::vector<float> values(128), expected(128);
  for (std::size_t i = 0; i < 128; ++i) values[i] = static_cast<float>(i + 1);
  for (std::size_t i = 0; i < 128; ++i) {
    const std::size_t row = 31 - i / 4;
    expected[i] = row % 2 == 0 ? values[row * 4 + i % 4] : 0;
  }
  const DeviceArray<float> in(values), out(128);
  ForEachOrder([&](const char* order) {
    ASSERT_CUDA(CopyEvenLanes(in.get(), out.get(), nullptr));
    EXPECT_EQ(out.Read(), expected) << order;
  });
}

TEST_F(EmuKernel, AtomicsOfAllThreadsAddUp) {
  ForEachOrder([&](const char* order) {
    std::vector<unsigned> start(kAtomicCells, 0);
    start[2] = 1000;
    const DeviceArray<unsigned> cells(start);
    ASSERT_CUDA(Atomics(cells.get(), 3, 50, nullptr));
    const std::vector<unsigned> values = cells.Read();
    EXPECT_EQ(values[0], 149U * 150 / 2) << order;
    EXPECT_EQ(values[1], 149U);
    EXPECT_EQ(values[2], 0U);
    EXPECT_EQ(values[3], ~0U);
    EXPECT_EQ(values[4], 150U);
    EXPECT_EQ(values[5], 7U);
    EXPECT_GE(values[6], 1U);  // the thread that found its own number went on
  });
}

TEST_F(EmuKernel, SharedMemoryOfEachBlockStartsAsNan) {
  const DeviceArray<float> out(8);
  ASSERT_CUDA(FreshShared(out.get(), 4, nullptr));
  for (const float x : out.Read()) EXPECT_TRUE(std::isnan(x));
}

TEST_F(EmuKernel, SpinningThreadsLetOthersGoOn) {
  ForEachOrder([&](const char* order) {
    const DeviceArray<int> out(1);
    ASSERT_CUDA(SpinOnFlag(out.get(), 64, nullptr));
    EXPECT_GE(out.Read()[0], 1) << order;
  });
}

TEST_F(EmuKernel, ReverseThroughSharedMemory) {
  for (const int n : {1, 33, 256, 1024}) {
    std::vector<float> values(static_cast<std::size_t>(n));
    for (std::size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(i);
    const DeviceArray<float> in(values), out(values.size());
    std::reverse(values.begin(), values.end());
    ForEachOrder([&](const char* order) {
      ASSERT_CUDA(Reverse(Bug::kNone, in.get(), out.get(), n, nullptr));
      EXPECT_EQ(out.Read(), values) << order;
    });
  }
}

TEST_F(EmuKernel, TreeOfWarpBarriersAddsUp) {
  std::vector<float> values(64);
  for (std::size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(i);
  const DeviceArray<float> in(values), out(2);
  ForEachOrder([&](const char* order) {
    ASSERT_CUDA(WarpTree(Bug::kNone, in.get(), out.get(), nullptr));
    EXPECT_EQ(out.Read(), (std::vector<float>{31 * 16, 31 * 16 + 32 * 32})) << order;
  });
}

TEST_F(EmuKernel, LdmatrixGivesEachLaneItsPairs) {
  std::vector<std::uint16_t> rows(32 * 8);
  for (std::size_t i = 0; i < rows.size(); ++i) rows[i] = static_cast<std::uint16_t>(i);
  const DeviceArray<std::uint16_t> in(rows);
  const DeviceArray<std::uint32_t> out(128);
  for (const bool transposed : {false, true}) {
    ForEachOrder([&](const char* order) {
      ASSERT_CUDA(LoadMatrices(Bug::kNone, transposed, in.get(), out.get(), nullptr));
      const std::vector<std::uint32_t> values = out.Read();
      for (std::uint32_t i = 0; i < 128; ++i) {
        const std::uint32_t lane = i / 4, first = i % 4 * 64;
        const std::uint32_t g = lane / 4, t = lane % 4 * 2;
        const std::uint32_t low = transposed ? t * 8 + g : g * 8 + t;
        const std::uint32_t high = transposed ? (t + 1) * 8 + g : g * 8 + t + 1;
        ASSERT_EQ(values[i], (first + low) | (first + high) << 16) << "lane " << lane << order;
      }
    });
  }
}

TEST_F(EmuKernel, MmaTakesFragmentsAsThePtxIsaOrdersThem) {
  std::vector<__nv_bfloat16> a(256), b(128);
  std::vector<float> c(128), expected(128);
  for (std::size_t i = 0; i < 256; ++i) a[i] = __float2bfloat16(static_cast<float>(i * 7 % 31));
  for (std::size_t i = 0; i < 128; ++i) b[i] = __float2bfloat16(static_cast<float>(i * 5 % 29));
  for (std::size_t i = 0; i < 128; ++i) {
    c[i] = expected[i] = static_cast<float>(i);
    for (std::size_t k = 0; k < 16; ++k) {
      expected[i] += __bfloat162float(a[i / 8 * 16 + k]) * __bfloat162float(b[k * 8 + i % 8]);
    }
  }
  const DeviceArray<__nv_bfloat16> da(a), db(b);
  ForEachOrder([&](const char* order) {
    const DeviceArray<float> dc(c);
    ASSERT_CUDA(MmaFragments(da.get(), db.get(), dc.get(), nullptr));
    EXPECT_EQ(dc.Read(), expected) << order;
  });
}

TEST_F(EmuKernel, TensorCoreProductEqualsTheFormula) {
  for (const int depth : {32, 64, 160}) {
    const auto size = static_cast<std::size_t>(16 * depth);
    std::vector<__nv_bfloat16> a(size), b(size);
    for (std::size_t i = 0; i < size; ++i) {  // small integers: every sum is exact
      a[i] = __float2bfloat16(static_cast<float>(i % 7) - 3);
      b[i] = __float2bfloat16(static_cast<float>(i * 5 % 11) - 5);
    }
    std::vector<float> expected(256);
    for (std::size_t i = 0; i < 256; ++i) {
      for (std::size_t k = 0; k < static_cast<std::size_t>(depth); ++k) {
        expected[i] += __bfloat162float(a[i / 16 * static_cast<std::size_t>(depth) + k]) *
                       __bfloat162float(b[k * 16 + i % 16]);
      }
    }
    const DeviceArray<__nv_bfloat16> da(a), db(b);
    const DeviceArray<float> c(256);
    ForEachOrder([&](const char* order) {
      ResetCounters();
      ASSERT_CUDA(Product(Bug::kNone, {da.get(), db.get(), c.get(), depth}, nullptr));
      EXPECT_EQ(c.Read(), expected) << "depth " << depth << " order " << order;
      EXPECT_EQ(BytesReadAsync(), 2 * 16 * depth * 2) << "each operand once";
    });
  }
}

TEST_F(EmuKernel, LaunchesOutsideTheLimitsAreErrors) {
  const DeviceArray<int> out(1);
  EXPECT_EQ(Positions(out.get(), dim3(0), dim3(1), nullptr), cudaErrorInvalidConfiguration);
  EXPECT_EQ(Positions(out.get(), dim3(1), dim3(0), nullptr), cudaErrorInvalidConfiguration);
  EXPECT_EQ(Positions(out.get(), dim3(1), dim3(1025), nullptr), cudaErrorInvalidConfiguration);
  EXPECT_EQ(Positions(out.get(), dim3(1, 65536), dim3(1), nullptr), cudaErrorInvalidConfiguration);
  EXPECT_EQ(Positions(out.get(), dim3(1), dim3(1, 1, 65), nullptr), cudaErrorInvalidConfiguration);
  EXPECT_EQ(cudaGetLastError(), cudaErrorInvalidConfiguration);
  EXPECT_EQ(cudaGetLastError(), cudaSuccess);
}

TEST_F(EmuKernel, MoreThan48KilobytesOfSharedMemoryMustBeAskedFor) {
  const struct { int sm, most; } limits[] = {{80, 163}, {90, 227}, {100, 227}, {120, 99}};
  for (const auto& limit : limits) {
    Options options;
    options.sm = limit.sm;
    Reset(options);
    EXPECT_CUDA(WantShared(48 * 1024, false, nullptr));
    EXPECT_EQ(WantShared(48 * 1024 + 1, false, nullptr), cudaErrorInvalidValue);
    EXPECT_CUDA(WantShared(limit.most * 1024, true, nullptr));
    EXPECT_EQ(WantShared(limit.most * 1024 + 1, true, nullptr), cudaErrorInvalidValue);
  }
}

}  // namespace
}  // namespace emu::self
