#!/usr/bin/env bash
# Print the Python that the scripts use: $VENV's, else .venv's, else the active one.
cd "$(dirname "$0")/.."
if [ -n "${VENV:-}" ]; then
  echo "$VENV/bin/python"
elif [ -x .venv/bin/python ]; then
  echo "$PWD/.venv/bin/python"
else
  command -v python || command -v python3
fi
