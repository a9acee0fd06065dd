#!/usr/bin/env bash
# Print the Python that the scripts use: $VENV's, else .venv's, else the active one.
# `ready`: it must have the packages.
cd "$(dirname "$0")/.." || exit
if [ -n "${VENV:-}" ]; then
  python=$VENV/bin/python
elif [ -x .venv/bin/python ]; then
  python=$PWD/.venv/bin/python
else
  python=$(command -v python || command -v python3)
fi
packages="'torch', 'yacs', 'tabulate'"
has="import importlib.util as u, sys; sys.exit(not all(map(u.find_spec, ($packages))))"
if [ "${1:-}" = ready ] && ! "$python" -c "$has" 2>/dev/null; then
  echo "error: $python lacks the packages (or is not there): run bash scripts/make_env.sh first" >&2
  exit 1
fi
echo "$python"
