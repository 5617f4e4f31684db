// AMX in plain C++, for kernels over cpu/amx.h on CPUs that have none: the tiles of palette 1 and
// the instructions that cpu/amx.h names, after the Intel SDM (vol. 1 chapter 18, vol. 2). Every
// thread has its own tiles. Where the CPU would fault, the test ends with a message instead: a tile
// that is not configured or not there, operands whose shapes do not match or are one register, a
// configuration that the palette does not allow. Loads and stores touch the bytes that the CPU's do
// and no others, so guard pages and sanitizers see them.
//
// What it cannot show: the time that anything takes, and whether the manual was read right.
#pragma once

#include <cstdint>

namespace fastinfer::amx_emulator {

void load_config(const void* config);  // ldtilecfg
void release();                        // tilerelease
void zero(int t);                      // tilezero
void load(int t, const void* base, int64_t stride);
void store(int t, void* base, int64_t stride);
void dp_s8(int c, int a, int b);    // tdpbssd
void dp_bf16(int c, int a, int b);  // tdpbf16ps

// Ends the test if this thread has left its tiles configured.
void check_released();

}  // namespace fastinfer::amx_emulator
