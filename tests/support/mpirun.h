// A program under mpirun on this host, its output in memory: for tests of what ranks do, and of how
// they end.
//
// Ownership: the destructor leaves nothing running. Thread safety: one caller. Errors: a program
// that cannot be started has ended with exit code -1. Cost: some processes.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <map>
#include <string>
#include <vector>

namespace metattn::test {

double SecondsSince(std::chrono::steady_clock::time_point start);

class MpiRun {
 public:
  // command: the program and its arguments; "env NAME=VALUE program ..." sets variables.
  MpiRun(int ranks, const std::vector<std::string>& command);
  MpiRun(const MpiRun&) = delete;
  MpiRun& operator=(const MpiRun&) = delete;
  ~MpiRun();

  // Reads until every rank has printed "rank R pid P".
  bool LearnPids(std::size_t ranks, double seconds);
  // False when mpirun still runs after `seconds`. Keeps reading, so that nobody blocks on a pipe.
  bool WaitForExit(double seconds);

  // mpirun's own exit code; -1 when it ended otherwise.
  int exit_code() const;
  pid_t pid(int rank) const { return pids_.at(rank); }
  const std::string& text() const { return text_; }
  std::vector<int> RanksAlive() const;

 private:
  bool Ended();
  bool Read(int timeout_ms);

  pid_t mpirun_ = -1;
  int output_ = -1;
  int status_ = 0;  // of mpirun, once it ended
  bool ended_ = false;
  std::string text_;
  std::map<int, pid_t> pids_;
};

}  // namespace metattn::test
