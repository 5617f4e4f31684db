#!/usr/bin/env bash
# Runs the C++ tests under qemu-user on CPUs that this machine is not, and checks that each of
# them has the instruction set in use that it should. Logs: build/isa/<name>.log, for
# scripts/isa_table.py. Wants build/cpp and build/aarch64 (make cross builds them).
set -euo pipefail
cd "$(dirname "$0")/.."
mkdir -p build/isa
rm -f build/isa/qemu-*.log

run() { # name, the instruction set that must be in use, command...
  local log=build/isa/$1.log want=$2
  shift 2
  if ! "$@" >"$log" 2>&1 || ! grep -q ' passed, 0 failed$' "$log"; then
    cat "$log"
    echo "cross: failed: $*" >&2
    return 1
  fi
  if ! grep -qx "isa $want in use" "$log"; then
    cat "$log"
    echo "cross: want \"isa $want in use\": $*" >&2
    return 1
  fi
  printf '%-24s isa %-9s %s\n' "$(basename "$log" .log)" "$want" "$(tail -n 1 "$log")"
}

unset FASTINFER_ISA
arm=(qemu-aarch64-static -L /usr/aarch64-linux-gnu)
tests=tests/cpp/fastinfer_tests
# The tests on the best CPU of each architecture, on others the part that differs; the architectures
# side by side.
arm_cpus() {
  run qemu-arm-max neoni8mm "${arm[@]}" -cpu max build/aarch64/$tests
  run qemu-arm-neoverse-n1 neondot "${arm[@]}" -cpu neoverse-n1 build/aarch64/$tests gemm
  run qemu-arm-cortex-a53 generic "${arm[@]}" -cpu cortex-a53 build/aarch64/$tests linear
}
arm_cpus &
arm_job=$!
if [ "$(uname -m)" = x86_64 ]; then
  # Guards: see tests/cpp/guard.h. The C library without its AVX2 functions, which take qemu 7.2
  # ten times as long; what the kernels probe stays as it is.
  x86=(env FASTINFER_TEST_GUARDS=off GLIBC_TUNABLES=glibc.cpu.hwcaps=-AVX2 qemu-x86_64-static)
  # What qemu would show of a CPU without AVX-512 is which kernels are selected: each row also runs
  # natively, under every cap. On some hosts qemu 7.2 takes ten times as long as on others.
  parts=(arch linear)
  run qemu-x86-max avx2 "${x86[@]}" -cpu max build/cpp/$tests "${parts[@]}"
  run qemu-x86-nehalem generic "${x86[@]}" -cpu Nehalem build/cpp/$tests linear
fi
wait "$arm_job"
