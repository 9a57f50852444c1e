#include "rpc/convert.h"

#include <cmath>
#include <span>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "rpc/convert_routing.h"
#include "rpc/version.h"

namespace metattn {
namespace {

constexpr std::size_t kMaxRepeated = 1024;  // logit_bias, stop_token_ids
constexpr int kMaxStopStrings = 16;

absl::Status Bad(const std::string& field, const std::string& what) {
  return absl::InvalidArgumentError(absl::StrCat(field, ": ", what));
}

// "field: message", keeping the code.
absl::Status Within(const std::string& field, const absl::Status& status) {
  return absl::Status(status.code(), absl::StrCat(field, ": ", status.message()));
}

absl::Status CheckIds(std::span<const std::int32_t> ids, const std::string& field,
                      std::int64_t vocab) {
  for (std::size_t i = 0; i < ids.size(); ++i) {
    if (ids[i] < 0 || ids[i] >= vocab) {
      return Bad(absl::StrFormat("%s[%d]", field, i),
                 absl::StrFormat("token id %d is outside the vocabulary [0, %d)", ids[i], vocab));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<std::int32_t>> EncodeText(const std::string& text, bool add_special,
                                                     const ServedModel& served) {
  auto ids = served.tokenizer->Encode(text, EncodeOptions{.add_special = add_special});
  if (!ids.ok()) return Within("text", ids.status());
  return ids;
}

absl::StatusOr<std::vector<std::int32_t>> EncodeChat(const v1::ChatMessages& chat,
                                                     const ServedModel& served) {
  if (!served.apply_chat) {
    return absl::FailedPreconditionError(
        absl::StrCat("chat: this model is served without a chat template (", served.chat_error,
                     "); send text or tokens"));
  }
  if (chat.messages().empty()) return Bad("chat.messages", "is empty");
  std::vector<ChatMessage> messages;
  for (const v1::ChatMessage& message : chat.messages()) {
    if (message.role() != "system" && message.role() != "user" && message.role() != "assistant") {
      return Bad(absl::StrFormat("chat.messages[%d].role", messages.size()),
                 absl::StrCat("'", message.role(), "' is none of system, user, assistant"));
    }
    messages.push_back({message.role(), message.content()});
  }
  auto ids = served.apply_chat(messages);
  if (!ids.ok()) return Within("chat", ids.status());
  return ids;
}

absl::StatusOr<std::vector<std::int32_t>> EncodePrompt(const v1::GenerateRequest& request,
                                                       const ServedModel& served,
                                                       std::string* field) {
  switch (request.input_case()) {
    case v1::GenerateRequest::kText:
      *field = "text";
      if (request.text().empty()) return Bad(*field, "is empty");
      return EncodeText(request.text(), true, served);
    case v1::GenerateRequest::kTokens: {
      *field = "tokens.ids";
      std::vector<std::int32_t> ids(request.tokens().ids().begin(), request.tokens().ids().end());
      if (ids.empty()) return Bad(*field, "is empty");
      if (auto s = CheckIds(ids, *field, served.config.vocab); !s.ok()) return s;
      return ids;
    }
    case v1::GenerateRequest::kChat:
      *field = "chat";
      return EncodeChat(request.chat(), served);
    case v1::GenerateRequest::INPUT_NOT_SET:
      break;
  }
  return Bad("input", "set one of text, tokens, chat");
}

// What the engine's struct cannot tell from its defaults, or would bend silently.
absl::Status CheckWireSampling(const v1::SamplingParams& wire, const ServedModel& served) {
  if (wire.has_max_tokens() && (wire.max_tokens() < 1 || wire.max_tokens() > served.max_context)) {
    return Bad("sampling.max_tokens",
               absl::StrFormat("%d is outside [1, %d], the context of this server",
                               wire.max_tokens(), served.max_context));
  }
  if (wire.has_logprobs() && (wire.logprobs() < 0 || wire.logprobs() > 20)) {
    return Bad("sampling.logprobs", absl::StrFormat("%d is outside [0, 20]", wire.logprobs()));
  }
  if (wire.logit_bias_size() > static_cast<int>(kMaxRepeated)) {
    return Bad("sampling.logit_bias",
               absl::StrFormat("%d entries, at most %d", wire.logit_bias_size(), kMaxRepeated));
  }
  if (wire.stop_size() > kMaxStopStrings) {
    return Bad("sampling.stop",
               absl::StrFormat("%d strings, at most %d", wire.stop_size(), kMaxStopStrings));
  }
  if (wire.stop_token_ids_size() > static_cast<int>(kMaxRepeated)) {
    return Bad("sampling.stop_token_ids",
               absl::StrFormat("%d entries, at most %d", wire.stop_token_ids_size(), kMaxRepeated));
  }
  return absl::OkStatus();
}

absl::StatusOr<SamplingParams> ToSampling(const v1::SamplingParams& wire,
                                          const ServedModel& served) {
  if (auto s = CheckWireSampling(wire, served); !s.ok()) return s;
  SamplingParams params;
  if (wire.has_temperature()) params.temperature = wire.temperature();
  if (wire.has_top_k()) params.top_k = wire.top_k();
  if (wire.has_top_p()) params.top_p = wire.top_p();
  if (wire.has_min_p()) params.min_p = wire.min_p();
  if (wire.has_repetition_penalty()) params.repetition_penalty = wire.repetition_penalty();
  if (wire.has_presence_penalty()) params.presence_penalty = wire.presence_penalty();
  if (wire.has_frequency_penalty()) params.frequency_penalty = wire.frequency_penalty();
  for (const auto& [id, bias] : wire.logit_bias()) params.logit_bias.emplace_back(id, bias);
  if (wire.has_seed()) params.seed = wire.seed();
  params.stop.assign(wire.stop().begin(), wire.stop().end());
  params.stop_token_ids.assign(wire.stop_token_ids().begin(), wire.stop_token_ids().end());
  if (wire.has_ignore_eos()) params.ignore_eos = wire.ignore_eos();
  if (wire.has_max_tokens()) params.max_tokens = wire.max_tokens();
  if (wire.has_min_tokens()) params.min_tokens = wire.min_tokens();
  if (wire.has_logprobs()) params.logprobs = wire.logprobs();
  if (auto s = Validate(params, served.config.vocab); !s.ok()) {
    return absl::Status(s.code(), absl::StrCat("sampling.", s.message()));
  }
  return params;
}

v1::FinishReason ToWire(FinishReason reason) {
  switch (reason) {
    case FinishReason::kStop:
      return v1::FINISH_REASON_STOP;
    case FinishReason::kLength:
      return v1::FINISH_REASON_LENGTH;
    case FinishReason::kCancelled:
      return v1::FINISH_REASON_CANCELLED;
    case FinishReason::kDeadline:
      return v1::FINISH_REASON_DEADLINE;
    case FinishReason::kError:
      return v1::FINISH_REASON_ERROR;
    case FinishReason::kNone:
      break;
  }
  return v1::FINISH_REASON_UNSPECIFIED;
}

absl::Status CheckEnvelope(const v1::GenerateRequest& request, const ServedModel& served) {
  if (auto s = CheckModelName(request.model(), served); !s.ok()) return s;
  if (request.request_id().size() > kMaxRequestIdBytes) {
    return Bad("request_id", absl::StrFormat("%d bytes, at most %d", request.request_id().size(),
                                             kMaxRequestIdBytes));
  }
  if (!request.has_deadline_seconds()) return absl::OkStatus();
  const double deadline = request.deadline_seconds();
  if (!std::isfinite(deadline) || deadline < 0) {
    return Bad("deadline_seconds", absl::StrFormat("%g is not a time to wait", deadline));
  }
  if (deadline == 0) return absl::DeadlineExceededError("deadline_seconds: has passed already");
  return absl::OkStatus();
}

}  // namespace

absl::Status CheckModelName(const std::string& name, const ServedModel& served) {
  if (name.empty() || name == served.name) return absl::OkStatus();
  return absl::NotFoundError(
      absl::StrCat("model: '", name, "' is not served here, '", served.name, "' is"));
}

absl::StatusOr<GenerationRequest> ToEngine(const v1::GenerateRequest& request,
                                           const ServedModel& served) {
  if (auto s = CheckEnvelope(request, served); !s.ok()) return s;
  auto sampling = ToSampling(request.sampling(), served);
  if (!sampling.ok()) return sampling.status();
  auto wish = ToWish(request);
  if (!wish.ok()) return wish.status();
  wish = CheckWish(*wish, served.routing(), served.controller != nullptr);
  if (!wish.ok()) return wish.status();
  std::string field;
  auto prompt = EncodePrompt(request, served, &field);
  if (!prompt.ok()) return prompt.status();
  if (prompt->empty()) return Bad(field, "gives no tokens");
  if (prompt->size() >= static_cast<std::size_t>(served.max_context)) {
    return Bad(field, absl::StrFormat("%d tokens leave no room for output in a context of %d",
                                      prompt->size(), served.max_context));
  }
  GenerationRequest out;
  out.request_id = request.request_id();
  out.prompt = *std::move(prompt);
  out.sampling = *std::move(sampling);
  out.wish = *wish;
  out.priority = request.priority();
  if (request.has_deadline_seconds()) out.deadline_s = request.deadline_seconds();
  return out;
}

absl::StatusOr<std::vector<std::int32_t>> TokenizeInput(const v1::TokenizeRequest& request,
                                                        const ServedModel& served) {
  if (auto s = CheckModelName(request.model(), served); !s.ok()) return s;
  switch (request.input_case()) {
    case v1::TokenizeRequest::kText:
      return EncodeText(request.text(), !request.has_add_special() || request.add_special(),
                        served);
    case v1::TokenizeRequest::kChat:
      return EncodeChat(request.chat(), served);
    case v1::TokenizeRequest::INPUT_NOT_SET:
      break;
  }
  return Bad("input", "set one of text, chat");
}

absl::StatusOr<std::string> DetokenizeIds(const v1::DetokenizeRequest& request,
                                          const ServedModel& served) {
  if (auto s = CheckModelName(request.model(), served); !s.ok()) return s;
  const std::vector<std::int32_t> ids(request.ids().begin(), request.ids().end());
  if (auto s = CheckIds(ids, "ids", served.config.vocab); !s.ok()) return s;
  auto text = served.tokenizer->Decode(ids, request.special());
  if (!text.ok()) return Within("ids", text.status());
  return text;
}

void AppendEvent(const GenerationEvent& event, const Tokenizer& tokenizer,
                 v1::GenerateResponse* response) {
  for (const GeneratedToken& token : event.tokens) {
    v1::GeneratedToken* wire = response->add_tokens();
    wire->set_id(token.id);
    if (token.logprob.has_value()) wire->set_logprob(*token.logprob);
    for (const TokenLogprob& top : token.top) {
      v1::TokenLogprob* entry = wire->add_top();
      entry->set_id(top.id);
      entry->set_logprob(top.logprob);
      entry->set_text(tokenizer.TokenBytes(top.id, true));
    }
  }
  response->mutable_text()->append(event.text);
  if (event.finish != FinishReason::kNone) *response->mutable_finish() = ToWire(event);
}

v1::Finish ToWire(const GenerationEvent& last) {
  v1::Finish finish;
  finish.set_reason(ToWire(last.finish));
  finish.set_stop_match(last.stop_match);
  v1::Usage* usage = finish.mutable_usage();
  usage->set_prompt_tokens(last.usage.prompt_tokens);
  usage->set_cached_tokens(last.usage.cached_tokens);
  usage->set_generated_tokens(last.usage.generated_tokens);
  usage->set_preemptions(last.usage.preemptions);
  v1::Timings* timings = finish.mutable_timings();
  timings->set_queue_seconds(last.timings.queue);
  timings->set_time_to_first_token_seconds(last.timings.time_to_first_token);
  timings->set_total_seconds(last.timings.total);
  finish.set_seed(last.seed);
  *finish.mutable_routing() = SummaryToWire(last.routing);
  return finish;
}

v1::Model DescribeModel(const ServedModel& served) {
  v1::Model model;
  model.set_name(served.name);
  model.set_architecture(served.config.architecture);
  model.set_layers(served.config.layers);
  model.set_heads(served.config.heads);
  model.set_kv_heads(served.config.kv_heads);
  model.set_head_dim(served.config.head_dim);
  model.set_hidden(served.config.hidden);
  model.set_vocab(served.config.vocab);
  model.set_max_context(served.max_context);
  model.set_chat_template(served.chat_template);
  model.set_ranks(served.ranks);
  model.set_default_route(RouteToWire(served.routing().route));
  if (served.controller != nullptr) model.set_controller(served.controller->spec().name);
  model.set_version(kVersion);
  return model;
}

absl::Status FinalStatus(const GenerationEvent& last) {
  switch (last.finish) {
    case FinishReason::kNone:
    case FinishReason::kStop:
    case FinishReason::kLength:
      return absl::OkStatus();
    case FinishReason::kCancelled:
      return last.status.ok() ? absl::CancelledError("the request was cancelled") : last.status;
    case FinishReason::kDeadline:
      return last.status.ok() || absl::IsDeadlineExceeded(last.status)
                 ? absl::DeadlineExceededError(
                       "deadline_seconds: passed before the request was done")
                 : last.status;
    case FinishReason::kError:
      return last.status.ok() ? absl::InternalError("a step failed") : last.status;
  }
  return absl::OkStatus();
}

}  // namespace metattn
