// Byte-level BPE as in GPT-2 and its descendants, from GGUF metadata or tokenizer.json.
//
// Pre-tokenizers: gpt2, smollm, llama-bpe, qwen2 (an unknown one is UNIMPLEMENTED and names it).
// Results equal Hugging Face tokenizers'. Ownership: none; immutable and thread safe after Create.
// Text is UTF-8; invalid bytes are an INVALID_ARGUMENT that gives the offset. Cost: O(n log n) in
// the length of a word, words are cached per call.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/formats/checkpoint.h"

namespace metattn {

struct EncodeOptions {
  bool add_special = true;  // BOS (and EOS) where the model's own tokenizer adds them
  bool parse_special =
      false;  // special tokens written in the text become their ids; off for user text
};

class Tokenizer {
 public:
  static absl::StatusOr<std::unique_ptr<Tokenizer>> FromCheckpoint(const Checkpoint& checkpoint);
  virtual ~Tokenizer() = default;

  virtual absl::StatusOr<std::vector<std::int32_t>> Encode(std::string_view text,
                                                           const EncodeOptions& options) const = 0;
  // Bytes of one token as they join the text (not always whole UTF-8 characters). Special tokens
  // give their text when `special` is set, else nothing. An id outside the vocabulary gives
  // nothing.
  virtual std::string TokenBytes(std::int32_t id, bool special) const = 0;
  // OUT_OF_RANGE names the first id outside the vocabulary. Invalid UTF-8 in the result becomes
  // U+FFFD.
  virtual absl::StatusOr<std::string> Decode(std::span<const std::int32_t> ids,
                                             bool special) const = 0;

  virtual std::int64_t vocab_size() const = 0;
  virtual std::int32_t bos_id() const = 0;  // -1: none
  virtual const std::vector<std::int32_t>& stop_ids()
      const = 0;  // EOS, end of turn: generation ends here
  virtual std::int32_t IdOf(std::string_view token) const = 0;  // special tokens by text; -1: none
  virtual std::string_view pre_tokenizer() const = 0;
  virtual std::string_view chat_template() const = 0;  // the model's Jinja text, empty if none
};

// Turns tokens into text as they come, holding back bytes that may still become a character.
class StreamDecoder {
 public:
  explicit StreamDecoder(const Tokenizer& tokenizer, bool special = false)
      : tokenizer_(&tokenizer), special_(special) {}
  // Text that is certain after this token: whole characters only, invalid bytes as U+FFFD.
  std::string Push(std::int32_t id);
  // What is left at the end (an incomplete character becomes U+FFFD).
  std::string Flush();

 private:
  const Tokenizer* tokenizer_;
  bool special_;
  std::string pending_;
};

}  // namespace metattn
