#include "tests/support/decision_log.h"

#include <gtest/gtest.h>

#include <array>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>

namespace metattn::test {
namespace {

struct LogFile {
  std::array<std::int32_t, 6> header = {};  // magic, version, layers, KV heads, begin, end
  std::string records;
  int layers() const { return header[2]; }
  int heads() const { return header[3]; }
  int begin() const { return header[4]; }
  int end() const { return header[5]; }
};

LogFile ReadFile(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  const std::string bytes((std::istreambuf_iterator<char>(in)), std::istreambuf_iterator<char>());
  LogFile file;
  EXPECT_GE(bytes.size(), sizeof(file.header)) << path;
  if (bytes.size() < sizeof(file.header)) return file;
  std::memcpy(file.header.data(), bytes.data(), sizeof(file.header));
  EXPECT_EQ(file.header[1], 2) << "another version of the format";
  file.records = bytes.substr(sizeof(file.header));
  return file;
}

void Add(const LogFile& file, int tokens, std::uint64_t wanted, RecordedDecisions& to) {
  const int own = file.end() - file.begin(), cells = file.layers() * own;
  const auto all = static_cast<std::size_t>(std::int64_t{tokens} * file.layers() * file.heads());
  to.decisions.resize(all, 255);
  to.margins.resize(all);
  const std::size_t size = 16 + static_cast<std::size_t>(cells) * 5;
  EXPECT_EQ(file.records.size() % size, 0U);
  for (std::size_t at = 0; at + size <= file.records.size(); at += size) {
    const char* record = file.records.data() + at;
    std::uint64_t request = 0;
    std::int64_t position = 0;
    std::memcpy(&request, record, 8);
    std::memcpy(&position, record + 8, 8);
    if (request != wanted) continue;
    for (int cell = 0; cell < cells; ++cell) {
      const int head = file.begin() + cell % own;
      const auto place =
          static_cast<std::size_t>((position * file.layers() + cell / own) * file.heads() + head);
      to.decisions.at(place) = static_cast<std::uint8_t>(record[16 + cell]);
      std::memcpy(&to.margins.at(place), record + 16 + cells + std::ptrdiff_t{4} * cell, 4);
    }
  }
}

}  // namespace

RecordedDecisions ReadDecisions(const std::string& directory, int tokens, std::uint64_t request) {
  RecordedDecisions all;
  for (const auto& entry : std::filesystem::directory_iterator(directory)) {
    Add(ReadFile(entry.path().string()), tokens, request, all);
  }
  return all;
}

}  // namespace metattn::test
