// SplitMix64 (Steele, Lea, Flood 2014): turns numbers that are near each other into seeds that share nothing.
#pragma once

#include <cstdint>

namespace heed::nn {

// Number 0 of the generator with this seed.
inline uint64_t splitmix(uint64_t seed) {
  uint64_t x = seed + 0x9E3779B97F4A7C15u;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
  return x ^ (x >> 31);
}

// Its number n.
inline uint64_t splitmix(uint64_t seed, uint64_t n) { return splitmix(seed + 0x9E3779B97F4A7C15u * n); }

}  // namespace heed::nn
