// Files of the source tree that tests read. Only source_path.cc is told where the tree is: with the
// folder in every test's flags no compiler cache would serve a second clone.
#pragma once

#include <string>
#include <string_view>

namespace metattn::test {

// `path` from the root of the repository, made absolute.
std::string SourcePath(std::string_view path);

}  // namespace metattn::test
