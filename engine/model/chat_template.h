// Built-in chat templates, recognised from the model: chatml (SmolLM2 with its default system
// message, Qwen), llama3. Pure; thread safe. Content is user text: special tokens written inside it
// never become control tokens, because the prompt is built from token ids. UNIMPLEMENTED for a
// model whose template is not known: the message says which flag
// (--chat-template) names one and lists them. INVALID_ARGUMENT: an unknown role or no messages.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/model/tokenizer.h"

namespace metattn {

struct ChatMessage {
  std::string role;     // "system", "user", "assistant"
  std::string content;  // UTF-8
};

class ChatTemplate {
 public:
  // forced: the value of --chat-template, empty to recognise the model's own.
  static absl::StatusOr<ChatTemplate> Choose(const Tokenizer& tokenizer, std::string_view forced);
  // The prompt, ending where the assistant's answer begins.
  absl::StatusOr<std::vector<std::int32_t>> Apply(const Tokenizer& tokenizer,
                                                  std::span<const ChatMessage> messages) const;
  // "smollm2", "qwen2.5", "qwen2", "chatml" or "llama3".
  std::string_view name() const { return name_; }

 private:
  ChatTemplate() = default;
  std::string_view name_;
};

}  // namespace metattn
