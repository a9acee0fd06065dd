#!/usr/bin/env bash
# Make the Python environment if need be: $VENV, else .venv, with the exact versions of
# requirements.txt. An environment (the active one if there is no .venv) that has a supported version
# of everything is used as it is.
set -euo pipefail
case ${1:-} in -h | --help) sed -n '2,/^set/s/^# \{0,1\}//p' "$0" && exit ;; esac
cd "$(dirname "$0")/.."
venv=${VENV:-.venv}
stamp=$venv/requirements.sha256 # written by this script alone: it tells whose environment this is
wanted=$(sha256sum requirements.txt | cut -c1-64)
if [ -e "$stamp" ]; then
  [ "$(cat "$stamp")" = "$wanted" ] && exit 0
elif python=$(bash scripts/python.sh) && [ -x "$python" ] && "$python" scripts/check_env.py; then
  exit 0
fi

for python in python3 python3.13 python3.12 python3.11 ""; do
  "${python:-false}" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && break
done
if [ -z "$python" ]; then
  echo "error: no Python 3.11 or newer on the PATH; install one" >&2
  exit 1
fi
echo "Making the environment $venv (5 GB, a few minutes) …"
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
"$venv/bin/python" -m pip install --disable-pip-version-check --quiet --requirement requirements.txt
"$venv/bin/python" scripts/check_env.py
echo "$wanted" >"$stamp"
