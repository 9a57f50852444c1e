#include "engine/model/step_plan.h"

#include <cstring>
#include <limits>
#include <type_traits>

#include "absl/strings/str_format.h"

namespace metattn {
namespace {

constexpr std::uint32_t kMagic = 0x4d415350;  // "MASP"
constexpr std::uint32_t kVersion = 1;

class Writer {
 public:
  template <typename T>
  void Put(const T& value) {
    static_assert(std::is_trivially_copyable_v<T>);
    const auto* p = reinterpret_cast<const std::byte*>(&value);
    bytes_.insert(bytes_.end(), p, p + sizeof(T));
  }
  template <typename T>
  void PutVector(const std::vector<T>& values) {
    Put(static_cast<std::uint32_t>(values.size()));
    const auto* p = reinterpret_cast<const std::byte*>(values.data());
    bytes_.insert(bytes_.end(), p, p + values.size() * sizeof(T));
  }
  std::vector<std::byte> Take() { return std::move(bytes_); }

 private:
  std::vector<std::byte> bytes_;
};

// Every read checks what is left, so a damaged count can neither read past the end nor allocate
// more than the message.
class Reader {
 public:
  explicit Reader(std::span<const std::byte> bytes) : bytes_(bytes) {}

  template <typename T>
  bool Get(T& value) {
    if (bytes_.size() < sizeof(T)) return false;
    std::memcpy(&value, bytes_.data(), sizeof(T));
    bytes_ = bytes_.subspan(sizeof(T));
    return true;
  }
  template <typename T>
  bool GetVector(std::vector<T>& values) {
    std::uint32_t count = 0;
    if (!Get(count) || count > bytes_.size() / sizeof(T)) return false;
    values.resize(count);
    if (count != 0) std::memcpy(values.data(), bytes_.data(), count * sizeof(T));
    bytes_ = bytes_.subspan(count * sizeof(T));
    return true;
  }
  bool AtEnd() const { return bytes_.empty(); }

 private:
  std::span<const std::byte> bytes_;
};

absl::Status Damaged(const char* what) {
  return absl::InvalidArgumentError(absl::StrFormat("step plan: %s", what));
}

absl::Status CheckSequences(const StepPlan& plan) {
  std::int64_t rows = 0;
  for (const StepSequence& s : plan.sequences) {
    if (s.start < 0 || s.rows < 0) return Damaged("a negative position or row count");
    const std::int64_t end = std::int64_t{s.start} + s.rows;
    if (static_cast<std::int64_t>(s.blocks.size()) * kBlockTokens < end) {
      return Damaged("a block table shorter than its sequence");
    }
    rows += s.rows;
  }
  const auto tokens = static_cast<std::int64_t>(plan.tokens.size());
  if (rows != tokens || plan.route.size() != plan.tokens.size()) {
    return Damaged("row counts that do not add up");
  }
  std::int32_t last = -1;
  for (std::int32_t row : plan.logit_rows) {
    if (row <= last || row >= tokens) return Damaged("logit rows out of order or range");
    last = row;
  }
  for (std::uint8_t r : plan.route) {
    if (r >= kMechanisms) return Damaged("an unknown route");
  }
  return absl::OkStatus();
}

}  // namespace

std::vector<std::byte> StepPlan::Encode() const {
  Writer out;
  out.Put(kMagic);
  out.Put(kVersion);
  out.Put(static_cast<std::uint32_t>(kind));
  out.Put(step);
  out.Put(static_cast<std::uint32_t>(sequences.size()));
  for (const StepSequence& s : sequences) {
    out.Put(s.id);
    out.Put(s.start);
    out.Put(s.rows);
    out.PutVector(s.blocks);
  }
  out.PutVector(tokens);
  out.PutVector(route);
  out.PutVector(logit_rows);
  return out.Take();
}

absl::StatusOr<StepPlan> StepPlan::Decode(std::span<const std::byte> message) {
  Reader in(message);
  std::uint32_t magic = 0, version = 0, kind = 0, count = 0;
  StepPlan plan;
  if (!in.Get(magic) || magic != kMagic) return Damaged("not a step plan");
  if (!in.Get(version) || version != kVersion) {
    return Damaged("another version: the ranks run different builds");
  }
  if (!in.Get(kind) || !in.Get(plan.step) || !in.Get(count)) return Damaged("truncated header");
  if (kind != static_cast<std::uint32_t>(StepKind::kForward) &&
      kind != static_cast<std::uint32_t>(StepKind::kStop)) {
    return Damaged("an unknown kind");
  }
  plan.kind = static_cast<StepKind>(kind);
  for (std::uint32_t i = 0; i < count; ++i) {
    StepSequence s;
    if (!in.Get(s.id) || !in.Get(s.start) || !in.Get(s.rows) || !in.GetVector(s.blocks)) {
      return Damaged("truncated sequence");
    }
    plan.sequences.push_back(std::move(s));
  }
  if (!in.GetVector(plan.tokens) || !in.GetVector(plan.route) || !in.GetVector(plan.logit_rows)) {
    return Damaged("truncated rows");
  }
  if (!in.AtEnd()) return Damaged("bytes after the end");
  if (absl::Status s = CheckSequences(plan); !s.ok()) return s;
  return plan;
}

}  // namespace metattn
