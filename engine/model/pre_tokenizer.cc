#include "engine/model/pre_tokenizer.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_replace.h"

namespace metattn {
namespace {

// Unicode's White_Space, which is what \s means to the engines the patterns were written for.
// PCRE2's own \s has U+180E besides.
constexpr std::string_view kSpaces =
    "\\t-\\r\\x20\\x{85}\\x{a0}\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}\\x{205f}"
    "\\x{3000}";

struct Known {
  std::string_view name;
  std::string_view pattern;  // %S stands for kSpaces inside a class
  std::string_view split;    // how tokenizer.json writes it, if it does so as one Split
};

constexpr std::string_view kLlamaBpeSplit =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr std::string_view kQwen2Split =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

// smollm cuts out every digit first and gives gpt2's pattern the pieces between. One pass does the
// same when a digit matches alone and a space before a digit counts as one at the end of a piece.
constexpr std::array<Known, 4> kKnown = {{
    {"gpt2", R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^%S\p{L}\p{N}]+|[%S]+(?![^%S])|[%S]+)",
     ""},
    {"smollm",
     R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+|\p{N}| ?[^%S\p{L}\p{N}]+|[%S]+(?![^%S\p{N}])|[%S]+)", ""},
    {"llama-bpe",
     R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^%S\p{L}\p{N}]+[\r\n]*|[%S]*[\r\n]+|[%S]+(?![^%S])|[%S]+)",
     kLlamaBpeSplit},
    {"qwen2",
     R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^%S\p{L}\p{N}]+[\r\n]*|[%S]*[\r\n]+|[%S]+(?![^%S])|[%S]+)",
     kQwen2Split},
}};

constexpr std::array<std::pair<std::string_view, std::string_view>, 3> kOtherSpellings = {
    {{"gpt-2", "gpt2"}, {"llama3", "llama-bpe"}, {"llama-v3", "llama-bpe"}}};

std::string PreTokenizerNames() {
  std::string names;
  for (const Known& known : kKnown) {
    absl::StrAppend(&names, names.empty() ? "" : ", ", std::string(known.name));
  }
  return names;
}

std::string PcreMessage(int code) {
  std::array<PCRE2_UCHAR, 256> buffer{};
  pcre2_get_error_message(code, buffer.data(), buffer.size());
  return reinterpret_cast<const char*>(buffer.data());
}

struct MatchDelete {
  void operator()(pcre2_match_data* p) const { pcre2_match_data_free(p); }
  void operator()(pcre2_match_context* p) const { pcre2_match_context_free(p); }
};

}  // namespace

struct PreTokenizer::Regex {
  explicit Regex(pcre2_code* compiled) : code(compiled) {}
  ~Regex() { pcre2_code_free(code); }
  Regex(const Regex&) = delete;
  Regex& operator=(const Regex&) = delete;
  pcre2_code* code;
};

PreTokenizer::PreTokenizer(std::string_view name, std::unique_ptr<const Regex> regex)
    : name_(name), regex_(std::move(regex)) {}
PreTokenizer::PreTokenizer(PreTokenizer&&) noexcept = default;
PreTokenizer& PreTokenizer::operator=(PreTokenizer&&) noexcept = default;
PreTokenizer::~PreTokenizer() = default;

absl::StatusOr<PreTokenizer> PreTokenizer::Create(std::string_view name) {
  std::string_view wanted = name;
  for (const auto& [spelling, canonical] : kOtherSpellings) {
    if (name == spelling) wanted = canonical;
  }
  for (const Known& known : kKnown) {
    if (known.name != wanted) continue;
    const std::string pattern =
        absl::StrReplaceAll(std::string(known.pattern), {{"%S", std::string(kSpaces)}});
    int error = 0;
    PCRE2_SIZE offset = 0;
    pcre2_code* code =
        pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern.data()), pattern.size(),
                      PCRE2_UTF | PCRE2_UCP | PCRE2_NO_UTF_CHECK, &error, &offset, nullptr);
    if (code == nullptr) {
      return absl::InternalError(absl::StrFormat("pre-tokenizer %s: PCRE2 refuses its pattern: %s",
                                                 std::string(name), PcreMessage(error)));
    }
    pcre2_jit_compile(code, PCRE2_JIT_COMPLETE);  // only speed: without it the interpreter matches
    return PreTokenizer(known.name, std::make_unique<const Regex>(code));
  }
  return absl::UnimplementedError(absl::StrCat("pre-tokenizer \"", std::string(name),
                                               "\" is not supported (known: ", PreTokenizerNames(),
                                               ")"));
}

std::string_view PreTokenizer::NameOfSplit(std::string_view regex) {
  for (const Known& known : kKnown) {
    if (!known.split.empty() && known.split == regex) return known.name;
  }
  return {};
}

absl::Status PreTokenizer::Split(std::string_view text,
                                 std::vector<std::string_view>* words) const {
  const std::unique_ptr<pcre2_match_data, MatchDelete> match(
      pcre2_match_data_create_from_pattern(regex_->code, nullptr));
  const std::unique_ptr<pcre2_match_context, MatchDelete> context(
      pcre2_match_context_create(nullptr));
  if (match == nullptr || context == nullptr) {
    return absl::ResourceExhaustedError("pre-tokenizer: no memory for PCRE2's match data");
  }
  // A long run of spaces backs up one character at a time, which PCRE2 counts as matches. The
  // patterns are linear, so a limit would only refuse long text.
  pcre2_set_match_limit(context.get(), UINT32_MAX);
  const auto* subject = reinterpret_cast<PCRE2_SPTR>(text.data());
  const PCRE2_SIZE* span = pcre2_get_ovector_pointer(match.get());
  std::size_t done = 0;
  while (done < text.size()) {
    std::uint32_t flags = PCRE2_NO_UTF_CHECK;  // checked once, not for every word
    int rc =
        pcre2_match(regex_->code, subject, text.size(), done, flags, match.get(), context.get());
    if (rc == PCRE2_ERROR_JIT_STACKLIMIT) {
      flags |= PCRE2_NO_JIT;
      rc = pcre2_match(regex_->code, subject, text.size(), done, flags, match.get(), context.get());
    }
    if (rc < 0 && rc != PCRE2_ERROR_NOMATCH) {
      return absl::InternalError(absl::StrFormat("pre-tokenizer %s failed at byte %d: %s",
                                                 std::string(name_), done, PcreMessage(rc)));
    }
    const bool found = rc != PCRE2_ERROR_NOMATCH && span[1] > span[0];
    const std::size_t begin = found ? span[0] : text.size();
    const std::size_t end = found ? span[1] : text.size();
    if (begin > done) words->push_back(text.substr(done, begin - done));
    if (end > begin) words->push_back(text.substr(begin, end - begin));
    done = end;
  }
  return absl::OkStatus();
}

}  // namespace metattn
