#!/usr/bin/env bash
# MaPLe's own name for base2new_train.sh.
exec bash "$(dirname "$0")/base2new_train.sh" "$@"
