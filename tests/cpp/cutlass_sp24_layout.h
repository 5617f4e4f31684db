// 2:4 weights as the sparse wgmma of sm_90 takes them: of every 4 bytes of a row the 2 that stayed,
// and beside them which those were.
//
//   values(n, k / 2)   = values[n * k_pad / 2 + k / 2]      int8[n][k_pad / 2]
//   indices(n, k / 4)  = 4 bits of metadata: the places, 0 to 3, of the first and the second byte
//                        that stayed, first | second << 2, first < second; in byte
//                        (k / 128 * n_pad + n) * 16 + k % 128 / 8, the low half for even k / 4
//
// n_pad = N rounded up to 64, k_pad = K rounded up to 64; metadata holds K in whole 128s. Groups of
// zeros, and all that is beyond N or K, have places 0 and 1.
#pragma once

#include <cstdint>

namespace fastinfer::test {

int64_t cutlass_sp24_values_bytes(int64_t n, int64_t k_pad);
int64_t cutlass_sp24_metadata_bytes(int64_t n, int64_t k_pad);

// w: rows of k_pad bytes, k_pad a multiple of 64. False, with values and metadata half written,
// where a group of 4 has more than 2 that are not zero.
bool cutlass_sp24(const int8_t* w, int64_t n, int64_t k_pad, int8_t* values, uint8_t* metadata);

}  // namespace fastinfer::test
