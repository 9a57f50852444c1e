// JobService and JobRunner over real gRPC and a real store, with a fake engine.
#include <gtest/gtest.h>

#include <atomic>
#include <cstdlib>
#include <filesystem>
#include <set>

#include "tests/rpc/service_fixture.h"

namespace metattn {
namespace {

v1::SubmitJobRequest SubmitRequest(const std::string& text, int max_tokens, std::uint64_t seed,
                                   const std::string& key = "") {
  v1::SubmitJobRequest request;
  *request.mutable_request() = TextRequest(text, max_tokens, seed);
  request.set_idempotency_key(key);
  return request;
}

bool HasState(TestServer& server, const std::string& id, v1::JobState state) {
  auto job = server.client->GetJob(id);
  return job.ok() && job->state() == state;
}

class JobsFileTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = (std::filesystem::temp_directory_path() / "jobs.XXXXXX").string();
    ASSERT_NE(mkdtemp(pattern.data()), nullptr);
    folder_ = pattern;
    path_ = folder_ + "/jobs.sqlite";
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }
  std::string folder_, path_;
};

// A store that counts the tokens a job has at the moment it is queued again.
class RequeueWatch final : public JobStore {
 public:
  explicit RequeueWatch(std::unique_ptr<JobStore> store) : store_(std::move(store)) {}

  std::atomic<int> tokens_at_requeue = -1;

  absl::Status Insert(const StoredJob& job) override { return store_->Insert(job); }
  absl::StatusOr<StoredJob> Get(const std::string& id) const override { return store_->Get(id); }
  absl::StatusOr<std::optional<StoredJob>> FindByKey(const std::string& key) const override {
    return store_->FindByKey(key);
  }
  absl::StatusOr<std::vector<StoredJob>> Unfinished() const override {
    return store_->Unfinished();
  }
  absl::Status SetStatus(const std::string& id, JobStatus status, int attempts) override {
    if (status == JobStatus::kQueued) {
      int tokens = 0;
      auto chunks = store_->Read(id, 0, -1, -1);
      EXPECT_TRUE(chunks.ok()) << chunks.status();
      for (const OutputChunk& chunk : *chunks) tokens += static_cast<int>(chunk.tokens.size());
      tokens_at_requeue = tokens;
    }
    return store_->SetStatus(id, status, attempts);
  }
  absl::Status Append(std::span<const JobOutput> outputs,
                      std::span<const StoredJob> ended) override {
    return store_->Append(outputs, ended);
  }
  absl::Status ReplaceOutput(const std::string& id, std::span<const OutputChunk> chunks) override {
    return store_->ReplaceOutput(id, chunks);
  }
  absl::StatusOr<std::vector<OutputChunk>> Read(const std::string& id, std::int64_t offset,
                                                std::int64_t after, int limit) const override {
    return store_->Read(id, offset, after, limit);
  }

 private:
  const std::unique_ptr<JobStore> store_;
};

TEST(Jobs, ASubmittedJobRunsToItsEndAndIsKept) {
  TestServer server;
  server.Load();
  auto job = server.client->Submit(SubmitRequest("hello", 30, 4));
  ASSERT_TRUE(job.ok()) << job.status();
  EXPECT_FALSE(job->id().empty());
  EXPECT_GT(job->created().seconds(), 1600000000);
  ASSERT_TRUE(Eventually([&] { return HasState(server, job->id(), v1::JOB_STATE_SUCCEEDED); }));
  auto done = server.client->GetJob(job->id());
  EXPECT_EQ(done->text(), FakeOutput("hello", 4, 30));
  EXPECT_EQ(done->token_ids_size(), 30);
  EXPECT_EQ(done->finish().reason(), v1::FINISH_REASON_LENGTH);
  EXPECT_EQ(done->finish().usage().generated_tokens(), 30);
  EXPECT_EQ(done->request().text(), "hello");
  EXPECT_EQ(done->request().model(), "fake");
  EXPECT_TRUE(done->has_ended());
}

TEST(Jobs, WatchDeliversEverythingOnceFromAnyOffset) {
  FakeEngine::Options options;
  options.step = std::chrono::milliseconds(1);
  TestServer server(options);
  server.Load();
  auto job = server.client->Submit(SubmitRequest("watch", 200, 1));
  ASSERT_TRUE(job.ok());
  const std::string whole = FakeOutput("watch", 1, 200);
  v1::WatchJobRequest request;
  request.set_id(job->id());
  std::string text;
  int tokens = 0, messages = 0;
  v1::Job last;
  const auto collect = [&](const v1::WatchJobResponse& response) {
    ++messages;
    text += response.text();
    tokens += response.token_ids_size();
    EXPECT_EQ(response.offset(), request.offset() + tokens);
    if (response.has_job()) last = response.job();
    return true;
  };
  ASSERT_TRUE(server.client->WatchJob(request, collect).ok());
  EXPECT_EQ(text, whole);
  EXPECT_EQ(tokens, 200);
  EXPECT_GT(messages, 1);  // it was live
  EXPECT_EQ(last.state(), v1::JOB_STATE_SUCCEEDED);
  EXPECT_EQ(last.text(), whole);
  for (const int offset : {1, 77, 200}) {  // after the end
    request.set_offset(offset);
    text.clear();
    tokens = 0;
    last.Clear();
    ASSERT_TRUE(server.client->WatchJob(request, collect).ok());
    EXPECT_EQ(text, whole.substr(offset));
    EXPECT_EQ(tokens, 200 - offset);
    EXPECT_EQ(last.state(), v1::JOB_STATE_SUCCEEDED);
  }
}

TEST(Jobs, ManyWatchersOfOneJobSeeTheSame) {
  TestServer server;
  server.Load();
  auto job = server.client->Submit(SubmitRequest("many", 150, 3));
  ASSERT_TRUE(job.ok());
  std::atomic<int> right = 0;
  std::vector<std::thread> threads;
  for (int i = 0; i < 16; ++i) {
    threads.emplace_back([&] {
      v1::WatchJobRequest request;
      request.set_id(job->id());
      std::string text;
      const auto status = server.client->WatchJob(request, [&](const auto& response) {
        text += response.text();
        return true;
      });
      if (status.ok() && text == FakeOutput("many", 3, 150)) ++right;
    });
  }
  for (std::thread& t : threads) t.join();
  EXPECT_EQ(right, 16);
}

TEST(Jobs, AWatcherThatLeavesDoesNotEndTheJob) {
  TestServer server;
  server.Load();
  auto job = server.client->Submit(SubmitRequest("stay", 300, 2));
  v1::WatchJobRequest request;
  request.set_id(job->id());
  EXPECT_EQ(server.client->WatchJob(request, [](const auto&) { return false; }).code(),
            absl::StatusCode::kCancelled);
  EXPECT_TRUE(Eventually([&] { return HasState(server, job->id(), v1::JOB_STATE_SUCCEEDED); }));
}

TEST(Jobs, TheSameKeyGivesTheSameJobAndAnotherRequestIsRefused) {
  TestServer server;
  server.Load();
  auto first = server.client->Submit(SubmitRequest("a", 3, 1, "key"));
  auto again = server.client->Submit(SubmitRequest("a", 3, 1, "key"));
  ASSERT_TRUE(first.ok() && again.ok());
  EXPECT_EQ(first->id(), again->id());
  auto other = server.client->Submit(SubmitRequest("b", 3, 1, "key"));
  EXPECT_EQ(other.status().code(), absl::StatusCode::kAlreadyExists);
  EXPECT_EQ(std::string(other.status().message()).rfind("idempotency_key", 0), 0u);
  EXPECT_NE(server.client->Submit(SubmitRequest("a", 3, 1))->id(), first->id());
  EXPECT_TRUE(Eventually([&] { return server.engine.submitted == 2; }));
}

TEST(Jobs, ConcurrentSubmitsWithOneKeyMakeOneJob) {
  TestServer server;
  server.Load();
  std::mutex mutex;
  std::set<std::string> ids;
  std::vector<std::thread> threads;
  for (int i = 0; i < 8; ++i) {
    threads.emplace_back([&] {
      auto job = server.client->Submit(SubmitRequest("a", 3, 1, "same"));
      std::lock_guard lock(mutex);
      ids.insert(job.ok() ? job->id() : job.status().ToString());
    });
  }
  for (std::thread& t : threads) t.join();
  EXPECT_EQ(ids.size(), 1u);
}

TEST(Jobs, RefusalsOfTheJobServiceNameTheirField) {
  TestServer server;
  server.Load();
  const auto expect = [](const absl::Status& status, absl::StatusCode code, const char* field) {
    EXPECT_EQ(status.code(), code) << status;
    EXPECT_EQ(std::string(status.message()).rfind(field, 0), 0u) << status;
  };
  const auto any = [](const auto&) { return true; };
  expect(server.client->Submit({}).status(), absl::StatusCode::kInvalidArgument, "request");
  auto bad = SubmitRequest("x", 0, 1);
  expect(server.client->Submit(bad).status(), absl::StatusCode::kInvalidArgument,
         "request.sampling.max_tokens");
  expect(server.client->Submit(SubmitRequest("x", 1, 1, std::string(129, 'k'))).status(),
         absl::StatusCode::kInvalidArgument, "idempotency_key");
  expect(server.client->GetJob("nobody").status(), absl::StatusCode::kNotFound, "id");
  expect(server.client->GetJob("").status(), absl::StatusCode::kInvalidArgument, "id");
  expect(server.client->CancelJob("nobody").status(), absl::StatusCode::kNotFound, "id");
  v1::WatchJobRequest watch;
  watch.set_id("nobody");
  expect(server.client->WatchJob(watch, any), absl::StatusCode::kNotFound, "id");
  auto job = server.client->Submit(SubmitRequest("x", 2, 1));
  watch.set_id(job->id());
  watch.set_offset(-1);
  expect(server.client->WatchJob(watch, any), absl::StatusCode::kInvalidArgument, "offset");
  watch.set_offset(3);
  expect(server.client->WatchJob(watch, any), absl::StatusCode::kOutOfRange, "offset");
}

TEST(Jobs, TooManyUnfinishedJobsAreRefused) {
  TestServer server;
  JobRunnerOptions options;
  options.max_waiting = 2;
  server.Load(options);
  server.engine.Pause(true);
  EXPECT_TRUE(server.client->Submit(SubmitRequest("a", 1, 1)).ok());
  EXPECT_TRUE(server.client->Submit(SubmitRequest("b", 1, 1)).ok());
  auto third = server.client->Submit(SubmitRequest("c", 1, 1));
  EXPECT_EQ(third.status().code(), absl::StatusCode::kResourceExhausted) << third.status();
  server.engine.Pause(false);
  EXPECT_TRUE(Eventually([&] { return server.client->Submit(SubmitRequest("c", 1, 1)).ok(); }));
}

TEST(Jobs, CancelEndsARunningJobAndOneInLine) {
  TestServer server;
  JobRunnerOptions options;
  options.max_in_engine = 1;
  server.Load(options);
  server.engine.Pause(true);
  auto running = server.client->Submit(SubmitRequest("a", 4000, 1));
  auto waiting = server.client->Submit(SubmitRequest("b", 4000, 1));
  ASSERT_TRUE(Eventually([&] { return HasState(server, running->id(), v1::JOB_STATE_RUNNING); }));
  EXPECT_TRUE(HasState(server, waiting->id(), v1::JOB_STATE_QUEUED));
  for (const auto& job : {waiting, running}) {
    ASSERT_TRUE(server.client->CancelJob(job->id()).ok());
    EXPECT_TRUE(Eventually([&] { return HasState(server, job->id(), v1::JOB_STATE_CANCELLED); }));
    EXPECT_EQ(server.client->CancelJob(job->id())->state(), v1::JOB_STATE_CANCELLED);
  }
  EXPECT_EQ(server.engine.submitted, 1);
}

TEST(Jobs, AFullEngineQueueOnlyDelaysAJob) {
  FakeEngine::Options options;
  options.max_live = 1;
  TestServer server(options);
  server.Load();
  server.engine.Pause(true);
  server.engine.queued_override = 1;
  auto first = server.client->Submit(SubmitRequest("a", 5, 1));
  auto second = server.client->Submit(SubmitRequest("b", 5, 1));
  ASSERT_TRUE(Eventually([&] { return server.engine.submitted == 1; }));
  server.engine.Pause(false);
  for (const auto& job : {first, second}) {
    EXPECT_TRUE(Eventually([&] { return HasState(server, job->id(), v1::JOB_STATE_SUCCEEDED); }));
  }
}

TEST(Jobs, AJobPastItsDeadlineFailsAndSaysWhy) {
  TestServer server;
  server.Load();
  auto request = SubmitRequest("a", 4000, 1);
  request.mutable_request()->set_deadline_seconds(0.05);
  auto job = server.client->Submit(request);
  ASSERT_TRUE(Eventually([&] { return HasState(server, job->id(), v1::JOB_STATE_FAILED); }));
  EXPECT_NE(server.client->GetJob(job->id())->error().find("DEADLINE_EXCEEDED"), std::string::npos);
}

// The second server takes the store up where the first one's end, whatever it was, left it.
TEST_F(JobsFileTest, AfterARestartUnfinishedJobsFinishWithTheSameText) {
  std::string id, queued;
  int before = 0;
  {
    FakeEngine::Options options;
    options.step = std::chrono::milliseconds(5);
    TestServer first(options, nullptr, path_);
    auto watch = std::make_unique<RequeueWatch>(std::move(first.store));
    const std::atomic<int>& at_requeue = watch->tokens_at_requeue;
    first.store = std::move(watch);
    JobRunnerOptions jobs;
    jobs.max_in_engine = 1;
    first.Load(jobs);
    auto request = SubmitRequest("again", 120, 1);
    request.mutable_request()->mutable_sampling()->clear_seed();  // the server draws one
    id = first.client->Submit(request)->id();
    queued = first.client->Submit(SubmitRequest("next", 10, 6))->id();
    ASSERT_TRUE(Eventually([&] { return first.client->GetJob(id)->token_ids_size() >= 10; }));
    // What a drain that runs out of time does.
    first.runner->Drain();
    EXPECT_FALSE(first.engine.Drain(0));
    ASSERT_TRUE(Eventually([&] { return HasState(first, id, v1::JOB_STATE_QUEUED); }));
    before = first.client->GetJob(id)->token_ids_size();
    EXPECT_EQ(at_requeue, before);  // a job that is queued again shows all it has
    EXPECT_EQ(first.client->Submit(SubmitRequest("late", 1, 1)).status().code(),
              absl::StatusCode::kUnavailable);
  }
  TestServer second(FakeEngine::Options(), nullptr, path_);
  auto stored = second.store->Get(id);
  ASSERT_TRUE(stored.ok());
  const std::string whole = FakeOutput("again", stored->seed, 120);
  auto chunks = second.store->Read(id, 0, -1, -1);
  std::string prefix;
  for (const auto& chunk : *chunks) prefix += chunk.text;
  EXPECT_EQ(prefix, whole.substr(0, before));
  second.Load();
  for (const std::string& job : {id, queued}) {
    ASSERT_TRUE(Eventually([&] { return HasState(second, job, v1::JOB_STATE_SUCCEEDED); }));
  }
  EXPECT_EQ(second.client->GetJob(id)->text(), whole);
  EXPECT_EQ(second.client->GetJob(id)->token_ids_size(), 120);
  EXPECT_EQ(second.client->GetJob(queued)->text(), FakeOutput("next", 6, 10));
}

TEST_F(JobsFileTest, AJobWhoseRunDiffersAfterARestartIsReplacedAsAWhole) {
  std::string id;
  {
    TestServer first(FakeEngine::Options(), nullptr, path_);
    StoredJob job;
    job.id = id = "job-1";
    v1::GenerateRequest request = TextRequest("differs", 20, 5);
    request.set_model("fake");
    job.request = request.SerializeAsString();
    job.seed = 5;
    ASSERT_TRUE(first.store->Insert(job).ok());
    const std::vector<JobOutput> output = {{id, {-1, 0, {'!', '?'}, "!?"}}};
    ASSERT_TRUE(first.store->Append(output, {}).ok());
  }
  TestServer second(FakeEngine::Options(), nullptr, path_);
  second.Load();
  ASSERT_TRUE(Eventually([&] { return HasState(second, id, v1::JOB_STATE_SUCCEEDED); }));
  EXPECT_EQ(second.client->GetJob(id)->text(), FakeOutput("differs", 5, 20));
  EXPECT_EQ(second.client->GetJob(id)->token_ids_size(), 20);
}

TEST_F(JobsFileTest, AStepThatFailsLeavesTheJobForTheNextStartButNotForEver) {
  std::string id;
  for (int start = 0; start < JobRunnerOptions::kMaxAttempts; ++start) {
    TestServer server(FakeEngine::Options(), nullptr, path_);
    server.engine.fail_after = 5;
    server.Load();
    if (start == 0) id = server.client->Submit(SubmitRequest("poison", 50, 1))->id();
    ASSERT_TRUE(
        Eventually([&] { return server.runner->running() == 0 && server.engine.submitted == 1; }));
    EXPECT_TRUE(HasState(server, id, v1::JOB_STATE_RUNNING));
  }
  TestServer last(FakeEngine::Options(), nullptr, path_);
  last.Load();
  EXPECT_TRUE(HasState(last, id, v1::JOB_STATE_FAILED));
  EXPECT_NE(last.client->GetJob(id)->error().find("3 times"), std::string::npos);
  EXPECT_EQ(last.engine.submitted, 0);
}

TEST_F(JobsFileTest, AJobForAModelThatIsNotServedAnyMoreFails) {
  {
    TestServer first(FakeEngine::Options(), nullptr, path_);
    StoredJob job;
    job.id = "job-1";
    v1::GenerateRequest request = TextRequest("x", 5);
    request.set_model("older");
    job.request = request.SerializeAsString();
    ASSERT_TRUE(first.store->Insert(job).ok());
    job.id = "job-2";
    job.request = "\xff\xff";  // damaged
    ASSERT_TRUE(first.store->Insert(job).ok());
  }
  TestServer second(FakeEngine::Options(), nullptr, path_);
  second.Load();
  EXPECT_TRUE(HasState(second, "job-1", v1::JOB_STATE_FAILED));
  EXPECT_NE(second.client->GetJob("job-1")->error().find("older"), std::string::npos);
  EXPECT_EQ(second.client->GetJob("job-2").status().code(), absl::StatusCode::kDataLoss);
}

}  // namespace
}  // namespace metattn
