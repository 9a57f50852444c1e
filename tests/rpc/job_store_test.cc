#include "rpc/job_store.h"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <fstream>

namespace metattn {
namespace {

class JobStoreTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = (std::filesystem::temp_directory_path() / "job_store.XXXXXX").string();
    ASSERT_NE(mkdtemp(pattern.data()), nullptr);
    folder_ = pattern;
    path_ = folder_ + "/new/folder/jobs.sqlite";
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  std::unique_ptr<JobStore> Open() {
    auto store = JobStore::Open(path_);
    EXPECT_TRUE(store.ok()) << store.status();
    return store.ok() ? *std::move(store) : nullptr;
  }
  static StoredJob Job(const std::string& id, int priority = 0, std::int64_t created = 0) {
    StoredJob job;
    job.id = id;
    job.request = std::string("bytes\0with zero", 15);
    job.priority = priority;
    job.seed = 0xfedcba9876543210u;  // does not fit a signed integer
    job.created_us = created;
    return job;
  }

  std::string folder_, path_;
};

TEST_F(JobStoreTest, AJobComesBackAsItWasStored) {
  auto store = Open();
  StoredJob job = Job("a", 3, 12345);
  job.idempotency_key = "key";
  ASSERT_TRUE(store->Insert(job).ok());
  store.reset();
  store = Open();
  auto back = store->Get("a");
  ASSERT_TRUE(back.ok()) << back.status();
  EXPECT_EQ(back->request, job.request);
  EXPECT_EQ(back->seed, job.seed);
  EXPECT_EQ(back->priority, 3);
  EXPECT_EQ(back->created_us, 12345);
  EXPECT_EQ(back->idempotency_key, "key");
  EXPECT_EQ(back->status, JobStatus::kQueued);
  auto by_key = store->FindByKey("key");
  ASSERT_TRUE(by_key.ok());
  ASSERT_TRUE(by_key->has_value());
  EXPECT_EQ((*by_key)->id, "a");
  EXPECT_FALSE(store->FindByKey("other")->has_value());
}

TEST_F(JobStoreTest, AnIdOrKeyThatIsTakenIsRefused) {
  auto store = Open();
  StoredJob job = Job("a");
  job.idempotency_key = "key";
  ASSERT_TRUE(store->Insert(job).ok());
  EXPECT_EQ(store->Insert(job).code(), absl::StatusCode::kAlreadyExists);
  job.id = "b";
  EXPECT_EQ(store->Insert(job).code(), absl::StatusCode::kAlreadyExists);
  job.idempotency_key = "";
  EXPECT_TRUE(store->Insert(job).ok());
  job.id = "c";  // no key at all is never taken
  EXPECT_TRUE(store->Insert(job).ok());
}

TEST_F(JobStoreTest, AnUnknownJobIsNotFound) {
  EXPECT_EQ(Open()->Get("nobody").status().code(), absl::StatusCode::kNotFound);
}

TEST_F(JobStoreTest, UnfinishedJobsComeByPriorityThenAge) {
  auto store = Open();
  ASSERT_TRUE(store->Insert(Job("late", 0, 200)).ok());
  ASSERT_TRUE(store->Insert(Job("early", 0, 100)).ok());
  ASSERT_TRUE(store->Insert(Job("urgent", -1, 300)).ok());
  ASSERT_TRUE(store->Insert(Job("done", -9, 1)).ok());
  ASSERT_TRUE(store->SetStatus("late", JobStatus::kRunning, 2).ok());
  StoredJob done = Job("done");
  done.status = JobStatus::kSucceeded;
  done.finish = "finish";
  done.ended_us = 5;
  ASSERT_TRUE(store->Append({}, {&done, 1}).ok());
  auto jobs = store->Unfinished();
  ASSERT_TRUE(jobs.ok());
  ASSERT_EQ(jobs->size(), 3u);
  EXPECT_EQ((*jobs)[0].id, "urgent");
  EXPECT_EQ((*jobs)[1].id, "early");
  EXPECT_EQ((*jobs)[2].id, "late");
  EXPECT_EQ((*jobs)[2].attempts, 2);
  EXPECT_EQ(store->Get("done")->finish, "finish");
}

TEST_F(JobStoreTest, OutputIsReadFromATokenOnAndAfterAChunk) {
  auto store = Open();
  ASSERT_TRUE(store->Insert(Job("a")).ok());
  const std::vector<JobOutput> outputs = {{"a", {-1, 0, {1, 2}, "one"}},
                                          {"a", {-1, 2, {3}, "two"}},
                                          {"a", {-1, 3, {4, 5}, "three"}},
                                          {"a", {-1, 5, {}, "held back"}}};
  ASSERT_TRUE(store->Append(outputs, {}).ok());
  auto all = store->Read("a", 0, -1, -1);
  ASSERT_TRUE(all.ok());
  ASSERT_EQ(all->size(), 4u);
  EXPECT_EQ((*all)[2].tokens, (std::vector<std::int32_t>{4, 5}));
  EXPECT_EQ((*all)[3].text, "held back");
  EXPECT_EQ(store->Read("a", 2, -1, -1)->front().text, "two");
  EXPECT_EQ(store->Read("a", 4, -1, -1)->front().text, "three");  // holds token 4
  EXPECT_EQ(store->Read("a", 5, -1, -1)->size(), 1u);
  EXPECT_EQ(store->Read("a", 0, (*all)[1].serial, -1)->size(), 2u);
  EXPECT_EQ(store->Read("a", 0, -1, 3)->size(), 3u);
  EXPECT_TRUE(store->Read("b", 0, -1, -1)->empty());
}

TEST_F(JobStoreTest, ReplacedOutputLeavesNothingOfTheOld) {
  auto store = Open();
  const std::vector<JobOutput> outputs = {{"a", {-1, 0, {1, 2}, "old"}}, {"b", {-1, 0, {9}, "b"}}};
  ASSERT_TRUE(store->Append(outputs, {}).ok());
  const std::vector<OutputChunk> fresh = {{-1, 0, {7}, "new"}};
  ASSERT_TRUE(store->ReplaceOutput("a", fresh).ok());
  auto chunks = store->Read("a", 0, -1, -1);
  ASSERT_EQ(chunks->size(), 1u);
  EXPECT_EQ((*chunks)[0].text, "new");
  EXPECT_EQ(store->Read("b", 0, -1, -1)->size(), 1u);
}

TEST_F(JobStoreTest, ASecondServerOnTheSameFileIsRefusedByFlag) {
  auto store = Open();
  auto second = JobStore::Open(path_);
  ASSERT_FALSE(second.ok());
  EXPECT_EQ(second.status().code(), absl::StatusCode::kFailedPrecondition) << second.status();
  EXPECT_NE(std::string(second.status().message()).find("--jobs-db"), std::string::npos);
  store.reset();
  EXPECT_TRUE(JobStore::Open(path_).ok());
}

TEST_F(JobStoreTest, AFileThatIsNoStoreIsAnErrorThatNamesIt) {
  const std::string path = folder_ + "/text";
  std::ofstream(path) << std::string(5000, 'x');
  auto store = JobStore::Open(path);
  ASSERT_FALSE(store.ok());
  EXPECT_NE(std::string(store.status().message()).find(path), std::string::npos);
  EXPECT_FALSE(JobStore::Open(folder_).ok());
  EXPECT_FALSE(JobStore::Open("/proc/no/such/jobs.sqlite").ok());
}

TEST_F(JobStoreTest, WhatWasStoredSurvivesAKill) {
  int ready[2];
  ASSERT_EQ(pipe(ready), 0);
  const pid_t child = fork();
  if (child == 0) {  // stores and hangs, without closing anything
    auto store = JobStore::Open(path_);
    const StoredJob job = Job("a");
    const std::vector<JobOutput> output = {{"a", {-1, 0, {1, 2, 3}, "text"}}};
    const bool ok = store.ok() && (*store)->Insert(job).ok() && (*store)->Append(output, {}).ok();
    const char byte = ok ? 'y' : 'n';
    if (write(ready[1], &byte, 1) != 1) _exit(1);
    for (;;) pause();
  }
  char byte = 0;
  ASSERT_EQ(read(ready[0], &byte, 1), 1);
  EXPECT_EQ(byte, 'y');
  kill(child, SIGKILL);
  waitpid(child, nullptr, 0);
  close(ready[0]);
  close(ready[1]);
  auto store = Open();
  ASSERT_NE(store, nullptr);
  EXPECT_TRUE(store->Get("a").ok());
  EXPECT_EQ(store->Read("a", 0, -1, -1)->front().tokens, (std::vector<std::int32_t>{1, 2, 3}));
}

}  // namespace
}  // namespace metattn
