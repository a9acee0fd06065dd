#!/usr/bin/env bash
exec bash "$(dirname "$0")/../run.sh" base2new_test ReBaPL_MMRL "$@"
