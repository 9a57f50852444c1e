#include "engine/model/step_plan.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <type_traits>

#include "absl/strings/str_format.h"

namespace metattn {
namespace {

constexpr std::uint32_t kPlanMagic = 0x4d415350;  // "MASP"
constexpr std::uint32_t kPlanVersion = 4;

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
    if (s.state_slot < 0) return Damaged("a negative state slot");
    if (s.state_position < -1 || s.state_position >= s.start) {
      return Damaged("a linear state from a later position");
    }
    if (s.state_load < -1 || s.state_save < -1) return Damaged("a negative snapshot slot");
    if (s.state_load >= 0 && s.state_position < 0) return Damaged("a snapshot of no position");
    const std::int64_t end = std::int64_t{s.start} + s.rows;
    if (static_cast<std::int64_t>(s.blocks.size()) * kBlockTokens < end) {
      return Damaged("a block table shorter than its sequence");
    }
    rows += s.rows;
  }
  const auto tokens = static_cast<std::int64_t>(plan.tokens.size());
  if (rows != tokens || plan.policy.size() != plan.tokens.size()) {
    return Damaged("row counts that do not add up");
  }
  for (const auto* rows : {&plan.logit_rows, &plan.best_rows, &plan.shadow_rows}) {
    std::int32_t last = -1;
    for (std::int32_t row : *rows) {
      if (row <= last || row >= tokens) return Damaged("picked rows out of order or range");
      last = row;
    }
  }
  return absl::OkStatus();
}

absl::Status CheckPolicies(const StepPlan& plan) {
  for (const RoutePolicy& p : plan.policy) {
    if (p.route > Route::kRouted) return Damaged("an unknown route");
    // NaN fails every comparison.
    if (!(p.cost_weight >= 0 && p.cost_weight <= std::numeric_limits<float>::max())) {
      return Damaged("a cost weight that is no number >= 0");
    }
    if (!(p.eta >= 0 && p.eta <= 1)) return Damaged("an eta outside [0, 1]");
  }
  return absl::OkStatus();
}

// A policy as it travels: without the padding of RoutePolicy, whose bytes nobody has set.
struct WirePolicy {
  float cost_weight = 0, eta = 0;
  std::uint32_t route = 0;
};

std::vector<WirePolicy> ToWire(const std::vector<RoutePolicy>& policies) {
  std::vector<WirePolicy> wire;
  wire.reserve(policies.size());
  for (const RoutePolicy& p : policies) {
    wire.push_back({p.cost_weight, p.eta, static_cast<std::uint32_t>(p.route)});
  }
  return wire;
}

// A route out of range stays out of range.
std::vector<RoutePolicy> FromWire(const std::vector<WirePolicy>& wire) {
  std::vector<RoutePolicy> policies;
  policies.reserve(wire.size());
  for (const WirePolicy& p : wire) {
    policies.push_back(
        {static_cast<Route>(std::min<std::uint32_t>(p.route, 255)), p.cost_weight, p.eta});
  }
  return policies;
}

}  // namespace

std::vector<std::byte> StepPlan::Encode() const {
  Writer out;
  out.Put(kPlanMagic);
  out.Put(kPlanVersion);
  out.Put(static_cast<std::uint32_t>(kind));
  out.Put(step);
  out.Put(static_cast<std::uint32_t>(sequences.size()));
  for (const StepSequence& s : sequences) {
    out.Put(s.id);
    out.Put(s.start);
    out.Put(s.rows);
    out.PutVector(s.blocks);
    out.Put(s.state_slot);
    out.Put(s.state_position);
    out.Put(s.state_load);
    out.Put(s.state_save);
  }
  out.PutVector(tokens);
  out.PutVector(ToWire(policy));
  out.PutVector(logit_rows);
  out.PutVector(best_rows);
  out.PutVector(shadow_rows);
  return out.Take();
}

absl::StatusOr<StepPlan> StepPlan::Decode(std::span<const std::byte> message) {
  Reader in(message);
  std::uint32_t magic = 0, version = 0, kind = 0, count = 0;
  StepPlan plan;
  if (!in.Get(magic) || magic != kPlanMagic) return Damaged("not a step plan");
  if (!in.Get(version) || version != kPlanVersion) {
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
    if (!in.Get(s.id) || !in.Get(s.start) || !in.Get(s.rows) || !in.GetVector(s.blocks) ||
        !in.Get(s.state_slot) || !in.Get(s.state_position) || !in.Get(s.state_load) ||
        !in.Get(s.state_save)) {
      return Damaged("truncated sequence");
    }
    plan.sequences.push_back(std::move(s));
  }
  std::vector<WirePolicy> policy;
  if (!in.GetVector(plan.tokens) || !in.GetVector(policy) || !in.GetVector(plan.logit_rows) ||
      !in.GetVector(plan.best_rows) || !in.GetVector(plan.shadow_rows)) {
    return Damaged("truncated rows");
  }
  plan.policy = FromWire(policy);
  if (!in.AtEnd()) return Damaged("bytes after the end");
  if (absl::Status s = CheckSequences(plan); !s.ok()) return s;
  if (absl::Status s = CheckPolicies(plan); !s.ok()) return s;
  return plan;
}

}  // namespace metattn
