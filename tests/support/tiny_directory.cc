#include "tests/support/tiny_directory.h"

#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <utility>
#include <vector>

#include "tests/support/encode_values.h"
#include "tests/support/safetensors_writer.h"

namespace metattn::test {
namespace {

using Json = nlohmann::json;

Json Config(const TinyModelOptions& o) {
  Json config = {{"hidden_size", o.hidden},
                 {"intermediate_size", o.ffn},
                 {"num_hidden_layers", o.layers},
                 {"num_attention_heads", o.heads},
                 {"num_key_value_heads", o.kv_heads},
                 {"head_dim", o.head_dim},
                 {"vocab_size", o.vocab},
                 {"max_position_embeddings", o.max_positions},
                 {"rms_norm_eps", 1e-5},
                 {"rope_theta", o.rope_base},
                 {"rope_scaling", nullptr},
                 {"hidden_act", "silu"},
                 {"tie_word_embeddings", o.tied},
                 {"torch_dtype", "float32"}};
  const char* family = o.qk_norm ? "Qwen3" : o.qkv_bias ? "Qwen2" : "Llama";
  config["architectures"] = {std::string(family) + "ForCausalLM"};
  return config;
}

Json TokenizerJson(const TinyModelOptions& o) {
  const TinyTokenizer tokenizer = MakeTinyTokenizer(o.vocab);
  Json vocab = Json::object(), added = Json::array();
  for (std::size_t id = 0; id < tokenizer.tokens.size(); ++id) {
    if (tokenizer.types[id] == 5) continue;  // rows of the table that no token has
    vocab[tokenizer.tokens[id]] = id;
    if (tokenizer.types[id] != 3) continue;
    added.push_back({{"id", id},
                     {"content", tokenizer.tokens[id]},
                     {"single_word", false},
                     {"lstrip", false},
                     {"rstrip", false},
                     {"normalized", false},
                     {"special", true}});
  }
  const Json bytes = {{"type", "ByteLevel"},
                      {"add_prefix_space", false},
                      {"trim_offsets", true},
                      {"use_regex", true}};
  const Json digits = {{"type", "Digits"}, {"individual_digits", true}};
  return {
      {"version", "1.0"},
      {"truncation", nullptr},
      {"padding", nullptr},
      {"added_tokens", added},
      {"normalizer", nullptr},
      {"pre_tokenizer", {{"type", "Sequence"}, {"pretokenizers", Json::array({digits, bytes})}}},
      {"post_processor", nullptr},
      {"decoder", bytes},
      {"model",
       {{"type", "BPE"},
        {"dropout", nullptr},
        {"unk_token", nullptr},
        {"continuing_subword_prefix", nullptr},
        {"end_of_word_suffix", nullptr},
        {"fuse_unk", false},
        {"byte_fallback", false},
        {"ignore_merges", false},
        {"vocab", vocab},
        {"merges", tokenizer.merges}}}};
}

void WriteWeights(const TinyDirectoryOptions& o, const std::string& directory) {
  const std::string dtype = SafetensorsType(o.model.dtype);
  if (dtype.empty()) {
    std::fprintf(stderr, "tiny directory: safetensors lacks this type\n");
    std::abort();
  }
  std::vector<std::vector<SafetensorsEntry>> shards(static_cast<std::size_t>(o.shards));
  std::size_t next = 0;
  for (const TinyTensor& tensor : TinyTensors(o.model)) {
    // In turn, so that a layer's tensors lie in several files.
    shards[next++ % shards.size()].push_back({HuggingFaceName(tensor.name), dtype, tensor.shape,
                                              EncodeValues(o.model.dtype, tensor.values)});
  }
  if (o.shards == 1) {
    WriteFile(directory + "/model.safetensors", SafetensorsBytes(shards[0]));
    return;
  }
  Json index = {{"metadata", Json::object()}, {"weight_map", Json::object()}};
  for (std::size_t i = 0; i < shards.size(); ++i) {
    char name[64];
    std::snprintf(name, sizeof(name), "model-%05zu-of-%05zu.safetensors", i + 1, shards.size());
    WriteFile(directory + "/" + name, SafetensorsBytes(shards[i]));
    for (const SafetensorsEntry& entry : shards[i]) index["weight_map"][entry.name] = name;
  }
  WriteFile(directory + "/model.safetensors.index.json", index.dump(2));
}

}  // namespace

std::string HuggingFaceName(const std::string& canonical) {
  static const std::map<std::string, std::string> kNames = {
      {"token_embd", "model.embed_tokens"},
      {"output_norm", "model.norm"},
      {"output", "lm_head"},
      {"attn_norm", "input_layernorm"},
      {"attn_q", "self_attn.q_proj"},
      {"attn_k", "self_attn.k_proj"},
      {"attn_v", "self_attn.v_proj"},
      {"attn_output", "self_attn.o_proj"},
      {"attn_q_norm", "self_attn.q_norm"},
      {"attn_k_norm", "self_attn.k_norm"},
      {"ffn_norm", "post_attention_layernorm"},
      {"ffn_gate", "mlp.gate_proj"},
      {"ffn_up", "mlp.up_proj"},
      {"ffn_down", "mlp.down_proj"}};
  const std::size_t end = canonical.rfind('.');
  const std::string kind = canonical.substr(end);  // ".weight"
  const std::string stem = canonical.substr(0, end);
  if (!stem.starts_with("blk.")) return kNames.at(stem) + kind;
  const std::size_t dot = stem.rfind('.');
  return "model.layers." + stem.substr(4, dot - 4) + "." + kNames.at(stem.substr(dot + 1)) + kind;
}

void WriteFile(const std::string& path, const std::string& bytes) {
  std::ofstream file(path, std::ios::binary | std::ios::trunc);
  file << bytes;
  file.close();
  if (file.good()) return;
  std::fprintf(stderr, "cannot write %s\n", path.c_str());
  std::abort();
}

std::string ReadFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

std::string WriteTinyDirectory(const TinyDirectoryOptions& o, const std::string& directory) {
  std::filesystem::remove_all(directory);
  std::filesystem::create_directories(directory);
  Json config = Config(o.model);
  if (o.edit_config) o.edit_config(config);
  WriteFile(directory + "/config.json", config.dump(2));
  WriteFile(directory + "/tokenizer.json", TokenizerJson(o.model).dump());
  const Json tokenizer_config = {{"bos_token", "<|im_start|>"},
                                 {"eos_token", "<|im_end|>"},
                                 {"add_bos_token", false},
                                 {"chat_template", kTinyChatTemplate}};
  WriteFile(directory + "/tokenizer_config.json", tokenizer_config.dump(2));
  WriteWeights(o, directory);
  return directory;
}

}  // namespace metattn::test
