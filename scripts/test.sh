#!/usr/bin/env bash
# Make the environment on first use and run the tests; arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/make_env.sh
[ $# -gt 0 ] || echo "All tests: up to 15 minutes on 2 cores. A part of them: bash scripts/test.sh tests/dassl"
# Files side by side, the longest first (tests/conftest.py). One process more than cores, as some tests wait; each of up
# to four takes a few GB with a ViT-B/16.
processes=$(($(getconf _NPROCESSORS_ONLN) + 1))
exec "$(bash scripts/python.sh)" -m pytest --numprocesses "$processes" --maxprocesses 4 --dist loadfile --no-loadscope-reorder "$@"
