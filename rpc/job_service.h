// metattn.v1.JobService on gRPC's callback interface. Watch streams what is committed to the store,
// never more.
//
// SetRunner is called once after loading and once with null before the runner goes; until then and
// after it calls end with UNAVAILABLE. Borrows the observer (may be null). Thread safe. Unary calls
// take a few short transactions (Submit: one fsync).
#pragma once

#include <memory>
#include <mutex>
#include <string>

#include "metattn/v1/jobs.grpc.pb.h"
#include "rpc/call.h"
#include "rpc/job_runner.h"
#include "rpc/served_model.h"

namespace metattn {

using RawJobService = v1::JobService::WithRawCallbackMethod_Submit<
    v1::JobService::WithRawCallbackMethod_Get<v1::JobService::WithRawCallbackMethod_Watch<
        v1::JobService::WithRawCallbackMethod_Cancel<v1::JobService::Service>>>>;

class JobService final : public RawJobService {
 public:
  JobService(const ServingGate* gate, CallObserver* observer) : gate_(gate), observer_(observer) {}

  void SetRunner(std::shared_ptr<JobRunner> runner);

  grpc::ServerUnaryReactor* Submit(grpc::CallbackServerContext* context, const grpc::ByteBuffer* in,
                                   grpc::ByteBuffer* out) override;
  grpc::ServerUnaryReactor* Get(grpc::CallbackServerContext* context, const grpc::ByteBuffer* in,
                                grpc::ByteBuffer* out) override;
  grpc::ServerUnaryReactor* Cancel(grpc::CallbackServerContext* context, const grpc::ByteBuffer* in,
                                   grpc::ByteBuffer* out) override;
  grpc::ServerWriteReactor<grpc::ByteBuffer>* Watch(grpc::CallbackServerContext* context,
                                                    const grpc::ByteBuffer* request) override;

 private:
  absl::StatusOr<std::shared_ptr<JobRunner>> Runner() const;

  const ServingGate* gate_;
  CallObserver* observer_;
  mutable std::mutex mutex_;
  std::shared_ptr<JobRunner> runner_;
};

}  // namespace metattn
