// The tokenizer of a GGUF file: equal to the one in tokenizer.json, and named errors.
#include <gtest/gtest.h>

#include <functional>
#include <string>
#include <vector>

#include "engine/formats/gguf.h"
#include "engine/model/tokenizer_spec.h"
#include "tests/support/gguf_writer.h"
#include "tests/support/real_model.h"
#include "tests/support/status_matchers.h"
#include "tests/support/tiny_model.h"
#include "tests/support/tokenizer_fixtures.h"

namespace metattn {
namespace {

using Ids = std::vector<std::int32_t>;
using nlohmann::json;
using test::Fails;
using test::GgufWriter;
using enum absl::StatusCode;

absl::StatusOr<std::unique_ptr<Tokenizer>> Read(const GgufWriter& writer) {
  const std::string bytes = writer.Bytes();
  const auto gguf = Gguf::Parse(std::as_bytes(std::span(bytes)), "f.gguf");
  if (!gguf.ok()) return gguf.status();
  absl::StatusOr<TokenizerSpec> spec = TokenizerSpecFromGguf(**gguf, "f.gguf");
  if (!spec.ok()) return spec.status();
  return BuildTokenizer(*std::move(spec), "f.gguf");
}

// What a converter makes of a fixture.
GgufWriter Converted(const std::string& fixture) {
  const json root = test::FixtureJson(fixture + "/tokenizer.json");
  const json& vocab = root["model"]["vocab"];
  std::vector<std::string> tokens(vocab.size());
  for (const auto& [text, id] : vocab.items()) tokens.at(id.get<std::size_t>()) = text;
  std::vector<std::int32_t> types(tokens.size(), 1);
  for (const json& added : root["added_tokens"]) {
    const auto id = added["id"].get<std::size_t>();
    if (id >= tokens.size()) tokens.resize(id + 1), types.resize(id + 1, 1);
    tokens[id] = added["content"];
    types[id] = added["special"].get<bool>() ? 3 : 4;
  }
  std::vector<std::string> merges;
  for (const json& pair : root["model"]["merges"]) {
    merges.push_back(pair[0].get<std::string>() + " " + pair[1].get<std::string>());
  }
  GgufWriter writer;
  writer.Add("none", {1}, DType::kF32, std::string(4, '\0'));  // a file without tensors is refused
  writer.Text("general.architecture", "llama");
  writer.Text("tokenizer.ggml.model", "gpt2");
  writer.Text("tokenizer.ggml.pre", fixture);
  writer.Texts("tokenizer.ggml.tokens", tokens);
  writer.I32s("tokenizer.ggml.token_type", types);
  writer.Texts("tokenizer.ggml.merges", merges);
  writer.U32("tokenizer.ggml.bos_token_id", fixture == "llama-bpe" ? vocab.size() : 1);
  writer.U32("tokenizer.ggml.eos_token_id", 2);
  return writer;
}

TEST(TokenizerGguf, EqualsTheTokenizerJsonItWasConvertedFrom) {
  const auto texts = test::FixtureJson("texts.json").get<std::vector<std::string>>();
  for (const std::string name : {"smollm", "llama-bpe"}) {
    const auto tokenizer = Read(Converted(name));
    ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
    const json expected = test::FixtureJson(name + "/expected.json");
    for (std::size_t i = 0; i < texts.size(); ++i) {
      const Ids raw = expected["raw"][i].get<Ids>();
      const auto special = expected["special"].find(std::to_string(i));
      EXPECT_EQ(*(*tokenizer)->Encode(texts[i], {.add_special = false}), raw) << name << i;
      EXPECT_EQ(*(*tokenizer)->Encode(texts[i], {.parse_special = true}),
                special == expected["special"].end() ? raw : special->get<Ids>())
          << name << i;
    }
  }
}

TEST(TokenizerGguf, ReadsBosEosAndTemplate) {
  GgufWriter writer = Converted("smollm");
  writer.Text("tokenizer.chat_template", "{{ x }}");
  writer.U32("tokenizer.ggml.eot_token_id", 3);
  writer.Bool("tokenizer.ggml.add_bos_token", true);
  writer.Bool("tokenizer.ggml.add_eos_token", true);
  const auto tokenizer = Read(writer);
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_EQ((*tokenizer)->chat_template(), "{{ x }}");
  EXPECT_EQ((*tokenizer)->bos_id(), 1);
  EXPECT_EQ((*tokenizer)->stop_ids(), (Ids{2, 3, 0}));
  EXPECT_EQ(*(*tokenizer)->Encode("", {}), (Ids{1, 2}));
  EXPECT_EQ(*(*tokenizer)->Encode("", {.add_special = false}), Ids{});
}

TEST(TokenizerGguf, ReadsTheTinyModel) {
  const auto tokenizer = Read(test::TinyModel({}));
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  const auto ids = (*tokenizer)->Encode("Hello, \u4e16\u754c 42\n", {});
  ASSERT_TRUE(ids.ok()) << ids.status();
  EXPECT_EQ(*(*tokenizer)->Decode(*ids, true), "Hello, \u4e16\u754c 42\n");
}

using Edit = std::function<void(GgufWriter&)>;

Edit Remove(const char* key) {
  return [key](GgufWriter& w) { w.Remove(key); };
}
Edit Text(const char* key, const char* value) {
  return [=](GgufWriter& w) {
    w.Remove(key);
    w.Text(key, value);
  };
}
Edit Number(const char* key, std::uint32_t value) {
  return [=](GgufWriter& w) {
    w.Remove(key);
    w.U32(key, value);
  };
}
Edit Texts(const char* key, const std::vector<std::string>& value) {
  return [=](GgufWriter& w) {
    w.Remove(key);
    w.Texts(key, value);
  };
}
constexpr std::size_t kAll = 0;  // as many types as there are tokens
Edit Types(std::size_t count, std::int32_t type) {
  return [=](GgufWriter& w) {
    const std::size_t tokens = test::FixtureJson("smollm/tokenizer.json")["model"]["vocab"].size();
    w.Remove("tokenizer.ggml.token_type");
    w.I32s("tokenizer.ggml.token_type",
           std::vector<std::int32_t>(count == kAll ? tokens : count, type));
  };
}

struct Case {
  const char* name;
  Edit edit;
  absl::StatusCode code;
  const char* part;
};

const std::vector<Case> kCases = {
    {"no model", Remove("tokenizer.ggml.model"), kInvalidArgument,
     "f.gguf: tokenizer.ggml.model is missing"},
    {"model", Text("tokenizer.ggml.model", "llama"), kUnimplemented,
     "tokenizer.ggml.model \"llama\""},
    {"model type", Number("tokenizer.ggml.model", 1), kInvalidArgument, "tokenizer.ggml.model"},
    {"no pre", Remove("tokenizer.ggml.pre"), kInvalidArgument, "tokenizer.ggml.pre"},
    {"pre", Text("tokenizer.ggml.pre", "tekken"), kUnimplemented,
     "tokenizer.ggml.pre: pre-tokenizer \"tekken\""},
    {"no tokens", Remove("tokenizer.ggml.tokens"), kInvalidArgument, "tokenizer.ggml.tokens"},
    {"tokens empty", Texts("tokenizer.ggml.tokens", {}), kInvalidArgument, "tokenizer.ggml.tokens"},
    {"tokens twice", Texts("tokenizer.ggml.tokens", {"a", "b", "a"}), kInvalidArgument,
     "tokenizer.ggml.tokens[2] repeats token 0"},
    {"no types", Remove("tokenizer.ggml.token_type"), kInvalidArgument,
     "tokenizer.ggml.token_type"},
    {"types short", Types(3, 1), kInvalidArgument, "tokenizer.ggml.token_type has 3"},
    {"type", Types(kAll, 9), kInvalidArgument, "tokenizer.ggml.token_type[0] is 9"},
    {"no merges", Remove("tokenizer.ggml.merges"), kInvalidArgument, "tokenizer.ggml.merges"},
    {"merge", Texts("tokenizer.ggml.merges", {"a"}), kInvalidArgument, "tokenizer.ggml.merges[0]"},
    {"merge token", Texts("tokenizer.ggml.merges", {"a nope"}), kInvalidArgument,
     "tokenizer.ggml.merges[0]: \"nope\""},
    {"eos", Number("tokenizer.ggml.eos_token_id", 1'000'000), kInvalidArgument,
     "tokenizer.ggml.eos_token_id"},
    {"bos type", Text("tokenizer.ggml.bos_token_id", "1"), kInvalidArgument,
     "tokenizer.ggml.bos_token_id"},
    {"bos wanted",
     [](GgufWriter& w) {
       w.Remove("tokenizer.ggml.bos_token_id");
       w.Bool("tokenizer.ggml.add_bos_token", true);
     },
     kInvalidArgument, "tokenizer.ggml.bos_token_id is missing"},
    {"space", [](GgufWriter& w) { w.Bool("tokenizer.ggml.add_space_prefix", true); },
     kUnimplemented, "tokenizer.ggml.add_space_prefix"}};

TEST(TokenizerGguf, EveryWrongOrUnfamiliarPartIsNamed) {
  for (const Case& c : kCases) {
    GgufWriter writer = Converted("smollm");
    c.edit(writer);
    EXPECT_THAT(Read(writer), Fails(c.code, c.part)) << c.name;
  }
}

TEST(RealModel, TokenizesAsHuggingFaceDoes) {
  const std::string path = test::RealModelPath();
  if (path.empty()) GTEST_SKIP() << test::kNoRealModel;
  const auto checkpoint = Checkpoint::Open(path);
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  const auto tokenizer = Tokenizer::FromCheckpoint(**checkpoint);
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_EQ((*tokenizer)->vocab_size(), 49152);
  EXPECT_EQ((*tokenizer)->pre_tokenizer(), "smollm");
  EXPECT_EQ((*tokenizer)->stop_ids(), (Ids{2, 0}));
  const json expected = test::FixtureJson("smollm2-135m.json");
  for (std::size_t i = 0; i < expected["texts"].size(); ++i) {
    const auto text = expected["texts"][i].get<std::string>();
    EXPECT_EQ(*(*tokenizer)->Encode(text, {}), expected["raw"][i].get<Ids>()) << text;
    EXPECT_EQ(*(*tokenizer)->Encode(text, {.parse_special = true}),
              expected["special"][i].get<Ids>())
        << text;
  }
}

}  // namespace
}  // namespace metattn
