// The metrics document against a real scrape, then what the numbers say.
#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <unistd.h>

#include <fstream>
#include <map>
#include <regex>
#include <set>
#include <sstream>

#include "rpc/metrics_http.h"
#include "tests/rpc/service_fixture.h"
#include "tests/support/source_path.h"

namespace metattn {
namespace {

std::string Scrape(int port) {
  const int fd = socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<std::uint16_t>(port));
  inet_pton(AF_INET, "127.0.0.1", &address.sin_addr);
  if (connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof(address)) != 0) return "";
  const std::string request = "GET /metrics HTTP/1.0\r\nHost: x\r\n\r\n";
  if (write(fd, request.data(), request.size()) < 0) return "";
  std::string answer;
  char buffer[4096];
  for (ssize_t n; (n = read(fd, buffer, sizeof(buffer))) > 0;) answer.append(buffer, n);
  close(fd);
  return answer;
}

struct Family {
  std::string type;
  std::set<std::string> labels;
  bool operator==(const Family&) const = default;
};

// `| name | type | unit | labels | meaning |` rows of rpc/metrics.md.
std::map<std::string, Family> Documented() {
  std::ifstream file(test::SourcePath("rpc/metrics.md"));
  std::map<std::string, Family> families;
  const std::regex row(R"(\| `(metattn_\w+)` \| (\w+) \| ([^|]+) \| ([^|]*) \| ([^|]+) \|)");
  for (std::string line; std::getline(file, line);) {
    std::smatch m;
    if (!std::regex_match(line, m, row)) continue;
    Family family{m[2], {}};
    const std::string labels = m[4];
    const std::regex label("`(\\w+)`");
    for (std::sregex_iterator it(labels.begin(), labels.end(), label), end; it != end; ++it) {
      family.labels.insert((*it)[1]);
    }
    EXPECT_TRUE(families.emplace(m[1], family).second) << m[1] << " is listed twice";
  }
  return families;
}

std::map<std::string, Family> Scraped(const std::string& text) {
  std::map<std::string, Family> families;
  std::istringstream lines(text);
  std::string current;
  for (std::string line; std::getline(lines, line);) {
    std::istringstream words(line);
    std::string hash, kind, name, type;
    if (line.rfind("# TYPE ", 0) == 0) {
      words >> hash >> kind >> name >> type;
      current = name;
      families[name].type = type;
    } else if (line.rfind("metattn_", 0) == 0 && !current.empty()) {
      const std::regex label("(\\w+)=\"");
      for (std::sregex_iterator it(line.begin(), line.end(), label), end; it != end; ++it) {
        if ((*it)[1] != "le") families[current].labels.insert((*it)[1]);
      }
    }
  }
  return families;
}

double Value(const std::string& text, const std::string& series) {
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    if (line.rfind(series + " ", 0) == 0) return std::stod(line.substr(series.size() + 1));
  }
  ADD_FAILURE() << "no series " << series;
  return -1;
}

class MetricsTest : public ::testing::Test {
 protected:
  void SetUp() override {
    MetricsOptions options;
    options.port = 0;
    auto started = Metrics::Start(options, "1.2.3");
    ASSERT_TRUE(started.ok()) << started.status();
    metrics_ = *std::move(started);
  }
  void Attach() {
    MetricsSources sources;
    sources.model = "fake";
    sources.ranks = 2;
    sources.layers = 3;
    sources.max_context = 8192;
    sources.engine = [] {
      EngineSnapshot s;
      s.queued = 3;
      s.running = 5;
      s.blocks_used = 25;
      s.blocks_capacity = 100;
      s.seconds_in_current_step = 1.5;
      s.cost_weight = 0.5f;
      s.force_full = true;
      return s;
    };
    sources.jobs_waiting = [] { return 7; };
    sources.jobs_running = [] { return 2; };
    sources.serving = [] { return true; };
    metrics_->Attach(sources);
  }
  std::unique_ptr<Metrics> metrics_;
};

TEST_F(MetricsTest, TheDocumentAndAScrapeListTheSameFamiliesTypesAndLabels) {
  Attach();
  const auto documented = Documented();
  const auto scraped = Scraped(Scrape(metrics_->port()));
  EXPECT_GT(documented.size(), 20u);
  for (const auto& [name, family] : documented) {
    ASSERT_TRUE(scraped.count(name)) << name << " is documented but not served";
    EXPECT_EQ(scraped.at(name).type, family.type) << name;
    EXPECT_EQ(scraped.at(name).labels, family.labels) << name;
  }
  for (const auto& [name, family] : scraped) {
    if (name.rfind("metattn_", 0) != 0) continue;  // the exposer's own
    EXPECT_TRUE(documented.count(name)) << name << " is served but not in rpc/metrics.md";
  }
}

TEST_F(MetricsTest, GaugesAreReadAtEachScrapeAndNotAfterDetach) {
  Attach();
  std::string text = Scrape(metrics_->port());
  EXPECT_EQ(Value(text, "metattn_requests_queued{model_name=\"fake\"}"), 3);
  EXPECT_EQ(Value(text, "metattn_requests_running{model_name=\"fake\"}"), 5);
  EXPECT_EQ(Value(text, "metattn_kv_cache_usage_ratio{model_name=\"fake\"}"), 0.25);
  EXPECT_EQ(Value(text, "metattn_jobs_waiting{model_name=\"fake\"}"), 7);
  EXPECT_EQ(Value(text, "metattn_routing_cost_weight{model_name=\"fake\"}"), 0.5);
  EXPECT_EQ(Value(text, "metattn_routing_force_full{model_name=\"fake\"}"), 1);
  EXPECT_EQ(Value(text, "metattn_serving"), 1);
  EXPECT_GT(Value(text, "metattn_process_resident_memory_bytes"), 1e6);
  metrics_->Detach();
  text = Scrape(metrics_->port());
  EXPECT_EQ(Value(text, "metattn_requests_queued{model_name=\"fake\"}"), 0);
  EXPECT_EQ(Value(text, "metattn_serving"), 0);
}

TEST_F(MetricsTest, StepsAreCountedByRankLayerAndMechanism) {
  Attach();
  StepOutput step;
  step.per_rank = {{.step_seconds = 0.5},
                   {.step_seconds = 0.25,
                    .attention_seconds = 0.125,
                    .controller_seconds = 0.03125,
                    .wait_seconds = 0.0625,
                    .helped_rows = 12}};
  step.rank_routing.resize(2);
  step.rank_routing[0].bytes_read = 7;
  step.rank_routing[0].bytes_dense = 11;
  step.rank_routing[1].rows = {1, 2, 10};
  step.routing.layers.resize(3);
  step.routing.sequences.resize(1);
  step.routing.layers[2].rows = {0, 2, 9};
  step.routing.layers[1].rows = {1, 0, 1};
  step.routing.histogram[0] = 3;
  step.routing.histogram[9] = 4;
  step.routing.layers[1].uncertainty = 4.25;
  step.routing.shadow.resize(3);
  step.routing.shadow[2].Note(0.05);
  metrics_->OnStep(step, 48);
  metrics_->OnStep(step, 48);
  const std::string text = Scrape(metrics_->port());
  const std::string model = "model_name=\"fake\"";
  EXPECT_EQ(Value(text, "metattn_rank_step_seconds_total{" + model + ",rank=\"0\"}"), 1.0);
  EXPECT_EQ(Value(text, "metattn_rank_attention_seconds_total{" + model + ",rank=\"1\"}"), 0.25);
  EXPECT_EQ(Value(text, "metattn_rank_collective_wait_seconds_total{" + model + ",rank=\"1\"}"),
            0.125);
  EXPECT_EQ(Value(text, "metattn_rank_helped_rows_total{" + model + ",rank=\"1\"}"), 24);
  EXPECT_EQ(Value(text, "metattn_rank_controller_seconds_total{" + model + ",rank=\"1\"}"), 0.0625);
  EXPECT_EQ(Value(text, "metattn_rank_attention_read_bytes_total{" + model + ",rank=\"0\"}"), 14);
  EXPECT_EQ(Value(text, "metattn_rank_attention_dense_bytes_total{" + model + ",rank=\"0\"}"), 22);
  const auto by_rank = [&](const char* mechanism, const char* rank) {
    return Value(text, std::string("metattn_rank_routed_rows_total{mechanism=\"") + mechanism +
                           "\"," + model + ",rank=\"" + rank + "\"}");
  };
  EXPECT_EQ(by_rank("full", "1"), 2);
  EXPECT_EQ(by_rank("linear", "1"), 4);
  EXPECT_EQ(by_rank("local", "1"), 20);
  EXPECT_EQ(by_rank("local", "0"), 0);
  const auto by_layer = [&](const char* mechanism, const char* layer) {
    return Value(text, std::string("metattn_layer_routed_rows_total{layer=\"") + layer +
                           "\",mechanism=\"" + mechanism + "\"," + model + "}");
  };
  EXPECT_EQ(by_layer("full", "1"), 2);
  EXPECT_EQ(by_layer("linear", "2"), 4);
  EXPECT_EQ(by_layer("local", "2"), 18);
  EXPECT_EQ(by_layer("local", "0"), 0);
  const std::string uncertainty = "metattn_routing_uncertainty";
  EXPECT_EQ(Value(text, uncertainty + "_bucket{" + model + ",le=\"0.1\"}"), 6);
  EXPECT_EQ(Value(text, uncertainty + "_bucket{" + model + ",le=\"0.9\"}"), 6);
  EXPECT_EQ(Value(text, uncertainty + "_bucket{" + model + ",le=\"1\"}"), 14);
  EXPECT_EQ(Value(text, uncertainty + "_sum{" + model + "}"), 8.5);
  EXPECT_EQ(Value(text, "metattn_iteration_tokens_count{" + model + "}"), 2);
  const std::string shadow = "metattn_shadow_relative_error_bucket{layer=\"2\"," + model;
  EXPECT_EQ(Value(text, shadow + ",le=\"0.03\"}"), 0);
  EXPECT_EQ(Value(text, shadow + ",le=\"0.06\"}"), 2);
}

TEST_F(MetricsTest, MixturesAndSoftSharesAreCountedByLayerAndWhatTheyWouldCost) {
  Attach();
  StepOutput step;
  step.per_rank.resize(2);
  step.rank_routing.resize(2);
  step.rank_routing[1].mixture_rows = 3;
  step.routing.layers.resize(3);
  step.routing.layers[1].mixture_rows = 5;
  step.routing.layers[1].weights = {0.5, 1.25, 0.25};
  step.routing.layers[1].expected_cost = 0.75;
  metrics_->OnStep(step, 48);
  metrics_->OnStep(step, 48);
  const std::string text = Scrape(metrics_->port()), model = "model_name=\"fake\"";
  EXPECT_EQ(
      Value(text, "metattn_rank_routed_rows_total{mechanism=\"mixture\"," + model + ",rank=\"1\"}"),
      6);
  const auto by_layer = [&](const char* family, const char* layer, const char* mechanism) {
    return Value(text, std::string("metattn_layer_") + family + "_rows_total{layer=\"" + layer +
                           "\",mechanism=\"" + mechanism + "\"," + model + "}");
  };
  EXPECT_EQ(by_layer("routed", "1", "mixture"), 10);
  EXPECT_EQ(by_layer("routed", "2", "mixture"), 0);
  EXPECT_EQ(by_layer("soft", "1", "full"), 1);
  EXPECT_EQ(by_layer("soft", "1", "linear"), 2.5);
  EXPECT_EQ(by_layer("soft", "1", "local"), 0.5);
  EXPECT_EQ(by_layer("soft", "0", "local"), 0);
  EXPECT_EQ(Value(text, "metattn_layer_expected_cost_total{layer=\"1\"," + model + "}"), 1.5);
}

TEST_F(MetricsTest, RequestsAreCountedWithTheirTimes) {
  Attach();
  metrics_->OnFirstToken(0.02);
  metrics_->OnInterToken(0.004);
  metrics_->OnPreemption();
  GenerationEvent last;
  last.finish = FinishReason::kLength;
  last.usage = {100, 64, 20, 0};
  last.timings = {0.1, 0.2, 3.0};
  metrics_->OnFinish(last);
  last.finish = FinishReason::kCancelled;
  metrics_->OnFinish(last);
  metrics_->OnCall("Generate", "OK");
  const std::string text = Scrape(metrics_->port());
  const std::string model = "model_name=\"fake\"";
  EXPECT_EQ(Value(text, "metattn_requests_total{" + model + ",reason=\"length\"}"), 1);
  EXPECT_EQ(Value(text, "metattn_requests_total{" + model + ",reason=\"cancelled\"}"), 1);
  EXPECT_EQ(Value(text, "metattn_prompt_tokens_total{" + model + "}"), 200);
  EXPECT_EQ(Value(text, "metattn_prompt_tokens_cached_total{" + model + "}"), 128);
  EXPECT_EQ(Value(text, "metattn_generation_tokens_total{" + model + "}"), 40);
  EXPECT_EQ(Value(text, "metattn_time_to_first_token_seconds_bucket{" + model + ",le=\"0.02\"}"),
            1);
  EXPECT_EQ(Value(text, "metattn_e2e_request_latency_seconds_bucket{" + model + ",le=\"2.5\"}"), 0);
  EXPECT_EQ(Value(text, "metattn_grpc_calls_total{code=\"OK\",method=\"Generate\"}"), 1);
}

TEST_F(MetricsTest, APortInUseNamesItsFlag) {
  MetricsOptions options;
  options.port = metrics_->port();
  auto second = Metrics::Start(options, "1.2.3");
  ASSERT_FALSE(second.ok());
  EXPECT_NE(std::string(second.status().message()).find("--metrics-port"), std::string::npos);
}

TEST_F(MetricsTest, RefusedCallsAreCountedByCode) {
  Attach();
  TestServer server(FakeEngine::Options(), metrics_.get());
  server.Load();
  v1::GenerateRequest request = TextRequest("x", 1);
  request.set_model("nobody");
  (void)server.client->Generate(request, [](const auto&) { return true; });
  EXPECT_EQ(Value(Scrape(metrics_->port()),
                  "metattn_grpc_calls_total{code=\"NOT_FOUND\",method=\"Generate\"}"),
            1);
}

}  // namespace
}  // namespace metattn
