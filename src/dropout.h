// Which weights dropout keeps: a function of (seed, b, h, i, j) alone, so that the backward pass, any tiling and any
// number of threads find the same ones without storing a mask.
#pragma once

#include <cmath>
#include <cstdint>

namespace heed {

// SplitMix64 (Steele, Lea, Flood 2014): spreads neighbouring numbers far apart.
inline uint64_t spread(uint64_t x) {
  x += 0x9E3779B97F4A7C15u;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
  return x ^ (x >> 31);
}

// 64 random bits of a row; `head` is b * Hq + h.
inline uint64_t dropout_row(uint64_t seed, int64_t head, int64_t i) {
  return spread(spread(spread(seed) + static_cast<uint64_t>(head)) + static_cast<uint64_t>(i));
}

inline constexpr uint32_t kWeyl = 0x9E3779B9u, kMix1 = 0x85EBCA6Bu, kMix2 = 0xC2B2AE35u;

// 24 random bits of a pair: the row's lower half and the key's place in a Weyl sequence through MurmurHash3's finalizer
// (Appleby 2011), the row's upper half stirred in halfway. A weight is kept if they are at least dropout * 2^24.
inline uint32_t dropout_bits(uint64_t row, int64_t j) {
  uint32_t x = static_cast<uint32_t>(row) + static_cast<uint32_t>(j) * kWeyl;
  x = (x ^ (x >> 16)) * kMix1;
  x = (x ^ (x >> 13) ^ static_cast<uint32_t>(row >> 32)) * kMix2;
  return (x ^ (x >> 16)) >> 8;
}

inline uint32_t dropout_threshold(double dropout) { return static_cast<uint32_t>(std::lround(dropout * 0x1p24)); }

}  // namespace heed
