#!/usr/bin/env bash
# Proves and measures the CUDA side on a machine with a GPU, by its own python3 and torch, in under 9
# minutes: builds the package (or takes a library built before: PREBUILT=path/libfastinfer_cuda.so),
# runs tests/gpu, compute-sanitizer on a short list, then bench/gpu.py. CUTLASS's kernels are in it
# where python3 has nvidia-cutlass, or in a library that make gpu-build made.
#
#   scripts/gpu_check.sh [OUT]     OUT (default build/gpu-check): a log a step, gpu.json, summary.json
set -uo pipefail
cd "$(dirname "$0")/.."
out=${1:-build/gpu-check}
python=${PYTHON:-python3}
prebuilt=${PREBUILT:-}
site=$PWD/build/gpu-site
mkdir -p "$out"
out=$(cd "$out" && pwd)

if ! "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
  echo "gpu-check: $python has no torch, or its torch sees no GPU: set PYTHON to one that does" >&2
  exit 2
fi
if [ -n "$prebuilt" ] && [ ! -f "$prebuilt" ]; then
  echo "gpu-check: PREBUILT is \"$prebuilt\", want a libfastinfer_cuda.so (make gpu-build makes it)" >&2
  exit 2
fi

steps=()
failed=0
budget=520 # seconds for all steps
# name, seconds at most (or what is left), command...; the log is OUT/name.log
step() {
  local name=$1 limit=$2 begin status
  shift 2
  begin=$SECONDS
  [ "$limit" -le $((budget - begin)) ] || limit=$((budget > begin + 5 ? budget - begin : 5))
  timeout -s INT -k 10 "$limit" "$@" >"$out/$name.log" 2>&1
  status=$?
  if [ $status != 0 ] && grep -q 'Device not supported' "$out/$name.log"; then
    echo "$name: compute-sanitizer does not take this GPU's driver: left out"
    return 0
  fi
  steps+=("{\"step\": \"$name\", \"seconds\": $((SECONDS - begin)), \"exit\": $status}")
  (IFS=,; printf '[%s]\n' "${steps[*]}") >"$out/summary.json"
  printf '%-12s exit %d after %d s: %s\n' "$name" $status $((SECONDS - begin)) \
    "$(tail -n 1 "$out/$name.log" | cut -c1-160)"
  [ $status = 0 ] || failed=1
  return $status
}

build() {
  rm -rf "$site"
  local cuda=ON
  [ -z "$prebuilt" ] || cuda=OFF
  SKBUILD_CMAKE_DEFINE=FASTINFER_CUDA=$cuda "$python" -m pip install --quiet --no-build-isolation \
    --no-deps --no-index --target "$site" . || return
  [ -z "$prebuilt" ] || cp "$prebuilt" "$site/fastinfer/libfastinfer_cuda.so"
  "$python" -c 'from fastinfer.ops._common import WHY_NO_CUDA as why; assert why is None, why'
}
export -f build
export PYTHONPATH=$site site prebuilt python

if step build 200 bash -c build; then
  step tests 150 env OMP_NUM_THREADS=2 "$python" -m pytest -W default -v -n 8 \
    --max-worker-restart=20 tests/gpu
  if command -v compute-sanitizer >/dev/null; then
    for tool in memcheck racecheck; do
      # Without torch's cache every tensor is an allocation of its own, whose end is watched.
      PYTORCH_NO_CUDA_MEMORY_CACHING=1 step "$tool" 60 \
        compute-sanitizer --tool "$tool" --report-api-errors no --error-exitcode 9 \
        "$python" scripts/gpu_sanitize.py
    done
  else
    echo "compute-sanitizer is not on PATH: left out"
  fi
  step bench 200 "$python" bench/gpu.py --json "$out/gpu.json" --rounds 11 \
    --shapes 8192x8192,28672x8192,4096x4096,14336x4096,4096x14336,768x768,3072x768 \
    --m 1,4,5,16,17,33,64,65,128,512,4096,8192
  cat "$out/bench.log"
fi
echo "logs and figures: $out"
exit $failed
