#!/usr/bin/env bash
# Make the environment on first use and run the tests; arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/make_env.sh
[ $# -gt 0 ] || echo "All tests: up to 15 minutes on 2 cores. A part of them: bash scripts/test.sh tests/dassl"
# Files side by side, on as many cores as there are, the longest first (tests/conftest.py); each of up to four
# processes takes a few GB with a ViT-B/16.
exec "$(bash scripts/python.sh)" -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder "$@"
