// What the services serve, and the gate that tells them whether they may.
//
// ServedModel is plain data set once after loading; tokenizer and engine are borrowed and outlive
// the server. ServingGate is thread safe; it starts closed (loading), is opened once and may be
// closed for ever (draining, failed); Get returns UNAVAILABLE with the reason while closed.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/engine.h"
#include "engine/model/chat_template.h"
#include "engine/model/config.h"
#include "engine/model/controller_file.h"
#include "engine/model/tokenizer.h"
#include "engine/routing_policy.h"

namespace metattn {

using ChatFunction =
    std::function<absl::StatusOr<std::vector<std::int32_t>>(std::span<const ChatMessage>)>;

struct ServedModel {
  std::string name;
  ModelConfig config;
  const Tokenizer* tokenizer = nullptr;
  std::string chat_template;  // its name; empty: none, chat input is refused
  ChatFunction apply_chat;    // set exactly when chat_template is not empty
  std::string chat_error;     // why there is none
  Engine* engine = nullptr;
  int max_context = 0;  // tokens of prompt and output together
  int ranks = 1;
  std::function<RoutingPolicy()> routing;      // the policy in force; thread safe
  const ControllerFile* controller = nullptr;  // null: there is none
};

class ServingGate {
 public:
  void Open(std::shared_ptr<const ServedModel> model) {
    std::lock_guard lock(mutex_);
    model_ = std::move(model);
  }
  // What is already running goes on; reason is what new callers read.
  void Close(std::string reason) {
    std::lock_guard lock(mutex_);
    model_ = nullptr;
    reason_ = std::move(reason);
  }
  absl::StatusOr<std::shared_ptr<const ServedModel>> Get() const {
    std::lock_guard lock(mutex_);
    if (model_ == nullptr) return absl::UnavailableError(reason_);
    return model_;
  }

 private:
  mutable std::mutex mutex_;
  std::shared_ptr<const ServedModel> model_;
  std::string reason_ = "the model is still loading; ask grpc.health.v1 or try again";
};

}  // namespace metattn
