#include "engine/model/block_hash.h"

#include <bit>
#include <cstddef>

#include "kernels/check.h"
#include "kernels/types.h"

namespace metattn {
namespace {

// SipHash-2-4 with 128 bits of output (Aumasson and Bernstein's public construction), fed byte by
// byte. It is a keyed pseudo-random function: who does not know the key cannot prepare two inputs
// of equal hash, which matters because a collision hands one client's K/V to another.
class SipHash128 {
 public:
  SipHash128(std::uint64_t k0, std::uint64_t k1)
      : v0_(k0 ^ 0x736f6d6570736575u),
        v1_(k1 ^ 0x646f72616e646f6du ^ 0xeeu),
        v2_(k0 ^ 0x6c7967656e657261u),
        v3_(k1 ^ 0x7465646279746573u) {}

  void Byte(std::uint8_t byte) {
    word_ |= static_cast<std::uint64_t>(byte) << (8 * (length_ % 8));
    if (++length_ % 8 == 0) Flush();
  }

  void Word32(std::uint32_t value) {
    for (int shift = 0; shift < 32; shift += 8) Byte(static_cast<std::uint8_t>(value >> shift));
  }

  BlockHash Finish() {
    word_ |= static_cast<std::uint64_t>(length_ & 0xff) << 56;
    Flush();
    BlockHash hash;
    v2_ ^= 0xee;
    Rounds(4);
    hash.lo = v0_ ^ v1_ ^ v2_ ^ v3_;
    v1_ ^= 0xdd;
    Rounds(4);
    hash.hi = v0_ ^ v1_ ^ v2_ ^ v3_;
    return hash;
  }

 private:
  void Flush() {
    v3_ ^= word_;
    Rounds(2);
    v0_ ^= word_;
    word_ = 0;
  }

  void Rounds(int count) {
    for (int i = 0; i < count; ++i) {
      v0_ += v1_;
      v1_ = std::rotl(v1_, 13) ^ v0_;
      v0_ = std::rotl(v0_, 32);
      v2_ += v3_;
      v3_ = std::rotl(v3_, 16) ^ v2_;
      v0_ += v3_;
      v3_ = std::rotl(v3_, 21) ^ v0_;
      v2_ += v1_;
      v1_ = std::rotl(v1_, 17) ^ v2_;
      v2_ = std::rotl(v2_, 32);
    }
  }

  std::uint64_t v0_, v1_, v2_, v3_;
  std::uint64_t word_ = 0;
  std::size_t length_ = 0;
};

}  // namespace

BlockHash SeedHash(std::string_view identity) {
  // The key is the one of the published test vectors; secrecy comes from salt in the identity.
  SipHash128 hash(0x0706050403020100u, 0x0f0e0d0c0b0a0908u);
  for (const char c : identity) hash.Byte(static_cast<std::uint8_t>(c));
  return hash.Finish();
}

BlockHash ChainHash(const BlockHash& parent, std::span<const std::int32_t> tokens,
                    std::span<const RoutePolicy> policy) {
  METATTN_CHECK(tokens.size() == static_cast<std::size_t>(kBlockTokens),
                "a link of the chain is one full block of tokens");
  METATTN_CHECK(policy.size() == tokens.size(), "one policy per token");
  SipHash128 hash(parent.lo, parent.hi);  // keyed by the parent: a salted seed salts every link
  for (const std::int32_t token : tokens) hash.Word32(static_cast<std::uint32_t>(token));
  for (const RoutePolicy& p : policy) {
    hash.Byte(static_cast<std::uint8_t>(p.route));
    hash.Word32(std::bit_cast<std::uint32_t>(p.cost_weight));
    hash.Word32(std::bit_cast<std::uint32_t>(p.eta));
  }
  return hash.Finish();
}

}  // namespace metattn
