#!/usr/bin/env bash
# Ours beside the plain computation, which is upstream's: times, peak memory, the floor, as markdown tables on stdout.
# bash scripts/bench.sh [cpu|cuda] [--only NAME …] [--repeats N] [--record FILE] [--quick]; --help says all. Nothing else should be running.
set -euo pipefail
cd "$(dirname "$0")/.."
python=$(bash scripts/python.sh ready)
exec "$python" -m bench.steps "$@"
