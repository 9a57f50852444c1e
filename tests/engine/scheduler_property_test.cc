// Random traffic against the scheduler, judged by PlanChecker and by a model that only knows each
// sequence's tokens and how far the plans have computed it.
#include <gtest/gtest.h>

#include <algorithm>
#include <random>

#include "engine/scheduler.h"
#include "tests/engine/plan_checker.h"

namespace metattn {
namespace {

struct Live {
  std::pair<int, std::uint64_t> rank;  // (priority, arrival)
  std::vector<std::int32_t> tokens;
  std::size_t prompt = 0;
  std::size_t max_tokens = 0;
  std::size_t computed = 0;
  bool running = false;
  bool scheduled = false;
  RoutePolicy policy;                 // in force
  std::vector<RoutePolicy> policies;  // of the tokens that were computed or found before

  bool Done() const { return tokens.size() - prompt >= max_tokens; }
};

bool SamePlan(const StepPlan& a, const StepPlan& b) {
  if (a.step != b.step || a.tokens != b.tokens || a.policy != b.policy ||
      a.logit_rows != b.logit_rows || a.sequences.size() != b.sequences.size()) {
    return false;
  }
  for (std::size_t i = 0; i < a.sequences.size(); ++i) {
    const StepSequence &x = a.sequences[i], &y = b.sequences[i];
    if (x.id != y.id || x.start != y.start || x.rows != y.rows || x.blocks != y.blocks ||
        x.state_slot != y.state_slot || x.state_position != y.state_position ||
        x.state_load != y.state_load || x.state_save != y.state_save) {
      return false;
    }
  }
  return true;
}

class Traffic {
 public:
  explicit Traffic(unsigned seed) : random_(seed) {
    options_.blocks = Between(4, Between(0, 2) == 0 ? 40 : 14);
    options_.max_sequences = Between(1, 12);
    options_.max_batch_tokens = Between(1, 10) == 1 ? Between(1, 8) : Between(16, 300);
    options_.max_context = 64 * 40;
    options_.prefix_reuse = Between(0, 3) != 0;
    options_.hash_identity = "traffic";
    options_.linear_states = Between(0, 1) == 0;
    options_.state_snapshots = Between(0, 3) * 4;
    options_.snapshot_tokens = 64 * Between(1, 3);
    options_.window = Between(0, 1) * Between(1, 130);
    scheduler_ = std::make_unique<Scheduler>(options_);
    twin_ = std::make_unique<Scheduler>(options_);
    const int slots = std::min(options_.max_sequences, options_.max_batch_tokens);
    checker_ = std::make_unique<PlanChecker>(
        options_.blocks, options_.max_sequences, options_.max_batch_tokens,
        PlanChecker::LinearStates{options_.linear_states ? slots + options_.state_snapshots : 0,
                                  options_.window});
  }

  void Run(int operations) {
    for (int i = 0; i < operations && !testing::Test::HasFatalFailure(); ++i) {
      const int op = Between(0, 9);
      if (op <= 1 && live_.size() < 40) Add();
      if (op == 2) RemoveOne();
      if (op == 3) ChangePolicy();
      if (op >= 2) Step();
    }
    if (testing::Test::HasFatalFailure()) return;
    // No sequence starves: with no new traffic all of them end, within what the work can take.
    for (int i = 0; !live_.empty() && i < 100000; ++i) {
      Step();
      if (testing::Test::HasFatalFailure()) return;
    }
    EXPECT_TRUE(live_.empty()) << "a sequence never ended";
    EXPECT_EQ(scheduler_->blocks_used(), 0) << "a reference was lost";
    EXPECT_EQ(scheduler_->waiting() + scheduler_->running(), 0);
    EXPECT_FALSE(scheduler_->Next().has_value());
  }

  int preemptions() const { return preemptions_; }
  int reused() const { return reused_; }
  int loaded() const { return loaded_; }
  int steps() const { return steps_; }
  int changes() const { return changes_; }

 private:
  int Between(int low, int high) {
    return low + static_cast<int>(random_() % static_cast<unsigned>(high - low + 1));
  }

  RoutePolicy SomePolicy() {
    if (Between(0, 2) != 0) return {};  // mostly equal, so that prefixes are reused
    constexpr RoutePolicy kOthers[] = {{Route::kLocal, 0, 0},
                                       {Route::kRouted, 0, 0.98f},
                                       {Route::kRouted, 0.5f, 0.98f},
                                       {Route::kRouted, 0, 0.9f}};
    return kOthers[Between(0, 3)];
  }

  void ChangePolicy() {
    if (live_.empty()) return;
    auto at = live_.begin();
    std::advance(at, Between(0, static_cast<int>(live_.size()) - 1));
    // Rather one in the middle of its prompt: its later blocks were looked for under the old
    // policy.
    const auto half = std::find_if(live_.begin(), live_.end(), [](const auto& entry) {
      return entry.second.running && entry.second.computed < entry.second.prompt;
    });
    if (half != live_.end()) at = half;
    at->second.policy = SomePolicy();
    scheduler_->SetPolicy(at->first, at->second.policy);
    twin_->SetPolicy(at->first, at->second.policy);
    if (!at->second.policies.empty() && at->second.policies.back() != at->second.policy) {
      ++changes_;
    }
  }

  // A token keeps the policy it was first computed, or found, under; others have the one in force.
  void CheckPolicies(const StepSequence& s, Live& live) {
    const auto end = static_cast<std::size_t>(s.start + s.rows);
    const std::vector<RoutePolicy>& theirs = checker_->policies(s.id);
    ASSERT_EQ(theirs.size(), std::max(end, live.policies.size()));
    if (live.policies.size() < end) live.policies.resize(end, live.policy);
    ASSERT_EQ(theirs, live.policies) << "sequence " << s.id;
  }

  void Add() {
    SequenceSpec spec;
    spec.id = next_id_++;
    spec.priority = Between(0, 4) == 0 ? Between(-1, 1) : 0;
    spec.policy = SomePolicy();
    // One of few shared beginnings, cut anywhere, then a tail of its own.
    const int family = Between(0, 2);
    const int shared = Between(0, 1) == 0 ? 0 : Between(1, 320);
    for (int i = 0; i < shared; ++i) spec.prompt.push_back(family * 1000 + i);
    const int tail = Between(shared == 0 ? 1 : 0, 130);
    for (int i = 0; i < tail; ++i) spec.prompt.push_back(Between(0, 3));
    spec.max_tokens = Between(1, Between(0, 1) == 0 ? 250 : 20);

    Live live;
    live.rank = {spec.priority, spec.id};
    live.tokens = spec.prompt;
    live.policy = spec.policy;
    live.prompt = spec.prompt.size();
    live.max_tokens = static_cast<std::size_t>(spec.max_tokens);
    const bool fits = (live.prompt + live.max_tokens - 1 + kBlockTokens - 1) / kBlockTokens <=
                      static_cast<std::size_t>(options_.blocks);
    const std::uint64_t id = spec.id;
    ASSERT_EQ(scheduler_->Add(spec).ok(), fits);
    ASSERT_EQ(twin_->Add(spec).ok(), fits);
    if (fits) live_.emplace(id, std::move(live));
  }

  void Remove(std::uint64_t id) {
    scheduler_->Remove(id);
    twin_->Remove(id);
    live_.erase(id);
  }

  void RemoveOne() {
    if (live_.empty()) return;
    auto at = live_.begin();
    std::advance(at, Between(0, static_cast<int>(live_.size()) - 1));
    Remove(at->first);
  }

  void Step() {
    const auto step = scheduler_->Next();
    const auto twin = twin_->Next();
    ASSERT_EQ(step.has_value(), !live_.empty());
    ASSERT_EQ(twin.has_value(), !live_.empty());
    if (!step) return;
    ++steps_;
    ASSERT_TRUE(SamePlan(step->plan, twin->plan)) << "same inputs, other plan";
    ASSERT_EQ(checker_->Check(step->plan), "");
    ASSERT_EQ(step->samples.size(), step->plan.logit_rows.size());
    ASSERT_LE(scheduler_->blocks_used(), options_.blocks);
    CheckPreempted(*step);
    if (testing::Test::HasFatalFailure()) return;
    CheckRows(*step);
    if (testing::Test::HasFatalFailure()) return;
    Complete(*step);
  }

  void CheckPreempted(const ScheduledStep& step) {
    for (const std::uint64_t id : step.preempted) {
      ASSERT_TRUE(live_.contains(id));
      ASSERT_TRUE(live_.at(id).running) << "preempted " << id << " did not run";
      for (const StepSequence& s : step.plan.sequences) {
        ASSERT_LT(live_.at(s.id).rank, live_.at(id).rank) << "not the last in line was preempted";
      }
      ++preemptions_;
    }
    // Decode is never blocked by prefill: whoever waits only for its next row gets it.
    for (const auto& [id, live] : live_) {
      if (!live.running || live.computed + 1 != live.tokens.size()) continue;
      if (std::count(step.preempted.begin(), step.preempted.end(), id) > 0) continue;
      const auto found = std::find_if(step.plan.sequences.begin(), step.plan.sequences.end(),
                                      [&](const StepSequence& s) { return s.id == id; });
      ASSERT_NE(found, step.plan.sequences.end()) << "decode of " << id << " was left out";
      ASSERT_EQ(found->rows, 1);
    }
    for (const std::uint64_t id : step.preempted) {
      live_.at(id).running = false;
      live_.at(id).computed = 0;
    }
  }

  void CheckRows(const ScheduledStep& step) {
    std::size_t row = 0;
    std::vector<std::uint64_t> first, samples;
    for (const StepSequence& s : step.plan.sequences) {
      Live& live = live_.at(s.id);
      const auto start = static_cast<std::size_t>(s.start);
      if (live.running) {
        ASSERT_EQ(start, live.computed);
      } else {
        ASSERT_EQ(start % kBlockTokens, 0u);
        if (start > 0) ++reused_;
        if (!live.scheduled) {
          ASSERT_EQ(scheduler_->cached_tokens(s.id), s.start);
        }
      }
      if (options_.linear_states) {
        if (live.running) {
          ASSERT_EQ(s.state_position, s.start - 1);
          ASSERT_EQ(s.state_load, -1);
        } else {
          ASSERT_EQ(s.state_position >= 0, s.state_load >= 0);
          if (s.state_load >= 0) ++loaded_;
        }
      }
      CheckPolicies(s, live);
      if (testing::Test::HasFatalFailure()) return;
      if (!live.scheduled) first.push_back(s.id);
      live.running = live.scheduled = true;
      ASSERT_LE(start + static_cast<std::size_t>(s.rows), live.tokens.size());
      for (int i = 0; i < s.rows; ++i, ++row) {
        ASSERT_EQ(step.plan.tokens[row], live.tokens[start + static_cast<std::size_t>(i)]);
      }
      live.computed = start + static_cast<std::size_t>(s.rows);
      if (live.computed == live.tokens.size()) samples.push_back(s.id);
    }
    ASSERT_EQ(step.first_scheduled, first);
    ASSERT_EQ(step.samples, samples);
    // The budget is used up before anything that runs is left unfinished.
    if (step.plan.tokens.size() < static_cast<std::size_t>(options_.max_batch_tokens)) {
      for (const auto& [id, live] : live_) {
        if (live.running) {
          ASSERT_EQ(live.computed, live.tokens.size()) << "rows left, yet " << id << " waits";
        }
      }
    }
    // The first in line that runs always moves.
    const Live* head = nullptr;
    std::uint64_t head_id = 0;
    for (const auto& [id, live] : live_) {
      if (live.running && (head == nullptr || live.rank < head->rank)) {
        head = &live;
        head_id = id;
      }
    }
    ASSERT_TRUE(std::any_of(step.plan.sequences.begin(), step.plan.sequences.end(),
                            [&](const StepSequence& s) { return s.id == head_id; }));
  }

  void Complete(const ScheduledStep& step) {
    std::vector<std::int32_t> tokens;
    for (const std::uint64_t id : step.samples) {
      tokens.push_back(Between(0, 3));
      live_.at(id).tokens.push_back(tokens.back());
    }
    scheduler_->Complete(tokens);
    twin_->Complete(tokens);
    for (const std::uint64_t id : step.samples) {
      if (live_.at(id).Done()) Remove(id);
    }
  }

  std::mt19937 random_;
  SchedulerOptions options_;
  std::unique_ptr<Scheduler> scheduler_, twin_;
  std::unique_ptr<PlanChecker> checker_;
  std::map<std::uint64_t, Live> live_;
  std::uint64_t next_id_ = 1;
  int preemptions_ = 0, reused_ = 0, loaded_ = 0, steps_ = 0, changes_ = 0;
};

TEST(SchedulerProperty, RandomTrafficKeepsEveryInvariant) {
  int preemptions = 0, reused = 0, loaded = 0, steps = 0, changes = 0;
  for (unsigned seed = 0; seed < 60; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    Traffic traffic(seed);
    traffic.Run(300);
    if (HasFailure()) return;
    preemptions += traffic.preemptions();
    reused += traffic.reused();
    loaded += traffic.loaded();
    steps += traffic.steps();
    changes += traffic.changes();
  }
  // The traffic must have reached what it is meant to test.
  EXPECT_GT(preemptions, 150);
  EXPECT_GT(reused, 300);
  EXPECT_GT(loaded, 50);  // snapshots of linear states
  EXPECT_GT(steps, 15000);
  EXPECT_GT(changes, 100);  // of sequences that had computed something
}

}  // namespace
}  // namespace metattn
