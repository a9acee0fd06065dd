#!/usr/bin/env bash
# A page for trying a trained model: scripts/demo.sh RUN; --help says all. Gradio is in requirements-demo.txt.
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/make_env.sh
exec "$(bash scripts/python.sh)" -m inference.demo "$@"
