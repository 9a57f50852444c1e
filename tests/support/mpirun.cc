#include "tests/support/mpirun.h"

#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <thread>

extern char** environ;

namespace metattn::test {
namespace {

using Clock = std::chrono::steady_clock;

// As root, more ranks than cores, unbound, one host, no warnings in the output; vader copies
// through shared memory because containers often forbid reading another process.
void SetMpiEnvironment() {
  constexpr const char* kValues[][2] = {{"OMPI_ALLOW_RUN_AS_ROOT", "1"},
                                        {"OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1"},
                                        {"OMPI_MCA_rmaps_base_oversubscribe", "1"},
                                        {"OMPI_MCA_hwloc_base_binding_policy", "none"},
                                        {"OMPI_MCA_mpi_yield_when_idle", "1"},
                                        {"OMPI_MCA_btl", "self,vader"},
                                        {"OMPI_MCA_btl_vader_single_copy_mechanism", "none"},
                                        {"OMPI_MCA_pml", "ob1"}};
  for (const auto& [name, value] : kValues) setenv(name, value, /*overwrite=*/1);
}

}  // namespace

double SecondsSince(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

MpiRun::MpiRun(int ranks, const std::vector<std::string>& command) {
  SetMpiEnvironment();
  std::vector<std::string> words = {METATTN_MPIRUN, "-np", std::to_string(ranks)};
  words.insert(words.end(), command.begin(), command.end());
  std::vector<char*> argv;
  for (std::string& w : words) argv.push_back(w.data());
  argv.push_back(nullptr);
  int ends[2];
  if (pipe(ends) != 0) return;
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, ends[1], 1);
  posix_spawn_file_actions_adddup2(&actions, ends[1], 2);
  posix_spawn_file_actions_addclose(&actions, ends[0]);
  if (posix_spawnp(&mpirun_, argv[0], &actions, nullptr, argv.data(), environ) != 0) mpirun_ = -1;
  posix_spawn_file_actions_destroy(&actions);
  close(ends[1]);
  output_ = ends[0];
}

MpiRun::~MpiRun() {
  if (mpirun_ > 0 && !ended_) {
    kill(mpirun_, SIGTERM);
    if (!WaitForExit(10)) kill(mpirun_, SIGKILL);
    for (const auto& [rank, pid] : pids_) kill(pid, SIGKILL);
  }
  if (output_ >= 0) close(output_);
}

bool MpiRun::LearnPids(std::size_t ranks, double seconds) {
  const auto start = Clock::now();
  while (pids_.size() < ranks && SecondsSince(start) < seconds && !Ended()) {
    Read(100);
    for (std::size_t at = text_.find("rank "); at != std::string::npos;
         at = text_.find("rank ", at + 1)) {
      int rank = 0, pid = 0, used = 0;
      // The line must have come in whole.
      if (std::sscanf(text_.c_str() + at, "rank %d pid %d%n", &rank, &pid, &used) == 2 &&
          text_[at + static_cast<std::size_t>(used)] == '\n') {
        pids_[rank] = pid;
      }
    }
  }
  return pids_.size() == ranks;
}

bool MpiRun::WaitForExit(double seconds) {
  const auto start = Clock::now();
  while (!Ended() && SecondsSince(start) < seconds) Read(50);
  while (ended_ && Read(0)) {
  }
  return ended_;
}

int MpiRun::exit_code() const { return WIFEXITED(status_) ? WEXITSTATUS(status_) : -1; }

std::vector<int> MpiRun::RanksAlive() const {
  std::vector<int> alive;
  for (const auto& [rank, pid] : pids_) {
    std::ifstream stat("/proc/" + std::to_string(pid) + "/stat");
    std::string line;
    if (!std::getline(stat, line)) continue;
    const std::size_t name_end = line.rfind(')');  // "pid (name) state ...": Z is dead
    if (name_end != std::string::npos && line.substr(name_end + 2, 1) != "Z") {
      alive.push_back(rank);
    }
  }
  return alive;
}

bool MpiRun::Ended() {
  if (!ended_) ended_ = mpirun_ < 0 || waitpid(mpirun_, &status_, WNOHANG) == mpirun_;
  return ended_;
}

bool MpiRun::Read(int timeout_ms) {
  pollfd p{output_, POLLIN, 0};
  if (poll(&p, 1, timeout_ms) <= 0) return false;
  char bytes[4096];
  const ssize_t n = read(output_, bytes, sizeof(bytes));
  if (n > 0) text_.append(bytes, static_cast<std::size_t>(n));
  if (n <= 0 && timeout_ms > 0) std::this_thread::sleep_for(std::chrono::milliseconds(timeout_ms));
  return n > 0;
}

}  // namespace metattn::test
