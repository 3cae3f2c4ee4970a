// Which SIMD targets are built, and why; include before Highway.
//
// Built on x86: AVX3 (16 lanes), AVX2 (8 lanes, FMA) and SSE4 (4 lanes, no FMA), plus SCALAR, plain C++ with one lane,
// for anything older: GCC 12 miscompiles EMU128. AVX3_DL adds nothing an f32 kernel uses and SSSE3 machines are gone.
// On Arm: NEON; the kernels keep vectors in arrays, which SVE's sizeless types forbid, so SVE machines run NEON
// (tests/aarch64.sh tests it). The contract on bits (docs/design.md, section 2) holds where there is FMA: not on SSE4
// and SCALAR.
//
// HEED_TARGET=AVX2 in the environment, or heed::set_target("AVX2"), forces one at run time.
#pragma once

#define HWY_BROKEN_EMU128 1
#define HWY_DISABLED_TARGETS \
  (HWY_SSSE3 | HWY_AVX3_DL | HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128 | HWY_RVV | HWY_WASM | HWY_WASM_EMU256)
