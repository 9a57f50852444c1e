// A whole server in this process: gRPC on a free port, fake engine, store in memory or in a file.
#pragma once

#include <gtest/gtest.h>

#include <functional>
#include <memory>
#include <string>
#include <thread>

#include "rpc/admin_service.h"
#include "rpc/client.h"
#include "rpc/inference_service.h"
#include "rpc/job_service.h"
#include "rpc/server.h"
#include "tests/rpc/fake_engine.h"

namespace metattn {

// Polls until `condition`; false after ten seconds.
inline bool Eventually(const std::function<bool()>& condition, double seconds = 10) {
  const auto until = std::chrono::steady_clock::now() + std::chrono::duration<double>(seconds);
  while (!condition()) {
    if (std::chrono::steady_clock::now() > until) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
  return true;
}

class TestServer {
 public:
  explicit TestServer(const FakeEngine::Options& options = FakeEngine::Options(),
                      CallObserver* observer = nullptr, const std::string& jobs = ":memory:")
      : engine(options),
        inference(&gate, observer),
        jobs_service(&gate, observer),
        admin(&gate, observer) {
    ServerOptions server_options;
    server_options.port = 0;
    server_options.max_message_bytes = 1 << 20;
    auto started = Server::Start(server_options, {&inference, &jobs_service, &admin});
    EXPECT_TRUE(started.ok()) << started.status();
    server = *std::move(started);
    auto opened = JobStore::Open(jobs);
    EXPECT_TRUE(opened.ok()) << opened.status();
    store = *std::move(opened);
    client = Client::Connect(address());
  }
  ~TestServer() {
    server->Shutdown(0.2);
    jobs_service.SetRunner(nullptr);
    runner.reset();
  }

  // As after loading.
  void Load(const JobRunnerOptions& options = JobRunnerOptions()) {
    served = FakeServed(&engine);
    auto created = JobRunner::Create(options, store.get(), served);
    ASSERT_TRUE(created.ok()) << created.status();
    runner = *std::move(created);
    jobs_service.SetRunner(runner);
    gate.Open(served);
    server->SetServing(true);
  }
  std::string address() const { return "127.0.0.1:" + std::to_string(server->port()); }

  FakeEngine engine;
  ServingGate gate;
  std::shared_ptr<ServedModel> served;
  InferenceService inference;
  JobService jobs_service;
  AdminService admin;
  std::unique_ptr<JobStore> store;
  std::shared_ptr<JobRunner> runner;
  std::unique_ptr<Server> server;
  std::unique_ptr<Client> client;
};

inline v1::GenerateRequest TextRequest(const std::string& text, int max_tokens,
                                       std::uint64_t seed = 1) {
  v1::GenerateRequest request;
  request.set_text(text);
  request.mutable_sampling()->set_max_tokens(max_tokens);
  request.mutable_sampling()->set_seed(seed);
  return request;
}

}  // namespace metattn
