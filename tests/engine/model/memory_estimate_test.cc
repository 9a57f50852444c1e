// What RoutedAttention and MetaController say they need is what they allocate, but for uploads
// below 64 bytes, which are rounded up: a backend that counts and computes nothing.
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <memory>
#include <string>

#include "engine/model/meta_controller.h"
#include "engine/model/routed_attention.h"
#include "engine/model/upload.h"
#include "tests/support/controller_writer.h"
#include "tests/support/status_matchers.h"
#include "tests/support/tiny_model.h"

namespace metattn::test {
namespace {

class CountingDevice final : public Device {
 public:
  explicit CountingDevice(Device& device) : device_(device) {}
  std::int64_t bytes = 0;

  std::string_view name() const override { return device_.name(); }
  absl::StatusOr<Buffer> Allocate(std::size_t size) override {
    bytes += static_cast<std::int64_t>(size);
    return device_.Allocate(size);
  }
  absl::StatusOr<std::unique_ptr<Stream>> NewStream() override { return device_.NewStream(); }
  void CopyIn(const void* host, View to, std::size_t size, Stream& stream) override {
    device_.CopyIn(host, to, size, stream);
  }
  void CopyOut(View from, void* host, std::size_t size, Stream& stream) override {
    device_.CopyOut(from, host, size, stream);
  }
  void Copy(View from, View to, std::size_t size, Stream& stream) override {
    device_.Copy(from, to, size, stream);
  }

 private:
  Device& device_;
};

class CountingKernels final : public Kernels {
 public:
  CountingKernels() : ref_(*MakeKernels({.backend = "ref"})), device_(ref_->device()) {}
  std::int64_t bytes() const { return device_.bytes; }

  std::string_view name() const override { return ref_->name(); }
  std::string_view isa() const override { return ref_->isa(); }
  int threads() const override { return 1; }
  Device& device() override { return device_; }
  std::int64_t PageBytes(int head_dim) const override { return ref_->PageBytes(head_dim); }
  absl::StatusOr<std::unique_ptr<Matrix>> Pack(std::span<const MatrixPart> parts,
                                               std::int64_t cols) override {
    auto matrix = ref_->Pack(parts, cols);
    if (matrix.ok()) device_.bytes += (*matrix)->bytes();
    return matrix;
  }
  void Embed(const EmbedArgs&, Stream&) override {}
  void Norm(const NormArgs&, Stream&) override {}
  void Linear(const LinearArgs&, Stream&) override {}
  void RopeAppend(const RopeAppendArgs&, Stream&) override {}
  void ForcedRoute(const ForcedRouteArgs&, Stream&) override {}
  void Compact(const CompactArgs&, Stream&) override {}
  void Near(const NearArgs&, Stream&) override {}
  void FarFull(const FarFullArgs&, Stream&) override {}
  void LinearAbsorb(const LinearAbsorbArgs&, Stream&) override {}
  void LinearOdds(const LinearOddsArgs&, Stream&) override {}
  void FarLinear(const FarLinearArgs&, Stream&) override {}
  void Control(const ControlArgs&, Stream&) override {}
  void Mix(const MixArgs&, Stream&) override {}
  void Dispatch(const DispatchArgs&, Stream&) override {}
  void Normalize(const NormalizeArgs&, Stream&) override {}
  void SwiGlu(const SwiGluArgs&, Stream&) override {}
  void Gather(const GatherArgs&, Stream&) override {}
  void ArgMax(const ArgMaxArgs&, Stream&) override {}

 private:
  std::unique_ptr<Kernels> ref_;
  CountingDevice device_;
};

class MemoryEstimate : public testing::Test {
 protected:
  void SetUp() override {
    root_ = testing::TempDir() + "/memory_estimate_" + std::to_string(getpid());
    std::filesystem::create_directories(root_);
    model_ = WriteTinyModel(
        {.layers = 3, .hidden = 96, .heads = 6, .kv_heads = 3, .head_dim = 32, .ffn = 96},
        root_ + "/model.gguf");
    auto checkpoint = Checkpoint::Open(model_);
    ASSERT_THAT(checkpoint, Succeeds());
    checkpoint_ = *std::move(checkpoint);
    auto config = ModelConfig::FromCheckpoint(*checkpoint_);
    ASSERT_THAT(config, Succeeds());
    config_ = *std::move(config);
  }
  void TearDown() override { std::filesystem::remove_all(root_); }

  std::string root_, model_;
  std::unique_ptr<Checkpoint> checkpoint_;
  ModelConfig config_;
};

TEST_F(MemoryEstimate, OfAMetaControllerIsWhatItAllocatesButForPadding) {
  ControllerOptions token;
  token.per_token = true;
  ControllerOptions paper = token;
  paper.paper = paper.linear_all = paper.exact_window = paper.mixture = true;
  paper.hedgehog = false;
  for (const ControllerOptions& options : {ControllerOptions(), token, paper}) {
    const auto file = ControllerFile::Open(WriteController(model_, root_ + "/controller", options),
                                           *checkpoint_, config_);
    ASSERT_THAT(file, Succeeds());
    for (const auto& [begin, end] : {std::pair(0, 3), {1, 2}, {2, 2}}) {
      CountingKernels kernels;
      const Slice slice = {.head_begin = begin, .head_end = end};
      const MetaControllerShape shape = {.max_rows = 37, .state_slots = 5};
      ASSERT_THAT(MetaController::Create(**file, config_, slice, shape, kernels), Succeeds());
      const std::int64_t off =
          kernels.bytes() - MetaController::Bytes((*file)->spec(), config_, end - begin, shape);
      EXPECT_GE(off, 0);
      constexpr std::int64_t kTensors = 12;  // of a layer, each padded where it lies beside others
      EXPECT_LE(off, config_.layers * kTensors * std::int64_t{UploadTogether::kAlignment})
          << "features " << static_cast<int>((*file)->spec().features) << ", " << end - begin
          << " heads";
    }
  }
}

TEST_F(MemoryEstimate, OfRoutedAttentionIsWhatItAllocatesAndMixturesAloneAddToIt) {
  std::int64_t plain = 0;
  for (const bool mixtures : {false, true}) {
    for (const bool near_stats : {false, true}) {
      CountingKernels kernels;
      const RoutedAttentionShape shape = {.layers = 3,
                                          .heads = 2,
                                          .max_rows = 37,
                                          .blocks = 11,
                                          .max_context = 70,
                                          .max_shadow_rows = near_stats ? 3 : 0,
                                          .near_stats = near_stats,
                                          .mixtures = mixtures};
      ASSERT_THAT(RoutedAttention::Create(config_, shape, nullptr, kernels), Succeeds());
      const std::int64_t scratch = RoutedAttention::ScratchBytes(config_, shape);
      EXPECT_EQ(kernels.bytes(),
                scratch + shape.blocks * RoutedAttention::BytesPerBlock(config_, shape, kernels))
          << mixtures << near_stats;
      if (near_stats) continue;
      // P0 once more (o, m, l) and the sum, per row and query head.
      if (mixtures) {
        EXPECT_EQ(scratch - plain, 37 * 4 * (2 * 32 + 2) * 4);
      }
      plain = scratch;
    }
  }
}

}  // namespace
}  // namespace metattn::test
