#!/usr/bin/env bash
# Runs the Python tests on build/asan, beside the environment of .venv and without touching it.
# Arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
site() { "$1" -c 'import sysconfig; print(sysconfig.get_path("purelib"))'; }

# An environment of its own that sees .venv's packages but not the hook of its editable install.
env=build/asan/env
[ -x $env/bin/python ] || .venv/bin/python -m venv --without-pip $env
site .venv/bin/python >"$(site $env/bin/python)/base.pth"
package=$(site $env/bin/python)/fastinfer
rm -rf "$package"
cp -r python/fastinfer "$package"
cmake --install build/asan --prefix "$(dirname "$package")" >/dev/null

library() { "${CXX:-g++}" -print-file-name="$1"; }
# libstdc++ too: the sanitizer looks for __cxa_throw when it starts.
export LD_PRELOAD="$(library libasan.so) $(library libubsan.so) $(library libstdc++.so.6)"
export ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1
$env/bin/python -c 'from fastinfer import _C; i = _C.build_info(); print(i); assert i["sanitize"]'
exec $env/bin/python -m pytest -q "${@:-tests}"
