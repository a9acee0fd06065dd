#!/usr/bin/env bash
exec bash "$(dirname "$0")/../run.sh" xd_test ReBaPL_MMRL "$@"
