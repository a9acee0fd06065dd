#!/usr/bin/env bash
# A whole protocol with its table; --help says all:
# scripts/protocol.sh PROTOCOL --methods … --datasets … --seeds …
set -euo pipefail
cd "$(dirname "$0")/.."
python=$(bash scripts/python.sh ready)
exec "$python" -m runs.protocol "$@"
