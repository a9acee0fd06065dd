#!/usr/bin/env bash
# One run: scripts/run.sh SCRIPT TRAINER DATASET [SHOTS] SEED [train.py arguments …], where SCRIPT is
# base2new_train, base2new_test, xd_train, xd_test or few_shot.
# The scripts in the methods' folders are this one with the first two words filled in; runs/run.py
# makes train.py's command line of them, with the folder of results/layout.py.
# Environment: DATA (folder of the datasets, default data), OUTPUT (default output), CFG (a file's
# name in configs/trainers/TRAINER), SHOTS (16), SOURCE (dataset a cross-dataset model was trained
# on), LOADEP (epoch to test), VENV (Python environment), GPUS (processes that share the run, one for
# each GPU; sweep.sh, which fills GPUs with runs, and protocol.sh do not read it); SHOW_DIR=1 only prints the folder of the
# run's log and checkpoints, SHOW_DIR=command what is executed below: the number of words, the words
# and the environment, each with a null byte after it.
set -euo pipefail
cd "$(dirname "$0")/.."
if [ "${SHOW_DIR:-}" = command ]; then
  printf '%s\0' $(($# + 3)) "$(bash scripts/python.sh)" -m runs.run "$@"
  exec env -0 -u SHOW_DIR
fi
python=$(bash scripts/python.sh ready)
exec "$python" -m runs.run "$@"
