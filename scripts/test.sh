#!/usr/bin/env bash
# Make the environment on first use and run the tests; arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/make_env.sh
exec "$(bash scripts/python.sh)" -m pytest "$@"
