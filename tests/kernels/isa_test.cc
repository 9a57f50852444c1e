#include "kernels/cpu/isa.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <initializer_list>
#include <iterator>
#include <map>
#include <set>
#include <sstream>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/cpu/op_table.h"
#include "kernels/kernels.h"

namespace metattn::cpu {
namespace {

using ::testing::AnyOf;
using ::testing::Each;
using ::testing::ElementsAreArray;
using ::testing::HasSubstr;

// Sets METATTN_CPU_ISA for one test and puts back what was there.
class IsaTest : public ::testing::Test {
 protected:
  void SetUp() override {
    const char* value = std::getenv(kName);
    was_set_ = value != nullptr;
    if (was_set_) was_ = value;
    unsetenv(kName);
  }
  void TearDown() override {
    if (was_set_) {
      setenv(kName, was_.c_str(), 1);
    } else {
      unsetenv(kName);
    }
  }
  static void Set(const std::string& value) { setenv(kName, value.c_str(), 1); }

  static constexpr const char* kName = "METATTN_CPU_ISA";

 private:
  bool was_set_ = false;
  std::string was_;
};

TEST_F(IsaTest, KnownLevelsAreListedFromSlowToFast) {
  const auto& names = AvailableIsas();
  EXPECT_THAT(names, Each(AnyOf("avx2", "avx512", "avx512_bf16", "amx")));
  const auto rank = [](std::string_view n) {
    return n == "avx2" ? 0 : n == "avx512" ? 1 : n == "avx512_bf16" ? 2 : 3;
  };
  EXPECT_TRUE(std::is_sorted(names.begin(), names.end(),
                             [&](auto a, auto b) { return rank(a) < rank(b); }));
}

// Against the kernel's list of features, which is not where the code under test looks. A level that
// was built and is not offered would only cost speed, so nothing else would notice.
TEST_F(IsaTest, EveryBuiltLevelThatTheMachineHasIsOffered) {
  std::ifstream file("/proc/cpuinfo");
  std::set<std::string> flags;
  for (std::string line; flags.empty() && std::getline(file, line);) {
    if (!line.starts_with("flags")) continue;
    std::istringstream words(line.substr(line.find(':') + 1));
    flags.insert(std::istream_iterator<std::string>(words), {});
  }
  if (flags.empty()) GTEST_SKIP() << "no avx2: /proc/cpuinfo has no flags";
  const auto has = [&](std::initializer_list<const char*> names) {
    return std::all_of(names.begin(), names.end(), [&](auto n) { return flags.contains(n); });
  };
  const bool avx2 = has({"avx2", "fma", "f16c"});
  const bool avx512 = avx2 && has({"avx512f", "avx512dq", "avx512bw", "avx512vl"});
  const bool bf16 = avx512 && has({"avx512_bf16"});
  const std::map<std::string, bool> here = {{"avx2", avx2},
                                            {"avx512", avx512},
                                            {"avx512_bf16", bf16},
                                            {"amx", bf16 && has({"amx_tile", "amx_bf16"})}};
  std::istringstream built(METATTN_BUILT_LEVELS);
  std::vector<std::string> expected;
  for (std::string level; std::getline(built, level, ',');) {
    if (here.at(level)) expected.push_back(level);
  }
  EXPECT_THAT(AvailableIsas(), ElementsAreArray(expected));
}

TEST_F(IsaTest, WithoutAWishTheBestLevelIsUsed) {
  if (AvailableIsas().empty()) GTEST_SKIP() << "this machine has no AVX2";
  const auto table = SelectIsa("");
  ASSERT_TRUE(table.ok()) << table.status();
  EXPECT_EQ((*table)->name, AvailableIsas().back());
}

TEST_F(IsaTest, EveryAvailableLevelCanBeForcedByOptionAndByEnvironment) {
  for (const std::string_view name : AvailableIsas()) {
    const auto by_option = SelectIsa(name);
    ASSERT_TRUE(by_option.ok()) << by_option.status();
    EXPECT_EQ((*by_option)->name, name);
    Set(std::string(name));
    const auto by_environment = SelectIsa("");
    ASSERT_TRUE(by_environment.ok()) << by_environment.status();
    EXPECT_EQ((*by_environment)->name, name);
  }
}

TEST_F(IsaTest, TheOptionWinsOverTheEnvironment) {
  if (AvailableIsas().empty()) GTEST_SKIP() << "this machine has no AVX2";
  Set("nonsense");
  EXPECT_TRUE(SelectIsa(AvailableIsas().front()).ok());
}

TEST_F(IsaTest, AnUnknownValueIsAnErrorThatListsWhatThereIs) {
  Set("sse9");
  const auto table = SelectIsa("");
  ASSERT_FALSE(table.ok());
  EXPECT_EQ(table.status().code(), absl::StatusCode::kInvalidArgument);
  const std::string message(table.status().message());
  EXPECT_THAT(message, HasSubstr("METATTN_CPU_ISA"));
  EXPECT_THAT(message, HasSubstr("sse9"));
  EXPECT_THAT(message, HasSubstr("avx2, avx512, avx512_bf16, amx"));
  for (const std::string_view name : AvailableIsas()) {
    EXPECT_THAT(message, HasSubstr(std::string(name)));
  }
}

TEST(IsaChoice, ALevelThisMachineLacksIsAnErrorThatSaysSo) {
  const std::vector<std::string_view> known = {"avx2", "avx512", "amx"}, have = {"avx2"};
  for (const bool by_option : {true, false}) {
    const auto choice = ChooseIsa({by_option ? "amx" : "", by_option ? "" : "amx", known, have});
    ASSERT_FALSE(choice.ok());
    EXPECT_EQ(choice.status().code(), absl::StatusCode::kInvalidArgument);
    const std::string message(choice.status().message());
    EXPECT_THAT(message, HasSubstr("\"amx\" is not supported by this machine"));
    EXPECT_THAT(message, HasSubstr("this machine runs: avx2;"));
    EXPECT_EQ(message.find("METATTN_CPU_ISA") == std::string::npos, by_option);
  }
}

TEST(IsaChoice, TheBestThisMachineHasIsUsedAndNoneAtAllIsAnError) {
  const std::vector<std::string_view> known = {"avx2", "avx512", "amx"}, have = {"avx2", "avx512"};
  const std::vector<std::string_view> nothing;
  const auto choice = ChooseIsa({"", "", known, have});
  ASSERT_TRUE(choice.ok());
  EXPECT_EQ(*choice, "avx512");
  const auto none = ChooseIsa({"", "", known, nothing});
  EXPECT_EQ(none.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(none.status().message()), HasSubstr("use backend ref"));
}

TEST_F(IsaTest, TheFactoryReportsTheLevelAndRefusesUnknownOnes) {
  for (const std::string_view name : AvailableIsas()) {
    const auto kernels = MakeKernels({.isa = std::string(name), .threads = 2});
    ASSERT_TRUE(kernels.ok()) << kernels.status();
    EXPECT_EQ((*kernels)->isa(), name);
    EXPECT_EQ((*kernels)->threads(), 2);
  }
  EXPECT_EQ(MakeKernels({.isa = "neon"}).status().code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace metattn::cpu
