#!/usr/bin/env bash
# Check everything on this machine's GPU: tests/gpu, the bench's CUDA tables, P2C on `shapes` beside the CPU; --help says all.
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/make_env.sh
exec "$(bash scripts/python.sh)" -m bench.gpu_check "$@"
