#!/usr/bin/env bash
# A trained model as files for others: scripts/export.sh RUN OUT; --help says all. ONNX is in requirements-export.txt.
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/make_env.sh
exec "$(bash scripts/python.sh)" -m inference.export "$@"
