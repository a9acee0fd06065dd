#!/usr/bin/env bash
# MaPLe's own name for base2new_test.sh.
exec bash "$(dirname "$0")/base2new_test.sh" "$@"
