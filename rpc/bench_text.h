// English text that `metattn bench` reads unless told otherwise: the project's licence and the
// documents and headers of its tree, put together when CMake configures. UTF-8.
#pragma once

#include <string_view>

namespace metattn {
extern const std::string_view kBenchText;
}  // namespace metattn
