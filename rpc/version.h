// The version that programs, the server and its metrics report; CMakeLists.txt sets it.
#pragma once

namespace metattn {
inline constexpr char kVersion[] = METATTN_VERSION;
}  // namespace metattn
