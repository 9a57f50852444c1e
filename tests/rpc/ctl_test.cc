// The program metattnctl as users run it, against a server in this process.
#include <gtest/gtest.h>
#include <sys/wait.h>

#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "nlohmann/json.hpp"
#include "tests/rpc/service_fixture.h"

namespace metattn {
namespace {

struct Ran {
  int code = -1;
  std::string out, err;
};

class CtlTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = (std::filesystem::temp_directory_path() / "ctl.XXXXXX").string();
    ASSERT_NE(mkdtemp(pattern.data()), nullptr);
    folder_ = pattern;
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  // `arguments` as typed in a shell; METATTN_SERVER names the server.
  Ran Run(const std::string& arguments, const std::string& address, const std::string& tail = "") {
    const std::string command = "METATTN_SERVER=" + address + " " METATTNCTL " " + arguments +
                                " 2>" + folder_ + "/err " + tail;
    Ran ran;
    std::FILE* pipe = popen(command.c_str(), "r");
    if (pipe == nullptr) return ran;
    char buffer[4096];
    for (std::size_t n; (n = fread(buffer, 1, sizeof(buffer), pipe)) > 0;)
      ran.out.append(buffer, n);
    ran.code = WEXITSTATUS(pclose(pipe));
    std::ifstream file(folder_ + "/err");
    ran.err.assign(std::istreambuf_iterator<char>(file), {});
    return ran;
  }
  Ran Run(const std::string& arguments) { return Run(arguments, server_.address()); }

  std::string folder_;
  TestServer server_;
};

TEST_F(CtlTest, GenerateStreamsTextToStdoutAndASummaryToStderr) {
  server_.Load();
  const Ran ran = Run("generate --seed 3 --max-tokens 12 'hello there'");
  EXPECT_EQ(ran.code, 0) << ran.err;
  EXPECT_EQ(ran.out, FakeOutput("hello there", 3, 12) + "\n");
  EXPECT_NE(ran.err.find("tokens/s"), std::string::npos) << ran.err;
}

TEST_F(CtlTest, ThePromptMayComeFromAFileOrStandardInput) {
  server_.Load();
  std::ofstream(folder_ + "/prompt") << "from a file";
  const std::string flags = "generate --seed 3 --max-tokens 5 ";
  EXPECT_EQ(Run(flags + "--prompt-file " + folder_ + "/prompt").out,
            FakeOutput("from a file", 3, 5) + "\n");
  EXPECT_EQ(Run(flags, server_.address(), "<" + folder_ + "/prompt").out,
            FakeOutput("from a file", 3, 5) + "\n");
}

TEST_F(CtlTest, JsonIsOneObjectWithTimings) {
  server_.Load();
  const Ran ran = Run("generate --json --seed 3 --max-tokens 12 hello");
  ASSERT_EQ(ran.code, 0) << ran.err;
  const auto object = nlohmann::json::parse(ran.out);
  EXPECT_EQ(object["text"], FakeOutput("hello", 3, 12));
  EXPECT_EQ(object["generated_tokens"], 12);
  EXPECT_EQ(object["finish_reason"], "length");
  EXPECT_GT(object["time_to_first_token_seconds"], 0);
  EXPECT_GT(object["decode_tokens_per_s"], 0);
}

TEST_F(CtlTest, ARefusalIsAnExitCodeAndASentence) {
  server_.Load();
  const Ran ran = Run("generate --temperature -1 hello");
  EXPECT_EQ(ran.code, 1);
  EXPECT_TRUE(ran.out.empty());
  EXPECT_NE(ran.err.find("INVALID_ARGUMENT: sampling.temperature"), std::string::npos) << ran.err;
}

TEST_F(CtlTest, AClosedPipeEndsTheRequest) {
  server_.Load();
  Run("generate --max-tokens 4000 hello", server_.address(), "| head -c 3");
  EXPECT_TRUE(Eventually([&] { return server_.engine.cancelled == 1; }));
}

TEST_F(CtlTest, AJobIsSubmittedWatchedShownAndCancelled) {
  server_.Load();
  const Ran submit = Run("submit --json --seed 2 --max-tokens 20 --idempotency-key k job");
  ASSERT_EQ(submit.code, 0) << submit.err;
  const std::string id = nlohmann::json::parse(submit.out)["id"];
  EXPECT_EQ(nlohmann::json::parse(
                Run("submit --json --seed 2 --max-tokens 20 --idempotency-key k job").out)["id"],
            id);
  const Ran watch = Run("watch " + id);
  EXPECT_EQ(watch.code, 0) << watch.err;
  EXPECT_EQ(watch.out, FakeOutput("job", 2, 20) + "\n");
  EXPECT_EQ(Run("watch --offset 15 " + id).out, FakeOutput("job", 2, 20).substr(15) + "\n");
  const Ran get = Run("get --json " + id);
  EXPECT_EQ(nlohmann::json::parse(get.out)["state"], "JOB_STATE_SUCCEEDED");
  const std::string longer =
      nlohmann::json::parse(Run("submit --json --max-tokens 4000 long").out)["id"];
  EXPECT_EQ(Run("cancel " + longer).code, 0);
  EXPECT_EQ(Run("watch " + longer).code, 1);  // it did not succeed
  EXPECT_EQ(Run("get no-such-job").code, 1);
}

TEST_F(CtlTest, RoutingIsShownAndChanged) {
  server_.Load();
  const Ran get = Run("routing get");
  EXPECT_EQ(get.code, 0) << get.err;
  for (const char* part : {"default: full, cost weight 0.25, eta 0.75", "fake-controller",
                           "elastic: off", "since start", "layer 1", "60.0%"}) {
    EXPECT_NE(get.out.find(part), std::string::npos) << part << " in " << get.out;
  }
  const Ran set =
      Run("routing set --route routed --cost-weight 0.5 --eta 0.9 --elastic on --force-full on "
          "--allowed-routes full,routed --elastic-queue-wait 3");
  EXPECT_EQ(set.code, 0) << set.err;
  EXPECT_NE(set.out.find("default: routed, cost weight 0.5, eta 0.9"), std::string::npos)
      << set.out;
  EXPECT_NE(set.out.find("force full: on"), std::string::npos) << set.out;
  const auto object = nlohmann::json::parse(Run("routing get --json").out);
  EXPECT_EQ(object["policy"]["default_route"], "ROUTE_ROUTED");
  EXPECT_EQ(object["policy"]["elastic"], true);
  EXPECT_EQ(object["policy"]["elastic_queue_wait_seconds"], 3);
  EXPECT_EQ(object["policy"]["allowed_routes"]["routes"].size(), 2u);
  EXPECT_EQ(object["layers"].size(), 2u);
  const auto off = nlohmann::json::parse(Run("routing set --json --force-full off").out);
  EXPECT_EQ(off["force_full"], false);
  EXPECT_EQ(off["elastic"], true);
}

TEST_F(CtlTest, RoutingRefusesWhatMakesNoSense) {
  server_.Load();
  EXPECT_EQ(Run("routing").code, 2);
  EXPECT_EQ(Run("routing dance").code, 2);
  EXPECT_EQ(Run("routing --help").code, 0);
  EXPECT_EQ(Run("routing set").code, 1);
  EXPECT_NE(Run("routing set --elastic maybe").code, 0);
  const Ran refused = Run("routing set --eta 2");
  EXPECT_EQ(refused.code, 1);
  EXPECT_NE(refused.err.find("INVALID_ARGUMENT: eta"), std::string::npos) << refused.err;
}

TEST_F(CtlTest, GenerateShowsWhatAttentionDidWhenThereWasSomethingToDecide) {
  server_.Load();
  EXPECT_EQ(Run("generate --max-tokens 3 hello").err.find("beyond the window"), std::string::npos);
  server_.engine.routed = true;
  const std::string flags =
      "generate --route routed --cost-weight 1 --eta 0.5 --max-tokens 3 hello";
  const Ran ran = Run(flags);
  EXPECT_EQ(ran.code, 0) << ran.err;
  EXPECT_NE(ran.err.find("10.0% full, 60.0% linear, 30.0% local; mean U 0.250; 40.0% of the bytes"),
            std::string::npos)
      << ran.err;
  const auto object = nlohmann::json::parse(Run(flags + " --json").out);
  EXPECT_EQ(object["routing"]["linear"], 0.6);
  EXPECT_EQ(object["routing"]["attention_bytes_ratio"], 0.4);
}

TEST_F(CtlTest, HealthTellsServingFromLoadingFromNobody) {
  EXPECT_EQ(Run("health").code, 3);
  server_.Load();
  const Ran healthy = Run("health");
  EXPECT_EQ(healthy.code, 0);
  EXPECT_EQ(healthy.out, "SERVING\n");
  const Ran nobody = Run("health --timeout 1", "127.0.0.1:1");
  EXPECT_EQ(nobody.code, 1);
  EXPECT_NE(nobody.err.find("127.0.0.1:1"), std::string::npos) << nobody.err;
}

TEST_F(CtlTest, UnknownCommandsAndFlagsAreUsageErrors) {
  EXPECT_EQ(Run("").code, 2);
  EXPECT_EQ(Run("dance").code, 2);
  EXPECT_NE(Run("generate --no-such-flag x").code, 0);
  EXPECT_EQ(Run("--help").code, 0);
  EXPECT_EQ(Run("watch --help").code, 0);
  EXPECT_NE(Run("watch").err.find("job"), std::string::npos);
}

}  // namespace
}  // namespace metattn
