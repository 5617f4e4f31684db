#include "cuda/gemm_s8s8s32/cutlass_sm90_dense.cuh"

namespace fastinfer::cuda {

const CutlassKernel cutlass_sm90_128x128_stream_k_16bit =
    Cooperative<CutlassTile::m128n128_stream_k, uint16_t, cutlass::gemm::StreamKScheduler>::kernel;

}  // namespace fastinfer::cuda
