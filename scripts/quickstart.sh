#!/usr/bin/env bash
# P2C, MaPLe and zero-shot CLIP through the base-to-new protocol on the bundled benchmark and the bundled small CLIP.
# Makes the environment on first use. Full logs are in output/quickstart (OUTPUT). Finished runs are not repeated.
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/make_env.sh
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
      done_file=$OUTPUT/.done-$method-$seed-$part
      [ -e "$done_file" ] && continue
      # The run's own log goes to its log.txt; its progress bars are shown.
      bash "scripts/$method/base2new_$part.sh" shapes "$seed" "$@" >/dev/null
      touch "$done_file"
    done
  done
done
echo
"$(bash scripts/python.sh)" parse_test_res.py "$OUTPUT/base2new" --hm
