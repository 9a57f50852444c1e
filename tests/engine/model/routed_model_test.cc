// A whole model with a meta-controller: what forcing it gives, that every mechanism is what it is
// called, and the invariances of a routed forward pass (ranks, chunks, rebuilt states, causality,
// file formats). A small random model and a small random controller.
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <ostream>
#include <string>

#include "tests/support/controller_writer.h"
#include "tests/support/decision_log.h"
#include "tests/support/model_runner.h"
#include "tests/support/tiny_directory.h"
#include "tests/support/tiny_model.h"

namespace metattn::test {
namespace {

constexpr int kTokens = 360;  // rows from 127 on are eligible
constexpr int kFirst = 127;   // a(127) = 64 > sinks
const TinyModelOptions kModel = {
    .layers = 3, .hidden = 96, .heads = 6, .kv_heads = 3, .head_dim = 32, .ffn = 96};

struct Backend {
  const char* device;
  const char* isa;
  double rounding;  // of activations: the widest kernels of the cpu take bf16
};
std::ostream& operator<<(std::ostream& out, const Backend& b) {
  return out << b.device << (*b.isa != 0 ? "_" : "") << b.isa;
}

using Decisions = RecordedDecisions;

// How far two runs are apart: decisions, and the scores behind them.
struct Noise {
  int flips = 0;
  double score = 0;
};

class RoutedModel : public testing::TestWithParam<Backend> {
 protected:
  // Made once: the files are the same in every case.
  static void SetUpTestSuite() {
    root_ = testing::TempDir() + "/routed_model_" + std::to_string(getpid());
    std::filesystem::create_directories(root_);
    model_ = WriteTinyModel(kModel, root_ + "/model.gguf");
    controller_ = WriteController(model_, root_ + "/controller");
  }
  static void TearDownTestSuite() { std::filesystem::remove_all(root_); }

  static std::vector<std::int32_t> Tokens() {
    std::vector<std::int32_t> tokens(kTokens);
    std::uint32_t x = 12345;
    for (std::int32_t& token : tokens) {
      x = x * 1664525 + 1013904223;
      token = static_cast<std::int32_t>(x >> 16) % 300;
    }
    return tokens;
  }

  static RunnerOptions Options(const RoutePolicy& policy) {
    RunnerOptions options;
    options.device = GetParam().device;
    options.isa = GetParam().isa;
    options.controller = controller_;
    options.policy = policy;
    options.window = 64;
    options.sinks = 4;
    options.chunk = 50;
    return options;
  }

  static RunnerOutput Run(const RunnerOptions& options, const std::vector<std::int32_t>& tokens,
                          const std::string& model) {
    absl::StatusOr<RunnerOutput> output = RunModel(model, tokens, options);
    EXPECT_TRUE(output.ok()) << output.status();
    return output.ok() ? *std::move(output) : RunnerOutput{};
  }
  static RunnerOutput Run(const RunnerOptions& options) { return Run(options, Tokens(), model_); }

  // Runs and says what was decided.
  static std::pair<RunnerOutput, Decisions> RunRecorded(RunnerOptions options,
                                                        const std::string& model) {
    options.record_decisions = root_ + "/decisions";
    std::filesystem::remove_all(options.record_decisions);
    RunnerOutput output = Run(options, Tokens(), model);
    Decisions recorded = ReadDecisions(options.record_decisions, kTokens);
    EXPECT_EQ(std::count(recorded.decisions.begin(), recorded.decisions.end(), 255), 0);
    EXPECT_EQ(std::ssize(recorded.decisions), kModel.layers * kTokens * kModel.kv_heads);
    return {std::move(output), std::move(recorded)};
  }
  static std::pair<RunnerOutput, Decisions> RunRecorded(const RunnerOptions& options) {
    return RunRecorded(options, model_);
  }

  static double Bound(const RunnerOptions& options) {
    const auto bound = MeasuredBound(model_, Tokens(), options, GetParam().rounding);
    EXPECT_TRUE(bound.ok()) << bound.status();
    return bound.value_or(0);
  }

  // A flipped decision's score has moved past both margins.
  static Noise Apart(const Decisions& a, const Decisions& b) {
    Noise apart;
    for (std::size_t i = 0; i < a.decisions.size(); ++i) {
      const bool flip = a.decisions[i] != b.decisions[i];
      const double x = a.margins[i], y = b.margins[i];
      apart.flips += flip ? 1 : 0;
      apart.score = std::max(apart.score, flip ? x + y : std::abs(x - y));
    }
    return apart;
  }

  // What perturbations of the size of rounding do: how many near ties there are, and how near.
  static Noise NoiseOf(const RunnerOptions& options, const Decisions& plain) {
    Noise worst;
    for (std::uint64_t seed = 1; seed <= 3; ++seed) {
      RunnerOptions noisy = options;
      noisy.perturb = 4 * GetParam().rounding;
      noisy.perturb_seed = seed;
      const Noise noise = Apart(plain, RunRecorded(noisy).second);
      worst = {std::max(worst.flips, noise.flips), std::max(worst.score, noise.score)};
    }
    return worst;
  }

  // Decisions of their own may differ in near ties only. Returns how many do, and the largest
  // margin among them.
  static Noise ExpectNearTies(const Decisions& a, const Decisions& b, const Noise& noise) {
    EXPECT_EQ(a.decisions.size(), b.decisions.size());
    Noise ties;
    for (std::size_t i = 0; i < a.decisions.size(); ++i) {
      if (a.decisions[i] == b.decisions[i]) continue;
      ++ties.flips;
      ties.score = std::max<double>(ties.score, std::max(a.margins[i], b.margins[i]));
    }
    // A few seeded perturbations say how many near ties there are and how near, not which flip.
    EXPECT_LE(ties.flips, 2 * noise.flips + 2);
    EXPECT_LE(ties.score, 2 * noise.score);
    return ties;
  }

  // One run is compared with others that must agree with it: with the same decisions within the
  // bound, and with decisions of their own up to near ties.
  class Judge {
   public:
    explicit Judge(const RunnerOptions& options) {
      std::tie(output_, decisions_) = RunRecorded(options);
      recorded_ = root_ + "/recorded";
      std::filesystem::remove_all(recorded_);
      std::filesystem::rename(root_ + "/decisions", recorded_);
      RunnerOptions replayed = options;
      replayed.replay_decisions = recorded_;
      bound_ = Bound(replayed);
      noise_ = NoiseOf(options, decisions_);
      EXPECT_GT(noise_.score, 0);
      EXPECT_LT(noise_.flips, static_cast<int>(decisions_.decisions.size()) / 50);
      RunnerOptions full = options;
      full.policy = {};
      EXPECT_GT(MaxAbsDifference(Run(full).logits, output_.logits), 2 * bound_)
          << "a bound this wide would prove nothing";
      EXPECT_EQ(MaxAbsDifference(Run(replayed).logits, output_.logits), 0.0)
          << "a run is what its decisions make of it";
    }
    void Agrees(RunnerOptions other) const {
      const auto [own, decisions] = RunRecorded(other);
      const Noise ties = ExpectNearTies(decisions_, decisions, noise_);
      if (ties.flips == 0) {
        EXPECT_LE(MaxAbsDifference(own.logits, output_.logits), bound_);
      }
      other.replay_decisions = recorded_;
      const RunnerOutput given = Run(other);
      EXPECT_LE(MaxAbsDifference(given.logits, output_.logits), bound_);
      EXPECT_EQ(given.routing.rows, output_.routing.rows);
      EXPECT_EQ(given.routing.bytes_read, output_.routing.bytes_read);
      std::printf(
          "%s: %d flips with margins up to %.2g (noise: %d, %.2g), given decisions differ by "
          "%.2g, bound %.2g\n",
          testing::PrintToString(GetParam()).c_str(), ties.flips, ties.score, noise_.flips,
          noise_.score, MaxAbsDifference(given.logits, output_.logits), bound_);
    }

   private:
    RunnerOutput output_;
    Decisions decisions_;
    std::string recorded_;
    double bound_ = 0;
    Noise noise_;
  };

  static std::string root_, model_, controller_;
};

std::string RoutedModel::root_, RoutedModel::model_, RoutedModel::controller_;

constexpr RoutePolicy kFull{}, kLinear{Route::kLinear, 0, 0}, kLocal{Route::kLocal, 0, 0};
constexpr RoutePolicy kRoutedPolicy{Route::kRouted, 0, 1};  // always sure

TEST_P(RoutedModel, ForcedToFullItIsTheModelWithoutAController) {
  RunnerOptions options = Options(kFull);
  const RunnerOutput forced = Run(options);
  // Unsure about everything: the controller decides, and the fail-safe makes it full.
  options.policy = {Route::kRouted, 0, 0};
  const RunnerOutput unsure = Run(options);
  options.controller.clear();
  options.policy = kFull;
  const RunnerOutput without = Run(options);
  EXPECT_EQ(MaxAbsDifference(forced.logits, without.logits), 0.0);
  EXPECT_EQ(MaxAbsDifference(unsure.logits, without.logits), 0.0);
  EXPECT_EQ(unsure.routing.rows[0], unsure.routing.eligible());
  EXPECT_EQ(unsure.routing.routed_rows, unsure.routing.eligible());
  EXPECT_EQ(forced.routing.routed_rows, 0);
  EXPECT_EQ(forced.routing.eligible(), (kTokens - std::int64_t{kFirst}) * 3 * 3);
  EXPECT_EQ(without.routing.bytes_read, without.routing.bytes_dense);
}

TEST_P(RoutedModel, ForcedMechanismsDifferBeyondTheWindowOnlyAndReadLess) {
  const RunnerOutput full = Run(Options(kFull));
  const RunnerOutput linear = Run(Options(kLinear)), local = Run(Options(kLocal));
  const std::size_t first = kFirst * static_cast<std::size_t>(full.vocab);
  for (const RunnerOutput* other : {&linear, &local}) {
    const std::span<const float> a(full.logits), b(other->logits);
    EXPECT_EQ(MaxAbsDifference(a.first(first), b.first(first)), 0.0);
    EXPECT_GT(MaxAbsDifference(a.subspan(first), b.subspan(first)), 0.05);
    EXPECT_LT(other->routing.bytes_read, full.routing.bytes_dense);
  }
  EXPECT_GT(MaxAbsDifference(linear.logits, local.logits), 0.05);
  EXPECT_LT(local.routing.bytes_read, linear.routing.bytes_read);
  EXPECT_EQ(linear.routing.rows[1], linear.routing.eligible());
  EXPECT_EQ(local.routing.rows[2], local.routing.eligible());
}

TEST_P(RoutedModel, EveryMechanismWinsSomewhereAndTheCostWeightShiftsTheShares) {
  const RunnerOutput routed = Run(Options(kRoutedPolicy));
  for (const std::int64_t rows : routed.routing.rows) {
    EXPECT_GT(rows, routed.routing.eligible() / 20) << "with less, nothing else here is proved";
  }
  EXPECT_EQ(routed.routing.routed_rows, routed.routing.eligible());
  EXPECT_GT(routed.routing.uncertainty, 0.1 * static_cast<double>(routed.routing.routed_rows));
  EXPECT_LT(routed.routing.uncertainty, 1.0 * static_cast<double>(routed.routing.routed_rows));
  const RunnerOutput thrifty = Run(Options({Route::kRouted, 2, 1}));
  EXPECT_LT(thrifty.routing.rows[0], routed.routing.rows[0]);
  EXPECT_LT(thrifty.routing.bytes_read, routed.routing.bytes_read);
  const RunnerOutput careful = Run(Options({Route::kRouted, 0, 0.8f}));
  EXPECT_GT(careful.routing.rows[0], routed.routing.rows[0]);
}

TEST_P(RoutedModel, RankCountsAgree) {
  const Judge judge(Options(kRoutedPolicy));
  for (const int ranks : {2, 3, 4}) {  // of 4 one owns no head
    SCOPED_TRACE(ranks);
    RunnerOptions options = Options(kRoutedPolicy);
    options.ranks = ranks;
    judge.Agrees(options);
  }
}

TEST_P(RoutedModel, ChunksAndRebuiltStatesAgree) {
  const Judge judge(Options(kRoutedPolicy));
  for (const int chunk : {1, 7, 64, 200}) {
    for (const bool rebuild : {false, true}) {
      if (rebuild && chunk == 1) continue;  // 360 rebuilds of everything; 7 has the same edges
      SCOPED_TRACE(testing::Message() << "chunk " << chunk << " rebuild " << rebuild);
      RunnerOptions options = Options(kRoutedPolicy);
      options.chunk = chunk;
      options.rebuild_states = rebuild;
      judge.Agrees(options);
    }
  }
}

TEST_P(RoutedModel, IsBitwiseIndependentOfChunksAndRebuildingWhenDeterministic) {
  for (const RoutePolicy& policy : {kRoutedPolicy, kLinear}) {
    RunnerOptions options = Options(policy);
    options.deterministic = true;
    const auto [whole, decisions] = RunRecorded(options);
    for (const int chunk : {1, 7, 64, 200}) {
      for (const bool rebuild : {false, true}) {
        if (rebuild && chunk == 1) continue;
        SCOPED_TRACE(testing::Message() << "chunk " << chunk << " rebuild " << rebuild);
        options.chunk = chunk;
        options.rebuild_states = rebuild;
        options.threads = 1 + chunk % 2;
        const auto [output, own] = RunRecorded(options);
        EXPECT_EQ(MaxAbsDifference(whole.logits, output.logits), 0.0);
        EXPECT_EQ(own, decisions);
        EXPECT_EQ(output.routing.uncertainty, whole.routing.uncertainty);
      }
    }
  }
}

TEST_P(RoutedModel, CompanyInTheBatchChangesNothing) {
  RunnerOptions alone = Options(kRoutedPolicy);
  const auto [output, decisions] = RunRecorded(alone);
  RunnerOptions together = alone;
  together.company = 2;
  const auto [other, theirs] = RunRecorded(together);
  if (ExpectNearTies(decisions, theirs, NoiseOf(alone, decisions)).flips == 0) {
    EXPECT_LE(MaxAbsDifference(output.logits, other.logits), Bound(alone));
  }
  for (const RoutePolicy& policy : {kRoutedPolicy, kLinear}) {
    alone.policy = together.policy = policy;
    alone.deterministic = together.deterministic = true;
    for (const int chunk : {1, 64}) {
      together.chunk = chunk;
      together.rebuild_states = chunk == 64;
      together.snapshots = chunk == 1;
      EXPECT_EQ(MaxAbsDifference(Run(alone).logits, Run(together).logits), 0.0);
    }
  }
}

TEST_P(RoutedModel, IsCausal) {
  constexpr std::size_t kChanged = 300;
  std::vector<std::int32_t> tokens = Tokens();
  for (const RoutePolicy& policy : {kRoutedPolicy, kLinear}) {
    const RunnerOutput before = Run(Options(policy));
    for (std::size_t i = kChanged; i < tokens.size(); ++i) tokens[i] = (tokens[i] + 1) % 300;
    const RunnerOutput after = Run(Options(policy), tokens, model_);
    const std::span<const float> a(before.logits), b(after.logits);
    const std::size_t n = kChanged * static_cast<std::size_t>(before.vocab);
    EXPECT_EQ(MaxAbsDifference(a.first(n), b.first(n)), 0.0);
    EXPECT_GT(MaxAbsDifference(a.subspan(n), b.subspan(n)), 0.05);
  }
}

// The controller's feature maps are stored for Hugging Face's order of a head's dimensions; GGUF
// has another one for llama.
TEST_P(RoutedModel, OneControllerServesBothFormatsOfAModel) {
  const std::string directory = WriteTinyDirectory({.model = kModel}, root_ + "/directory");
  for (const RoutePolicy& policy : {kLinear, kRoutedPolicy}) {
    const RunnerOptions options = Options(policy);
    const auto [gguf, decisions] = RunRecorded(options);
    const auto [hugging_face, theirs] = RunRecorded(options, directory);
    if (ExpectNearTies(decisions, theirs, NoiseOf(options, decisions)).flips == 0) {
      EXPECT_LE(MaxAbsDifference(gguf.logits, hugging_face.logits), Bound(Options(kLinear)));
    }
  }
}

// Rounds what is multiplied with the layer's input to sixteenths, which fit into bytes; `spoilt`
// puts a value into every row that no byte can hold beside them and that changes nothing else.
void RoundProjections(std::vector<SafetensorsEntry>& tensors, bool spoilt) {
  for (SafetensorsEntry& tensor : tensors) {
    if (!tensor.name.ends_with(".x") && !tensor.name.ends_with(".x_skip")) continue;
    for (std::size_t i = 0; i < tensor.data.size(); i += 2) {
      std::uint16_t bits = 0;
      std::memcpy(&bits, tensor.data.data() + i, 2);
      bits = F32ToBf16(std::round(Bf16ToF32(bits) * 16) / 16);
      if (i / 2 % kModel.hidden == 5) bits = F32ToBf16(spoilt ? std::ldexp(1.0f, -40) : 0.0f);
      std::memcpy(tensor.data.data() + i, &bits, 2);
    }
  }
}

TEST_P(RoutedModel, ProjectionsThatFitIntoBytesDecideLikeThoseThatDoNot) {
  const std::string kept = controller_;
  const auto decided = [&](bool spoilt) {
    ControllerOptions rounded;
    rounded.edit_tensors = [&](auto& tensors) { RoundProjections(tensors, spoilt); };
    controller_ = WriteController(model_, root_ + "/rounded", rounded);
    return RunRecorded(Options(kRoutedPolicy));
  };
  const auto [plain, decisions] = decided(true);
  const Noise noise = NoiseOf(Options(kRoutedPolicy), decisions);
  const auto [in_bytes, theirs] = decided(false);
  controller_ = kept;
  if (ExpectNearTies(decisions, theirs, noise).flips == 0) {
    EXPECT_LE(MaxAbsDifference(plain.logits, in_bytes.logits), Bound(Options(kLinear)));
  }
}

TEST_P(RoutedModel, EluMapsAndASoftmaxLinkKeepTheInvariances) {
  const std::string kept = controller_;
  controller_ =
      WriteController(model_, root_ + "/elu1", {.seed = 5, .hedgehog = false, .softmax = true});
  const RunnerOutput routed = Run(Options(kRoutedPolicy));
  for (const std::int64_t rows : routed.routing.rows) {
    EXPECT_GT(rows, routed.routing.eligible() / 50);
  }
  EXPECT_GT(MaxAbsDifference(Run(Options(kLinear)).logits, Run(Options(kLocal)).logits), 0.05);
  const Judge judge(Options(kRoutedPolicy));
  RunnerOptions options = Options(kRoutedPolicy);
  options.chunk = 200;
  options.ranks = 2;
  options.rebuild_states = true;
  judge.Agrees(options);
  controller_ = kept;
}

TEST_P(RoutedModel, ASlotWithAnothersStateIsNotItsOwn) {
  // Two prompts through one slot, one after the other: the second starts at position 0.
  RunnerOptions options = Options(kRoutedPolicy);
  options.deterministic = true;
  const RunnerOutput once = Run(options);
  options.repeats = 2;
  EXPECT_EQ(MaxAbsDifference(once.logits, Run(options).logits), 0.0);
}

INSTANTIATE_TEST_SUITE_P(Backends, RoutedModel,
                         testing::Values(Backend{"ref", "", 0x1p-23},
                                         Backend{"cpu", "avx2", 0x1p-23},
                                         Backend{"cpu", "", 0x1p-9}),
                         [](const auto& info) { return testing::PrintToString(info.param); });

}  // namespace
}  // namespace metattn::test
