// The report of `metattn inspect` as text and as JSON.
#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "engine/formats/tensor_layout.h"
#include "engine/inspect.h"
#include "nlohmann/json.hpp"

namespace metattn {
namespace {

using Json = nlohmann::ordered_json;

std::string Size(std::int64_t bytes) {
  const auto value = static_cast<double>(bytes);
  if (bytes < 10 * 1024) return absl::StrFormat("%d B", bytes);
  if (bytes < 10 * 1024 * 1024) return absl::StrFormat("%.1f KiB", value / 1024);
  if (bytes < 10LL * 1024 * 1024 * 1024) return absl::StrFormat("%.1f MiB", value / 1048576);
  return absl::StrFormat("%.2f GiB", value / 1073741824);
}

void AppendModel(const InspectReport& r, std::string& out) {
  const ModelConfig& c = r.config;
  absl::StrAppendFormat(&out, "model         %s\n", c.name);
  absl::StrAppendFormat(&out, "file          %s (%s)\n", r.path, r.format);
  absl::StrAppendFormat(&out, "architecture  %s: %d layers, hidden %d, MLP %d, vocabulary %d\n",
                        c.architecture, c.layers, c.hidden, c.ffn, c.vocab);
  absl::StrAppendFormat(&out, "attention     %d query heads, %d KV heads, head size %d%s%s\n",
                        c.heads, c.kv_heads, c.head_dim, c.qkv_bias ? ", QKV bias" : "",
                        c.qk_norm ? ", QK norm" : "");
  absl::StrAppendFormat(&out, "output head   %s\n",
                        c.tied_embeddings ? "tied to the embedding" : "separate");
  absl::StrAppendFormat(&out, "positions     %d, RoPE over %d dimensions, scaling %s\n",
                        c.max_positions, c.rotary_dim, c.rope_scaling);
  absl::StrAppendFormat(&out, "tensors       %d, %.1f M parameters, %s\n", r.tensors.size(),
                        static_cast<double>(r.parameters) / 1e6, Size(r.bytes));
  for (const TypeTotal& type : r.types) {
    absl::StrAppendFormat(&out, "  %-6s %5d tensors  %9.1f M parameters  %s\n", type.type,
                          type.tensors, static_cast<double>(type.parameters) / 1e6,
                          Size(type.bytes));
  }
}

void AppendTokenizer(const TokenizerFacts& t, std::string& out) {
  if (!t.error.empty()) {
    absl::StrAppend(&out, "tokenizer     cannot be used: ", t.error, "\n");
    return;
  }
  absl::StrAppendFormat(&out, "tokenizer     byte-level BPE, pre-tokenizer %s, %d tokens\n",
                        t.pre_tokenizer, t.vocab);
  absl::StrAppendFormat(&out, "              BOS %s, stops at %s, chat template %s\n",
                        t.bos_id < 0 ? "none" : absl::StrCat(t.bos_id),
                        t.stop_ids.empty() ? "none" : absl::StrJoin(t.stop_ids, " "),
                        t.chat_template.empty() ? "not recognised" : t.chat_template);
}

void AppendPlan(const RankPlan& plan, std::string& out) {
  const std::size_t count = plan.weights.size();
  absl::StrAppendFormat(&out, "on %d rank%s", count, count == 1 ? "" : "s");
  const bool equal = std::count(plan.weights.begin(), plan.weights.end(), plan.weights[0]) ==
                     static_cast<std::ptrdiff_t>(count);
  if (!equal) absl::StrAppend(&out, ", weights ", absl::StrJoin(plan.weights, ","));
  if (!plan.error.empty()) {
    absl::StrAppend(&out, ": cannot work: ", plan.error, "\n");
    return;
  }
  absl::StrAppend(&out, "\n");
  for (std::size_t i = 0; i < plan.ranks.size(); ++i) {
    const RankNeed& need = plan.ranks[i];
    absl::StrAppendFormat(
        &out,
        "  rank %d: %d KV heads, %d MLP columns, %d vocabulary rows; weights %s, scratch %s, "
        "K/V %s per 1,000 tokens\n",
        i, need.slice.heads(), need.slice.ffn_end - need.slice.ffn_begin,
        need.slice.vocab_end - need.slice.vocab_begin, Size(need.weight_bytes),
        Size(need.scratch_bytes), Size(need.kv_bytes_per_1000_tokens));
  }
}

std::string Milliseconds(const ExpectedTime& time) {
  std::string text = absl::StrFormat("%.3g", time.dense * 1e3);
  if (time.routed > 0) absl::StrAppendFormat(&text, " (routed %.3g)", time.routed * 1e3);
  return text;
}

void AppendExpected(const InspectReport& r, std::string& out) {
  absl::StrAppendFormat(
      &out,
      "expected on %s, in ms: a model from bytes and operations over these peaks, NOT a "
      "measurement; without exchange between ranks\n",
      r.device);
  for (const RankPlan& plan : r.plans) {
    for (const ExpectedTimes& times : plan.expected) {
      absl::StrAppendFormat(&out, "  ranks %d, context %d: decode step", plan.weights.size(),
                            times.context);
      for (std::size_t i = 0; i < times.sequences.size(); ++i) {
        absl::StrAppendFormat(&out, "%s of %d: %s", i == 0 ? "" : ",", times.sequences[i],
                              Milliseconds(times.decode[i]));
      }
      absl::StrAppendFormat(&out, "; prefill in steps of %d: %s\n", r.prefill_chunk,
                            Milliseconds(times.prefill));
    }
  }
}

Json TimeJson(const ExpectedTime& time) {
  Json json = {{"dense_s", time.dense}};
  if (time.routed > 0) json["routed_s"] = time.routed;
  return json;
}

Json ExpectedJson(const std::vector<ExpectedTimes>& expected) {
  Json json = Json::array();
  for (const ExpectedTimes& times : expected) {
    Json decode = Json::array();
    for (std::size_t i = 0; i < times.sequences.size(); ++i) {
      decode.push_back(TimeJson(times.decode[i]));
      decode.back()["sequences"] = times.sequences[i];
    }
    json.push_back({{"context", times.context},
                    {"decode", std::move(decode)},
                    {"prefill", TimeJson(times.prefill)}});
  }
  return json;
}

Json ConfigJson(const ModelConfig& c) {
  return {{"layers", c.layers},
          {"hidden", c.hidden},
          {"ffn", c.ffn},
          {"vocab", c.vocab},
          {"heads", c.heads},
          {"kv_heads", c.kv_heads},
          {"head_dim", c.head_dim},
          {"max_positions", c.max_positions},
          {"norm_eps", c.norm_eps},
          {"tied_embeddings", c.tied_embeddings},
          {"qkv_bias", c.qkv_bias},
          {"qk_norm", c.qk_norm},
          {"rotary_dim", c.rotary_dim},
          {"rope_scaling", c.rope_scaling}};
}

Json TokenizerJson(const TokenizerFacts& t) {
  if (!t.error.empty()) return {{"error", t.error}};
  Json json = {{"pre_tokenizer", t.pre_tokenizer}, {"vocab", t.vocab}};
  json["bos_id"] = t.bos_id < 0 ? Json(nullptr) : Json(t.bos_id);
  json["stop_ids"] = t.stop_ids;
  json["chat_template"] = t.chat_template.empty() ? Json(nullptr) : Json(t.chat_template);
  return json;
}

Json PlanJson(const RankPlan& plan) {
  Json json = {{"ranks", plan.weights.size()}, {"weights", plan.weights}};
  if (!plan.error.empty()) {
    json["error"] = plan.error;
    return json;
  }
  json["per_rank"] = Json::array();
  for (const RankNeed& need : plan.ranks) {
    const Slice& s = need.slice;
    json["per_rank"].push_back({{"kv_heads", Json::array({s.head_begin, s.head_end})},
                                {"ffn", Json::array({s.ffn_begin, s.ffn_end})},
                                {"vocab", Json::array({s.vocab_begin, s.vocab_end})},
                                {"weight_bytes", need.weight_bytes},
                                {"scratch_bytes", need.scratch_bytes},
                                {"kv_bytes_per_1000_tokens", need.kv_bytes_per_1000_tokens}});
  }
  if (!plan.expected.empty()) json["expected"] = ExpectedJson(plan.expected);
  return json;
}

}  // namespace

std::string ToText(const InspectReport& report, bool tensors) {
  std::string out;
  AppendModel(report, out);
  AppendTokenizer(report.tokenizer, out);
  for (const RankPlan& plan : report.plans) AppendPlan(plan, out);
  if (!report.device.empty()) AppendExpected(report, out);
  if (!tensors) return out;
  for (const TensorFacts& t : report.tensors) {
    absl::StrAppendFormat(&out, "%-40s %-5s %-18s %s\n", t.name, t.type, ShapeText(t.shape),
                          Size(t.bytes));
  }
  return out;
}

std::string ToJson(const InspectReport& report) {
  Json json = {{"name", report.config.name},
               {"path", report.path},
               {"format", report.format},
               {"architecture", report.config.architecture},
               {"config", ConfigJson(report.config)},
               {"parameters", report.parameters},
               {"bytes", report.bytes}};
  json["types"] = Json::array();
  for (const TypeTotal& t : report.types) {
    json["types"].push_back({{"type", t.type},
                             {"tensors", t.tensors},
                             {"parameters", t.parameters},
                             {"bytes", t.bytes}});
  }
  json["tokenizer"] = TokenizerJson(report.tokenizer);
  if (!report.device.empty()) {
    json["expected_on"] = {{"device", report.device},
                           {"kind", "model, not a measurement"},
                           {"prefill_step_tokens", report.prefill_chunk}};
  }
  json["plans"] = Json::array();
  for (const RankPlan& plan : report.plans) json["plans"].push_back(PlanJson(plan));
  json["tensors"] = Json::array();
  for (const TensorFacts& t : report.tensors) {
    json["tensors"].push_back(
        {{"name", t.name}, {"type", t.type}, {"shape", t.shape}, {"bytes", t.bytes}});
  }
  // A path or name may hold any bytes; they must not make it throw.
  return json.dump(-1, ' ', false, Json::error_handler_t::replace);
}

}  // namespace metattn
