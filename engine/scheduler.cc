#include "engine/scheduler.h"

#include <algorithm>
#include <cstddef>
#include <unordered_map>

#include "absl/strings/str_format.h"
#include "engine/model/state_snapshots.h"
#include "engine/model/step_batch.h"
#include "kernels/check.h"

namespace metattn {
namespace {

// Place in the order of service. Arrival is counted at Add and kept through preemption.
using Rank = std::pair<std::int32_t, std::uint64_t>;  // (priority, arrival), smaller is first

struct Sequence {
  std::uint64_t id = 0;
  Rank rank;
  RoutePolicy policy;                 // of tokens that were never computed
  std::vector<RoutePolicy> policies;  // of those that were, also before a preemption
  std::vector<std::int32_t> tokens;   // prompt and what was generated
  std::int64_t prompt_tokens = 0;
  std::int64_t max_tokens = 0;
  std::int64_t computed = 0;       // positions whose K/V are in `blocks`
  std::vector<BlockId> blocks;     // holds one reference to each
  std::int64_t shared_blocks = 0;  // leading blocks that are findable or were found: never written
  std::vector<BlockHash> hashes;   // chain over the full blocks of `tokens` so far
  std::int32_t state_slot = 0;     // while running
  std::int32_t state_position = -1;  // whose row left the linear state in the slot
  std::int32_t state_load = -1;      // the snapshot that the next step brings there
  std::int64_t state_saved = 0;      // tokens of the last snapshot on the way
  bool running = false;
  bool was_scheduled = false;
  std::int32_t cached_tokens = 0;

  std::int64_t known() const { return static_cast<std::int64_t>(tokens.size()); }
  bool decoding() const { return computed + 1 == known(); }
  RoutePolicy policy_of(std::int64_t token) const {
    const auto i = static_cast<std::size_t>(token);
    return i < policies.size() ? policies[i] : policy;
  }
  // Tokens up to `end` have been computed, or found, under the policy in force.
  void FixPolicies(std::int64_t end) {
    if (static_cast<std::size_t>(end) > policies.size()) {
      policies.resize(static_cast<std::size_t>(end), policy);
    }
  }
  bool finished() const { return known() - prompt_tokens >= max_tokens; }
};

struct Entry {  // of the step being built
  Sequence* sequence = nullptr;
  std::int64_t rows = 0;
};

}  // namespace

struct Scheduler::State {
  explicit State(const SchedulerOptions& o)
      : options(o),
        pool(o.blocks),
        seed(SeedHash(o.hash_identity)),
        slots(std::min(o.max_sequences, o.max_batch_tokens)),
        snapshots(slots, o.linear_states && o.prefix_reuse ? o.state_snapshots : 0) {
    METATTN_CHECK(o.max_sequences > 0, "max_sequences must be positive");
    METATTN_CHECK(o.max_batch_tokens > 0, "max_batch_tokens must be positive");
    METATTN_CHECK(o.max_context > 0, "max_context must be positive");
    // Every running sequence may need a row in the same step.
    for (std::int32_t slot = slots; slot-- > 0;) free_slots.push_back(slot);
  }

  void ExtendHashes(Sequence& s, std::int64_t blocks);
  void Admit();
  bool TryStart(Sequence& s);
  std::int64_t Missing(const Sequence& s) const;
  void ReusePrefix(Sequence& s);
  void ReleaseBlocks(Sequence& s);
  std::int64_t StateTokens(std::int64_t position) const;
  void LoadState(Sequence& s);
  void ReleaseState(Sequence& s);
  std::int32_t SaveState(Sequence& s, std::int64_t position);
  void Stop(Sequence& s);
  void Preempt(Sequence& s);
  bool Reserve(Sequence& s, std::int64_t positions);
  void ScheduleDecodes();
  void SchedulePrefill(Sequence& s);
  void PublishFullBlocks(Sequence& s);
  StepPlan BuildPlan(std::vector<std::uint64_t>* samples);

  const SchedulerOptions options;
  PagePool pool;
  const BlockHash seed;
  const std::int32_t slots;
  StateSnapshots snapshots;
  std::vector<std::int32_t> free_slots;  // of linear states; the lowest is taken first
  std::uint64_t arrivals = 0;
  std::uint64_t steps = 0;
  std::unordered_map<std::uint64_t, std::unique_ptr<Sequence>> sequences;
  std::map<Rank, Sequence*> waiting;
  std::map<Rank, Sequence*> running;

  // The step being built, then the outstanding one.
  bool outstanding = false;
  std::vector<Entry> entries;
  std::int64_t budget = 0;
  std::vector<std::uint64_t> preempted;
};

void Scheduler::State::ExtendHashes(Sequence& s, std::int64_t blocks) {
  std::vector<RoutePolicy> policy(kBlockTokens);
  for (auto b = static_cast<std::int64_t>(s.hashes.size()); b < blocks; ++b) {
    const BlockHash& parent = b == 0 ? seed : s.hashes.back();
    for (int i = 0; i < kBlockTokens; ++i) {
      policy[static_cast<std::size_t>(i)] = s.policy_of(b * kBlockTokens + i);
    }
    s.hashes.push_back(ChainHash(
        parent,
        std::span(s.tokens).subspan(static_cast<std::size_t>(b) * kBlockTokens, kBlockTokens),
        policy));
  }
}

// The last known token is always computed, because its logits are wanted.
void Scheduler::State::ReusePrefix(Sequence& s) {
  if (!options.prefix_reuse) return;
  const std::int64_t most = (s.known() - 1) / kBlockTokens;
  ExtendHashes(s, most);
  while (s.shared_blocks < most) {
    const auto block = pool.Acquire(s.hashes[static_cast<std::size_t>(s.shared_blocks)]);
    if (!block) break;
    s.blocks.push_back(*block);
    ++s.shared_blocks;
  }
  s.computed = s.shared_blocks * kBlockTokens;
}

// Last block first, so that of a cached prefix the tail is evicted before what it hangs on.
void Scheduler::State::ReleaseBlocks(Sequence& s) {
  for (auto block = s.blocks.rbegin(); block != s.blocks.rend(); ++block) pool.Release(*block);
  s.blocks.clear();
  s.shared_blocks = 0;
  s.computed = 0;
}

// Whole blocks of tokens that the state of a sequence holds, in tokens, once the row at `position`
// has run.
std::int64_t Scheduler::State::StateTokens(std::int64_t position) const {
  return NearBegin(static_cast<std::int32_t>(position), options.window);
}

// The longest snapshot of a sequence's found blocks that is not ahead of its first row.
void Scheduler::State::LoadState(Sequence& s) {
  s.state_slot = free_slots.back();
  free_slots.pop_back();
  const std::int64_t most = s.computed > 0 ? StateTokens(s.computed - 1) / kBlockTokens : 0;
  const auto found = snapshots.Find(std::span(s.hashes).first(static_cast<std::size_t>(most)));
  if (!found) return;
  s.state_load = found->slot;
  s.state_saved = found->blocks * kBlockTokens;
  s.state_position = static_cast<std::int32_t>(s.state_saved) + options.window - 1;
}

// A state that goes stays as a snapshot, without a copy: its slot is exchanged.
void Scheduler::State::ReleaseState(Sequence& s) {
  const std::int64_t tokens = s.state_position < 0 ? 0 : StateTokens(s.state_position);
  const auto blocks = static_cast<std::size_t>(tokens / kBlockTokens);
  if (s.state_load < 0 && blocks > 0 && blocks <= s.hashes.size()) {
    s.state_slot = snapshots.Exchange(s.hashes[blocks - 1], s.state_slot);
  }
  free_slots.push_back(s.state_slot);
  s.state_position = s.state_load = -1;
  s.state_saved = 0;
}

// Where the state that the row at `position` leaves is kept, or -1.
std::int32_t Scheduler::State::SaveState(Sequence& s, std::int64_t position) {
  const std::int64_t tokens = StateTokens(position);
  if (!options.prefix_reuse || tokens < s.state_saved + options.snapshot_tokens) return -1;
  s.state_saved = tokens;
  const std::int64_t blocks = tokens / kBlockTokens;
  ExtendHashes(s, blocks);
  return snapshots.Save(s.hashes[static_cast<std::size_t>(blocks - 1)]).value_or(-1);
}

void Scheduler::State::Stop(Sequence& s) {
  ReleaseBlocks(s);
  if (!s.running) return;
  ReleaseState(s);
  s.running = false;
  running.erase(s.rank);
}

void Scheduler::State::Preempt(Sequence& s) {
  std::erase_if(entries, [&](const Entry& e) {
    if (e.sequence != &s) return false;
    budget += e.rows;
    return true;
  });
  Stop(s);
  waiting.emplace(s.rank, &s);
  preempted.push_back(s.id);
}

// Blocks for the first `positions` positions of s, taking them from sequences behind it if need
// be. False: s itself is the last in line and there is not enough; it keeps what it has.
bool Scheduler::State::Reserve(Sequence& s, std::int64_t positions) {
  while (static_cast<std::int64_t>(s.blocks.size()) < BlocksFor(positions)) {
    if (const auto block = pool.Allocate()) {
      s.blocks.push_back(*block);
      continue;
    }
    Sequence& last = *running.rbegin()->second;
    if (last.rank <= s.rank) return false;
    Preempt(last);
  }
  return true;
}

void Scheduler::State::ScheduleDecodes() {
  // In order of service: whoever is preempted on the way comes later and is not in `entries` yet.
  for (auto at = running.begin(); at != running.end();) {
    Sequence& s = *at->second;
    METATTN_CHECK(!s.finished(), "a sequence that has all its tokens must be removed");
    if (s.decoding()) {
      if (Reserve(s, s.known())) {
        entries.push_back({&s, 1});
        --budget;
      } else {
        at = std::next(at);
        Preempt(s);
        continue;
      }
    }
    at = std::next(at);  // after Reserve: it may have taken later ones out
  }
}

// A sequence holds the blocks of all it knows from its start on, so only the budget counts here.
void Scheduler::State::SchedulePrefill(Sequence& s) {
  const std::int64_t rows = std::min(budget, s.known() - s.computed);
  if (rows <= 0) return;
  entries.push_back({&s, rows});
  budget -= rows;
}

// Blocks that must be available for s to start. One that was preempted comes back only when those
// that run have room to go on, otherwise it would soon be preempted again.
std::int64_t Scheduler::State::Missing(const Sequence& s) const {
  const std::int64_t own = BlocksFor(s.known()) - static_cast<std::int64_t>(s.blocks.size());
  return own + (s.was_scheduled ? static_cast<std::int64_t>(running.size()) : 0);
}

// Starts a waiting sequence if all it knows fits, preempting sequences behind it if need be: to
// start on less would only lead to a preemption a few steps later.
bool Scheduler::State::TryStart(Sequence& s) {
  ReusePrefix(s);
  std::int64_t reclaimable = 0;  // at most: some of it may be shared
  for (auto at = running.upper_bound(s.rank); at != running.end(); ++at) {
    reclaimable += static_cast<std::int64_t>(at->second->blocks.size());
  }
  while (pool.available() < Missing(s)) {
    if (running.empty() || running.rbegin()->first < s.rank ||
        pool.available() + reclaimable < Missing(s)) {
      ReleaseBlocks(s);
      return false;
    }
    reclaimable -= static_cast<std::int64_t>(running.rbegin()->second->blocks.size());
    Preempt(*running.rbegin()->second);
  }
  if (!s.was_scheduled) s.cached_tokens = static_cast<std::int32_t>(s.computed);
  waiting.erase(s.rank);
  running.emplace(s.rank, &s);
  s.running = true;
  s.FixPolicies(s.computed);  // found blocks were made under the policy in force
  LoadState(s);
  METATTN_CHECK(Reserve(s, s.known()), "what was counted is there");
  return true;
}

void Scheduler::State::Admit() {
  // After a preemption nothing more starts: what was just taken away must not be given out again.
  while (preempted.empty() && budget > 0 && !free_slots.empty() && !waiting.empty()) {
    Sequence& s = *waiting.begin()->second;
    if (!TryStart(s)) return;  // first come, first served: nobody overtakes it
    SchedulePrefill(s);
  }
}

void Scheduler::State::PublishFullBlocks(Sequence& s) {
  if (!options.prefix_reuse) return;
  const std::int64_t full = s.computed / kBlockTokens;
  ExtendHashes(s, full);
  for (; s.shared_blocks < full; ++s.shared_blocks) {
    const auto b = static_cast<std::size_t>(s.shared_blocks);
    pool.Publish(s.blocks[b], s.hashes[b]);
  }
}

StepPlan Scheduler::State::BuildPlan(std::vector<std::uint64_t>* samples) {
  StepPlan plan;
  plan.step = ++steps;
  for (const Entry& e : entries) {
    Sequence& s = *e.sequence;
    const auto begin = s.tokens.begin() + s.computed;
    const std::int64_t end = s.computed + e.rows;
    StepSequence row_run;
    row_run.id = s.id;
    row_run.start = static_cast<std::int32_t>(s.computed);
    row_run.rows = static_cast<std::int32_t>(e.rows);
    row_run.blocks.assign(s.blocks.begin(), s.blocks.begin() + BlocksFor(end));
    if (options.linear_states) {
      row_run.state_slot = s.state_slot;
      row_run.state_position = s.state_position;
      row_run.state_load = std::exchange(s.state_load, -1);
      row_run.state_save = SaveState(s, end - 1);
    }
    plan.sequences.push_back(std::move(row_run));
    plan.tokens.insert(plan.tokens.end(), begin, begin + e.rows);
    s.FixPolicies(end);
    plan.policy.insert(plan.policy.end(), s.policies.begin() + s.computed,
                       s.policies.begin() + end);
    if (end == s.known()) {
      plan.logit_rows.push_back(static_cast<std::int32_t>(plan.tokens.size()) - 1);
      samples->push_back(s.id);
    }
  }
  return plan;
}

Scheduler::Scheduler(const SchedulerOptions& options) : state_(std::make_unique<State>(options)) {}
Scheduler::~Scheduler() = default;

absl::Status Scheduler::Add(SequenceSpec spec) {
  State& st = *state_;
  METATTN_CHECK(!spec.prompt.empty(), "a sequence has a prompt");
  METATTN_CHECK(spec.max_tokens > 0, "a sequence generates at least one token");
  METATTN_CHECK(!st.sequences.contains(spec.id), "sequence ids are unique");
  const auto prompt = static_cast<std::int64_t>(spec.prompt.size());
  if (prompt + spec.max_tokens > st.options.max_context) {
    return absl::InvalidArgumentError(
        absl::StrFormat("prompt of %d tokens and max_tokens %d exceed the context of %d tokens",
                        prompt, spec.max_tokens, st.options.max_context));
  }
  const std::int64_t blocks = BlocksFor(prompt + spec.max_tokens - 1);  // the last is never fed
  if (blocks > st.pool.capacity()) {
    return absl::ResourceExhaustedError(absl::StrFormat(
        "prompt of %d tokens and max_tokens %d need %d K/V blocks, the cache has %d (raise "
        "--kv-cache-memory)",
        prompt, spec.max_tokens, blocks, st.pool.capacity()));
  }
  auto s = std::make_unique<Sequence>();
  s->id = spec.id;
  s->rank = {spec.priority, st.arrivals++};
  s->policy = spec.policy;
  s->tokens = std::move(spec.prompt);
  s->prompt_tokens = prompt;
  s->max_tokens = spec.max_tokens;
  st.waiting.emplace(s->rank, s.get());
  st.sequences.emplace(spec.id, std::move(s));
  return absl::OkStatus();
}

std::optional<ScheduledStep> Scheduler::Next() {
  State& st = *state_;
  METATTN_CHECK(!st.outstanding, "Complete comes before the next Next");
  if (st.sequences.empty()) return std::nullopt;
  st.entries.clear();
  st.preempted.clear();
  st.budget = st.options.max_batch_tokens;
  st.ScheduleDecodes();
  for (const auto& [rank, sequence] : st.running) {
    if (!sequence->decoding()) st.SchedulePrefill(*sequence);
  }
  st.Admit();
  METATTN_CHECK(!st.entries.empty(), "the first sequence in line can always run");

  ScheduledStep step;
  step.plan = st.BuildPlan(&step.samples);
  step.preempted = st.preempted;
  for (const Entry& e : st.entries) {
    if (!e.sequence->was_scheduled) step.first_scheduled.push_back(e.sequence->id);
    e.sequence->was_scheduled = true;
  }
  st.outstanding = true;
  return step;
}

void Scheduler::Complete(std::span<const std::int32_t> tokens) {
  State& st = *state_;
  METATTN_CHECK(st.outstanding, "no plan is outstanding");
  std::size_t next = 0;
  for (const Entry& e : st.entries) {
    Sequence& s = *e.sequence;
    s.computed += e.rows;
    s.state_position = static_cast<std::int32_t>(s.computed) - 1;
    st.PublishFullBlocks(s);
    if (s.computed < s.known()) continue;
    METATTN_CHECK(next < tokens.size(), "one token per sample");
    s.tokens.push_back(tokens[next++]);
  }
  METATTN_CHECK(next == tokens.size(), "one token per sample");
  st.entries.clear();
  st.outstanding = false;
}

void Scheduler::SetPolicy(std::uint64_t id, const RoutePolicy& policy) {
  State& st = *state_;
  METATTN_CHECK(!st.outstanding, "policies change between steps");
  const auto found = st.sequences.find(id);
  if (found == st.sequences.end() || found->second->policy == policy) return;
  Sequence& s = *found->second;
  s.policy = policy;
  // Hashes of blocks that nobody has computed were a guess.
  const std::size_t known = s.policies.size() / kBlockTokens;
  if (s.hashes.size() > known) s.hashes.resize(known);
}

void Scheduler::ForgetPolicies(std::uint64_t id) {
  State& st = *state_;
  METATTN_CHECK(!st.outstanding, "policies change between steps");
  const auto found = st.sequences.find(id);
  if (found == st.sequences.end()) return;
  Sequence& s = *found->second;
  const auto computed = static_cast<std::size_t>(s.computed);
  if (s.policies.size() <= computed) return;
  s.policies.resize(computed);
  s.hashes.resize(std::min(s.hashes.size(), computed / kBlockTokens));
}

void Scheduler::Remove(std::uint64_t id) {
  State& st = *state_;
  METATTN_CHECK(!st.outstanding, "sequences are removed between steps");
  const auto found = st.sequences.find(id);
  if (found == st.sequences.end()) return;
  Sequence& s = *found->second;
  st.Stop(s);
  st.waiting.erase(s.rank);
  st.sequences.erase(found);
}

int Scheduler::waiting() const { return static_cast<int>(state_->waiting.size()); }
int Scheduler::running() const { return static_cast<int>(state_->running.size()); }
std::int64_t Scheduler::blocks_used() const { return state_->pool.used(); }
std::int64_t Scheduler::blocks_capacity() const { return state_->pool.capacity(); }

std::int32_t Scheduler::cached_tokens(std::uint64_t id) const {
  const auto found = state_->sequences.find(id);
  return found == state_->sequences.end() ? 0 : found->second->cached_tokens;
}

}  // namespace metattn
