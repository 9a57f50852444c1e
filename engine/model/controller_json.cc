#include "engine/model/controller_json.h"

#include <cmath>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "engine/formats/json_text.h"
#include "engine/formats/status_macros.h"
#include "engine/formats/text.h"
#include "engine/model/config_keys.h"
#include "engine/model/json_fields.h"

namespace metattn {
namespace {

using Json = nlohmann::json;

constexpr int kMaxWidthOfController = 4096;
constexpr std::size_t kMaxLevels = 16;
constexpr float kMaxOffset = 1e4f;
constexpr double kMaxCostWeight = 1e3;

// A key with one value today: another one is a file from a later version.
absl::Status Expect(const ConfigKeys& keys, const char* key, const char* value) {
  METATTN_ASSIGN_OR_RETURN(const std::string text, keys.Text(key));
  if (text == value) return absl::OkStatus();
  return keys.Unsupported(key,
                          absl::StrFormat("is %s; this version knows '%s'", Quoted(text), value));
}

absl::StatusOr<bool> Choice(const ConfigKeys& keys, const char* key, const char* no,
                            const char* yes) {
  METATTN_ASSIGN_OR_RETURN(const std::string text, keys.Text(key));
  if (text == yes) return true;
  if (text == no) return false;
  return keys.Unsupported(
      key, absl::StrFormat("is %s; this version knows '%s' and '%s'", Quoted(text), no, yes));
}

absl::Status CheckBaseModel(const std::string& file, const Json& json, const ModelConfig& c,
                            const std::string& fingerprint) {
  const Json* base = JsonMember(json, "base_model");
  if (base == nullptr || !base->is_object()) {
    return absl::InvalidArgumentError(absl::StrCat(file, ": key 'base_model' must be an object"));
  }
  const ConfigKeys keys = JsonKeys(absl::StrCat(file, ": base_model"), *base);
  const std::pair<const char*, std::int64_t> numbers[] = {
      {"layers", c.layers},     {"hidden", c.hidden},     {"heads", c.heads},
      {"kv_heads", c.kv_heads}, {"head_dim", c.head_dim}, {"vocab", c.vocab}};
  for (const auto& [key, ours] : numbers) {
    METATTN_ASSIGN_OR_RETURN(const std::int64_t theirs, keys.Int(key, 1, kMaxVocab));
    if (theirs == ours) continue;
    return keys.Wrong(key, absl::StrFormat("is %d, the model has %d: the controller was made for "
                                           "another model",
                                           theirs, ours));
  }
  METATTN_ASSIGN_OR_RETURN(const std::string theirs, keys.Text("fingerprint"));
  if (theirs == fingerprint) return absl::OkStatus();
  return keys.Wrong("fingerprint",
                    absl::StrFormat("is %s, the model's is %s: the controller was made for "
                                    "another model of this shape",
                                    Quoted(theirs), fingerprint));
}

absl::StatusOr<PerMechanism> Triple(const Json& value, const std::string& where, float limit) {
  PerMechanism triple{};
  bool good = value.is_array() && value.size() == triple.size();
  for (std::size_t k = 0; good && k < triple.size(); ++k) {
    good = value[k].is_number();
    if (good) triple[k] = value[k].get<float>();
    good = good && std::isfinite(triple[k]) && std::fabs(triple[k]) <= limit;
  }
  if (good) return triple;
  return absl::InvalidArgumentError(absl::StrFormat(
      "%s must be three numbers (full, linear, local) of at most %g", where, limit));
}

// [layers][KV heads][3]
absl::StatusOr<std::vector<std::vector<PerMechanism>>> Triples(const std::string& file,
                                                               const Json& json, const char* key,
                                                               const ModelConfig& c, float limit) {
  const Json* value = JsonMember(json, key);
  const auto sized = [](const Json* list, std::int64_t size) {
    return list != nullptr && list->is_array() && std::cmp_equal(list->size(), size);
  };
  if (!sized(value, c.layers)) {
    return absl::InvalidArgumentError(
        absl::StrFormat("%s: key '%s' must be a list of %d layers", file, key, c.layers));
  }
  std::vector<std::vector<PerMechanism>> all;
  for (int layer = 0; layer < c.layers; ++layer) {
    const Json& heads = (*value)[layer];
    const std::string where = absl::StrFormat("%s: %s[%d]", file, key, layer);
    if (!sized(&heads, c.kv_heads)) {
      return absl::InvalidArgumentError(
          absl::StrFormat("%s must be a list of %d KV heads", where, c.kv_heads));
    }
    all.emplace_back();
    for (int h = 0; h < c.kv_heads; ++h) {
      METATTN_ASSIGN_OR_RETURN(const PerMechanism triple,
                               Triple(heads[h], absl::StrFormat("%s[%d]", where, h), limit));
      all.back().push_back(triple);
    }
  }
  return all;
}

absl::Status CheckMix(const std::string& file, const ControllerSpec& spec) {
  for (std::size_t l = 0; l < spec.mix.size(); ++l) {
    for (std::size_t h = 0; h < spec.mix[l].size(); ++h) {
      float sum = 0;
      bool negative = false;
      for (const float share : spec.mix[l][h]) {
        sum += share;
        negative = negative || share < 0;
      }
      if (!negative && std::fabs(sum - 1) <= 1e-3f) continue;
      return absl::InvalidArgumentError(
          absl::StrFormat("%s: mix[%d][%d] must be three shares that sum to 1", file, l, h));
    }
  }
  return absl::OkStatus();
}

// One decision for all KV heads has one offset.
absl::Status CheckShared(const std::string& file, const ControllerSpec& spec) {
  if (!spec.per_token) return absl::OkStatus();
  for (const auto& [key, all] : {std::pair("offsets", &spec.offsets), {"mix", &spec.mix}}) {
    for (std::size_t l = 0; l < all->size(); ++l) {
      for (std::size_t h = 1; h < (*all)[l].size(); ++h) {
        if ((*all)[l][h] == (*all)[l][0]) continue;
        return absl::InvalidArgumentError(absl::StrFormat(
            "%s: %s[%d][%d] must be that of KV head 0: decisions are per token", file, key, l, h));
      }
    }
  }
  return absl::OkStatus();
}

absl::Status ReadLevels(const std::string& file, const Json& json, ControllerSpec& spec) {
  const Json* levels = JsonMember(json, "cost_weight_levels");
  bool good =
      levels != nullptr && levels->is_array() && !levels->empty() && levels->size() <= kMaxLevels;
  for (std::size_t i = 0; good && i < levels->size(); ++i) {
    good = (*levels)[i].is_number();
    const double level = good ? (*levels)[i].get<double>() : -1;
    good =
        level >= 0 && level <= kMaxCostWeight && (i == 0 || level > spec.cost_weight_levels[i - 1]);
    spec.cost_weight_levels.push_back(static_cast<float>(level));
  }
  if (good) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrFormat(
      "%s: key 'cost_weight_levels' must be a list of 1 to %d ascending numbers from 0 to %g", file,
      kMaxLevels, kMaxCostWeight));
}

absl::Status ReadFeatures(const ConfigKeys& keys, ControllerSpec& spec) {
  METATTN_ASSIGN_OR_RETURN(spec.per_token, Choice(keys, "decisions", "kv_head", "token"));
  METATTN_ASSIGN_OR_RETURN(const bool paper, Choice(keys, "features", "retrofit", "paper"));
  if (!paper) {
    // The other retrofit scalars belong to a KV head.
    spec.features = spec.per_token ? ControlFeatures::kLength : ControlFeatures::kRetrofit;
    return absl::OkStatus();
  }
  spec.features = ControlFeatures::kPaper;
  if (spec.max_context >= 2) return absl::OkStatus();
  return keys.Wrong("max_context", "must be at least 2: features 'paper' divide by it less 1");
}

absl::Status ReadShape(const ConfigKeys& keys, ControllerSpec& spec) {
  METATTN_RETURN_IF_ERROR(Expect(keys, "format", "metattn-controller"));
  METATTN_ASSIGN_OR_RETURN(const std::int64_t version, keys.Int("version", 1, 1 << 20));
  if (version != 1) {
    return keys.Unsupported("version", absl::StrFormat("is %d; this version reads 1", version));
  }
  METATTN_RETURN_IF_ERROR(Expect(keys, "activation", "gelu_tanh"));
  METATTN_ASSIGN_OR_RETURN(spec.exact_window, Choice(keys, "window_scope", "block", "exact"));
  METATTN_ASSIGN_OR_RETURN(spec.linear_all, Choice(keys, "linear_scope", "far", "all"));
  METATTN_ASSIGN_OR_RETURN(const std::int64_t block, keys.Int("block", 1, 1 << 20));
  if (block != kBlockTokens) {
    return keys.Unsupported(
        "block", absl::StrFormat("is %d; this build has blocks of %d", block, kBlockTokens));
  }
  METATTN_ASSIGN_OR_RETURN(spec.max_context, keys.Int("max_context", 1, 1 << 24));
  METATTN_ASSIGN_OR_RETURN(spec.window, keys.Int("window", 1, 1 << 20));
  METATTN_ASSIGN_OR_RETURN(spec.sinks, keys.Int("sinks", 0, 1 << 20));
  METATTN_ASSIGN_OR_RETURN(spec.width, keys.Int("hidden_width", 1, kMaxWidthOfController));
  return ReadFeatures(keys, spec);
}

absl::Status ReadPolicy(const ConfigKeys& keys, ControllerSpec& spec) {
  METATTN_ASSIGN_OR_RETURN(const bool softmax, Choice(keys, "link", "softplus", "softmax"));
  spec.link = softmax ? ControllerLink::kSoftmax : ControllerLink::kSoftplus;
  METATTN_ASSIGN_OR_RETURN(const bool mixes, Choice(keys, "uncertain_policy", "full", "mixture"));
  spec.uncertain = mixes ? UncertainPolicy::kMixture : UncertainPolicy::kFull;
  METATTN_ASSIGN_OR_RETURN(const bool hedgehog, Choice(keys, "feature_map", "elu1", "hedgehog"));
  spec.feature_map = hedgehog ? FeatureMap::kHedgehog : FeatureMap::kEluPlusOne;
  METATTN_ASSIGN_OR_RETURN(const double epsilon, keys.Number("epsilon", 1e-6, 100, 0.01));
  METATTN_ASSIGN_OR_RETURN(const double temperature, keys.Number("temperature", 1e-3, 1e3, 1.0));
  METATTN_ASSIGN_OR_RETURN(const double eta, keys.Number("eta", 0, 1));
  METATTN_ASSIGN_OR_RETURN(const double weight, keys.Number("cost_weight", 0, kMaxCostWeight));
  spec.epsilon = static_cast<float>(epsilon);
  spec.temperature = static_cast<float>(temperature);
  spec.eta = static_cast<float>(eta);
  spec.cost_weight = static_cast<float>(weight);
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<ControllerSpec> ParseControllerJson(std::string_view text, const std::string& file,
                                                   const ModelConfig& config,
                                                   const std::string& fingerprint) {
  METATTN_ASSIGN_OR_RETURN(const Json json, ParseJson(text, file));
  if (!json.is_object()) {
    return absl::InvalidArgumentError(absl::StrCat(file, ": must hold a JSON object"));
  }
  const ConfigKeys keys = JsonKeys(file, json);
  ControllerSpec spec;
  METATTN_RETURN_IF_ERROR(ReadShape(keys, spec));
  METATTN_RETURN_IF_ERROR(CheckBaseModel(file, json, config, fingerprint));
  METATTN_RETURN_IF_ERROR(ReadPolicy(keys, spec));
  METATTN_RETURN_IF_ERROR(ReadLevels(file, json, spec));
  METATTN_ASSIGN_OR_RETURN(spec.offsets, Triples(file, json, "offsets", config, kMaxOffset));
  METATTN_ASSIGN_OR_RETURN(spec.mix, Triples(file, json, "mix", config, 1.0f));
  METATTN_RETURN_IF_ERROR(CheckMix(file, spec));
  METATTN_RETURN_IF_ERROR(CheckShared(file, spec));
  return spec;
}

}  // namespace metattn
