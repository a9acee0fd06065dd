#!/usr/bin/env bash
exec bash "$(dirname "$0")/../run.sh" few_shot ReBaPL_MMRL "$@"
