#include "tests/support/source_path.h"

namespace metattn::test {

std::string SourcePath(std::string_view path) {
  return std::string(METATTN_SOURCE_DIR "/").append(path);
}

}  // namespace metattn::test
