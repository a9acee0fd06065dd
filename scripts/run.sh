#!/usr/bin/env bash
# One run of a protocol: scripts/run.sh PROTOCOL TRAINER DATASET [SHOTS] SEED [train.py arguments …]
# The scripts in the methods' folders are this one with the first two words filled in.
# Environment: DATA (folder of the datasets, default data), OUTPUT (default output), CFG (a file's name in
# configs/trainers/TRAINER), SHOTS (16), SOURCE (dataset a cross-dataset model was trained on), LOADEP (epoch to test),
# VENV (Python environment); SHOW_DIR=1 only prints the folder of the run's log and checkpoints, SHOW_DIR=command what
# would be executed: the number of words, the words and the environment, each with a null byte after it.
set -euo pipefail
cd "$(dirname "$0")/.."

# One line and exit code 2.
wrong() { echo "$1" >&2 && exit 2; }
names() { (cd "$1" && ls ./*.yaml | sed 's|./||; s/.yaml$//' | tr '\n' ' '); }

protocol=$1 trainer=$2
shift 2
shots=${SHOTS:-16}
words="DATASET SEED" dataset=${1:-}
[ "$protocol" != few_shot ] || words="DATASET SHOTS SEED"
[ $# -ge "$(wc -w <<<"$words")" ] || wrong "usage: bash scripts/<method>/$protocol.sh $words [train.py arguments]"
[ -f "configs/datasets/$dataset.yaml" ] || wrong "error: no dataset $dataset; there are: $(names configs/datasets)"
if [ "$protocol" = few_shot ]; then
  shots=$2
  set -- "$1" "${@:3}"
fi
[[ $2 =~ ^[0-9]+$ ]] || wrong "error: SEED is to be a whole number, not $2"
[[ $shots =~ ^[1-9][0-9]*$ ]] || wrong "error: SHOTS is to be a whole number, 1 or more, not $shots"
seed=$2
shift 2

# The bundled benchmark is for the bundled CLIP. Where a method publishes settings of their own for cross-dataset or
# few-shot runs, or for models trained on ImageNet (_imnet) or SUN397 (_sun397), those have them.
source=imagenet
[[ $dataset == shapes* ]] && source=shapes
source=${SOURCE:-$source}
trained=$dataset
[ "$protocol" = xd_test ] && trained=$source
size=vit_b16
[[ $dataset == shapes* ]] && size=vit_tiny
[ -d "configs/trainers/$trainer" ] || wrong "error: no folder configs/trainers/$trainer with settings"
configs=$(cd "configs/trainers/$trainer" && ls "$size"*.yaml 2>/dev/null) || true
default=$(grep -v -e cross_datasets -e few_shot -e _imnet -e _sun397 <<<"$configs" | head -n 1) || true
special=$(case $protocol in xd_*) grep cross_datasets ;; few_shot) grep few_shot ;; esac <<<"$configs" | head -n 1) || true
own=$(case $trained in imagenet) grep _imnet ;; sun397) grep _sun397 ;; esac <<<"$configs" | head -n 1) || true
default=${special:-${own:-$default}}
cfg=${CFG:-${default%.yaml}}
[ -f "configs/trainers/$trainer/$cfg.yaml" ] ||
  wrong "error: no config configs/trainers/$trainer/$cfg.yaml; CFG names one of: $(names "configs/trainers/$trainer")"

home=~ out=${OUTPUT:-output} # of ~ bash knows what it is also where HOME is not set
out=${out/#"~/"/$home/}
below=$dataset/shots_$shots/$trainer/$cfg/seed$seed
case $protocol in
  base2new_train) dir=$out/base2new/train_base/$below subset=base ;;
  base2new_test) dir=$out/base2new/test_new/$below subset=new model=$out/base2new/train_base/$below ;;
  xd_train | few_shot) dir=$out/$dataset/$trainer/${cfg}_${shots}shots/seed$seed subset=all ;;
  xd_test)
    dir=$out/evaluation/$trainer/${cfg}_${shots}shots/$dataset/seed$seed subset=all
    model=$out/$source/$trainer/${cfg}_${shots}shots/seed$seed
    ;;
  *) wrong "error: unknown protocol $protocol" ;;
esac
[[ ${SHOW_DIR:-command} == command ]] || { echo "$dir" && exit; }
python=$(bash scripts/python.sh ready)

# A line is to be seen when it is printed. The small CLIP gains nothing from threads and loses much when they have to wait.
export PYTHONUNBUFFERED=1
if [ "$size" = vit_tiny ]; then export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}; fi
set -- "$python" train.py \
  --root "${DATA:-data}" --seed "$seed" --trainer "$trainer" \
  --dataset-config-file "configs/datasets/$dataset.yaml" --config-file "configs/trainers/$trainer/$cfg.yaml" \
  --output-dir "$dir" ${model:+--eval-only --model-dir "$model" ${LOADEP:+--load-epoch "$LOADEP"}} "$@" \
  DATASET.NUM_SHOTS "$shots" DATASET.SUBSAMPLE_CLASSES "$subset"
[ -z "${SHOW_DIR:-}" ] || { printf '%s\0' $# "$@" && exec env -0 -u SHOW_DIR; }
exec "$@"
