// What a damaged, hostile or merely unfamiliar tokenizer.json gives: a table of edits to a sound
// file, each with the code and the words that name the place.
#include <gtest/gtest.h>

#include <functional>
#include <string>
#include <vector>

#include "tests/support/status_matchers.h"
#include "tests/support/tokenizer_fixtures.h"

namespace metattn {
namespace {

using nlohmann::json;
using test::Fails;
using enum absl::StatusCode;

struct Case {
  const char* name;
  std::function<void(json&)> edit;
  absl::StatusCode code;
  const char* part;
};

absl::StatusOr<std::unique_ptr<Tokenizer>> Edited(const std::string& fixture,
                                                  const std::function<void(json&)>& edit) {
  test::TokenizerFiles files = test::FixtureFiles(fixture);
  json root = json::parse(files.tokenizer_json);
  edit(root);
  files.tokenizer_json = root.dump();
  return test::TokenizerOf(files);
}

const std::vector<Case> kSmollmCases = {
    {"root", [](json& j) { j = json::array(); }, kInvalidArgument, "not a JSON object"},
    {"no model", [](json& j) { j.erase("model"); }, kInvalidArgument, "json: model"},
    {"model type", [](json& j) { j["model"]["type"] = "Unigram"; }, kUnimplemented,
     "model.type: \"Unigram\""},
    {"suffix", [](json& j) { j["model"]["end_of_word_suffix"] = "</w>"; }, kUnimplemented,
     "model.end_of_word_suffix"},
    {"prefix", [](json& j) { j["model"]["continuing_subword_prefix"] = 3; }, kUnimplemented,
     "model.continuing_subword_prefix"},
    {"dropout", [](json& j) { j["model"]["dropout"] = 0.1; }, kUnimplemented, "model.dropout"},
    {"fallback", [](json& j) { j["model"]["byte_fallback"] = true; }, kUnimplemented,
     "model.byte_fallback"},
    {"ignore_merges", [](json& j) { j["model"]["ignore_merges"] = 1; }, kInvalidArgument,
     "model.ignore_merges"},
    {"vocab type", [](json& j) { j["model"]["vocab"] = json::array({"a"}); }, kInvalidArgument,
     "model.vocab"},
    {"id text", [](json& j) { j["model"]["vocab"]["a"] = "7"; }, kInvalidArgument, "model.vocab["},
    {"id negative", [](json& j) { j["model"]["vocab"]["a"] = -1; }, kInvalidArgument,
     "model.vocab["},
    {"id fraction", [](json& j) { j["model"]["vocab"]["a"] = 1.5; }, kInvalidArgument,
     "model.vocab["},
    {"id huge", [](json& j) { j["model"]["vocab"]["a"] = 4'000'000'000u; }, kInvalidArgument,
     "id 4000000000 is not in [0, "},
    {"id twice", [](json& j) { j["model"]["vocab"]["a"] = j["model"]["vocab"]["b"]; },
     kInvalidArgument, "is used twice"},
    {"hole", [](json& j) { j["model"]["vocab"].erase("a"); }, kInvalidArgument,
     "the number of tokens"},
    {"no merges", [](json& j) { j["model"]["merges"] = 5; }, kInvalidArgument, "model.merges"},
    {"merge shape",
     [](json& j) {
       j["model"]["merges"][2] = {"a", "b", "c"};
     },
     kInvalidArgument, "model.merges[2]"},
    {"merge type",
     [](json& j) {
       j["model"]["merges"][2] = {"a", 4};
     },
     kInvalidArgument, "model.merges[2]"},
    {"merge line", [](json& j) { j["model"]["merges"][2] = "ab"; }, kInvalidArgument,
     "model.merges[2]"},
    {"merge line 3", [](json& j) { j["model"]["merges"][2] = "a b c"; }, kInvalidArgument,
     "model.merges[2]"},
    {"merge left",
     [](json& j) {
       j["model"]["merges"][0] = {"nope", "a"};
     },
     kInvalidArgument, "model.merges[0]: \"nope\" is not in the vocabulary"},
    {"merge right",
     [](json& j) {
       j["model"]["merges"][0] = {"a", "nope"};
     },
     kInvalidArgument, "model.merges[0]: \"nope\""},
    {"merge result",
     [](json& j) {
       j["model"]["merges"][0] = {"~", "~"};
     },
     kInvalidArgument, "model.merges[0]: \"~~\""},
    {"unknown token", [](json& j) { j["model"]["unk_token"] = "nope"; }, kInvalidArgument,
     "model.unk_token"},
    {"unknown type", [](json& j) { j["model"]["unk_token"] = 0; }, kInvalidArgument,
     "model.unk_token"},
    {"added type", [](json& j) { j["added_tokens"] = json::object(); }, kInvalidArgument,
     "added_tokens"},
    {"added entry", [](json& j) { j["added_tokens"][1] = "x"; }, kInvalidArgument,
     "added_tokens[1].content"},
    {"added id", [](json& j) { j["added_tokens"][1]["id"] = 2; }, kInvalidArgument,
     "added_tokens[1]: id 2 but the vocabulary says 1"},
    {"added flag", [](json& j) { j["added_tokens"][1]["lstrip"] = "no"; }, kInvalidArgument,
     "added_tokens[1].lstrip"},
    {"added word", [](json& j) { j["added_tokens"][1]["single_word"] = true; }, kUnimplemented,
     "added_tokens[1].single_word"},
    {"added empty",
     [](json& j) {
       j["added_tokens"].push_back(j["added_tokens"][0]);
       j["added_tokens"].back()["content"] = "";
     },
     kInvalidArgument, "the token is empty"},
    {"added long",
     [](json& j) {
       j["added_tokens"].push_back(j["added_tokens"][0]);
       j["added_tokens"].back()["content"] = std::string(5000, 'x');
     },
     kInvalidArgument, "5000 bytes"},
    {"normalizer",
     [](json& j) {
       j["normalizer"] = {{"type", "Lowercase"}};
     },
     kUnimplemented, "normalizer: Lowercase"},
    {"normalizers",
     [](json& j) {
       j["normalizer"] = {{"type", "Sequence"},
                          {"normalizers", {{{"type", "NFC"}}, {{"type", "Strip"}}}}};
     },
     kUnimplemented, "normalizer: Sequence[NFC, Strip]"},
    {"pre none", [](json& j) { j["pre_tokenizer"] = nullptr; }, kUnimplemented,
     "pre_tokenizer: none"},
    {"pre type",
     [](json& j) {
       j["pre_tokenizer"] = {{"type", "Metaspace"}};
     },
     kUnimplemented, "pre_tokenizer: Metaspace"},
    {"pre number", [](json& j) { j["pre_tokenizer"] = 3; }, kUnimplemented, "pre_tokenizer"},
    {"digits", [](json& j) { j["pre_tokenizer"]["pretokenizers"][0]["individual_digits"] = 0; },
     kUnimplemented, "pre_tokenizer: Sequence[Digits, ByteLevel]"},
    {"prefix space",
     [](json& j) { j["pre_tokenizer"]["pretokenizers"][1]["add_prefix_space"] = true; },
     kUnimplemented, "pre_tokenizer: Sequence[Digits, ByteLevel]"},
    {"decoder none", [](json& j) { j["decoder"] = nullptr; }, kUnimplemented, "decoder: none"},
    {"decoder",
     [](json& j) {
       j["decoder"] = {{"type", "Fuse"}};
     },
     kUnimplemented, "decoder: Fuse"},
    {"post",
     [](json& j) {
       j["post_processor"] = {{"type", "BertProcessing"}};
     },
     kUnimplemented, "post_processor: BertProcessing"},
};

const std::vector<Case> kLlamaCases = {
    {"split pattern",
     [](json& j) { j["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = "\\w+"; },
     kUnimplemented, "pre_tokenizer: Sequence[Split, ByteLevel] on the pattern \\w+"},
    {"split behavior",
     [](json& j) { j["pre_tokenizer"]["pretokenizers"][0]["behavior"] = "Removed"; },
     kUnimplemented, "pre_tokenizer: Sequence[Split, ByteLevel]"},
    {"no single", [](json& j) { j["post_processor"]["processors"][1].erase("single"); },
     kInvalidArgument, "post_processor.single"},
    {"two sequences",
     [](json& j) {
       auto& single = j["post_processor"]["processors"][1]["single"];
       single.push_back(single.back());
     },
     kInvalidArgument, "post_processor.single"},
    {"no sequence", [](json& j) { j["post_processor"]["processors"][1]["single"].erase(1); },
     kInvalidArgument, "post_processor.single: has no sequence"},
    {"no table", [](json& j) { j["post_processor"]["processors"][1].erase("special_tokens"); },
     kInvalidArgument, "post_processor.special_tokens"},
    {"table id",
     [](json& j) {
       j["post_processor"]["processors"][1]["special_tokens"]["<|begin_of_text|>"]["ids"] = {
           99999999};
     },
     kInvalidArgument, "99999999 is not a token id"},
    {"two templates",
     [](json& j) {
       auto& processors = j["post_processor"]["processors"];
       processors.push_back(processors.back());
     },
     kUnimplemented, "post_processor: Sequence[ByteLevel, TemplateProcessing, Templ"},
};

TEST(TokenizerJson, EveryWrongOrUnfamiliarPartIsNamed) {
  for (const Case& c : kSmollmCases) {
    EXPECT_THAT(Edited("smollm", c.edit), Fails(c.code, c.part)) << c.name;
  }
  for (const Case& c : kLlamaCases) {
    EXPECT_THAT(Edited("llama-bpe", c.edit), Fails(c.code, c.part)) << c.name;
  }
  EXPECT_TRUE(Edited("smollm", [](json&) {}).ok());
}

TEST(TokenizerJson, TextThatIsNotJsonNamesTheFile) {
  const std::string whole = test::FixtureFiles("smollm").tokenizer_json;
  for (const std::size_t size : {std::size_t{1}, whole.size() / 2, whole.size() - 3}) {
    EXPECT_THAT(test::TokenizerOf({whole.substr(0, size), "", ""}),
                Fails(kInvalidArgument, "dir/tokenizer.json"));
  }
  EXPECT_THAT(test::TokenizerOf({std::string(100'000, '['), "", ""}),
              Fails(kInvalidArgument, "dir/tokenizer.json"));
}

TEST(TokenizerJson, ADirectoryWithoutTokenizerIsNotFound) {
  EXPECT_THAT(test::TokenizerOf({"", "", ""}), Fails(kNotFound, "dir: has no tokenizer.json"));
}

TEST(TokenizerConfig, WrongEntriesAreNamed) {
  struct ConfigCase {
    const char *tokenizer_config, *config, *part;
  };
  for (const ConfigCase& c : std::vector<ConfigCase>{
           {"[]", "", "tokenizer_config.json"},
           {"{", "", "tokenizer_config.json"},
           {R"({"eos_token": "nope"})", "", "tokenizer_config.json: eos_token: \"nope\""},
           {R"({"bos_token": 3})", "", "tokenizer_config.json: bos_token"},
           {R"({"bos_token": {"content": []}})", "", "tokenizer_config.json: bos_token"},
           {R"({"chat_template": 3})", "", "tokenizer_config.json: chat_template"},
           {R"({"chat_template": [{"name": "other", "template": "x"}]})", "", "chat_template"},
           {"{}", R"({"eos_token_id": [1, 99999]})", "config.json: eos_token_id: 99999"},
           {"{}", R"({"bos_token_id": -1})", "config.json: bos_token_id: -1"},
           {"{}", "nonsense", "dir/config.json"}}) {
    test::TokenizerFiles files = test::FixtureFiles("smollm");
    files.tokenizer_config_json = c.tokenizer_config;
    files.config_json = c.config;
    EXPECT_THAT(test::TokenizerOf(files), Fails(kInvalidArgument, c.part)) << c.part;
  }
}

TEST(TokenizerConfig, ModelConfigGivesWhatTokenizerConfigLeavesOut) {
  test::TokenizerFiles files = test::FixtureFiles("smollm");
  files.tokenizer_config_json = "{}";
  files.config_json = R"({"bos_token_id": 1, "eos_token_id": [3, 2]})";
  const auto tokenizer = test::TokenizerOf(files);
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_EQ((*tokenizer)->bos_id(), 1);
  EXPECT_EQ((*tokenizer)->stop_ids(), (std::vector<std::int32_t>{3, 2, 0}));
}

}  // namespace
}  // namespace metattn
