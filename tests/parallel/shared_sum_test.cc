#include "parallel/shared_sum.h"

#include <gtest/gtest.h>

#include <bit>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

namespace metattn {
namespace {

struct Memory {
  explicit Memory(int ranks) : bytes((SharedSum::Bytes(ranks) + 63) / 64 * 64) {
    data.reset(std::aligned_alloc(SharedSum::kAlignment, bytes));
    std::memset(data.get(), 0, bytes);
  }
  std::size_t bytes;
  std::unique_ptr<void, decltype(&std::free)> data{nullptr, &std::free};
};

void OnRanks(int ranks, const std::function<void(int)>& work) {
  std::vector<std::thread> threads;
  for (int r = 0; r < ranks; ++r) threads.emplace_back(work, r);
  for (std::thread& t : threads) t.join();
}

// Values of unlike size and sign: every order of additions gives other bits.
float Uneven(int rank, std::int64_t i, int round) {
  const auto mixed = static_cast<std::uint32_t>(i * 64 + rank * 8 + round) * 2654435761u;
  const auto mantissa = static_cast<float>(static_cast<std::int32_t>(mixed)) * 0x1p-31f;
  return std::ldexp(mantissa, static_cast<int>(mixed >> 7) % 17 - 8);
}

float Expected(int ranks, std::int64_t i, int round) {
  float sum = Uneven(0, i, round);
  for (int r = 1; r < ranks; ++r) sum += Uneven(r, i, round);
  return sum;
}

// Several sums one after another on the same memory: a slot that is written too early, or read too
// late, gives another round's values.
TEST(SharedSum, IsBitwiseTheSumInRankOrderForEveryLengthAndRankCount) {
  constexpr std::int64_t kPart = SharedSum::kPart;
  const std::int64_t counts[] = {0, 1, 577, kPart - 1, kPart, kPart + 1, 3 * kPart, 5 * kPart + 13};
  for (const int ranks : {1, 2, 3, 5}) {
    const Memory memory(ranks);
    std::vector<std::int64_t> wrong(ranks, 0);
    OnRanks(ranks, [&](int rank) {
      SharedSum sum(memory.data.get(), rank, ranks, /*spin=*/rank % 2 == 0);
      for (int round = 0; round < 8; ++round) {
        const std::int64_t count = counts[round];
        std::vector<float> values(count + 1, -7.0f);
        for (std::int64_t i = 0; i < count; ++i) values[i] = Uneven(rank, i, round);
        sum.Sum(values.data(), count);
        for (std::int64_t i = 0; i < count; ++i) {
          wrong[rank] += std::bit_cast<std::uint32_t>(values[i]) !=
                         std::bit_cast<std::uint32_t>(Expected(ranks, i, round));
        }
        wrong[rank] += values[count] != -7.0f;
      }
    });
    for (int r = 0; r < ranks; ++r) EXPECT_EQ(wrong[r], 0) << "rank " << r << " of " << ranks;
  }
}

TEST(SharedSum, ManySmallSumsKeepInStepHoweverRanksDrift) {
  constexpr int kRanks = 3, kRounds = 3000;
  const Memory memory(kRanks);
  std::vector<int> wrong(kRanks, 0);
  OnRanks(kRanks, [&](int rank) {
    SharedSum sum(memory.data.get(), rank, kRanks, /*spin=*/false);
    for (int round = 0; round < kRounds; ++round) {
      float value = static_cast<float>(round * kRanks + rank);
      if ((round * 7 + rank) % 11 == 0) std::this_thread::yield();
      sum.Sum(&value, 1);
      wrong[rank] += value != static_cast<float>(round * kRanks * kRanks + kRanks);
    }
  });
  for (const int w : wrong) EXPECT_EQ(w, 0);
}

TEST(SharedSum, TellsHowLongItWaitedForALateRank) {
  constexpr auto kLate = std::chrono::milliseconds(400);
  const Memory memory(2);
  double waited = 0;
  OnRanks(2, [&](int rank) {
    SharedSum sum(memory.data.get(), rank, 2, /*spin=*/true);
    float value = 1;
    sum.Sum(&value, 1);  // both are there
    if (rank == 1) std::this_thread::sleep_for(kLate);
    const double seconds = sum.Sum(&value, 1);
    if (rank == 0) waited = seconds;
  });
  EXPECT_GE(waited, .2);  // rank 0 may be late itself, on a busy machine
}

}  // namespace
}  // namespace metattn
