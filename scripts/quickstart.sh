#!/usr/bin/env bash
# P2C, MaPLe and zero-shot CLIP through the base-to-new protocol on the bundled benchmark and the
# bundled small CLIP. Makes the environment on first use. Finished runs are not repeated: remove
# output/quickstart (OUTPUT) to begin anew.
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/make_env.sh
export OUTPUT=${OUTPUT:-output/quickstart}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} # the small CLIP gains nothing from more
bash scripts/protocol.sh base2new --methods zsclip maple p2c --datasets shapes --seeds 1 2 3
echo
echo "Next: from a folder of your own photos to a trained model in use, docs/TUTORIAL.md"
