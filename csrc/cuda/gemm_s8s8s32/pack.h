// The layouts of an int8 weight on CUDA: one self-describing block of bytes each, beside those of
// cpu/gemm_s8s8s32/pack.h. "cuda": rows as the matrix instructions and the bulk copies of a GPU
// take them.
//
//   offset 0     PackedHeader, 64 bytes, of tag "s8_rows_cuda"
//   offset 64    compensation: int32[N_pad], -128 * sum_k w[n,k]
//   offset R     int8[N_pad][K_pad]; R = 128 + 4 N_pad rounded up to 128
//
// "cuda_sp24": of every 4 neighbours along K two are kept, others are zero; 5 bits a weight.
//
//   offset 0     PackedHeader of tag "s8_sp24_cuda"
//   offset 64    compensation, as above
//   offset R     masks: uint8[N_pad][K_pad / 8]; bits 4 j to 4 j + 3 of a row, the lowest of a byte
//                first, say which of k = 4 j to 4 j + 3 are kept: two, always, zeros made up from
//                the least k on
//   offset V     int8[N_pad][K_pad / 2]: the values kept, in the order of k;
//                V = R + N_pad K_pad / 8, a multiple of 128, as 16 and 64 divide N_pad and K_pad
//
// N_pad = N rounded up to 16, K_pad = K rounded up to 64, zero-filled. All of it is made and read
// on the host; what launches on a GPU trusts a size alone, since to read a header there would be to
// wait for the GPU. The size tells the two apart: they take N_pad K_pad and 5/8 N_pad K_pad bytes
// after R, which differ unless N or K is 0, and then there is nothing to read. Nor is either the
// size of the layout "dense" or "sp24" of CPUs, which have 64 + 4 N_pad and no more before their
// weights
// ("sp24" 1216 bytes after them).
#pragma once

#include <cstdint>

namespace fastinfer::cuda {

// Where the parts of a packed weight lie, in bytes from its start.
struct PackedOffsets {
  int64_t n_pad, k_pad;
  int64_t compensation, rows, bytes;
};
PackedOffsets packed_offsets(int64_t n, int64_t k);

struct Sp24Offsets {
  int64_t n_pad, k_pad;
  int64_t compensation, masks, values, bytes;
};
Sp24Offsets sp24_offsets(int64_t n, int64_t k);

// w: row-major [n, k]; packed: packed_offsets(n, k).bytes.
void pack_w8(const int8_t* w, int64_t n, int64_t k, uint8_t* packed);

// w keeps at most 2 of every 4 (cpu::packed_bytes of sp24 tells); packed: sp24_offsets(n, k).bytes.
void pack_sp24(const int8_t* w, int64_t n, int64_t k, uint8_t* packed);

// Whether the bytes carry the tag of one of these layouts.
bool is_packed(const void* packed, int64_t bytes);

// The inverse, of either. Returns null, or a sentence on what is wrong with `packed`, and then w is
// untouched.
const char* unpack_w8(const void* packed, int64_t bytes, int64_t n, int64_t k, int8_t* w);

}  // namespace fastinfer::cuda
