// The parts of the CUDA tests, and what they share.
#pragma once

#include "check.h"
#include "emulator.h"

namespace fastinfer::test {

void test_emulator();
void test_cuda_pack();
void test_cuda_quantize();
void test_cuda_norm();
void test_cuda_act_mul();
void test_cuda_rope();
void test_cuda_gemm();
void test_cuda_sp24();
void test_cuda_w8a16();

// `body` with the threads of a block in ascending order, then in descending order: a barrier that
// is missing shows as a difference from the reference in one of them.
template <class Body>
void in_both_orders(Body&& body) {
  for (const bool descending : {false, true}) {
    cuda::emulator::set_descending(descending);
    body();
  }
  cuda::emulator::set_descending(false);
}

}  // namespace fastinfer::test
