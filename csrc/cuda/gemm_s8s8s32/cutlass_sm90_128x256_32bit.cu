#include "cuda/gemm_s8s8s32/cutlass_sm90_dense.cuh"

namespace fastinfer::cuda {

const CutlassKernel cutlass_sm90_128x256_32bit = Cooperative<CutlassTile::m128n256, float>::kernel;

}  // namespace fastinfer::cuda
