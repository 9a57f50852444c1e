// Cuts text into the words BPE works on, as the model's own pre-tokenizer does.
//
// Names are GGUF's (tokenizer.ggml.pre): gpt2, smollm, llama-bpe, qwen2. The patterns are fixed and
// linear in the text; a file cannot bring its own. Thread safe after Create. Errors: UNIMPLEMENTED
// for a name we do not know (it lists the ones we do), INTERNAL should PCRE2 fail. Unicode classes
// are PCRE2's, so characters newer than its Unicode version count as "neither letter nor number".
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace metattn {

class PreTokenizer {
 public:
  // Accepts the names above and the other spellings converters write (gpt-2, llama3, llama-v3).
  static absl::StatusOr<PreTokenizer> Create(std::string_view name);
  // The name of the pre-tokenizer that tokenizer.json writes as a Split on this regular expression;
  // empty for an unknown one.
  static std::string_view NameOfSplit(std::string_view regex);

  PreTokenizer(PreTokenizer&&) noexcept;
  PreTokenizer& operator=(PreTokenizer&&) noexcept;
  ~PreTokenizer();

  // Appends the words of `text` (well-formed UTF-8) in order; together they are the text.
  absl::Status Split(std::string_view text, std::vector<std::string_view>* words) const;

  std::string_view name() const { return name_; }

 private:
  struct Regex;  // the compiled pattern; PCRE2 stays out of this header
  PreTokenizer(std::string_view name, std::unique_ptr<const Regex> regex);
  std::string_view name_;  // of static storage
  std::unique_ptr<const Regex> regex_;
};

}  // namespace metattn
