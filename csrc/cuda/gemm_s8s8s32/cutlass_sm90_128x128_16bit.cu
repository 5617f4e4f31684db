#include "cuda/gemm_s8s8s32/cutlass_sm90_dense.cuh"

namespace fastinfer::cuda {

const CutlassKernel cutlass_sm90_128x128_16bit = Pingpong<CutlassTile::m128n128, uint16_t>::kernel;

}  // namespace fastinfer::cuda
