#!/usr/bin/env bash
# MaPLe's own name for xd_test.sh.
exec bash "$(dirname "$0")/xd_test.sh" "$@"
