#!/usr/bin/env bash
exec bash "$(dirname "$0")/../run.sh" xd_train ReBaPL_MMRL "$@"
