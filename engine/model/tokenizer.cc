#include "engine/model/tokenizer.h"

#include <algorithm>
#include <array>
#include <limits>
#include <unordered_map>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "engine/model/added_tokens.h"
#include "engine/model/bpe.h"
#include "engine/model/byte_alphabet.h"
#include "engine/model/normalizer.h"
#include "engine/model/pre_tokenizer.h"
#include "engine/model/tokenizer_spec.h"
#include "engine/model/utf8.h"

namespace metattn {
namespace {

// Words of ordinary text are short and repeat; what is longer would only fill the cache.
constexpr std::size_t kMaxCachedWordBytes = 32;
constexpr std::size_t kMaxCachedWords = 1 << 16;

class BpeTokenizer final : public Tokenizer {
 public:
  BpeTokenizer(TokenizerSpec spec, PreTokenizer pre)
      : spec_(std::move(spec)),
        pre_(std::move(pre)),
        bpe_(BpeArgs(spec_)),
        raw_matcher_(Select(spec_, false)),
        normalized_matcher_(Select(spec_, true)) {
    special_.resize(spec_.tokens.size());
    bytes_.reserve(spec_.tokens.size());
    for (const std::string& token : spec_.tokens) {
      // Text outside the byte alphabet can only mean itself.
      bytes_.push_back(FromByteAlphabet(token).value_or(token));
    }
    for (const AddedToken& token : spec_.added) {
      special_[token.id] = token.special;
      bytes_[token.id] = token.content;  // plain text, whatever its characters
    }
    spec_.merges = {};  // in bpe_ now
  }

  absl::StatusOr<std::vector<std::int32_t>> Encode(std::string_view text,
                                                   const EncodeOptions& options) const override;
  std::string TokenBytes(std::int32_t id, bool special) const override {
    if (id < 0 || id >= vocab_size() || (special_[id] && !special)) return {};
    return bytes_[id];
  }
  absl::StatusOr<std::string> Decode(std::span<const std::int32_t> ids,
                                     bool special) const override;

  std::int64_t vocab_size() const override { return static_cast<std::int64_t>(bytes_.size()); }
  std::int32_t bos_id() const override { return spec_.bos_id; }
  const std::vector<std::int32_t>& stop_ids() const override { return spec_.stop_ids; }
  std::int32_t IdOf(std::string_view token) const override {
    const auto id = spec_.ids.find(std::string(token));
    return id == spec_.ids.end() ? -1 : id->second;
  }
  std::string_view pre_tokenizer() const override { return pre_.name(); }
  std::string_view chat_template() const override { return spec_.chat_template; }

 private:
  // What one call keeps between words. Views point into the stretch of text being encoded.
  struct Call {
    struct Cached {
      std::size_t begin = 0, size = 0;  // in pool
    };
    std::vector<std::int32_t> ids;
    std::vector<std::string_view> words;
    std::unordered_map<std::string, Cached> cache;
    std::vector<std::int32_t> pool;
    BpeModel::Scratch scratch;
    std::string key;
  };

  static BpeModel::Args BpeArgs(const TokenizerSpec& spec) {
    BpeModel::Args args{.byte_ids = {},
                        .merges = spec.merges,
                        .unknown_id = spec.unknown_id,
                        .fuse_unknown = spec.fuse_unknown};
    for (int byte = 0; byte < 256; ++byte) {
      const char raw = static_cast<char>(byte);
      const auto id = spec.ids.find(ToByteAlphabet({&raw, 1}));
      args.byte_ids[byte] = id == spec.ids.end() ? -1 : id->second;
    }
    return args;
  }

  // The tokens one matcher looks for.
  static std::vector<AddedToken> Select(const TokenizerSpec& spec, bool normalized) {
    std::vector<AddedToken> tokens;
    for (const AddedToken& token : spec.added) {
      if (token.normalized == normalized) tokens.push_back(token);
    }
    return tokens;
  }

  absl::Status EncodeText(std::string_view text, bool special, Call* call) const;
  absl::Status EncodeWords(std::string_view text, Call* call) const;
  void EncodeWord(std::string_view word, Call* call) const;
  void MergeWord(std::string_view word, Call* call) const;

  TokenizerSpec spec_;
  PreTokenizer pre_;
  BpeModel bpe_;
  AddedTokenMatcher raw_matcher_, normalized_matcher_;
  std::vector<std::string> bytes_;  // by id
  std::vector<bool> special_;       // by id
};

absl::StatusOr<std::vector<std::int32_t>> BpeTokenizer::Encode(std::string_view text,
                                                               const EncodeOptions& options) const {
  if (text.size() > std::numeric_limits<std::int32_t>::max()) {
    return absl::InvalidArgumentError(
        absl::StrCat("text of ", text.size(), " bytes is longer than 2 GiB"));
  }
  if (const std::size_t bad = utf8::FirstInvalid(text); bad != std::string_view::npos) {
    return absl::InvalidArgumentError(absl::StrCat("text is not valid UTF-8 at byte ", bad));
  }
  Call call;
  if (options.add_special) call.ids = spec_.prefix;
  std::vector<AddedPiece> pieces;
  raw_matcher_.Find(text, options.parse_special, &pieces);
  for (const AddedPiece& piece : pieces) {
    if (piece.id >= 0) {
      call.ids.push_back(piece.id);
      continue;
    }
    absl::Status status = EncodeText(piece.text, options.parse_special, &call);
    if (!status.ok()) return status;
  }
  if (options.add_special) {
    call.ids.insert(call.ids.end(), spec_.suffix.begin(), spec_.suffix.end());
  }
  return std::move(call.ids);
}

absl::Status BpeTokenizer::EncodeText(std::string_view text, bool special, Call* call) const {
  std::string normalized;
  if (spec_.nfc && !IsTriviallyNfc(text)) {
    absl::StatusOr<std::string> nfc = ToNfc(text);
    if (!nfc.ok()) return nfc.status();
    normalized = *std::move(nfc);
    text = normalized;
  }
  std::vector<AddedPiece> pieces;
  normalized_matcher_.Find(text, special, &pieces);
  for (const AddedPiece& piece : pieces) {
    if (piece.id >= 0) {
      call->ids.push_back(piece.id);
      continue;
    }
    if (absl::Status status = EncodeWords(piece.text, call); !status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::Status BpeTokenizer::EncodeWords(std::string_view text, Call* call) const {
  call->words.clear();
  if (absl::Status status = pre_.Split(text, &call->words); !status.ok()) return status;
  for (const std::string_view word : call->words) EncodeWord(word, call);
  return absl::OkStatus();
}

void BpeTokenizer::EncodeWord(std::string_view word, Call* call) const {
  if (word.size() > kMaxCachedWordBytes) return MergeWord(word, call);
  call->key.assign(word);
  if (const auto hit = call->cache.find(call->key); hit != call->cache.end()) {
    const auto begin = call->pool.begin() + static_cast<std::ptrdiff_t>(hit->second.begin);
    call->ids.insert(call->ids.end(), begin, begin + static_cast<std::ptrdiff_t>(hit->second.size));
    return;
  }
  const std::size_t before = call->ids.size();
  MergeWord(word, call);
  if (call->cache.size() >= kMaxCachedWords) return;
  call->cache.emplace(call->key, Call::Cached{call->pool.size(), call->ids.size() - before});
  call->pool.insert(call->pool.end(), call->ids.begin() + static_cast<std::ptrdiff_t>(before),
                    call->ids.end());
}

void BpeTokenizer::MergeWord(std::string_view word, Call* call) const {
  if (spec_.ignore_merges) {
    const auto whole = spec_.ids.find(ToByteAlphabet(word));
    // A control token is never reached by way of text.
    if (whole != spec_.ids.end() && !special_[whole->second]) {
      call->ids.push_back(whole->second);
      return;
    }
  }
  bpe_.Encode(word, &call->scratch, &call->ids);
}

absl::StatusOr<std::string> BpeTokenizer::Decode(std::span<const std::int32_t> ids,
                                                 bool special) const {
  std::string bytes;
  for (std::size_t i = 0; i < ids.size(); ++i) {
    if (ids[i] < 0 || ids[i] >= vocab_size()) {
      return absl::OutOfRangeError(absl::StrCat("token id ", ids[i], " at position ", i,
                                                " is outside the vocabulary of ", vocab_size()));
    }
    if (!special_[ids[i]] || special) bytes += bytes_[ids[i]];
  }
  std::string text;
  text.reserve(bytes.size());
  utf8::AppendRepaired(bytes, &text);
  return text;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Tokenizer>> BuildTokenizer(TokenizerSpec spec,
                                                          const std::string& path) {
  absl::StatusOr<PreTokenizer> pre = PreTokenizer::Create(spec.pre_tokenizer);
  if (!pre.ok()) {
    return absl::Status(pre.status().code(),
                        absl::StrCat(path, ": ", std::string(pre.status().message())));
  }
  for (AddedToken& token : spec.added) {
    if (!token.normalized || !spec.nfc) continue;
    // It is looked for in normalised text, so its own text is normalised too.
    absl::StatusOr<std::string> content = ToNfc(token.content);
    if (!content.ok()) return content.status();
    token.content = *std::move(content);
  }
  return std::make_unique<BpeTokenizer>(std::move(spec), *std::move(pre));
}

absl::StatusOr<std::unique_ptr<Tokenizer>> Tokenizer::FromCheckpoint(const Checkpoint& checkpoint) {
  if (checkpoint.gguf() == nullptr && checkpoint.tokenizer_json().empty()) {
    return absl::NotFoundError(absl::StrCat(checkpoint.path(), ": has no tokenizer.json"));
  }
  absl::StatusOr<TokenizerSpec> spec =
      checkpoint.gguf() != nullptr
          ? TokenizerSpecFromGguf(*checkpoint.gguf(), checkpoint.path())
          : TokenizerSpecFromJson(checkpoint.tokenizer_json(), checkpoint.tokenizer_config_json(),
                                  checkpoint.config_json(), checkpoint.path());
  if (!spec.ok()) return spec.status();
  return BuildTokenizer(*std::move(spec), checkpoint.path());
}

std::string StreamDecoder::Push(std::int32_t id) {
  pending_ += tokenizer_->TokenBytes(id, special_);
  const std::size_t certain = pending_.size() - utf8::IncompleteTail(pending_);
  std::string text;
  utf8::AppendRepaired(std::string_view(pending_).substr(0, certain), &text);
  pending_.erase(0, certain);
  return text;
}

std::string StreamDecoder::Flush() {
  std::string text;
  utf8::AppendRepaired(pending_, &text);
  pending_.clear();
  return text;
}

}  // namespace metattn
