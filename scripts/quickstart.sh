#!/usr/bin/env bash
# P2C, MaPLe and zero-shot CLIP through the base-to-new protocol on the bundled benchmark and the bundled small CLIP.
# Makes the environment on first use. Finished runs are not repeated: remove output/quickstart (OUTPUT) to begin anew.
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/make_env.sh
python=$(bash scripts/python.sh)
export OUTPUT=${OUTPUT:-output/quickstart}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} # the small CLIP gains nothing from more
methods=(zsclip maple p2c)
seeds=(1 2 3)
step=0 steps=$((${#methods[@]} * ${#seeds[@]} * 2))
mkdir -p "$OUTPUT"
for seed in "${seeds[@]}"; do
  for method in "${methods[@]}"; do
    for part in train test; do
      step=$((step + 1))
      echo "[$step/$steps] $method, seed $seed, $part"
      finished=$OUTPUT/.$method-$seed-$part
      [ -e "$finished" ] && continue
      # The run's own lines go to its log.txt; here its progress bars are shown.
      bash "scripts/$method/base2new_$part.sh" shapes "$seed" >/dev/null
      touch "$finished"
    done
  done
done
echo
"$python" parse_test_res.py "$OUTPUT/base2new" --hm
