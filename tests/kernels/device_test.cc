// Host device, factory, argument checks.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <numeric>

#include "kernels/check.h"
#include "tests/kernels/support.h"

namespace metattn::testing {
namespace {

using ::testing::HasSubstr;

TEST(HostDeviceTest, MemoryIsAlignedAndZeroed) {
  const auto device = MakeHostDevice();
  for (std::size_t bytes : {std::size_t{0}, std::size_t{1}, std::size_t{64}, std::size_t{100000},
                            (std::size_t{4} << 20) + 3}) {
    const auto buffer = device->Allocate(bytes);
    ASSERT_TRUE(buffer.ok()) << buffer.status();
    EXPECT_EQ(buffer->bytes(), bytes);
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(buffer->data()) % 64, 0u);
    for (std::size_t i = 0; i < bytes; ++i) ASSERT_EQ(buffer->data()[i], std::byte{0}) << i;
  }
}

TEST(HostDeviceTest, TooMuchMemoryIsAnErrorThatNamesTheBytes) {
  const auto device = MakeHostDevice();
  for (std::size_t bytes : {std::size_t{1} << 60, SIZE_MAX}) {
    const auto buffer = device->Allocate(bytes);
    ASSERT_FALSE(buffer.ok());
    EXPECT_EQ(buffer.status().code(), absl::StatusCode::kResourceExhausted);
    EXPECT_THAT(std::string(buffer.status().message()), HasSubstr(std::to_string(bytes)));
  }
}

TEST(HostDeviceTest, CopiesArriveAtTheirOffset) {
  const auto device = MakeHostDevice();
  auto stream = device->NewStream();
  ASSERT_TRUE(stream.ok());
  auto buffer = device->Allocate(100);
  ASSERT_TRUE(buffer.ok());
  std::vector<std::uint8_t> in(40), out(100);
  std::iota(in.begin(), in.end(), std::uint8_t{1});
  device->CopyIn(in.data(), {&*buffer, 60}, 40, **stream);
  device->CopyOut({&*buffer, 0}, out.data(), 100, **stream);
  ASSERT_TRUE((*stream)->Synchronize().ok());
  EXPECT_EQ(out[59], 0);
  EXPECT_EQ(out[60], 1);
  EXPECT_EQ(out[99], 40);
  device->CopyIn(nullptr, {}, 0, **stream);
}

TEST(HostDeviceTest, MarksMeasureTime) {
  const auto device = MakeHostDevice();
  auto stream = device->NewStream();
  ASSERT_TRUE(stream.ok());
  const int a = (*stream)->Mark(), b = (*stream)->Mark();
  ASSERT_TRUE((*stream)->Synchronize().ok());
  EXPECT_EQ(a, 0);
  EXPECT_EQ(b, 1);
  EXPECT_GE((*stream)->SecondsBetween(a, b), 0);
  EXPECT_LT((*stream)->SecondsBetween(a, b), 1);
  (*stream)->ResetMarks();
  EXPECT_EQ((*stream)->Mark(), 0);
}

TEST(HostDeviceDeathTest, ACopyPastTheEndIsCaught) {
  const auto device = MakeHostDevice();
  auto stream = device->NewStream();
  auto buffer = device->Allocate(10);
  char host[16] = {};
  EXPECT_DEATH(device->CopyIn(host, {&*buffer, 8}, 3, **stream), "copy of 3 bytes at 8");
}

TEST(CheckDeathTest, AFailedCheckNamesConditionAndMessage) {
  EXPECT_DEATH(METATTN_CHECK(1 + 1 == 3, "sums"), "device_test.cc:[0-9]+: CHECK failed: .*: sums");
}

TEST(FactoryTest, AnUnknownBackendIsAnErrorThatListsWhatThereIs) {
  const auto kernels = MakeKernels({.backend = "tpu"});
  ASSERT_FALSE(kernels.ok());
  EXPECT_EQ(kernels.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(kernels.status().message()), HasSubstr("tpu"));
  EXPECT_THAT(std::string(kernels.status().message()), HasSubstr("ref"));
}

TEST(FactoryTest, NoThreadsIsAnError) {
  EXPECT_EQ(MakeKernels({.backend = "ref", .threads = 0}).status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST(FactoryTest, TheReferenceTellsWhatItIs) {
  const auto kernels = MakeKernels({.backend = "ref"});
  ASSERT_TRUE(kernels.ok());
  EXPECT_EQ((*kernels)->name(), "ref");
  EXPECT_EQ((*kernels)->isa(), "scalar");
  EXPECT_EQ((*kernels)->threads(), 1);
}

class ArgumentsDeathTest : public ::testing::TestWithParam<BackendParam> {};

TEST_P(ArgumentsDeathTest, AnAbsentOrShortViewIsCaught) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");  // backends have threads
  Rig rig(GetParam());
  const View one = rig.Floats(1), two = rig.Floats(2), four = rig.Floats(4);
  EXPECT_DEATH(rig.kernels().SwiGlu({.gate_up = four, .tokens = 1, .dim = 2}, rig.stream()),
               "out is absent");
  EXPECT_DEATH(
      rig.kernels().SwiGlu({.gate_up = one, .out = two, .tokens = 1, .dim = 2}, rig.stream()),
      "gate_up needs (8|16) bytes");
}

INSTANTIATE_TEST_SUITE_P(Backends, ArgumentsDeathTest, ::testing::ValuesIn(Backends()),
                         [](const auto& info) { return info.param.Name(); });

}  // namespace
}  // namespace metattn::testing
