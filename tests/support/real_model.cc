#include "tests/support/real_model.h"

#include <cstdlib>
#include <filesystem>
#include <system_error>

namespace metattn::test {
namespace {

std::string Environment(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

}  // namespace

std::string RealModelPath() {
  if (std::string path = Environment("METATTN_TEST_MODEL"); !path.empty()) return path;
  std::filesystem::path cache = Environment("METATTN_CACHE");
  if (cache.empty()) cache = std::filesystem::path(Environment("HOME")) / ".cache" / "metattn";
  const std::filesystem::path path = cache / "SmolLM2-135M-Instruct.Q4_1.gguf";
  std::error_code ignored;
  return std::filesystem::exists(path, ignored) ? path.string() : "";
}

}  // namespace metattn::test
