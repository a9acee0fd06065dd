#!/usr/bin/env bash
# MaPLe's own name for xd_train.sh.
exec bash "$(dirname "$0")/xd_train.sh" "$@"
