#include "rpc/flags.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "rpc/generate_output.h"
#include "rpc/serve_loop.h"

namespace metattn {
namespace {

class FlagsTest : public ::testing::Test {
 protected:
  void TearDown() override {
    for (const std::string& name : set_) unsetenv(name.c_str());
  }
  void Env(const std::string& name, const std::string& value) {
    setenv(name.c_str(), value.c_str(), 1);
    set_.push_back(name);
  }
  // 0: parsed.
  int Parsed(std::vector<std::string> arguments) {
    CLI::App app("test", "test");
    AddConfigFlag(app);
    AddModelFlags(app, &model);
    AddEngineFlags(app, &engine);
    AddRoutingFlags(app, &engine);
    AddGenerateFlags(app, &generate);
    arguments.insert(arguments.begin(), "test");
    std::vector<char*> argv;
    for (std::string& a : arguments) argv.push_back(a.data());
    ::testing::internal::CaptureStderr();
    ::testing::internal::CaptureStdout();
    const auto code = Parse(app, static_cast<int>(argv.size()), argv.data());
    out = ::testing::internal::GetCapturedStdout();
    error = ::testing::internal::GetCapturedStderr();
    return code.value_or(0);
  }
  std::string Toml(const std::string& text) {
    const auto path = std::filesystem::temp_directory_path() /
                      ("flags_test." + std::to_string(getpid()) + ".toml");
    std::ofstream(path) << text;
    return path.string();
  }

  ModelOptions model;
  EngineOptions engine;
  GenerateFlags generate;
  std::string out, error;
  std::vector<std::string> set_;
};

TEST_F(FlagsTest, TheEnvironmentTwinOfAFlagIsItsNameInCapitals) {
  EXPECT_EQ(EnvironmentName("--max-model-len"), "METATTN_MAX_MODEL_LEN");
}

TEST_F(FlagsTest, FlagsFillTheOptions) {
  ASSERT_EQ(Parsed({"--model", "m.gguf", "--threads", "3", "--rank-weights", "2,1", "--window",
                    "128", "--deterministic", "--kv-cache-memory", "2MiB", "--no-prefix-reuse",
                    "--route", "local", "--max-num-seqs", "9"}),
            0)
      << error;
  EXPECT_EQ(model.model, "m.gguf");
  EXPECT_EQ(model.threads, 3);
  EXPECT_EQ(model.rank_weights, (std::vector<double>{2, 1}));
  EXPECT_EQ(model.window, 128);
  EXPECT_TRUE(model.deterministic);
  EXPECT_EQ(engine.kv_cache_bytes, 2 << 20);
  EXPECT_FALSE(engine.prefix_reuse);
  EXPECT_EQ(engine.route.route, Route::kLocal);
  EXPECT_EQ(engine.max_num_seqs, 9);
}

TEST_F(FlagsTest, RoutingFlagsFillBoundsAndElasticModeAndLeaveTheRestToTheController) {
  ASSERT_EQ(Parsed({"--model", "m"}), 0) << error;
  EXPECT_FALSE(engine.routing.elastic || engine.routing.allowed_routes || engine.routing.max_eta);
  Env("METATTN_MIN_ETA", "0.25");
  ASSERT_EQ(Parsed({"--model", "m", "--allowed-routes", "full,routed", "--max-cost-weight", "1.5",
                    "--elastic", "--elastic-queue-wait", "4", "--elastic-inter-token", "0.5",
                    "--elastic-raise-after", "1"}),
            0)
      << error;
  EXPECT_EQ(engine.routing.allowed_routes, (std::vector<Route>{Route::kFull, Route::kRouted}));
  EXPECT_EQ(engine.routing.max_cost_weight, 1.5f);
  EXPECT_EQ(engine.routing.min_eta, 0.25f);
  EXPECT_EQ(engine.routing.elastic, true);
  EXPECT_EQ(engine.routing.queue_wait_s, 4);
  EXPECT_EQ(engine.routing.inter_token_s, 0.5);
  EXPECT_EQ(engine.elastic_raise_after_s, 1);
  EXPECT_FALSE(engine.routing.min_cost_weight.has_value());
}

TEST_F(FlagsTest, WithoutFlagsTheDefaultsOfTheOptionsStand) {
  ASSERT_EQ(Parsed({"--model", "m"}), 0) << error;
  EXPECT_EQ(engine.max_num_batched_tokens, EngineOptions().max_num_batched_tokens);
  EXPECT_FALSE(engine.route.route.has_value());
  EXPECT_FALSE(engine.route.cost_weight.has_value());
  EXPECT_FALSE(engine.route.eta.has_value());
  EXPECT_TRUE(engine.prefix_reuse);
  EXPECT_EQ(model.window, ModelOptions().window);
  EXPECT_FALSE(generate.temperature.has_value());
}

TEST_F(FlagsTest, EnvironmentStandsInForFlags) {
  Env("METATTN_MODEL", "from-env");
  Env("METATTN_MAX_QUEUE", "5");
  Env("METATTN_ROUTE", "local");
  Env("METATTN_NO_PREFIX_REUSE", "1");
  Env("METATTN_DETERMINISTIC", "true");
  ASSERT_EQ(Parsed({}), 0) << error;
  EXPECT_EQ(model.model, "from-env");
  EXPECT_EQ(engine.max_queue, 5);
  EXPECT_EQ(engine.route.route, Route::kLocal);
  EXPECT_FALSE(engine.prefix_reuse);
  EXPECT_TRUE(model.deterministic);
}

TEST_F(FlagsTest, CommandLineBeatsFileBeatsEnvironment) {
  Env("METATTN_MAX_QUEUE", "1");
  Env("METATTN_MAX_NUM_SEQS", "1");
  Env("METATTN_WINDOW", "1");
  const std::string file =
      Toml("model = \"from-file\"\nmax-num-seqs = 2\nwindow = 2\nrank-weights = [3.0, 1.0]\n");
  ASSERT_EQ(Parsed({"--config", file, "--window", "3"}), 0) << error;
  EXPECT_EQ(model.model, "from-file");
  EXPECT_EQ(engine.max_queue, 1);
  EXPECT_EQ(engine.max_num_seqs, 2);
  EXPECT_EQ(model.window, 3);
  EXPECT_EQ(model.rank_weights, (std::vector<double>{3, 1}));
}

TEST_F(FlagsTest, BadValuesAreErrorsThatNameTheFlag) {
  struct Case {
    std::vector<std::string> arguments;
    const char* says;
  };
  const Case cases[] = {
      {{"--model", "m", "--threads", "-1"}, "--threads"},
      {{"--model", "m", "--threads", "many"}, "--threads"},
      {{"--model", "m", "--route", "sideways"}, "--route"},
      {{"--model", "m", "--device", "abacus"}, "--device"},
      {{"--model", "m", "--rank-devices", "0,first"}, "--rank-devices"},
      {{"--model", "m", "--kv-cache-memory", "lots"}, "--kv-cache-memory"},
      {{"--model", "m", "--window", "-1"}, "--window"},
      {{"--model", "m", "--no-such-flag", "1"}, "--no-such-flag"},
      {{"--model", "m", "--allowed-routes", "full,sideways"}, "--allowed-routes"},
      {{"--model", "m", "--elastic-queue-wait", "0"}, "--elastic-queue-wait"},
      {{"--model", "m", "--max-eta", "2"}, "--max-eta"},
      {{}, "--model"},
      {{"--model", "m", "--config", "/no/such/file.toml"}, "/no/such/file.toml"},
      {{"--model", "m", "--config", Toml("no-such-key = 1\n")}, "no-such-key"},
  };
  for (const Case& c : cases) {
    EXPECT_NE(Parsed(c.arguments), 0) << c.says;
    EXPECT_NE(error.find(c.says), std::string::npos) << c.says << ": " << error;
  }
}

TEST_F(FlagsTest, OfAFlagGivenTwiceTheLastCounts) {
  ASSERT_EQ(Parsed({"--model", "m", "--window", "1", "--window", "2", "--temperature", "1",
                    "--temperature", "0.5"}),
            0)
      << error;
  EXPECT_EQ(model.window, 2);
  EXPECT_EQ(generate.temperature, 0.5);
}

TEST_F(FlagsTest, UnderMpirunOnlyRankZeroComplains) {
  Env("OMPI_COMM_WORLD_RANK", "1");
  EXPECT_NE(Parsed({"--no-such-flag"}), 0);
  EXPECT_TRUE(error.empty()) << error;
}

TEST_F(FlagsTest, HelpGivesMeaningDefaultAndEnvironmentOfEveryFlag) {
  EXPECT_EQ(Parsed({"--help"}), 0);
  for (const char* flag : {"--model", "--threads", "--window", "--max-num-seqs", "--route"}) {
    const auto at = out.find(flag);
    ASSERT_NE(at, std::string::npos) << flag;
    EXPECT_NE(out.find(EnvironmentName(flag)), std::string::npos) << flag;
  }
  EXPECT_NE(out.find("256"), std::string::npos);  // --window's default
}

TEST_F(FlagsTest, ThePromptComesFromArgumentFileOrStandardInput) {
  std::istringstream input("from stdin");
  ASSERT_EQ(Parsed({"--model", "m", "an argument"}), 0) << error;
  EXPECT_EQ(BuildRequest(generate, input)->text(), "an argument");
  generate = {};
  generate.prompt_file = Toml("from file");
  EXPECT_EQ(BuildRequest(generate, input)->text(), "from file");
  generate = {};
  EXPECT_EQ(BuildRequest(generate, input)->text(), "from stdin");
  EXPECT_FALSE(BuildRequest(generate, input).ok());  // it is used up
  generate.prompt_file = "/no/such/prompt";
  const auto missing = BuildRequest(generate, input);
  EXPECT_NE(std::string(missing.status().message()).find("/no/such/prompt"), std::string::npos);
  generate.prompt = "both";
  EXPECT_EQ(BuildRequest(generate, input).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(FlagsTest, SamplingFlagsReachTheRequestAndOthersStayUnset) {
  ASSERT_EQ(Parsed({"--model", "m", "--chat", "--system", "be brief", "--temperature", "0.5",
                    "--seed", "18446744073709551615", "--stop", "a b", "--stop", "c",
                    "--stop-token-ids", "1,2", "--max-tokens", "7", "hello"}),
            0)
      << error;
  std::istringstream none;
  const auto request = BuildRequest(generate, none);
  ASSERT_TRUE(request.ok());
  ASSERT_EQ(request->chat().messages_size(), 2);
  EXPECT_EQ(request->chat().messages(0).role(), "system");
  EXPECT_EQ(request->chat().messages(1).content(), "hello");
  const v1::SamplingParams& s = request->sampling();
  EXPECT_EQ(s.temperature(), 0.5);
  EXPECT_EQ(s.seed(), 18446744073709551615u);
  ASSERT_EQ(s.stop_size(), 2);
  EXPECT_EQ(s.stop(0), "a b");
  EXPECT_EQ(s.stop_token_ids_size(), 2);
  EXPECT_EQ(s.max_tokens(), 7);
  EXPECT_FALSE(s.has_top_p());
  EXPECT_FALSE(s.has_logprobs());
}

TEST(GenerateOutputTest, StreamsTextAndSummarises) {
  std::ostringstream out, err;
  GenerateOutput output(false, out, err);
  v1::GenerateResponse response;
  response.set_text("Hello");
  response.add_tokens()->set_id(1);
  output.Add(response);
  EXPECT_EQ(out.str(), "Hello");
  response.set_text(" world");
  response.mutable_finish()->set_reason(v1::FINISH_REASON_STOP);
  response.mutable_finish()->mutable_usage()->set_prompt_tokens(12);
  output.Add(response);
  output.End();
  EXPECT_EQ(out.str(), "Hello world\n");
  EXPECT_NE(err.str().find("12 prompt tokens"), std::string::npos) << err.str();
  EXPECT_NE(err.str().find("stop"), std::string::npos);
}

TEST(GenerateOutputTest, JsonIsOneObject) {
  std::ostringstream out, err;
  GenerateOutput output(true, out, err);
  v1::GenerateResponse response;
  response.set_text("quote \" and\nline");
  response.add_tokens()->set_id(1);
  response.mutable_finish()->set_reason(v1::FINISH_REASON_LENGTH);
  output.Add(response);
  output.End();
  EXPECT_TRUE(err.str().empty());
  EXPECT_NE(out.str().find(R"("text":"quote \" and\nline")"), std::string::npos) << out.str();
  EXPECT_NE(out.str().find(R"("finish_reason":"length")"), std::string::npos);
  EXPECT_EQ(out.str().find('\n'), out.str().size() - 1);
}

TEST(ServeLoop, IdleIsHealthyAndWedgedIsNot) {
  EngineSnapshot now;
  EXPECT_TRUE(IsHealthy(now, 30));
  now.running = 5;
  now.seconds_in_current_step = 29;
  EXPECT_TRUE(IsHealthy(now, 30));
  now.seconds_in_current_step = 31;
  EXPECT_FALSE(IsHealthy(now, 30));
  now.seconds_in_current_step = 0;
  now.failed = true;
  EXPECT_FALSE(IsHealthy(now, 30));
  now.failed = false;
  now.draining = true;
  EXPECT_FALSE(IsHealthy(now, 30));
}

}  // namespace
}  // namespace metattn
