#!/usr/bin/env bash
# CoOp's published epochs depend on shots and dataset; on the bundled benchmark they are the
# config's.
epochs=()
case ${1:-}/${2:-}/${*:4} in
  shapes* | *OPTIM.MAX_EPOCH*) ;;
  imagenet/* | */1/*) epochs=(OPTIM.MAX_EPOCH 50) ;;
  */2/* | */4/*) epochs=(OPTIM.MAX_EPOCH 100) ;;
esac
exec bash "$(dirname "$0")/../run.sh" few_shot CoOp "${@:1:3}" "${epochs[@]}" "${@:4}"
