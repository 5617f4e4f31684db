// The layout "cuda" of an int8 weight: rows as the matrix instructions and the bulk copies of a GPU
// take them. One self-describing block of bytes beside those of cpu/gemm_s8s8s32/pack.h:
//
//   offset 0     PackedHeader, 64 bytes, of tag "s8_rows_cuda"
//   offset 64    compensation: int32[N_pad], -128 * sum_k w[n,k]
//   offset R     int8[N_pad][K_pad]; R = 64 + 4 N_pad rounded up to 128
//
// N_pad = N rounded up to 16, K_pad = K rounded up to 64, zero-filled. All of it is made and read
// on the host; what launches on a GPU trusts a size alone, since to read a header there would be to
// wait for the GPU.
#pragma once

#include <cstdint>

namespace fastinfer::cuda {

// Where the parts of a packed weight lie, in bytes from its start.
struct PackedOffsets {
  int64_t n_pad, k_pad;
  int64_t compensation, rows, bytes;
};
PackedOffsets packed_offsets(int64_t n, int64_t k);

// w: row-major [n, k]; packed: packed_offsets(n, k).bytes.
void pack_w8(const int8_t* w, int64_t n, int64_t k, uint8_t* packed);

// Whether the bytes carry this layout's tag.
bool is_packed(const void* packed, int64_t bytes);

// The inverse. Returns null, or a sentence on what is wrong with `packed`, and then w is untouched.
const char* unpack_w8(const void* packed, int64_t bytes, int64_t n, int64_t k, int8_t* w);

}  // namespace fastinfer::cuda
