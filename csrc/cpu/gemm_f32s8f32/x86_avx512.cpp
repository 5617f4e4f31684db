// gemm_f32s8f32 on AVX-512 F/BW/VL/DQ. Formula: gemm_f32s8f32.h; loops: tiles.h.
//
// Tile: up to 8 rows by 3 panels, 24 sums, 3 registers of weights, 1 of x. Fewer rows take more
// panels (1 row 8, 2 rows 6), so that at least 8 sums are in flight.
// Expanding 64 bytes, 4 of K x 16 columns: vpsrld once, then vpternlogd, vsubps four times each.
// One row: 4 vfmadd231ps beside these 9 instructions. On Zen 4, two of any in a cycle would be 6.5
// cycles, below the 8 of reading 64 bytes from memory; measured 8.4 with the weights in L3, since
// vfmadd231ps and vsubps side by side take 1.4 cycles there and not 1.
// Many rows: a step is 3 loads, 8 broadcasting loads and 24 vfmadd231ps, one a cycle on Zen 4, two
// on server Xeons; expanding for 8 tiles or fewer is on top.
// Measured on Zen 4, one core, peak 118 GFLOP/s: K = 768, N = 3072, M = 128: 0.91 of the peak, K =
// N = 4096: 0.92; 4096 x 4096 from memory: M = 1 0.85 of the speed of linear_w8a8, which reads at
// the bandwidth of a core, M = 4 0.80 of the multiply-adds' peak. Slow: K below 64 or so, where
// setting up a tile shows; N not a multiple of 48, a smaller tile.
#include "cpu/gemm_f32s8f32/x86_avx512.h"

#include "cpu/gemm_f32s8f32/tiles.h"

namespace fastinfer::cpu {

void gemm_f32s8f32_avx512(const GemmF32S8F32& p) { gemm_tiles<Avx512Tile>(p); }

}  // namespace fastinfer::cpu
