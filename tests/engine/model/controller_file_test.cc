// The controller directory: what a sound one gives, and that every damage to it is an error that
// names the file and the key or tensor.
#include "engine/model/controller_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <limits>
#include <random>

#include "engine/model/fingerprint.h"
#include "tests/support/controller_writer.h"
#include "tests/support/status_matchers.h"
#include "tests/support/tiny_directory.h"
#include "tests/support/tiny_model.h"

namespace metattn::test {
namespace {

using Code = absl::StatusCode;
using Json = nlohmann::json;
using testing::HasSubstr;

const TinyModelOptions kModel = {
    .layers = 2, .hidden = 32, .heads = 4, .kv_heads = 2, .head_dim = 16, .ffn = 32};

struct Opened {
  std::unique_ptr<Checkpoint> checkpoint;
  ModelConfig config;
};

Opened OpenModel(const std::string& path) {
  auto checkpoint = Checkpoint::Open(path);
  EXPECT_THAT(checkpoint, Succeeds());
  auto config = ModelConfig::FromCheckpoint(**checkpoint);
  EXPECT_THAT(config, Succeeds());
  return {*std::move(checkpoint), *std::move(config)};
}

class ControllerFileTest : public testing::Test {
 protected:
  void SetUp() override {
    const auto* info = testing::UnitTest::GetInstance()->current_test_info();
    root_ = testing::TempDir() + "/controller_file_" + info->name();
    std::filesystem::remove_all(root_);
    std::filesystem::create_directories(root_);
    model_ = WriteTinyModel(kModel, root_ + "/model.gguf");
    opened_ = OpenModel(model_);
  }
  void TearDown() override { std::filesystem::remove_all(root_); }

  std::string Write(const ControllerOptions& options = {}) const {
    return WriteController(model_, root_ + "/controller", options);
  }
  absl::StatusOr<std::unique_ptr<ControllerFile>> Open(const std::string& directory) const {
    return ControllerFile::Open(directory, *opened_.checkpoint, opened_.config);
  }
  // Opens the directory as an edit of controller.json leaves it.
  absl::Status WithJson(const std::function<void(Json&)>& edit) const {
    ControllerOptions options;
    options.edit_json = edit;
    return Open(Write(options)).status();
  }
  // Likewise of one tensor.
  absl::Status WithTensor(const std::string& name,
                          const std::function<void(SafetensorsEntry&)>& edit) const {
    ControllerOptions options;
    bool found = false;
    options.edit_tensors = [&](std::vector<SafetensorsEntry>& list) {
      for (SafetensorsEntry& entry : list) {
        if (entry.name == name) edit(entry), found = true;
      }
    };
    const absl::Status status = Open(Write(options)).status();
    EXPECT_TRUE(found) << name;
    return status;
  }

  std::string root_, model_;
  Opened opened_;
};

TEST_F(ControllerFileTest, ASoundDirectoryGivesWhatItHolds) {
  const auto file = Open(Write({.width = 5, .window = 128, .sinks = 2, .eta = 0.98}));
  ASSERT_THAT(file, Succeeds());
  const ControllerSpec& spec = (*file)->spec();
  EXPECT_EQ(spec.name, "controller");
  EXPECT_EQ(spec.max_context, 512);
  EXPECT_EQ(spec.window, 128);
  EXPECT_EQ(spec.sinks, 2);
  EXPECT_EQ(spec.width, 5);
  EXPECT_EQ(spec.link, ControllerLink::kSoftplus);
  EXPECT_EQ(spec.feature_map, FeatureMap::kHedgehog);
  EXPECT_EQ(spec.uncertain, UncertainPolicy::kFull);
  EXPECT_EQ(spec.epsilon, 0.1f);
  EXPECT_EQ(spec.temperature, 1.5f);
  EXPECT_EQ(spec.eta, 0.98f);
  EXPECT_EQ(spec.cost_weight, 0.0f);
  EXPECT_EQ(spec.cost_weight_levels, (std::vector<float>{0, 0.5f, 1, 2}));
  ASSERT_EQ(spec.offsets.size(), 2u);
  ASSERT_EQ(spec.offsets[1].size(), 2u);
  EXPECT_EQ(spec.offsets[1][1], (PerMechanism{0.05f, -0.125f, 0.25f}));
  EXPECT_EQ(spec.mix[0][1], (PerMechanism{0.25f, 0.5f, 0.25f}));
  const TensorInfo* maps = (*file)->Find(1, "linear.w_q");
  ASSERT_NE(maps, nullptr);
  EXPECT_EQ(maps->shape, (std::vector<std::int64_t>{4, 16, 16}));
  EXPECT_EQ(maps->data.size(), 4u * 16 * 16 * 2);
  EXPECT_EQ((*file)->Find(2, "linear.w_q"), nullptr);
  EXPECT_EQ((*file)->Find(0, "linear.w_v"), nullptr);
}

TEST_F(ControllerFileTest, Elu1HasNoMapsAndTheLinkMayBeSoftmax) {
  const auto file = Open(Write({.hedgehog = false, .softmax = true}));
  ASSERT_THAT(file, Succeeds());
  EXPECT_EQ((*file)->spec().feature_map, FeatureMap::kEluPlusOne);
  EXPECT_EQ((*file)->spec().link, ControllerLink::kSoftmax);
  EXPECT_EQ((*file)->Find(0, "linear.w_q"), nullptr);
  EXPECT_NE((*file)->Find(0, "linear.kappa"), nullptr);
}

ControllerOptions PaperSetting() {
  return {.window = 20,
          .sinks = 0,
          .hedgehog = false,
          .exact_window = true,
          .linear_all = true,
          .per_token = true,
          .paper = true,
          .mixture = true,
          .eta = 0};
}

TEST_F(ControllerFileTest, ThePapersSettingIsReadWithOneDecisionPerToken) {
  const auto file = Open(Write(PaperSetting()));
  ASSERT_THAT(file, Succeeds());
  const ControllerSpec& spec = (*file)->spec();
  EXPECT_TRUE(spec.exact_window);
  EXPECT_TRUE(spec.linear_all);
  EXPECT_TRUE(spec.per_token);
  EXPECT_EQ(spec.features, ControlFeatures::kPaper);
  EXPECT_EQ(spec.uncertain, UncertainPolicy::kMixture);
  EXPECT_EQ(spec.sinks, 0);
  EXPECT_EQ(spec.eta, 0);
  using Shape = std::vector<std::int64_t>;
  EXPECT_EQ((*file)->Find(1, "controller.scalars")->shape, (Shape{1, 8, 2}));
  EXPECT_EQ((*file)->Find(1, "controller.x_skip")->shape, (Shape{1, 3, 32}));
  EXPECT_EQ((*file)->Find(1, "linear.kappa")->shape, (Shape{4}));
}

TEST_F(ControllerFileTest, EachPartOfThePapersSettingCanBeHadAlone) {
  ControllerOptions options;
  options.exact_window = true;
  EXPECT_THAT(Open(Write(options)), Succeeds());
  options = {.linear_all = true};
  EXPECT_THAT(Open(Write(options)), Succeeds());
  options = {.per_token = true};  // of the retrofit scalars only log n is a token's
  const auto token = Open(Write(options));
  ASSERT_THAT(token, Succeeds());
  EXPECT_EQ((*token)->spec().features, ControlFeatures::kLength);
  EXPECT_EQ((*token)->Find(0, "controller.scalar_mean")->shape, (std::vector<std::int64_t>{1, 1}));
  options = {.paper = true};  // per KV head
  const auto paper = Open(Write(options));
  ASSERT_THAT(paper, Succeeds());
  EXPECT_EQ((*paper)->Find(0, "controller.scalar_mean")->shape, (std::vector<std::int64_t>{2, 2}));
  options = {.mixture = true};
  EXPECT_THAT(Open(Write(options)), Succeeds());
}

TEST_F(ControllerFileTest, WhatContradictsDecisionsPerTokenIsRefusedByName) {
  ControllerOptions options = PaperSetting();
  options.per_token = false;  // tensors of every KV head
  options.edit_json = [](Json& j) {
    j["decisions"] = "token";
    j["offsets"][0][1] = j["offsets"][0][0];
    j["offsets"][1][1] = j["offsets"][1][0];
  };
  EXPECT_THAT(Open(Write(options)),
              Fails(Code::kInvalidArgument, "tensor layers.0.controller.x_skip has shape"));
  for (const std::string key : {"offsets", "mix"}) {
    options = PaperSetting();
    options.edit_json = [&](Json& j) { j[key][1][1] = {0.5, 0.25, 0.25}; };
    const absl::Status status = Open(Write(options)).status();
    EXPECT_THAT(status, Fails(Code::kInvalidArgument, key + "[1][1] must be that of KV head 0"));
    EXPECT_THAT(status, Fails(Code::kInvalidArgument, "/controller.json"));
  }
  options = PaperSetting();
  options.edit_json = [](Json& j) { j["max_context"] = 1; };
  EXPECT_THAT(Open(Write(options)),
              Fails(Code::kInvalidArgument, "'max_context' must be at least 2"));
  options.paper = false;
  EXPECT_THAT(Open(Write(options)), Succeeds()) << "nothing divides by it";
}

TEST_F(ControllerFileTest, TheDigestDiffersWithAnyByteOfEitherFile) {
  const std::string directory = Write();
  const auto digest = [&] {
    const auto file = Open(directory);
    EXPECT_THAT(file, Succeeds());
    return file.ok() ? (*file)->digest() : "";
  };
  const std::string first = digest();
  EXPECT_EQ(digest(), first);
  WriteFile(directory + "/controller.json", ReadFile(directory + "/controller.json") + "\n");
  const std::string second = digest();
  EXPECT_NE(second, first);
  std::string weights = ReadFile(directory + "/controller.safetensors");
  weights[weights.size() - 4] ^= 1;  // the last bit of the last value
  WriteFile(directory + "/controller.safetensors", weights);
  EXPECT_NE(digest(), second);
}

// FNV-1a of the contract, written down a second time.
std::string ExpectedFingerprint(const TinyModelOptions& o) {
  std::uint64_t hash = 14695981039346656037u;
  const auto add = [&](const std::string& bytes) {
    for (const char c : bytes) hash = (hash ^ static_cast<unsigned char>(c)) * 1099511628211u;
  };
  char text[200];
  std::snprintf(text, sizeof text,
                "layers=%d hidden=%d heads=%d kv_heads=%d head_dim=%d vocab=%d\n", o.layers,
                static_cast<int>(o.hidden), o.heads, o.kv_heads, o.head_dim,
                static_cast<int>(o.vocab));
  add(text);
  std::vector<std::string> order = {"output_norm.weight"};
  for (int l = 0; l < o.layers; ++l) {
    order.push_back("blk." + std::to_string(l) + ".attn_norm.weight");
    order.push_back("blk." + std::to_string(l) + ".ffn_norm.weight");
  }
  const std::vector<TinyTensor> tensors = TinyTensors(o);
  for (const std::string& name : order) {
    for (const TinyTensor& tensor : tensors) {
      if (tensor.name != name) continue;
      for (const float value : tensor.values) {
        const auto bits = std::bit_cast<std::uint32_t>(value);
        for (int shift = 0; shift < 32; shift += 8) {
          add(std::string(1, static_cast<char>(bits >> shift & 0xff)));
        }
      }
    }
  }
  std::snprintf(text, sizeof text, "fnv1a64:%016llx", static_cast<unsigned long long>(hash));
  return text;
}

TEST_F(ControllerFileTest, OneModelHasOneFingerprintInEveryFormat) {
  TinyModelOptions model = kModel;
  std::vector<std::string> paths;
  for (const DType dtype : {DType::kF32, DType::kQ8_0, DType::kQ4_1}) {
    model.dtype = dtype;
    paths.push_back(WriteTinyModel(model, root_ + "/m" + std::to_string(paths.size()) + ".gguf"));
  }
  paths.push_back(WriteTinyDirectory({.model = kModel}, root_ + "/plain"));
  paths.push_back(WriteTinyDirectory({.model = kModel, .shards = 3}, root_ + "/sharded"));
  for (const std::string& path : paths) {
    const Opened opened = OpenModel(path);
    const auto fingerprint = Fingerprint(*opened.checkpoint, opened.config);
    ASSERT_THAT(fingerprint, Succeeds());
    EXPECT_EQ(*fingerprint, ExpectedFingerprint(kModel)) << path;
    EXPECT_THAT(ControllerFile::Open(Write(), *opened.checkpoint, opened.config), Succeeds());
  }
}

TEST_F(ControllerFileTest, AnotherModelOfTheSameShapeIsRefused) {
  const std::string directory = Write();
  TinyModelOptions other = kModel;
  other.seed = 2;
  const Opened theirs = OpenModel(WriteTinyModel(other, root_ + "/other.gguf"));
  const auto file = ControllerFile::Open(directory, *theirs.checkpoint, theirs.config);
  EXPECT_THAT(file, Fails(Code::kInvalidArgument, "key 'fingerprint' is"));
  EXPECT_THAT(file, Fails(Code::kInvalidArgument, "controller.json: base_model"));
  EXPECT_THAT(file, Fails(Code::kInvalidArgument, ExpectedFingerprint(other)));
  EXPECT_THAT(WithJson([](Json& j) { j["base_model"]["fingerprint"] = "fnv1a64:0"; }),
              Fails(Code::kInvalidArgument, "'fingerprint' is 'fnv1a64:0'"));
}

TEST_F(ControllerFileTest, EachNumberOfAnotherModelIsRefusedByName) {
  for (const char* key : {"layers", "hidden", "heads", "kv_heads", "head_dim", "vocab"}) {
    const absl::Status other =
        WithJson([&](Json& j) { j["base_model"][key] = j["base_model"][key].get<int>() + 1; });
    EXPECT_THAT(other, Fails(Code::kInvalidArgument, std::string("key '") + key + "' is"));
    EXPECT_THAT(other, Fails(Code::kInvalidArgument, "made for another model"));
    EXPECT_THAT(WithJson([&](Json& j) { j["base_model"][key] = -1; }),
                Fails(Code::kInvalidArgument, key));
    EXPECT_THAT(WithJson([&](Json& j) { j["base_model"].erase(key); }),
                Fails(Code::kInvalidArgument, std::string("key '") + key + "' is missing"));
  }
  EXPECT_THAT(WithJson([](Json& j) { j["base_model"].erase("fingerprint"); }),
              Fails(Code::kInvalidArgument, "'fingerprint' is missing"));
  EXPECT_THAT(WithJson([](Json& j) { j["base_model"] = 3; }),
              Fails(Code::kInvalidArgument, "'base_model' must be an object"));
}

TEST_F(ControllerFileTest, EveryRequiredKeyIsMissedByName) {
  for (const char* key : {"format",       "version",
                          "max_context",  "window",
                          "sinks",        "block",
                          "window_scope", "linear_scope",
                          "decisions",    "features",
                          "hidden_width", "activation",
                          "link",         "feature_map",
                          "eta",          "uncertain_policy",
                          "cost_weight",  "cost_weight_levels",
                          "offsets",      "mix",
                          "base_model"}) {
    const absl::Status status = WithJson([&](Json& j) { ASSERT_EQ(j.erase(key), 1u); });
    EXPECT_THAT(status, Fails(Code::kInvalidArgument, std::string("'") + key + "'"));
    EXPECT_THAT(status, Fails(Code::kInvalidArgument, "controller.json"));
  }
  EXPECT_THAT(WithJson([](Json& j) { j.erase("training"); }), Succeeds()) << "facts for people";
}

struct BadValue {
  const char* key;
  Json value;
  Code code;
  const char* says;
};

TEST_F(ControllerFileTest, EveryWrongValueIsRefusedByName) {
  constexpr Code kBad = Code::kInvalidArgument, kUnknown = Code::kUnimplemented;
  const BadValue cases[] = {
      {"version", 2, kUnknown, "'version' is 2; this version reads 1"},
      {"version", "1", kBad, "'version'"},
      {"format", "other", kUnknown, "'format' is 'other'"},
      {"block", 32, kUnknown, "'block' is 32"},
      {"window_scope", "half", kUnknown, "knows 'block' and 'exact'"},
      {"window_scope", 1, kBad, "'window_scope'"},
      {"linear_scope", "near", kUnknown, "knows 'far' and 'all'"},
      {"linear_scope", Json(), kBad, "'linear_scope' is missing"},
      {"decisions", "layer", kUnknown, "knows 'kv_head' and 'token'"},
      {"decisions", true, kBad, "'decisions'"},
      {"features", "all", kUnknown, "knows 'retrofit' and 'paper'"},
      {"features", Json::array(), kBad, "'features'"},
      {"activation", "relu", kUnknown, "'activation'"},
      {"uncertain_policy", "coin", kUnknown, "knows 'full' and 'mixture'"},
      {"uncertain_policy", 3, kBad, "'uncertain_policy'"},
      {"link", "probit", kUnknown, "'link'"},
      {"feature_map", "relu", kUnknown, "'feature_map'"},
      {"eta", 1.01, kBad, "'eta' must be a number from 0 to 1"},
      {"eta", -0.01, kBad, "'eta'"},
      {"eta", "0.98", kBad, "'eta'"},
      {"epsilon", 0, kBad, "'epsilon'"},
      {"temperature", 0, kBad, "'temperature'"},
      {"temperature", 1e300, kBad, "'temperature'"},
      {"cost_weight", -1, kBad, "'cost_weight'"},
      {"cost_weight", 1e300, kBad, "'cost_weight'"},
      {"cost_weight", Json(), kBad, "'cost_weight' is missing"},
      {"window", 0, kBad, "'window'"},
      {"window", std::int64_t{1} << 40, kBad, "'window'"},
      {"window", 64.5, kBad, "'window'"},
      {"window", std::numeric_limits<std::uint64_t>::max(), kBad, "'window'"},
      {"sinks", -1, kBad, "'sinks'"},
      {"max_context", 0, kBad, "'max_context'"},
      {"hidden_width", 0, kBad, "'hidden_width'"},
      {"hidden_width", 1 << 20, kBad, "'hidden_width'"},
      {"cost_weight_levels", Json::array(), kBad, "'cost_weight_levels'"},
      {"cost_weight_levels", {0.0, 1.0, 0.5}, kBad, "ascending"},
      {"cost_weight_levels", {0.5, 0.5}, kBad, "ascending"},
      {"cost_weight_levels", {-1.0, 0.5}, kBad, "'cost_weight_levels'"},
      {"cost_weight_levels", {0.0, "1"}, kBad, "'cost_weight_levels'"},
      {"cost_weight_levels", {0.0, 1e300}, kBad, "'cost_weight_levels'"},
      {"cost_weight_levels", std::vector<int>(17, 1), kBad, "1 to 16"},
      {"cost_weight_levels", 1.0, kBad, "'cost_weight_levels'"},
  };
  for (const BadValue& bad : cases) {
    SCOPED_TRACE(testing::Message() << bad.key << " = " << bad.value);
    const absl::Status status = WithJson([&](Json& j) { j[bad.key] = bad.value; });
    EXPECT_THAT(status, Fails(bad.code, bad.says));
    EXPECT_THAT(status, Fails(bad.code, "/controller.json"));
  }
}

TEST_F(ControllerFileTest, TriplesOfAnotherSizeOrValueAreRefusedByPlace) {
  for (const std::string key : {"offsets", "mix"}) {
    const auto refused = [&](const std::function<void(Json&)>& edit, const std::string& says) {
      EXPECT_THAT(WithJson([&](Json& j) { edit(j[key]); }), Fails(Code::kInvalidArgument, says));
    };
    refused([](Json& v) { v.erase(1); }, "'" + key + "' must be a list of 2 layers");
    refused([](Json& v) { v.push_back(v[0]); }, "'" + key + "' must be a list of 2 layers");
    refused([](Json& v) { v = Json::object(); }, "'" + key + "' must be a list of 2 layers");
    refused([](Json& v) { v[1].erase(0); }, key + "[1] must be a list of 2 KV heads");
    refused([](Json& v) { v[1] = 7; }, key + "[1] must be a list of 2 KV heads");
    refused([](Json& v) { v[1][0].erase(0); }, key + "[1][0] must be three numbers");
    refused([](Json& v) { v[0][1][2] = "0.25"; }, key + "[0][1] must be three numbers");
    refused([](Json& v) { v[0][1][2] = 1e30; }, key + "[0][1] must be three numbers");
    refused([](Json& v) { v[0][1][2] = -1e300; }, key + "[0][1] must be three numbers");
    refused([](Json& v) { v[0][1][2] = nullptr; }, key + "[0][1] must be three numbers");
  }
  const auto mix = [&](const Json& shares) {
    return WithJson([&](Json& j) { j["mix"][1][0] = shares; });
  };
  EXPECT_THAT(mix({0.25, 0.5, 0.3}), Fails(Code::kInvalidArgument, "mix[1][0]"));
  EXPECT_THAT(mix({0.25, 0.5, 0.3}), Fails(Code::kInvalidArgument, "sum to 1"));
  EXPECT_THAT(mix({-0.25, 0.75, 0.5}), Fails(Code::kInvalidArgument, "sum to 1"));
  EXPECT_THAT(mix({0.3333, 0.3333, 0.3333}), Succeeds()) << "rounded shares are fine";
}

TEST_F(ControllerFileTest, WhatIsNoJsonIsRefused) {
  const std::string directory = Write(), path = directory + "/controller.json";
  const std::string sound = ReadFile(path);
  for (const std::string& text :
       {std::string(), std::string("nonsense"), std::string("[1, 2]"), std::string("3"),
        std::string("{\"version\": 1, \"version\": 1}"), std::string(100000, '['),
        sound.substr(0, sound.size() / 2), sound + "}", std::string(64, '\0')}) {
    WriteFile(path, text);
    EXPECT_THAT(Open(directory), Fails(Code::kInvalidArgument, "controller.json"))
        << text.substr(0, 40);
  }
  std::filesystem::remove(path);
  EXPECT_THAT(Open(directory), Fails(Code::kNotFound, "controller.json"));
  EXPECT_THAT(Open(root_ + "/nowhere"), Fails(Code::kNotFound, "/nowhere/controller.json"));
  std::filesystem::remove(Write() + "/controller.safetensors");
  EXPECT_THAT(Open(directory), Fails(Code::kNotFound, "controller.safetensors"));
}

TEST_F(ControllerFileTest, EachTensorIsMissedAndCheckedByName) {
  for (const SafetensorsEntry& sound : ControllerTensors(opened_.config, {})) {
    if (!sound.name.starts_with("layers.1.")) continue;
    SCOPED_TRACE(sound.name);
    const auto wrong = [&](const std::function<void(SafetensorsEntry&)>& edit,
                           const std::string& says) {
      const absl::Status status = WithTensor(sound.name, edit);
      EXPECT_THAT(status, Fails(Code::kInvalidArgument, "tensor " + sound.name + " " + says));
      EXPECT_THAT(status, Fails(Code::kInvalidArgument, "/controller.safetensors"));
    };
    wrong([](SafetensorsEntry& e) { e.name += "_"; }, "is missing");
    wrong([](SafetensorsEntry& e) { e.shape.insert(e.shape.begin(), 1); }, "has shape");
    wrong(
        [](SafetensorsEntry& e) {
          e.shape.back() *= 2;
          e.data += e.data;
        },
        "has shape");
    wrong(
        [](SafetensorsEntry& e) {  // the other type, as many values
          const bool f32 = e.dtype == "F32";
          e.dtype = f32 ? "BF16" : "F32";
          e.data.resize(f32 ? e.data.size() / 2 : e.data.size() * 2, '\0');
        },
        "has type");
    for (const char* number : {"nan", "inf", "-inf"}) {
      wrong(
          [&](SafetensorsEntry& e) {
            const auto bits = std::bit_cast<std::uint32_t>(std::strtof(number, nullptr));
            const std::size_t bytes = e.dtype == "F32" ? 4 : 2;
            for (std::size_t i = 0; i < bytes; ++i) {  // its last value
              e.data[e.data.size() - bytes + i] = static_cast<char>(bits >> 8 * (4 - bytes + i));
            }
          },
          std::string("holds ") + number + " at");
    }
  }
}

TEST_F(ControllerFileTest, NoTruncatedOrFlippedByteCrashes) {
  const std::string directory = Write(), path = directory + "/controller.safetensors";
  const std::string sound = ReadFile(path);
  std::mt19937 random(3);
  for (int i = 0; i < 200; ++i) {  // what is cut off is always missed
    WriteFile(path, sound.substr(0, random() % sound.size()));
    const absl::Status status = Open(directory).status();
    EXPECT_FALSE(status.ok());
    EXPECT_THAT(std::string(status.message()), HasSubstr("controller.safetensors"));
  }
  std::uint64_t length = 0;
  for (int i = 7; i >= 0; --i) length = length << 8 | static_cast<unsigned char>(sound[i]);
  int refused = 0;
  for (int i = 0; i < 400; ++i) {  // in the header; a flip in the data may be another sound number
    std::string flipped = sound;
    flipped[random() % (8 + length)] ^= static_cast<char>(1u << random() % 8);
    WriteFile(path, flipped);
    const absl::Status status = Open(directory).status();
    if (status.ok()) continue;
    ++refused;
    EXPECT_THAT(std::string(status.message()), HasSubstr("controller.safetensors"));
  }
  EXPECT_GT(refused, 350) << "a flip in the padding or in a name of no use changes nothing";
}

}  // namespace
}  // namespace metattn::test
