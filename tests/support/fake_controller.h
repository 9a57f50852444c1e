// A controller that is nothing but its policy: for tests of what is decided before any tensor.
#pragma once

#include <string>
#include <string_view>

#include "engine/model/controller_file.h"

namespace metattn {

class FakeController final : public ControllerFile {
 public:
  FakeController() {
    spec_.name = "fake-controller";
    spec_.eta = 0.75f;
    spec_.cost_weight = 0.25f;
    spec_.cost_weight_levels = {0, 0.5f, 1, 2};
  }
  const ControllerSpec& spec() const override { return spec_; }
  const TensorInfo* Find(int, std::string_view) const override { return nullptr; }
  const std::string& digest() const override { return digest_; }

 private:
  ControllerSpec spec_;
  std::string digest_ = "fake";
};

}  // namespace metattn
