#!/usr/bin/env bash
# What a trained model says of images: scripts/predict.sh RUN IMAGE-OR-FOLDER…; --help says all.
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/make_env.sh
exec "$(bash scripts/python.sh)" -m inference.predict "$@"
