#!/usr/bin/env bash
# Make the Python environment if need be: $VENV or .venv, with the exact versions of requirements.txt.
# The active Python is left as it is, and used, if it has a supported version of everything (pyproject.toml).
set -euo pipefail
cd "$(dirname "$0")/.."
if [ -z "${VENV:-}" ] && [ ! -e .venv ] && "$(bash scripts/python.sh)" scripts/check_env.py; then
  exit 0
fi
venv=${VENV:-.venv}
wanted=$(sha256sum requirements.txt | cut -c1-64)
if [ "$(cat "$venv/requirements.sha256" 2>/dev/null)" = "$wanted" ]; then
  exit 0
fi
if ! base=$(command -v python3.13 || command -v python3.12 || command -v python3.11 || command -v python3); then
  echo "error: no python3 on the PATH; install Python 3.11 or newer" >&2
  exit 1
fi
if ! "$base" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
  echo "error: $base is older than Python 3.11; install a newer one" >&2
  exit 1
fi
echo "Making the environment $venv (about 5.5 GB, a few minutes) …"
[ -x "$venv/bin/python" ] || "$base" -m venv "$venv"
"$venv/bin/python" -m pip install --disable-pip-version-check --quiet -r requirements.txt 2> >(grep -v '^WARNING: Location' >&2)
"$venv/bin/python" scripts/check_env.py
echo "$wanted" >"$venv/requirements.sha256"
