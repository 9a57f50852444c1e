// The services over real gRPC, with a fake engine behind them.
#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <atomic>
#include <thread>
#include <vector>

#include "rpc/wire.h"
#include "tests/rpc/service_fixture.h"

namespace metattn {
namespace {

struct Collected {
  absl::Status status;
  std::string text;
  std::vector<std::int32_t> tokens;
  v1::Finish finish;
};

Collected Collect(Client& client, const v1::GenerateRequest& request) {
  Collected all;
  all.status = client.Generate(request, [&](const v1::GenerateResponse& response) {
    all.text += response.text();
    for (const auto& token : response.tokens()) all.tokens.push_back(token.id());
    if (response.has_finish()) all.finish = response.finish();
    return true;
  });
  return all;
}

// A unary or first answer to bytes that no well-behaved client would send.
grpc::Status SendBytes(const std::string& address, const std::string& method,
                       const std::string& bytes) {
  auto channel = grpc::CreateChannel(address, grpc::InsecureChannelCredentials());
  grpc::GenericStub stub(channel);
  grpc::ClientContext context;
  grpc::CompletionQueue queue;
  const grpc::Slice slice(bytes);
  auto call = stub.PrepareUnaryCall(&context, method, grpc::ByteBuffer(&slice, 1), &queue);
  call->StartCall();
  grpc::ByteBuffer answer;
  grpc::Status status;
  call->Finish(&answer, &status, nullptr);
  void* tag = nullptr;
  bool ok = false;
  queue.Next(&tag, &ok);
  return status;
}

TEST(Service, GenerateStreamsTextAndEndsWithUsage) {
  TestServer server;
  server.Load();
  const Collected all = Collect(*server.client, TextRequest("hello", 20, 5));
  ASSERT_TRUE(all.status.ok()) << all.status;
  EXPECT_EQ(all.text, FakeOutput("hello", 5, 20));
  EXPECT_EQ(all.tokens.size(), 20u);
  EXPECT_EQ(all.finish.reason(), v1::FINISH_REASON_LENGTH);
  EXPECT_EQ(all.finish.usage().prompt_tokens(), 6);
  EXPECT_EQ(all.finish.usage().generated_tokens(), 20);
  EXPECT_EQ(all.finish.seed(), 5u);
}

TEST(Service, WhileLoadingEveryCallIsUnavailableAndHealthSaysSo) {
  TestServer server;
  EXPECT_EQ(*server.client->Health("", 5), "NOT_SERVING");
  const absl::Status status = Collect(*server.client, TextRequest("x", 1)).status;
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_NE(std::string(status.message()).find("loading"), std::string::npos);
  EXPECT_EQ(server.client->GetModel("").status().code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(server.client->Submit({}).status().code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(server.client->GetJob("x").status().code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(server.client->WatchJob({}, [](const auto&) { return true; }).code(),
            absl::StatusCode::kUnavailable);
  server.Load();
  for (const char* name : {"", "metattn.v1.InferenceService", "metattn.v1.JobService"}) {
    EXPECT_EQ(*server.client->Health(name, 5), "SERVING") << name;
  }
  EXPECT_EQ(server.client->Health("nobody", 5).status().code(), absl::StatusCode::kNotFound);
}

TEST(Service, RefusalsReachTheClientWithCodeAndField) {
  TestServer server;
  server.Load();
  v1::GenerateRequest request = TextRequest("x", 1);
  request.mutable_sampling()->set_temperature(-1);
  const absl::Status status = Collect(*server.client, request).status;
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(std::string(status.message()).rfind("sampling.temperature", 0), 0u) << status;
}

TEST(Service, InvalidUtf8IsInvalidArgumentNamingTheField) {
  TestServer server;
  server.Load();
  struct Case {
    const char* method;
    std::string bytes;
    const char* says;
  };
  const Case cases[] = {
      // GenerateRequest.text = "\xff\xfe"
      {"/metattn.v1.InferenceService/Generate", "\x12\x02\xff\xfe", "text: "},
      // GenerateRequest.chat.messages[0].content = "\xc3" (cut short)
      {"/metattn.v1.InferenceService/Generate", "\x22\x05\x0a\x03\x12\x01\xc3",
       "chat.messages.content: "},
      // GenerateRequest.sampling.stop = a surrogate
      {"/metattn.v1.InferenceService/Generate", "\x2a\x05\x52\x03\xed\xa0\x80", "sampling.stop: "},
      {"/metattn.v1.InferenceService/Tokenize", "\x12\x01\x80", "text: "},
      {"/metattn.v1.InferenceService/GetModel", "\x0a\x01\xff", "model: "},
      // SubmitJobRequest.request.text
      {"/metattn.v1.JobService/Submit", "\x0a\x04\x12\x02\xff\xfe", "request.text: "},
      {"/metattn.v1.JobService/Watch", "\x0a\x01\xff", "id: "},
      // A length that runs past the end: no message at all.
      {"/metattn.v1.InferenceService/Generate", "\x12\x7f\x41", "not a metattn.v1.GenerateRequest"},
      {"/metattn.v1.InferenceService/Detokenize", "\xff\xff\xff", "not a"},
  };
  for (const Case& c : cases) {
    const grpc::Status status = SendBytes(server.address(), c.method, c.bytes);
    EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT) << c.method << c.says;
    EXPECT_NE(status.error_message().find(c.says), std::string::npos) << status.error_message();
  }
  EXPECT_TRUE(Collect(*server.client, TextRequest("still here", 3)).status.ok());
}

TEST(Service, AnEmptyMessageIsARequestWithoutInput) {
  TestServer server;
  server.Load();
  const grpc::Status status =
      SendBytes(server.address(), "/metattn.v1.InferenceService/Generate", "");
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(status.error_message().rfind("input", 0), 0u);
}

TEST(Service, AMessageAboveTheLimitIsResourceExhausted) {
  TestServer server;
  server.Load();
  const absl::Status status =
      Collect(*server.client, TextRequest(std::string(2 << 20, 'x'), 1)).status;
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted) << status;
}

TEST(Service, AFullQueueIsResourceExhausted) {
  FakeEngine::Options options;
  options.max_live = 1;
  TestServer server(options);
  server.Load();
  server.engine.Pause(true);
  std::thread first([&] { Collect(*server.client, TextRequest("a", 2)); });
  ASSERT_TRUE(Eventually([&] { return server.engine.submitted == 1; }));
  EXPECT_EQ(Collect(*server.client, TextRequest("b", 1)).status.code(),
            absl::StatusCode::kResourceExhausted);
  server.engine.Pause(false);
  first.join();
}

TEST(Service, ADeadlineThatPassesDuringTheRunEndsIt) {
  TestServer server;
  server.Load();
  v1::GenerateRequest request = TextRequest("x", 4000);
  request.set_deadline_seconds(0.05);
  const Collected all = Collect(*server.client, request);
  EXPECT_EQ(all.status.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_EQ(all.finish.reason(), v1::FINISH_REASON_DEADLINE);  // usage came all the same
}

TEST(Service, AClientThatDisconnectsCancels) {
  TestServer server;
  server.Load();
  int seen = 0;
  const absl::Status status =
      server.client->Generate(TextRequest("x", 4000), [&](const auto&) { return ++seen < 3; });
  EXPECT_EQ(status.code(), absl::StatusCode::kCancelled);
  EXPECT_TRUE(Eventually([&] { return server.engine.cancelled == 1; }));
  EXPECT_TRUE(Eventually([&] { return server.engine.Snapshot().running == 0; }));
}

TEST(Service, AClientsOwnGrpcDeadlineReachesTheEngine) {
  TestServer server;
  server.Load();
  server.engine.Pause(true);
  auto channel = grpc::CreateChannel(server.address(), grpc::InsecureChannelCredentials());
  auto stub = v1::InferenceService::NewStub(channel);
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::milliseconds(100));
  auto reader = stub->Generate(&context, TextRequest("x", 10));
  v1::GenerateResponse response;
  EXPECT_FALSE(reader->Read(&response));
  EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
  EXPECT_TRUE(Eventually([&] { return server.engine.Snapshot().running == 0; }));
}

TEST(Service, SixtyFourStreamsAtOnceEachGetTheirOwnText) {
  FakeEngine::Options options;
  options.step = std::chrono::milliseconds(2);
  TestServer server(options);
  server.Load();
  std::atomic<int> right = 0;
  std::vector<std::thread> threads;
  for (int i = 0; i < 64; ++i) {
    threads.emplace_back([&, i] {
      const std::string prompt = "prompt " + std::to_string(i);
      const Collected all = Collect(*server.client, TextRequest(prompt, 100, i));
      if (all.status.ok() && all.text == FakeOutput(prompt, i, 100)) ++right;
    });
  }
  for (std::thread& t : threads) t.join();
  EXPECT_EQ(right, 64);
}

TEST(Service, OpenStreamsWithoutTokensCostNoProcessorTime) {
  TestServer server;
  server.Load();
  server.engine.Pause(true);
  std::vector<std::thread> threads;
  std::vector<CallHandle> handles(64);
  for (CallHandle& handle : handles) {
    threads.emplace_back([&] {
      (void)server.client->Generate(
          TextRequest("x", 10), [](const auto&) { return true; }, &handle);
    });
  }
  ASSERT_TRUE(Eventually([&] { return server.engine.submitted == 64; }));
  const auto cpu = [] {
    rusage usage = {};
    getrusage(RUSAGE_SELF, &usage);
    return static_cast<double>(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
           1e-6 * static_cast<double>(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec);
  };
  const double before = cpu();
  std::this_thread::sleep_for(std::chrono::seconds(1));
  EXPECT_LT(cpu() - before, 0.3);  // one busy thread would take a whole second
  for (CallHandle& handle : handles) handle.Cancel();
  for (std::thread& t : threads) t.join();
  EXPECT_TRUE(Eventually([&] { return server.engine.cancelled == 64; }));
}

TEST(Service, TokenizeDetokenizeAndGetModelAnswer) {
  TestServer server;
  server.Load();
  v1::TokenizeRequest tokenize;
  tokenize.set_text("ab");
  auto ids = server.client->Tokenize(tokenize);
  ASSERT_TRUE(ids.ok()) << ids.status();
  EXPECT_EQ(ids->ids_size(), 3);
  tokenize.set_add_special(false);
  EXPECT_EQ(server.client->Tokenize(tokenize)->ids_size(), 2);
  v1::DetokenizeRequest detokenize;
  detokenize.add_ids('o');
  detokenize.add_ids('k');
  EXPECT_EQ(server.client->Detokenize(detokenize)->text(), "ok");
  detokenize.add_ids(kFakeVocab);
  const auto bad = server.client->Detokenize(detokenize);
  EXPECT_EQ(bad.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(std::string(bad.status().message()).rfind("ids[2]", 0), 0u) << bad.status();
  auto model = server.client->GetModel("");
  ASSERT_TRUE(model.ok());
  EXPECT_EQ(model->name(), "fake");
  EXPECT_EQ(model->max_context(), 4096);
  EXPECT_EQ(model->chat_template(), "chatml");
  EXPECT_EQ(server.client->GetModel("other").status().code(), absl::StatusCode::kNotFound);
}

TEST(Service, DrainingRefusesNewWorkAndLetsRunningWorkEnd) {
  TestServer server;
  server.Load();
  Collected running;
  std::thread first([&] { running = Collect(*server.client, TextRequest("x", 200)); });
  ASSERT_TRUE(Eventually([&] { return server.engine.submitted == 1; }));
  server.gate.Close("the server is draining");
  const absl::Status status = Collect(*server.client, TextRequest("y", 1)).status;
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_NE(std::string(status.message()).find("draining"), std::string::npos);
  EXPECT_TRUE(server.engine.Drain(10));
  first.join();
  EXPECT_TRUE(running.status.ok()) << running.status;
  EXPECT_EQ(running.text.size(), 200u);
}

TEST(Service, ARequestThatADrainHasNoTimeForEndsUnavailable) {
  TestServer server;
  server.Load();
  Collected running;
  std::thread first([&] { running = Collect(*server.client, TextRequest("x", 4000)); });
  ASSERT_TRUE(Eventually([&] { return server.engine.submitted == 1; }));
  EXPECT_FALSE(server.engine.Drain(0.05));
  first.join();
  EXPECT_EQ(running.status.code(), absl::StatusCode::kUnavailable) << running.status;
  EXPECT_EQ(running.finish.reason(), v1::FINISH_REASON_CANCELLED);
  EXPECT_FALSE(running.text.empty());
}

TEST(Service, ASecondServerOnThePortFailsNamingTheFlag) {
  TestServer first;
  ServerOptions options;
  options.port = first.server->port();
  auto second = Server::Start(options, {});
  ASSERT_FALSE(second.ok());
  EXPECT_EQ(second.status().code(), absl::StatusCode::kFailedPrecondition);
  const std::string message(second.status().message());
  EXPECT_NE(message.find("--grpc-port"), std::string::npos) << message;
  EXPECT_NE(message.find(std::to_string(options.port)), std::string::npos) << message;
  options.host = "no.such.host.invalid";
  EXPECT_NE(std::string(Server::Start(options, {}).status().message()).find("--host"),
            std::string::npos);
}

TEST(Service, ReflectionListsWhatClientsMayCall) {
  TestServer server;
  // ServerReflectionRequest.list_services = ""
  auto channel = grpc::CreateChannel(server.address(), grpc::InsecureChannelCredentials());
  grpc::GenericStub stub(channel);
  grpc::ClientContext context;
  grpc::CompletionQueue queue;
  auto call = stub.PrepareCall(
      &context, "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", &queue);
  void* tag = nullptr;
  bool ok = false;
  call->StartCall(nullptr);
  queue.Next(&tag, &ok);
  const grpc::Slice slice(std::string("\x3a\x01*", 3));
  call->Write(grpc::ByteBuffer(&slice, 1), nullptr);
  queue.Next(&tag, &ok);
  grpc::ByteBuffer answer;
  call->Read(&answer, nullptr);
  ASSERT_TRUE(queue.Next(&tag, &ok) && ok);
  std::vector<grpc::Slice> slices;
  ASSERT_TRUE(answer.Dump(&slices).ok());
  std::string bytes;
  for (const grpc::Slice& s : slices) {
    bytes.append(reinterpret_cast<const char*>(s.begin()), s.size());
  }
  for (const char* name : {"metattn.v1.InferenceService", "metattn.v1.JobService",
                           "metattn.v1.AdminService", "grpc.health.v1.Health"}) {
    EXPECT_NE(bytes.find(name), std::string::npos) << name;
  }
  context.TryCancel();
  grpc::Status status;
  call->Finish(&status, nullptr);
  queue.Next(&tag, &ok);
}

TEST(Wire, Utf8IsCheckedToTheLetter) {
  for (const char* good : {"", "a", "\xc2\x80", "\xdf\xbf", "\xe0\xa0\x80", "\xed\x9f\xbf",
                           "\xee\x80\x80", "\xf0\x90\x80\x80", "\xf4\x8f\xbf\xbf"}) {
    EXPECT_TRUE(IsValidUtf8(good)) << good;
  }
  for (const char* bad : {"\x80", "\xc0\x80", "\xc1\xbf", "\xc2", "\xe0\x9f\xbf", "\xed\xa0\x80",
                          "\xf0\x8f\xbf\xbf", "\xf4\x90\x80\x80", "\xf5\x80\x80\x80", "\xe2\x82"}) {
    EXPECT_FALSE(IsValidUtf8(bad)) << bad;
  }
}

}  // namespace
}  // namespace metattn
