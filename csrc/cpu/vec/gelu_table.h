// Phi(a) - 1/2, Phi the distribution function of the normal distribution, for 0 <= a <= 5.5:
//   c0 + r (c1 + r (c2 + r (c3 + r (c4 + r c5)))),  n = round(a / 0.375), r = a - 0.375 n,
// ck = kPhi[k][n]: for each n the polynomial of degree 5 whose greatest error is least, found by
// least squares with weights that grow where the error is great. Error < 0.07 * 2^-24, with the
// rounding of coefficients and steps < 0.52 * 2^-24; exactly 0 at a = 0 and 1/2 at a = 5.5.
//
// A table of sixteen and no division: where floats are multiplied beside tdpbssd, at one
// instruction a cycle, look-ups go to a port that is free; a quotient of two polynomials took 1.3
// times as long.
#pragma once

#include "cpu/host_device.h"

namespace fastinfer::cpu {
namespace {

constexpr int kPhiDegree = 5;
// clang-format off
#define FASTINFER_PHI \
    {0.0f, 0.14616977f, 0.27337265f, 0.36970547f, 0.4331928f, 0.46960363f, 0.48777553f, 0.49566755f, \
     0.4986501f, 0.49963093f, 0.49991158f, 0.49998146f, 0.4999966f, 0.49999946f, 0.4999999f, 0.5f}, \
    {0.39894226f, 0.37185508f, 0.30113745f, 0.21187665f, 0.1295176f, 0.06878628f, 0.03173965f, \
     0.01272418f, 0.004431848f, 0.001341119f, 3.5259593e-04f, 8.054062e-05f, 1.598382e-05f, \
     2.7559695e-06f, 4.1285438e-07f, 5.3884488e-08f}, \
    {2.9634847e-07f, -0.06972101f, -0.112924434f, -0.11917971f, -0.09713864f, -0.0644881f, \
     -0.035707798f, -0.016700696f, -0.0066476976f, -0.002263004f, -6.610248e-04f, -1.660714e-04f, \
     -3.5947847e-05f, -6.7131223e-06f, -1.0826634e-06f, -1.4832106e-07f}, \
    {-0.066497125f, -0.053259533f, -0.021958435f, 0.009378736f, 0.02698202f, 0.028840052f, \
     0.021490773f, 0.012492562f, 0.0059092552f, 0.0023224999f, 7.675861e-04f, 2.1495303e-04f, \
     5.126694e-05f, 1.045194e-05f, 1.8264e-06f, 3.0106807e-07f}, \
    {6.372731e-05f, 0.016475316f, 0.022778546f, 0.017156532f, 0.006105395f, -0.0026976252f, \
     -0.006084952f, -0.0053988104f, -0.0033296268f, -0.0015926133f, -6.164517e-04f, -1.9729568e-04f, \
     -5.2876414e-05f, -1.1964124e-05f, -2.2983731e-06f, -2.2312612e-07f}, \
    {0.009742431f, 0.006696765f, -1.2312911e-04f, -0.005224073f, -0.005829719f, -0.0032855992f, \
     -4.8024632e-04f, 9.52917e-04f, 0.0011020182f, 7.202846e-04f, 3.44071e-04f, 1.2931408e-04f, \
     3.9517017e-05f, 9.997612e-06f, 2.117547e-06f, 7.1849416e-07f},
// clang-format on

alignas(64) constexpr float kPhi[kPhiDegree + 1][16] = {FASTINFER_PHI};
#ifdef __CUDACC__
__device__ const float kPhiDevice[kPhiDegree + 1][16] = {FASTINFER_PHI};
#endif
#undef FASTINFER_PHI

FASTINFER_HOST_DEVICE inline const float* phi_coefficients(int k) {
#ifdef __CUDA_ARCH__
  return kPhiDevice[k];
#else
  return kPhi[k];
#endif
}

}  // namespace
}  // namespace fastinfer::cpu
