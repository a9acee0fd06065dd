#!/usr/bin/env bash
# The runs of a sweep, several at once: scripts/sweep.sh FILE; --help says all. Ready ones are in
# configs/sweeps/.
set -euo pipefail
cd "$(dirname "$0")/.."
python=$(bash scripts/python.sh ready)
exec "$python" -m runs.sweep "$@"
