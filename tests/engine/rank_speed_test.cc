#include "engine/rank_speed.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <thread>
#include <vector>

#include "engine/worker.h"
#include "parallel/local_communicator.h"
#include "tests/support/status_matchers.h"
#include "tests/support/tiny_model.h"

namespace metattn {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

TEST(RankSpeed, WeightsAreEighthsOfTheFastest) {
  EXPECT_THAT(WeightsOfSpeeds(std::vector<double>{1000, 960, 480}), ElementsAre(1, 1, 0.5));
  EXPECT_THAT(WeightsOfSpeeds(std::vector<double>{84, 85, 100, 1}),
              ElementsAre(0.875, 1, 1, 0.125));
  EXPECT_THAT(WeightsOfSpeeds(std::vector<double>{7}), ElementsAre(1));
  EXPECT_THAT(WeightsOfSpeeds(std::vector<double>{0, 0}), ElementsAre(1, 1)) << "nobody measured";
}

TEST(RankSpeed, IsMeasuredOnEveryBackend) {
  for (const char* backend : {"ref", "cpu"}) {
    auto kernels = MakeKernels({.backend = backend, .threads = 1});
    ASSERT_THAT(kernels, test::Succeeds());
    const auto speed = MeasureSpeed(**kernels, 1000, 1024);
    ASSERT_THAT(speed, test::Succeeds());
    EXPECT_GT(*speed, 1e6) << backend;
  }
}

// Two ranks of which one has slow kernels: the other one gets most of the model.
TEST(RankSpeed, DecidesTheSlices) {
  const std::string path =
      test::WriteTinyModel({.hidden = 256, .heads = 8, .kv_heads = 8, .head_dim = 32, .ffn = 2048},
                           testing::TempDir() + "/rank_speed.gguf");
  auto checkpoint = Checkpoint::Open(path);
  ASSERT_THAT(checkpoint, test::Succeeds());
  auto config = ModelConfig::FromCheckpoint(**checkpoint);
  ASSERT_THAT(config, test::Succeeds());
  const auto comms = MakeLocalCommunicators(2, {});
  const auto create = [&](int rank, const char* device) {
    ModelOptions options;
    options.device = device;
    options.threads = 1;
    options.probe_ranks = true;
    WorkerLimits limits;
    limits.max_context = 128;
    limits.kv_cache_bytes = 8 << 20;
    return Worker::Create(**checkpoint, *config, options, limits, *comms[rank]);
  };
  absl::Status other;
  std::thread slow([&] { other = create(1, "ref").status(); });
  const auto fast = create(0, "cpu");
  slow.join();
  ASSERT_THAT(fast, test::Succeeds());
  ASSERT_TRUE(other.ok()) << other;
  ASSERT_EQ((*fast)->descriptions().size(), 2u);
  EXPECT_THAT((*fast)->descriptions()[0], HasSubstr("(share 1)"));
  EXPECT_THAT((*fast)->descriptions()[1], testing::Not(HasSubstr("(share 1)")));
  EXPECT_THAT((*fast)->descriptions()[1], testing::ContainsRegex("\\(share 0\\.[1-7]"));
}

}  // namespace
}  // namespace metattn
