// Seeds of tokenizer_fuzz: a very small tokenizer.json of each kind, and text.
#pragma once

#include <string>

namespace metattn::test {

void MakeTokenizerSeeds(const std::string& directory);

}  // namespace metattn::test
