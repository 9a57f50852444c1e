#include "engine/model/chat_template.h"

#include <array>
#include <cstddef>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "engine/model/utf8.h"

namespace metattn {
namespace {

enum class Family { kChatMl, kLlama3 };

struct Builtin {
  std::string_view name;
  Family family;
  std::string_view default_system;  // put first when the conversation brings no system message
};

constexpr std::array<Builtin, 5> kBuiltins = {{
    {"smollm2", Family::kChatMl,
     "You are a helpful AI assistant named SmolLM, trained by Hugging Face"},
    {"qwen2.5", Family::kChatMl,
     "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."},
    {"qwen2", Family::kChatMl, "You are a helpful assistant."},
    {"chatml", Family::kChatMl, ""},
    {"llama3", Family::kLlama3, ""},
}};

constexpr std::array<std::string_view, 2> kChatMlTokens = {"<|im_start|>", "<|im_end|>"};
constexpr std::array<std::string_view, 3> kLlama3Tokens = {"<|start_header_id|>",
                                                           "<|end_header_id|>", "<|eot_id|>"};

std::span<const std::string_view> ControlTokens(Family family) {
  if (family == Family::kChatMl) return kChatMlTokens;
  return kLlama3Tokens;
}

bool Has(std::string_view text, std::string_view part) {
  return text.find(part) != std::string_view::npos;
}

bool HasAll(std::string_view text, std::span<const std::string_view> parts) {
  for (const std::string_view part : parts) {
    if (!Has(text, part)) return false;
  }
  return true;
}

bool HasAny(std::string_view text, std::span<const std::string_view> parts) {
  for (const std::string_view part : parts) {
    if (Has(text, part)) return true;
  }
  return false;
}

// Whether the Jinja text writes this system message itself. It spells the line end as an escape
// inside a string, or as itself.
bool WritesSystemMessage(std::string_view jinja, std::string_view message) {
  for (const char* line_end : {"\\n", "\n"}) {
    if (Has(jinja, absl::StrCat("system", line_end, std::string(message), "<|im_end|>"))) {
      return true;
    }
  }
  return false;
}

// The built-in that renders what `jinja` renders; null when that is not certain. What a built-in
// would not reproduce (reasoning that is cut from earlier turns, today's date, another default
// system message) makes a template unknown, never nearly known.
const Builtin* Recognise(std::string_view jinja) {
  constexpr std::array<std::string_view, 2> kNever = {"<think>", "strftime"};
  if (HasAny(jinja, kNever)) return nullptr;
  const bool chatml = HasAll(jinja, kChatMlTokens);
  const bool llama3 = HasAll(jinja, kLlama3Tokens);
  if (chatml == llama3) return nullptr;
  for (const Builtin& builtin : kBuiltins) {
    if (llama3 && builtin.family == Family::kLlama3) {
      constexpr std::array<std::string_view, 3> kOtherLlama = {"Cutting Knowledge",
                                                               "<|end_of_text|>", "tools"};
      const bool plain = Has(jinja, "trim") && Has(jinja, "bos_token");
      return plain && !HasAny(jinja, kOtherLlama) ? &builtin : nullptr;
    }
    if (!chatml || builtin.family != Family::kChatMl) continue;
    if (builtin.default_system.empty()) {
      constexpr std::array<std::string_view, 6> kOtherChatMl = {
          "<|im_start|>system", "You are", "tool", "bos_token", "trim", "strip("};
      return HasAny(jinja, kOtherChatMl) ? nullptr : &builtin;
    }
    if (WritesSystemMessage(jinja, builtin.default_system)) return &builtin;
  }
  return nullptr;
}

std::string TemplateNames() {
  std::string names;
  for (const Builtin& builtin : kBuiltins) {
    absl::StrAppend(&names, names.empty() ? "" : ", ", std::string(builtin.name));
  }
  return names;
}

const Builtin* Named(std::string_view name) {
  for (const Builtin& builtin : kBuiltins) {
    if (builtin.name == name) return &builtin;
  }
  return nullptr;
}

// What Python's str.strip() removes: white space and the four separators 0x1C to 0x1F.
bool IsStripped(char32_t c) {
  return (c >= 0x09 && c <= 0x0D) || (c >= 0x1C && c <= 0x20) || c == 0x85 || c == 0xA0 ||
         c == 0x1680 || (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F ||
         c == 0x205F || c == 0x3000;
}

std::string_view Strip(std::string_view text) {
  std::size_t begin = text.size(), end = 0;  // of what stays
  std::size_t length = 0;
  for (std::size_t i = 0; i < text.size(); i += length) {
    if (IsStripped(utf8::Decode(text, i, &length))) continue;
    if (begin == text.size()) begin = i;
    end = i + length;
  }
  return begin < end ? text.substr(begin, end - begin) : std::string_view();
}

// Builds the prompt: control tokens by id, everything else as plain text.
class Prompt {
 public:
  Prompt(const Tokenizer& tokenizer, Family family) : tokenizer_(tokenizer), family_(family) {
    const auto tokens = ControlTokens(family);
    open_ = tokenizer.IdOf(tokens[0]);
    close_ = tokenizer.IdOf(tokens.back());
    if (family == Family::kLlama3) {
      header_end_ = tokenizer.IdOf(tokens[1]);
      ids_.push_back(tokenizer.bos_id());
    }
  }

  absl::Status Message(std::string_view role, std::string_view content) {
    if (absl::Status status = Open(role, content); !status.ok()) return status;
    ids_.push_back(close_);
    return family_ == Family::kChatMl ? Text("\n") : absl::OkStatus();
  }

  // The role's header with what follows it directly, as one text: tokens may span both.
  absl::Status Open(std::string_view role, std::string_view content) {
    ids_.push_back(open_);
    if (family_ == Family::kChatMl) {
      return Text(absl::StrCat(std::string(role), "\n", std::string(content)));
    }
    if (absl::Status status = Text(std::string(role)); !status.ok()) return status;
    ids_.push_back(header_end_);
    return Text(absl::StrCat("\n\n", std::string(Strip(content))));
  }

  std::vector<std::int32_t> Take() { return std::move(ids_); }

 private:
  absl::Status Text(const std::string& text) {
    const auto ids = tokenizer_.Encode(text, {.add_special = false, .parse_special = false});
    if (!ids.ok()) return ids.status();
    ids_.insert(ids_.end(), ids->begin(), ids->end());
    return absl::OkStatus();
  }

  const Tokenizer& tokenizer_;
  const Family family_;
  std::int32_t open_ = -1, header_end_ = -1, close_ = -1;
  std::vector<std::int32_t> ids_;
};

absl::Status CheckMessages(std::span<const ChatMessage> messages) {
  if (messages.empty()) return absl::InvalidArgumentError("messages: there are none");
  for (std::size_t i = 0; i < messages.size(); ++i) {
    const ChatMessage& message = messages[i];
    if (message.role != "system" && message.role != "user" && message.role != "assistant") {
      return absl::InvalidArgumentError(
          absl::StrCat("messages[", i, "].role is not \"system\", \"user\" or \"assistant\""));
    }
    const std::size_t bad = utf8::FirstInvalid(message.content);
    if (bad != std::string_view::npos) {
      return absl::InvalidArgumentError(
          absl::StrCat("messages[", i, "].content is not valid UTF-8 at byte ", bad));
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<ChatTemplate> ChatTemplate::Choose(const Tokenizer& tokenizer,
                                                  std::string_view forced) {
  const std::string advice = "--chat-template can name one of: " + TemplateNames();
  const Builtin* builtin = nullptr;
  if (!forced.empty()) {
    builtin = Named(forced);
    if (builtin == nullptr) {
      return absl::UnimplementedError(
          absl::StrCat("chat template \"", std::string(forced), "\" is not known; ", advice));
    }
  } else if (tokenizer.chat_template().empty()) {
    return absl::UnimplementedError("the model brings no chat template; " + advice);
  } else {
    builtin = Recognise(tokenizer.chat_template());
    if (builtin == nullptr) {
      return absl::UnimplementedError("the model's chat template is not a known one; " + advice);
    }
  }
  for (const std::string_view token : ControlTokens(builtin->family)) {
    if (tokenizer.IdOf(token) < 0) {
      return absl::InvalidArgumentError(absl::StrCat("chat template ", std::string(builtin->name),
                                                     " needs the token ", std::string(token),
                                                     ", which the model does not have"));
    }
  }
  if (builtin->family == Family::kLlama3 && tokenizer.bos_id() < 0) {
    return absl::InvalidArgumentError(
        "chat template llama3 needs a BOS token, which the model does not have");
  }
  ChatTemplate chosen;
  chosen.name_ = builtin->name;
  return chosen;
}

absl::StatusOr<std::vector<std::int32_t>> ChatTemplate::Apply(
    const Tokenizer& tokenizer, std::span<const ChatMessage> messages) const {
  if (absl::Status status = CheckMessages(messages); !status.ok()) return status;
  const Builtin& builtin = *Named(name_);
  Prompt prompt(tokenizer, builtin.family);
  if (!builtin.default_system.empty() && messages[0].role != "system") {
    absl::Status status = prompt.Message("system", builtin.default_system);
    if (!status.ok()) return status;
  }
  for (const ChatMessage& message : messages) {
    absl::Status status = prompt.Message(message.role, message.content);
    if (!status.ok()) return status;
  }
  if (absl::Status status = prompt.Open("assistant", ""); !status.ok()) return status;
  return prompt.Take();
}

}  // namespace metattn
