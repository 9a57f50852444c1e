#include "tests/engine/plan_checker.h"

#include <algorithm>
#include <bit>

#include "absl/strings/str_format.h"

namespace metattn {
namespace {

std::uint64_t Mix(std::uint64_t x) {  // SplitMix64
  x += 0x9E3779B97F4A7C15u;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
  return x ^ (x >> 31);
}

}  // namespace

PlanChecker::PlanChecker(std::int64_t blocks, int max_sequences, int max_batch_tokens,
                         LinearStates states)
    : blocks_(blocks),
      max_sequences_(max_sequences),
      max_batch_tokens_(max_batch_tokens),
      linear_(states),
      store_(static_cast<std::size_t>(blocks), std::vector<Slot>(kBlockTokens)) {}

std::uint64_t PlanChecker::Extend(std::uint64_t history, std::int32_t token,
                                  const RoutePolicy& policy) {
  const std::uint64_t what = static_cast<std::uint64_t>(static_cast<std::uint32_t>(token)) << 8 |
                             static_cast<std::uint64_t>(policy.route);
  const std::uint64_t how = std::uint64_t{std::bit_cast<std::uint32_t>(policy.cost_weight)} << 32 |
                            std::bit_cast<std::uint32_t>(policy.eta);
  return Mix(Mix(history ^ what) ^ how);
}

std::string PlanChecker::Check(const StepPlan& plan) {
  std::string error = CheckShape(plan);
  if (error.empty()) error = CheckWriters(plan);
  if (error.empty()) error = Write(plan);
  if (error.empty()) error = Read(plan);
  if (error.empty()) error = CheckStates(plan);
  return error;
}

std::string PlanChecker::CheckShape(const StepPlan& plan) const {
  if (plan.kind != StepKind::kForward) return "not a forward step";
  if (plan.step <= last_step_) return "step numbers do not grow";
  if (plan.sequences.empty() || plan.tokens.empty()) return "empty plan";
  if (plan.sequences.size() > static_cast<std::size_t>(max_sequences_)) return "too many sequences";
  if (plan.tokens.size() > static_cast<std::size_t>(max_batch_tokens_)) return "over the budget";
  if (plan.policy.size() != plan.tokens.size()) return "one policy per row";
  std::int64_t rows = 0;
  std::set<std::uint64_t> ids;
  std::set<std::int32_t> last_rows;
  for (const StepSequence& s : plan.sequences) {
    if (s.rows < 1 || s.start < 0) return absl::StrFormat("sequence %d: start or rows", s.id);
    if (!ids.insert(s.id).second) return absl::StrFormat("sequence %d twice", s.id);
    rows += s.rows;
    last_rows.insert(static_cast<std::int32_t>(rows) - 1);
    const int needed = (s.start + s.rows + kBlockTokens - 1) / kBlockTokens;
    if (static_cast<int>(s.blocks.size()) != needed) {
      return absl::StrFormat("sequence %d: %d blocks instead of %d", s.id, s.blocks.size(), needed);
    }
    std::set<std::int32_t> own;
    for (const std::int32_t b : s.blocks) {
      if (b < 0 || b >= blocks_) return absl::StrFormat("block %d", b);
      if (!own.insert(b).second) return absl::StrFormat("sequence %d has block %d twice", s.id, b);
    }
  }
  if (rows != static_cast<std::int64_t>(plan.tokens.size())) return "rows and tokens differ";
  for (const auto* wanted : {&plan.logit_rows, &plan.best_rows}) {
    std::int32_t previous = -1;
    for (const std::int32_t row : *wanted) {
      if (row <= previous) return "logit rows do not ascend";
      if (!last_rows.erase(row)) return "logits of a row that is not a sequence's last, or twice";
      previous = row;
    }
  }
  return {};
}

// A block written in this step belongs to one sequence only.
std::string PlanChecker::CheckWriters(const StepPlan& plan) const {
  std::map<std::int32_t, std::uint64_t> writer;
  for (const StepSequence& s : plan.sequences) {
    for (std::size_t i = static_cast<std::size_t>(s.start / kBlockTokens); i < s.blocks.size();
         ++i) {
      if (!writer.emplace(s.blocks[i], s.id).second) {
        return absl::StrFormat("block %d has two writers", s.blocks[i]);
      }
    }
  }
  for (const StepSequence& s : plan.sequences) {
    for (const std::int32_t b : s.blocks) {
      const auto found = writer.find(b);
      if (found != writer.end() && found->second != s.id) {
        return absl::StrFormat("block %d is read by %d and written by %d", b, s.id, found->second);
      }
    }
  }
  return {};
}

std::string PlanChecker::Write(const StepPlan& plan) {
  std::size_t row = 0;
  for (const StepSequence& s : plan.sequences) {
    std::uint64_t history = 0;
    if (s.start > 0) {
      const int before = s.start - 1;
      history = store_[static_cast<std::size_t>(s.blocks[static_cast<std::size_t>(
          before / kBlockTokens)])][static_cast<std::size_t>(before % kBlockTokens)]
                    .history;
    }
    for (int position = s.start; position < s.start + s.rows; ++position, ++row) {
      history = Extend(history, plan.tokens[row], plan.policy[row]);
      const auto block =
          static_cast<std::size_t>(s.blocks[static_cast<std::size_t>(position / kBlockTokens)]);
      store_[block][static_cast<std::size_t>(position % kBlockTokens)] = {
          plan.tokens[row], position, plan.policy[row], history};
    }
  }
  last_step_ = plan.step;
  return {};
}

// Every row must find, through its table, slots 0 .. its position in order with one history.
std::string PlanChecker::Read(const StepPlan& plan) {
  contexts_.clear();
  best_contexts_.clear();
  std::size_t row = 0;
  for (const StepSequence& s : plan.sequences) {
    std::uint64_t history = 0;
    std::vector<std::int32_t> context;
    std::vector<RoutePolicy>& first = first_policies_[s.id];
    for (int position = 0; position < s.start + s.rows; ++position) {
      const auto block =
          static_cast<std::size_t>(s.blocks[static_cast<std::size_t>(position / kBlockTokens)]);
      const Slot& slot = store_[block][static_cast<std::size_t>(position % kBlockTokens)];
      history = Extend(history, slot.token, slot.policy);
      if (slot.position != position || slot.history != history) {
        return absl::StrFormat("sequence %d: position %d holds what was computed elsewhere", s.id,
                               position);
      }
      const auto at = static_cast<std::size_t>(position);
      if (at == first.size()) first.push_back(slot.policy);
      if (first[at] != slot.policy) {
        return absl::StrFormat("sequence %d: position %d was first computed under another policy",
                               s.id, position);
      }
      context.push_back(slot.token);
    }
    row += static_cast<std::size_t>(s.rows);
    const auto last = static_cast<std::int32_t>(row) - 1;
    if (std::ranges::binary_search(plan.logit_rows, last)) contexts_.push_back(context);
    if (std::ranges::binary_search(plan.best_rows, last)) best_contexts_.push_back(context);
  }
  return {};
}

std::int32_t PlanChecker::StateTokens(std::int32_t position) const {
  return std::max(0, position - linear_.window + 1) / kBlockTokens * kBlockTokens;
}

std::uint64_t PlanChecker::HistoryBefore(const StepSequence& s, std::int32_t tokens) const {
  if (tokens == 0) return 0;
  const auto block = static_cast<std::size_t>((tokens - 1) / kBlockTokens);
  return store_[static_cast<std::size_t>(s.blocks[block])]
               [static_cast<std::size_t>((tokens - 1) % kBlockTokens)]
                   .history;
}

std::string PlanChecker::CheckSlots(const StepPlan& plan) const {
  std::set<std::int32_t> written;
  for (const StepSequence& s : plan.sequences) {
    if (linear_.slots == 0) {
      if (s.state_slot == 0 && s.state_position == -1 && s.state_load == -1 && s.state_save == -1) {
        continue;
      }
      return absl::StrFormat("sequence %d has a linear state, there are none", s.id);
    }
    for (const std::int32_t slot : {s.state_slot, s.state_load, s.state_save}) {
      if (slot < (slot == s.state_slot ? 0 : -1) || slot >= linear_.slots) {
        return absl::StrFormat("sequence %d: state slot %d", s.id, slot);
      }
    }
    if (!written.insert(s.state_slot).second) {
      return absl::StrFormat("state slot %d has two owners", s.state_slot);
    }
  }
  for (const StepSequence& s : plan.sequences) {
    if (written.contains(s.state_save)) {  // two may be saved to one slot: the later one stays
      return absl::StrFormat("a snapshot in state slot %d, which has an owner", s.state_save);
    }
  }
  return {};
}

// Whoever says that a state of its own prefix lies in its slot, or is loaded there, must be right.
std::string PlanChecker::CheckStates(const StepPlan& plan) {
  if (std::string error = CheckSlots(plan); !error.empty()) return error;
  if (linear_.slots == 0) return {};
  for (const StepSequence& s : plan.sequences) {
    if (s.state_load >= 0) states_[s.state_slot] = states_[s.state_load];
  }
  for (const StepSequence& s : plan.sequences) {
    LinearState& state = states_[s.state_slot];
    if (s.state_position >= s.start) {
      return absl::StrFormat("sequence %d starts at %d, its state is of %d", s.id, s.start,
                             s.state_position);
    }
    const std::int32_t held = s.state_position < 0 ? 0 : StateTokens(s.state_position);
    if (held > 0 && state != LinearState{held, HistoryBefore(s, held)}) {
      return absl::StrFormat("sequence %d: state slot %d holds another state", s.id, s.state_slot);
    }
    const std::int32_t left = StateTokens(s.start + s.rows - 1);
    state = {left, HistoryBefore(s, left)};
  }
  for (const StepSequence& s : plan.sequences) {
    if (s.state_save >= 0) states_[s.state_save] = states_[s.state_slot];
  }
  return {};
}

}  // namespace metattn
