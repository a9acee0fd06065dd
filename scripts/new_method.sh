#!/usr/bin/env bash
# Begin a method: scripts/new_method.sh NAME Trainer, as in scripts/new_method.sh mymethod MyMethod
# Makes trainers/NAME.py (scripts/new_method/method.py, which trains as it is), the settings configs/trainers/Trainer
# (MaPLe's to begin with), the commands scripts/NAME, and the test tests/trainers/test_NAME.py.
set -euo pipefail
case ${1:-} in -h | --help) sed -n '2,/^set/s/^# \{0,1\}//p' "$0" && exit ;; esac
cd "$(dirname "$0")/.."
export LC_ALL=C

# One line and exit code 2.
wrong() { echo "$1" >&2 && exit 2; }
[ $# -eq 2 ] || wrong "usage: bash scripts/new_method.sh NAME Trainer, as in mymethod MyMethod"
name=$1 trainer=$2 node=$(tr '[:lower:]' '[:upper:]' <<<"$2")
[[ $name =~ ^[a-z][a-z0-9_]*$ ]] || wrong "error: NAME is to be lower-case letters, digits and _, not $name"
[[ $trainer =~ ^[A-Z][A-Za-z0-9_]*$ ]] || wrong "error: Trainer is to be a class's name, as MyMethod, not $trainer"
for path in "trainers/$name.py" "configs/trainers/$trainer" "scripts/$name" "tests/trainers/test_$name.py"; do
  [ ! -e "$path" ] || wrong "error: there is a $path already"
done
python=$(bash scripts/python.sh ready)
taken=$("$python" - "$name" "$trainer" "$node" <<'PYTHON'
import keyword, re, sys
from pathlib import Path

name, trainer, node = sys.argv[1:]
used = set(re.findall(r"\w+", Path("scripts/new_method/method.py").read_text())) - {"NewMethod"}
for word in (name, trainer):
    if keyword.iskeyword(word):
        sys.exit(print(f"{word} is a word of Python's own"))
if trainer in used:
    sys.exit(print(f"a method's file has another {trainer} in it"))

import trainers  # slow
from dassl.config import get_cfg_default
from dassl.engine import TRAINER_REGISTRY

trainers.add_configs(cfg := get_cfg_default())
others = {method.lower() for method in TRAINER_REGISTRY.registered_names()}
if trainer.lower() in others:
    print(f"there is a method {trainer} already")
elif node in cfg.TRAINER:
    print(f"there is a config node TRAINER.{node} already")
PYTHON
)
[ -z "$taken" ] || wrong "error: $(head -n 1 <<<"$taken")"

# All is made beside its place, and moved there at the end; what is not complete then is removed.
made=("$(mktemp -d ./.new_method.XXXXXX)")
trap 'rm -rf "${made[@]}"' EXIT
new=${made[0]}
mkdir -p "$new/configs" "$new/scripts" tests/trainers
named() { sed "s/NewMethod/$trainer/g; s/NEWMETHOD/$node/g" "$1"; }
named scripts/new_method/method.py >"$new/method.py"
named scripts/new_method/test_method.py >"$new/test.py"
for size in vit_b16 vit_tiny; do
  printf '# %s, with the settings of MaPLe to begin with.\n' "$trainer" >"$new/configs/$size.yaml"
  sed '1d; /^TRAINER:/,$d' "configs/trainers/MaPLe/${size}_c2_ep5_batch4_2ctx.yaml" >>"$new/configs/$size.yaml"
  printf 'TRAINER:\n  %s:\n    N_CTX: 4\n    PREC: "fp16"\n' "$node" >>"$new/configs/$size.yaml"
done
for script in scripts/kgcoop/*.sh; do sed "s/KgCoOp/$trainer/g" "$script" >"$new/scripts/${script##*/}"; done

place() { made+=("$2") && mv "$new/$1" "$2"; }
place method.py "trainers/$name.py"
place configs "configs/trainers/$trainer"
place scripts "scripts/$name"
place test.py "tests/trainers/test_$name.py"
made=("$new")
echo "Made trainers/$name.py, configs/trainers/$trainer, scripts/$name, tests/trainers/test_$name.py. To train it:"
echo "bash scripts/$name/base2new_train.sh shapes 1"
