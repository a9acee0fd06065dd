#!/usr/bin/env bash
# P2C, MaPLe and zero-shot CLIP through the base-to-new protocol on the bundled benchmark and the
# bundled small CLIP. Makes the environment on first use. Finished runs are not repeated: remove
# output/quickstart (OUTPUT) to begin anew.
set -euo pipefail
case ${1:-} in -h | --help) sed -n '2,/^set/s/^# \{0,1\}//p' "$0" && exit ;; esac
cd "$(dirname "$0")/.."
bash scripts/make_env.sh
unset CFG SHOTS LOADEP # whose runs would be others
export OUTPUT=${OUTPUT:-output/quickstart}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} # the small CLIP gains nothing from more
bash scripts/protocol.sh base2new --methods zsclip maple p2c --datasets shapes --seeds 1 2 3

set_too="" # what the commands below need of this one's environment
for name in VENV DATA; do
  [ -z "${!name:-}" ] || set_too+="$name=$(printf %q "${!name}") "
done
run=$(printf %q "$OUTPUT")/base2new/train_base/shapes/shots_16/P2C/vit_tiny_ep5_batch4/seed1
images=$(printf %q "${DATA:-data}")/shapes/images
cat <<END

Three commands to go on with, in $PWD. What the model says of eight test images of one class (too few for an
accuracy, which the table has):
  ${set_too}bash scripts/predict.sh $run $images/checkered_green_star/009*.png
All these runs on one page:
  $(printf %q "$(bash scripts/python.sh)") -m results.report $(printf %q "$OUTPUT") --out report.html
A training of your own, on 4 images of each class:
  ${set_too}bash scripts/p2c/few_shot.sh shapes 4 1
And from a folder of your own photos to a trained model in use: docs/TUTORIAL.md
END
