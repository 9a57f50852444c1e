// Checkpoint::Open on files and directories, and the mapping under it.
#include "engine/formats/checkpoint.h"

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <string>
#include <vector>

#include "engine/formats/gguf.h"
#include "engine/formats/hugging_face.h"
#include "engine/formats/mapped_file.h"
#include "tests/support/safetensors_writer.h"
#include "tests/support/status_matchers.h"
#include "tests/support/tiny_directory.h"
#include "tests/support/tiny_model.h"

namespace metattn {
namespace {

namespace fs = std::filesystem;
using test::Fails;
using test::Succeeds;
using Code = absl::StatusCode;

class CheckpointTest : public ::testing::Test {
 protected:
  void SetUp() override {
    dir_ = ::testing::TempDir() + "checkpoint_test_" +
           ::testing::UnitTest::GetInstance()->current_test_info()->name();
    fs::remove_all(dir_);
    fs::create_directories(dir_);
  }
  void TearDown() override { fs::remove_all(dir_); }

  std::string Path(const std::string& name) const { return dir_ + "/" + name; }
  std::string TinyDirectory(int shards) const {
    return test::WriteTinyDirectory({.shards = shards}, Path("model"));
  }
  std::string dir_;
};

TEST_F(CheckpointTest, AMissingFileIsNotFoundAndADirectoryOrEmptyFileInvalid) {
  EXPECT_THAT(MappedFile::Open(Path("no")), Fails(Code::kNotFound, Path("no")));
  EXPECT_THAT(MappedFile::Open(dir_), Fails(Code::kInvalidArgument, "is a directory"));
  test::WriteFile(Path("empty.gguf"), "");
  EXPECT_THAT(Checkpoint::Open(Path("empty.gguf")), Fails(Code::kInvalidArgument, "file is empty"));
  EXPECT_THAT(Checkpoint::Open(Path("no.gguf")), Fails(Code::kNotFound, "no.gguf"));
}

TEST_F(CheckpointTest, ANamedPipeIsAnErrorAndDoesNotWait) {
  ASSERT_EQ(::mkfifo(Path("pipe").c_str(), 0600), 0);
  EXPECT_THAT(Checkpoint::Open(Path("pipe")), Fails(Code::kInvalidArgument, "not a regular file"));
}

TEST_F(CheckpointTest, AnUnreadableFileIsPermissionDenied) {
  test::WriteFile(Path("secret"), "x");
  fs::permissions(Path("secret"), fs::perms::none);
  constexpr uid_t kNobody = 65534;
  const uid_t self = ::geteuid();
  if (self == 0) {  // root may read everything
    ASSERT_EQ(::seteuid(kNobody), 0);
  }
  const auto opened = MappedFile::Open(Path("secret"));
  ASSERT_EQ(::seteuid(self), 0);
  EXPECT_THAT(opened, Fails(Code::kPermissionDenied, "secret"));
}

TEST_F(CheckpointTest, MappedBytesAreTheFile) {
  test::WriteFile(Path("f"), "abc");
  const auto file = MappedFile::Open(Path("f"));
  ASSERT_THAT(file, Succeeds());
  ASSERT_EQ((*file)->bytes().size(), 3u);
  EXPECT_EQ((*file)->bytes()[2], std::byte{'c'});
}

TEST_F(CheckpointTest, RequireNamesBothShapes) {
  const auto model = Checkpoint::Open(test::WriteTinyModel({}, Path("m.gguf")));
  ASSERT_THAT(model, Succeeds());
  const std::int64_t right[] = {320, 64}, wrong[] = {320, 65}, flat[] = {320};
  EXPECT_THAT((*model)->Require("token_embd.weight", right), Succeeds());
  EXPECT_THAT((*model)->Require("token_embd.weight", wrong),
              Fails(Code::kInvalidArgument,
                    "'token_embd.weight' has shape [320, 64], needed is [320, 65]"));
  EXPECT_THAT((*model)->Require("token_embd.weight", flat),
              Fails(Code::kInvalidArgument, "needed is [320]"));
  EXPECT_THAT((*model)->Require("blk.9.attn_q.weight", right),
              Fails(Code::kInvalidArgument, "'blk.9.attn_q.weight' is missing"));
}

TEST_F(CheckpointTest, AFileOfADirectoryPointsToTheDirectory) {
  TinyDirectory(1);
  EXPECT_THAT(Checkpoint::Open(Path("model/model.safetensors")),
              Fails(Code::kInvalidArgument, "name the model's directory"));
}

TEST_F(CheckpointTest, DirectoryAndGgufHoldTheSameWeights) {
  // qwen3 keeps the row order of Hugging Face in GGUF.
  const test::TinyModelOptions options = {
      .dtype = DType::kBF16, .qkv_bias = true, .qk_norm = true, .tied = false};
  const auto gguf = Checkpoint::Open(test::WriteTinyModel(options, Path("m.gguf")));
  ASSERT_THAT(gguf, Succeeds());
  for (const int shards : {1, 3}) {
    const auto directory = Checkpoint::Open(
        test::WriteTinyDirectory({.model = options, .shards = shards}, Path("model")));
    ASSERT_THAT(directory, Succeeds());
    EXPECT_EQ((*directory)->format(), Checkpoint::Format::kHuggingFace);
    EXPECT_EQ((*directory)->gguf(), nullptr);
    EXPECT_EQ((*directory)->tensors().size(), (*gguf)->tensors().size());
    EXPECT_NE((*directory)->tokenizer_json().find("\"BPE\""), std::string_view::npos);
    EXPECT_NE((*directory)->tokenizer_config_json().find("<|im_end|>"), std::string_view::npos);
    EXPECT_NE((*directory)->config_json().find("Qwen3ForCausalLM"), std::string_view::npos);
    for (const TensorInfo& expected : (*gguf)->tensors()) {
      const TensorInfo* tensor = (*directory)->Find(expected.name);
      ASSERT_NE(tensor, nullptr) << expected.name;
      EXPECT_EQ(tensor->shape, expected.shape) << expected.name;
      if (expected.dtype != tensor->dtype) continue;  // vectors stay f32 in GGUF
      EXPECT_TRUE(std::ranges::equal(tensor->data, expected.data)) << expected.name;
    }
  }
}

TEST_F(CheckpointTest, ADirectoryWithoutItsFilesSaysWhichIsMissing) {
  EXPECT_THAT(Checkpoint::Open(dir_), Fails(Code::kNotFound, "no config.json"));
  const std::string model = TinyDirectory(1);
  fs::remove(model + "/tokenizer.json");
  const auto opened = Checkpoint::Open(model);
  ASSERT_THAT(opened, Succeeds());
  EXPECT_TRUE((*opened)->tokenizer_json().empty());
  fs::remove(model + "/model.safetensors");
  EXPECT_THAT(Checkpoint::Open(model), Fails(Code::kNotFound, "neither model.safetensors nor"));
}

TEST_F(CheckpointTest, ADamagedShardIndexSaysWhatIsWrong) {
  const std::string model = TinyDirectory(2);
  const std::string index = model + "/model.safetensors.index.json";
  const std::string sound = test::ReadFile(index);
  const std::string first = "model-00001-of-00002.safetensors";
  const auto damaged = [&](const std::string& from, const std::string& to) {
    std::string text = sound;
    const std::size_t at = text.find(from);
    EXPECT_NE(at, std::string::npos) << from;
    test::WriteFile(index, text.replace(at, from.size(), to));
    return Checkpoint::Open(model);
  };
  EXPECT_THAT(damaged("weight_map", "weight_mop"), Fails(Code::kInvalidArgument, "'weight_map'"));
  EXPECT_THAT(damaged(first, "../" + first), Fails(Code::kInvalidArgument, "not a file beside it"));
  EXPECT_THAT(damaged(first, "/etc/passwd"), Fails(Code::kInvalidArgument, "not a file beside it"));
  EXPECT_THAT(damaged(first, "absent.safetensors"), Fails(Code::kNotFound, "absent.safetensors"));
  EXPECT_THAT(damaged("\"" + first + "\"", "7"),
              Fails(Code::kInvalidArgument, "not a file beside"));
  EXPECT_THAT(damaged("model.embed_tokens.weight", "model.embed_tokens.wait"),
              Fails(Code::kInvalidArgument, "tensor 'model.embed_tokens.wait' is not in"));
  EXPECT_THAT(damaged("\"model.norm.weight\"", "\"model.embed_tokens.weight\""),
              Fails(Code::kInvalidArgument, "twice"));
  test::WriteFile(index, "");
  EXPECT_THAT(Checkpoint::Open(model), Fails(Code::kInvalidArgument, "file is empty"));
}

TEST_F(CheckpointTest, TheSameTensorInTwoShardsIsAnError) {
  const std::string model = TinyDirectory(2);
  const std::string shard = model + "/model-00002-of-00002.safetensors";
  test::WriteFile(shard,
                  test::SafetensorsBytes({{"model.embed_tokens.weight", "F32", {1}, "1234"}}));
  EXPECT_THAT(Checkpoint::Open(model), Fails(Code::kInvalidArgument, "model-00002-of-00002"));
}

TEST(HuggingFaceNames, TranslateBothWays) {
  for (const auto& tensor :
       test::TinyTensors({.layers = 12, .qkv_bias = true, .qk_norm = true, .tied = false})) {
    EXPECT_EQ(CanonicalName(test::HuggingFaceName(tensor.name)), tensor.name);
  }
  for (const char* own : {"model.layers.x.mlp.up_proj.weight", "model.layers.01.mlp.up_proj.weight",
                          "model.layers.1.mlp.up_proj.bias", "model.layers.", "model.layers.1", "",
                          "lm_head.weight.scale", "model.layers.0.self_attn.rotary_emb.inv_freq"}) {
    EXPECT_EQ(CanonicalName(own), own);
  }
}

}  // namespace
}  // namespace metattn
