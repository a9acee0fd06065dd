"""Wrong values, words, files and archives: each ends in one clear line, the right exit code, and
costs nothing saved.

A line for each case. Cases run in processes of their own, forked from this one; but those of config
values, which end before a run begins, in one.
"""

import hashlib
import io
import json
import os
import shutil
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from PIL import Image

import parse_test_res
import train
from clip.weights import BUNDLED
from datasets import doctor, prepare
from inference import cloud, words
from results import figures, kept, report, same, tables
from runs import plan, protocol, sweep
from tests.forked import Done, forked, in_turn
from tests.runs import REPO, arguments, run

PROGRAMS = {
    "train": train.main,
    "parse": parse_test_res.main,
    "doctor": doctor.main,
    "prepare": prepare.main,
}
PROGRAMS |= {
    m.__name__.rpartition(".")[2]: m.main
    for m in (cloud, figures, kept, protocol, report, same, sweep, tables, words)
}
USUAL = ("OPTIM.MAX_EPOCH", "2", "DATALOADER.NUM_WORKERS", "0")
MODEL = "MultiModalPromptLearner/model.pth.tar-2"
CLIP = BUNDLED / "vit_tiny_8.safetensors"


def snapshot(*folders: Path) -> dict[Path, bytes]:
    """What is in every file."""
    files = [
        Path(top, name) for folder in folders for top, _, names in os.walk(folder) for name in names
    ]
    files += [file for file in folders if file.is_file()]
    return {file: hashlib.sha256(file.read_bytes()).digest() for file in files if file.is_file()}


def assert_one_line(done: Done, code: int, line: str) -> None:
    assert "Traceback" not in done.err + done.out, done.err + done.out
    assert done.err.count("\n") == 1 and line in done.err, done.err
    assert done.err.startswith("error: ") or done.err.startswith("ERROR: "), done.err
    assert done.code == code


@pytest.fixture(scope="module")
def saved(data, tmp_path_factory) -> Path:
    """The output folder of a P2C run of two epochs."""
    out = tmp_path_factory.mktemp("saved")
    assert run("P2C", data, out, *USUAL) == 0
    return out


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch) -> Iterator[None]:
    monkeypatch.chdir(REPO)
    for name in (*plan.ENVIRONMENT, "SHOW_DIR", "DATA_MIRROR"):
        monkeypatch.delenv(name, raising=False)


# -- config values: trainer, keys and values, what is said

VALUES = """
P2C | OPTIM.MAX_EPOCH 0 | OPTIM.MAX_EPOCH 0: must be 1 or more
P2C | OPTIM.MAX_EPOCH 1000000000000 | must be at most 1000000
P2C | OPTIM.MAX_EPOCH 1.5 | OPTIM.MAX_EPOCH 1.5: must be a whole number
P2C | OPTIM.MAX_EPOCH many | must be a whole number
P2C | OPTIM.LR -0.1 | OPTIM.LR -0.1: must be 0 or more
P2C | OPTIM.LR 1 | OPTIM.LR 1: must be a number with a point or an exponent, as 0.0035
P2C | OPTIM.LR fast | OPTIM.LR fast: must be a number with a point
P2C | OPTIM.LR 1e40 | OPTIM.LR 1e+40: must be below 2^63, with a point or an exponent below 3e38
P2C | OPTIM.LR 1e999 | OPTIM.LR inf: must be below
P2C | OPTIM.LR None | OPTIM.LR None: must be 0 or more
P2C | OPTIM.LR (0.1,) | must be a number
P2C | OPTIM 3 | \
OPTIM 3: is a section, which has no value of its own: give one of its keys, as OPTIM.NAME
P2C | TRAINER.P2C.DPD 0.1 | give one of its keys, as TRAINER.P2C.DPD.ENABLED
P2C | OPTIM.NAME sdg | did you mean sgd?
P2C | OPTIM.NAME None | Unknown optimizer "None"
P2C | OPTIM.NAME é | Unknown optimizer "é"
P2C | OPTIM.MAX_EPOCH 1 | the warm-up leaves no epoch to train in
P2C | TRAIN.LOGGER tensorbord | \
TRAIN.LOGGER ['tensorbord']: must be one or more of tensorboard, csv, wandb, or "" for none
P2C | TRAIN.LOGGER csv,excel | must be one or more of tensorboard, csv, wandb
P2C | TRAIN.LOGGER (1,) | must be one or more of tensorboard, csv, wandb
P2C | TRAIN.LOGGER True | TRAIN.LOGGER True: must be a list, as ['tensorboard']
P2C | OPTIM.MOMENTUM 5.0 | must be below 1
P2C | OPTIM.WARMUP_CONS_LR -1.0 | must be 0 or more
P2C | DATASET.NUM_LABELED 4 | DATASET.NUM_LABELED 4: has no effect on Shapes
P2C | DATASET.SOURCE_DOMAINS ('day',) | has no effect on Shapes
P2C | MODEL.HEAD.NAME mlp | has no effect, as there is no head on a CLIP
P2C | MODEL.BACKBONE.ACTIVATION relu | must be quick_gelu or gelu, or ""
P2C | MODEL.INIT_WEIGHTS ~nosuchuser/x | there is no user nosuchuser
P2C | OPTIM.MOMENTUM -1.0 | must be 0 or more
P2C | OPTIM.WEIGHT_DECAY -1.0 | must be 0 or more
P2C | OPTIM.WEIGHT_DECAY 1e39 | must be below
P2C | OPTIM.SGD_NESTEROV True OPTIM.MOMENTUM 0.0 | \
needs OPTIM.MOMENTUM above 0 and OPTIM.SGD_DAMPNING 0
P2C | OPTIM.SGD_NESTEROV True OPTIM.SGD_DAMPNING 1 | \
needs OPTIM.MOMENTUM above 0 and OPTIM.SGD_DAMPNING 0
P2C | OPTIM.SGD_NESTEROV maybe | must be True or False
P2C | OPTIM.ADAM_BETA1 1.0 | must be 0 or more and below 1
P2C | OPTIM.ADAM_BETA2 -0.5 | must be 0 or more and below 1
P2C | OPTIM.RMSPROP_ALPHA -1.0 | must be 0 or more
P2C | OPTIM.SGD_DAMPNING 7 | OPTIM.SGD_DAMPNING 7: must be from 0 to 1
PromptSRC | TRAINER.PROMPTSRC.TEXT_LOSS_WEIGHT -1.0 | must be 0 or more
KgCoOp | TRAINER.COOP.W -8.0 | must be 0 or more
TCP | TRAINER.TCP.KG_WEIGHT -8.0 | must be 0 or more
ProGrad | LOSS.LAMBDA -1.0 | must be 0 or more
P2C | OPTIM.GAMMA -0.1 | OPTIM.GAMMA -0.1: must be 0 or more
P2C | OPTIM.BASE_LR_MULT -1.0 | must be 0 or more
P2C | OPTIM.WARMUP_MIN_LR -1.0 | must be 0 or more
P2C | OPTIM.WARMUP_TYPE slow | Unknown OPTIM.WARMUP_TYPE "slow"
P2C | OPTIM.WARMUP_EPOCH 2 | the warm-up leaves no epoch to train in
P2C | OPTIM.STAGED_LR True | OPTIM.STAGED_LR is for layers, and ctx
P2C | OPTIM.LR_SCHEDULER cosin | did you mean cosine?
P2C | OPTIM.STEPSIZE () | OPTIM.STEPSIZE []: must be a list of epochs, as (10, 20)
P2C | OPTIM.STEPSIZE (1.5,) | must be a list of epochs
P2C | OPTIM.STEPSIZE ('a',) | must be a list of epochs
P2C | OPTIM.STEPSIZE 3 | OPTIM.STEPSIZE 3: must be a list
P2C | DATALOADER.K_TRANSFORMS 0 | must be 1 or more
P2C | DATALOADER.K_TRANSFORMS 2 | DATALOADER.K_TRANSFORMS 2: P2C takes one copy of each image
CoOp | DATALOADER.K_TRANSFORMS 2 | CoOp takes one copy of each image
CoCoOp | DATALOADER.K_TRANSFORMS 2 | CoCoOp takes one copy of each image
KgCoOp | DATALOADER.K_TRANSFORMS 2 | KgCoOp takes one copy of each image
PromptSRC | DATALOADER.K_TRANSFORMS 2 | PromptSRC takes one copy of each image
MultiModalAdapter | DATALOADER.K_TRANSFORMS 2 | MultiModalAdapter takes one copy of each image
P2C | INPUT.NO_TRANSFORM True | \
INPUT.NO_TRANSFORM True: there is no batch of images that are no tensors
ZeroshotCLIP | INPUT.NO_TRANSFORM True | INPUT.NO_TRANSFORM True: there is no batch
P2C | DATALOADER.TRAIN_X.BATCH_SIZE 0 | must be 1 or more
P2C | DATALOADER.TRAIN_X.BATCH_SIZE 1000000000000000000000000000000 | must be below 2^63
P2C | DATALOADER.TEST.BATCH_SIZE 1000000000000000000000000000000 | must be below 2^63
P2C | DATALOADER.TEST.BATCH_SIZE -1 | must be 1 or more
P2C | DATALOADER.TRAIN_X.N_INS 0 | must be 1 or more
P2C | DATALOADER.TRAIN_X.SAMPLER Random | Unknown
P2C | DATALOADER.NUM_WORKERS -1 | must be 0 or more
P2C | DATALOADER.NUM_WORKERS 1e3 | must be a whole number
P2C | DATALOADER.CACHE_MB -1 | must be 0 or more
P2C | DATALOADER.FEATURES False | DATALOADER.FEATURES False: must be a folder, or "" to keep nothing
P2C | DATALOADER.TEST_CACHE true | must be a folder, or "" to keep nothing
P2C | DATALOADER.CACHE_MB 1000000000000000000000000000000 | must be below 2^63
P2C | TRAIN.PRINT_FREQ 0 | must be 1 or more
P2C | TRAIN.COUNT_ITER train_y | Unknown TRAIN.COUNT_ITER "train_y": did you mean train_x?
P2C | TEST.SPLIT vall | Unknown TEST.SPLIT "vall": did you mean val?
P2C | TEST.FINAL_MODEL best | Unknown TEST.FINAL_MODEL "best"
P2C | TEST.EVALUATOR Classify | Unknown evaluator "Classify": did you mean Classification?
P2C | SEED 18446744073709551616 | SEED 18446744073709551616: must be below 2^63
P2C | SEED one | SEED one: must be a whole number
P2C | INPUT.SIZE (32,) | height and width in pixels
P2C | INPUT.SIZE (32.0,32.0) | height and width in pixels
P2C | INPUT.SIZE None | height and width in pixels
P2C | INPUT.SIZE 32 | INPUT.SIZE 32: must be a list
P2C | INPUT.SIZE (48,48) | vit_tiny_8.safetensors takes images of (32, 32)
P2C | INPUT.PIXEL_MEAN [0.5] | three numbers
P2C | INPUT.PIXEL_MEAN ['a','b','c'] | three numbers
P2C | INPUT.PIXEL_STD [0.0,0.0,0.0] | three numbers above 0
P2C | INPUT.PIXEL_STD [1e999,1.0,1.0] | INPUT.PIXEL_STD
P2C | INPUT.INTERPOLATION cubic | did you mean bicubic?
P2C | INPUT.TRANSFORMS ('flip',) | Unknown transform "flip"
P2C | INPUT.TRANSFORMS (5,) | Unknown transform "5"
P2C | INPUT.TRANSFORMS 'normalize' | must be a list
P2C | INPUT.CROP_PADDING 100000 | \
INPUT.CROP_PADDING 100000: must be from 0 to what INPUT.SIZE has, 32
P2C | INPUT.CROP_PADDING -1 | must be from 0 to
P2C | INPUT.RRCROP_SCALE (1,.5) | two numbers above 0 and at most 1, the smaller one first
P2C | INPUT.RRCROP_SCALE (2.0,3.0) | two numbers above 0
P2C | INPUT.RRCROP_SCALE (0.5,) | two numbers above 0
P2C | INPUT.RRCROP_SCALE ('a','b') | two numbers above 0
P2C | INPUT.GB_K 4 | INPUT.GB_K 4: must be odd and 1 or more
P2C | INPUT.GB_K -3 | must be odd and 1 or more
P2C | INPUT.TRANSFORMS ['gaussian_blur'] INPUT.GB_K 65 | \
INPUT.GB_K 65: must be below twice INPUT.SIZE, 64
P2C | INPUT.GB_P 1.5 | must be from 0 to 1
P2C | INPUT.RGS_P -0.1 | must be from 0 to 1
P2C | INPUT.GN_STD -1.0 | must be 0 or more
P2C | INPUT.CUTOUT_N 1000000000 | must be from 0 to 1000
P2C | INPUT.CUTOUT_LEN -16 | must be 0 or more
P2C | INPUT.RANDAUGMENT_N 1000000000 | must be from 0 to 1000
P2C | INPUT.RANDAUGMENT_M 31 | must be from 0 to 30
P2C | INPUT.COLORJITTER_B -1.0 | must be 0 or more
P2C | INPUT.COLORJITTER_H 0.7 | must be from 0 to 0.5
P2C | DATASET.NAME Shape | Unknown dataset "Shape": did you mean Shapes?
P2C | DATASET.NUM_SHOTS 0 | 1 or more, or -1 for all images
P2C | DATASET.SUBSAMPLE_CLASSES nwe | did you mean new?
P2C | DATASET.VAL_PERCENT 1.5 | must be from 0 to 1
ZeroshotCLIP | DATASET.TEMPLATE photo | must have one {} for the class
ZeroshotCLIP | DATASET.TEMPLATE {}{} | must have one {} for the class
P2C | MODEL.BACKBONE.NAME ViT-B/17 | ViT-B/17
P2C | MODEL.HEAD.HIDDEN_LAYERS ('a',) | a list of whole numbers above 0
P2C | MODEL.HEAD.DROPOUT 2.0 | must be from 0 to 1
P2C | TRAINER.P2C.N_CTX 0 | N_CTX 0: must be 1 or more
P2C | TRAINER.P2C.N_CTX 70 | shorten the name, or the context
P2C | TRAINER.P2C.N_CTX 1000000000 | TRAINER.P2C.N_CTX 1000000000: must be at most 1000
PromptSRC | TRAINER.PROMPTSRC.N_CTX_VISION 1000000000 | must be at most 1000
PromptSRC | TRAINER.PROMPTSRC.N_CTX_TEXT 1000000000 | must be at most 1000
PromptSRC | TRAINER.PROMPTSRC.N_CTX_VISION 0 | must be 1 or more
PromptSRC | TRAINER.PROMPTSRC.GPA_STD 0.0 | must be above 0
PromptSRC | TRAINER.PROMPTSRC.PROMPT_DEPTH_TEXT 40 | this CLIP's towers allow
CoOp | TRAINER.COOP.N_CTX 1000000000 | must be at most 1000
CoOp | TRAINER.COOP.CTX_INIT 5 | TRAINER.COOP.CTX_INIT 5: must be text
CoOp | TRAINER.COOP.CLASS_TOKEN_POSITION start | choose from end, middle, front
TCP | TRAINER.COOP.W 2.0 | which is W 1
ProGrad | LOSS.T 0.0 | must be above 0
ProGrad | LOSS.NAME kl | ProGrad has prograd only
MultiModalAdapter | TRAINER.MMADAPTER.ADAPTER_DIM 1000000000 | must be at most 1000
MultiModalAdapter | TRAINER.MMADAPTER.ADAPTER_SCALE 0.0 | must be 1 or more, and above 0
P2C | TRAINER.P2C.CTX_INIT a | has 1 tokens, fewer than N_CTX 2
P2C | TRAINER.P2C.PROMPT_DEPTH 5 | this CLIP's towers allow 1 to 4
P2C | TRAINER.P2C.PREC fp8 | choose from fp32, tf32, fp16, bf16, amp
P2C | TRAINER.P2C.MAPPER.HIDDEN_SCALE 0 | must be 1 or more
P2C | TRAINER.P2C.MAPPER.HIDDEN_SCALE 1000000000 | must be at most 1000
P2C | TRAINER.P2C.DPD.SCHEDULE sigmoidal | choose from constant, linear
P2C | TRAINER.P2C.DPD.NOISE gauss | choose from gaussian, gmm
P2C | TRAINER.P2C.DPD.SIGMA_MAX -1.0 | must be 0 or more
P2C | TRAINER.P2C.DPD.SIGMA_MAX 1e300 | must be below
P2C | TRAINER.P2C.DPD.SIGMOID_K 1e-17 | must be from 0.001 to 1000
P2C | TRAINER.P2C.DPD.SIGMOID_K 0.0 | must be from 0.001 to 1000
P2C | TRAINER.P2C.DPD.SIGMOID_K 5000.0 | must be from 0.001 to 1000
P2C | TRAINER.P2C.DPD.WARMUP_EPOCHS 2 | less than OPTIM.MAX_EPOCH 2
P2C | TRAINER.P2C.DPD.GMM_MEANS ('a','b','c') | GMM_MEANS, GMM_STDS and GMM_WEIGHTS must be numbers
P2C | TRAINER.P2C.DPD.GMM_MEANS (1e999,0,0) | must be below
P2C | TRAINER.P2C.DPD.GMM_MEANS () | need one value for each component
P2C | TRAINER.P2C.DPD.GMM_STDS (1.0,) | need one value for each component
P2C | TRAINER.P2C.DPD.GMM_WEIGHTS (0.0,1.0,1.0) | must be positive
P2C | TRAINER.P2C.AUX.SIGMA -1.0 | must be 0 or more
P2C | TRAINER.P2C.AUX.PROMPTS att | choose from ctx, all
P2C | TRAINER.P2C.AUX.STOP_GRADIENT 1 | must be True or False
P2C | TRAINER.P2C.DPD.SIGMA 1 | did you mean TRAINER.P2C.DPD.SIGMA_MAX?
P2C | TRAINER.ATPROMPT.N_ATT1 -1 | must be 0 or more
P2C | TRAINER.ATPROMPT.N_ATT1 1000000000 | must be at most 1000
P2C | TRAINER.ATPROMPT.ATT_NUM 4 | give ATT_NUM 1 to 3
P2C | TRAINER.ATPROMPT.ATT_NUM 2 | give ATT_NUM 1 to 3 and that many of ATT1_TEXT
P2C | TRAINER.ATPROMPT.DATASET Owls | Owls has no attributes here
P2C | NOSUCHKEY 1 | there is no config key NOSUCHKEY
P2C | USE_ATPROMPT True | no config key USE_ATPROMPT; did you mean TRAINER.ATPROMPT.USE_ATPROMPT?
P2C | MODEL.BACKBONE.NAME "" | no CLIP is named: give --config-file, one of configs/trainers/P2C,
P2C | OPTIM.LR.X 1 | there is no config key OPTIM.LR.X; did you mean OPTIM.LR?
P2C | OPTIM. 1 | there is no config key OPTIM.; did you mean OPTIM.LR?
P2C | ... 1 | there is no config key ...
P2C | SEED 111111111111111111111111111111111111111111111111111111111111111111111 | \
must be below 2^63
P2C | INPUT.SIZE (((((((((((((((((( | must be a list
P2C | TRAINER.P2C | config keys and values come in pairs
P2C | OPTIM.LR 0.1 OPTIM.LR 0.2 | OPTIM.LR is given twice, as 0.1 and as 0.2
P2C | OPTIM.LR 0.1 --seed 3 | flags come before KEY VALUE pairs: move --seed
"""


VALUES = VALUES.strip().splitlines()


@pytest.fixture(scope="module")
def values(data, tmp_path_factory) -> dict[str, tuple[Done, Path]]:
    """How the run of each case ends, and its output folder."""
    folder = tmp_path_factory.mktemp("values")
    mains, outs = [], []
    for i, case in enumerate(VALUES):
        trainer, opts, _ = case.split(" | ")
        opts = opts.split()
        usual = [w for i in (0, 2) if USUAL[i] not in opts for w in USUAL[i : i + 2]]
        outs.append(folder / f"{i}" / "out")
        mains.append(partial(train.main, arguments(trainer, data, outs[i], *usual, *opts)))
    return dict(zip(VALUES, zip(in_turn(mains, folder), outs, strict=True), strict=True))


@pytest.mark.parametrize("case", VALUES)
def test_values(case, values):
    done, out = values[case]
    assert_one_line(done, 2, case.split(" | ")[2])
    assert not (out / "config.yaml").exists()  # a run that never began claims no folder


# -- words: program, arguments, exit code, what is said; {data}, {saved}, {tmp} and {long} are
# folders, {pipe} a FIFO, {usual} is what CoOp needs

WORDS = """
train | --sede 1 | 2 | unrecognized arguments
train | --seed one | 2 | argument --seed: invalid int value: 'one'
train | --seed 18446744073709551616 --trainer P2C DATASET.NAME Shapes | 2 | \
SEED 18446744073709551616: must be
train | --config-file /nowhere.yaml | 2 | no config file /nowhere.yaml
train | --config-file {tmp} | 2 | no config file
train | --config-file {pipe} | 2 | no config file
train | {usual} MODEL.INIT_WEIGHTS {pipe} OUTPUT_DIR {tmp}/out | 1 | It is a pipe or device
train | --load-epoch 2 {usual} | 2 | --load-epoch has no effect without --eval-only
train | --resume {tmp} --output-dir {tmp}/out {usual} | 1 | There is nothing to resume in
train | --output-dir {long} {usual} | 2 | File name too long
train | --trainer P2C | 2 | give --trainer and --dataset-config-file
train | --trainer P2D --root {data} --output-dir {tmp}/out DATASET.NAME Shapes | 2 | \
Unknown trainer "P2D": did you mean P2C?
train | --trainer --root {data} | 2 | expected one argument
train | --trainer P2C --seed 1 DATASET.NAME Shapes SEED 2 | 2 | \
SEED is given twice, by --seed and as 2
train | --trainer P2C --seed 1 DATASET.NAME Shapes --seed 2 | 2 | flags come before KEY VALUE pairs
train | --trainer P2C --seed 1 --seed 2 | 2 | --seed is given twice, as 1 and as 2
train | --trainer P2C --seed 1 --seed 1 | 2 | give --trainer and --dataset-config-file
parse | {tmp}/nowhere | 2 | no such folder
parse | {tmp} | 1 | no result in
parse | {tmp} --hm --format html | 2 | argument --format: invalid choice
parse | {tmp} --format csv | 2 | --format goes with --hm
parse | {tmp} --keyword loss | 2 | argument --keyword: invalid choice
parse | | 2 | the following arguments are required: DIR
tables | base2knew {tmp} | 2 | invalid choice
tables | base2new {tmp}/nowhere | 2 | no such folder
tables | base2new {tmp} | 1 | no result for the base2new table
figures | all {tmp}/nowhere | 2 | nowhere
figures | all {tmp} | 1 | no
figures | all {long} | 2 | no such folder
figures | every {tmp} | 2 | invalid choice
report | {tmp}/nowhere | 2 | no such folder
report | {tmp} | 1 | no results
same | {tmp} /nowhere.jsonl | 2 | RECORD: /nowhere.jsonl: no such file
same | {tmp} {pipe} | 2 | no such file
same | {tmp} docs/records/bench_cpu.jsonl | 1 | docs/records/bench_cpu.jsonl has no runs
kept | {tmp} --out {tmp}/new --with /nowhere.jsonl | 2 | --with: /nowhere.jsonl: no such file
cloud | {tmp}/nowhere | 2 | no such folder
cloud | {tmp} | 1 | no results of runs
words | {tmp}/nowhere | 2 | no such file or folder
words | {pipe} | 2 | no such file or folder
words | {saved} 0 | 2 | topk 0: must be 1 to
words | {saved} three | 2 | invalid int value
protocol | base2knew | 2 | invalid choice
protocol | base2new --datasets shapes -- --seed=7 | 2 | --seed is no setting: each run has its own
protocol | xd --methods p2d --datasets shapes | 2 | invalid choice
protocol | base2new --seeds -1 | 2 | --seeds are 0 or more
protocol | few_shot --shots 0 | 2 | --shots 1 or more
protocol | base2new --seeds one | 2 | invalid int value
sweep | nowhere | 2 | ready sweeps are
sweep | {tmp} | 2 | Is a directory
sweep | {pipe} | 2 | It is a pipe or device
sweep | | 2 | required
doctor | Shape | 2 | Unknown
doctor | --deeep | 2 | unrecognized arguments
prepare | eurosatt --root {tmp} | 2 | Unknown
prepare | eurosat --root {tmp} --mirror foo | 2 | is no http:// or https:// address
prepare | eurosat --root {tmp} --labels {tmp} | 2 | --labels are of ImageNet's validation images
prepare | | 2 | required
"""


@pytest.mark.parametrize("case", WORDS.strip().splitlines())
def test_words(case, data, saved, tmp_path):
    program, arguments, code, line = (
        case.split(" | ") if " | | " not in case else case.replace("| |", "|  |").split(" | ")
    )
    folders = {
        "data": data,
        "saved": saved,
        "tmp": tmp_path / "folder",
        "long": tmp_path / ("x" * 300),
    }
    folders["pipe"] = tmp_path / "pipe"
    os.mkfifo(folders["pipe"])
    folders["usual"] = (
        f"--trainer CoOp --root {data} --backbone ViT-Tiny/8 DATASET.NAME Shapes INPUT.SIZE (32,32)"
    )
    folders["tmp"].mkdir()
    before = snapshot(data, saved)
    done = forked(lambda: PROGRAMS[program](arguments.format(**folders).split()), tmp_path)
    assert done.code == int(code) and "Traceback" not in done.err, done.err
    last = done.err.strip().splitlines()[-1]
    assert line.replace("'", "") in last.replace("'", ""), (
        done.err
    )  # Python 3.12 and later have names without quotes
    assert last.lower().startswith("error: ") and (
        done.err.count("\n") == 1 or "warning" in done.err.lower()
    )
    assert snapshot(data, saved) == before


# -- files and archives: what is done to a copy of the saved run, or to a file; how it is used; exit
# code; what is said


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def flip(file: Path) -> None:
    """One bit in its middle."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def pipe(file: Path) -> None:
    """One that nobody will ever write to."""
    file.unlink(missing_ok=True)
    os.mkfifo(file)


def write(content: str | bytes) -> Callable[[Path], object]:
    return lambda file: file.write_bytes(content.encode() if isinstance(content, str) else content)


def save(change: Callable[[dict], object]) -> Callable[[Path], None]:
    """A checkpoint or state dict with something else in it."""
    return lambda file: torch.save(
        change(torch.load(file, weights_only=True) if file.exists() else {}), file
    )


class RunsCode:
    def __reduce__(self):
        return os.mkdir, ("/tmp/owned-by-a-test",)


def zipped(**members: str) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return out.getvalue()


def folder_instead(file: Path) -> None:
    file.unlink(missing_ok=True)
    file.mkdir()


def prompt(
    key: str = "ctx", change: Callable[[torch.Tensor], torch.Tensor] | None = None
) -> Callable[[dict], dict]:
    """A checkpoint with another tensor of the prompt learner; without `change` with none."""

    def changed(state: dict) -> dict:
        value = state["state_dict"].pop(f"prompt_learner.{key}", torch.zeros(2, 2))
        if change:
            state["state_dict"][f"prompt_learner.{key}"] = change(value)
        return state

    return changed


def no_state(state: dict) -> dict:
    del state["state_dict"]
    return state


PAGE = "<html>Too many downloads</html>"
CHECKPOINTS = {
    "cut": (cut, "is truncated, damaged or no checkpoint"),
    "a flipped bit": (flip, "is truncated, damaged or no checkpoint"),
    "empty": (write(""), "is truncated, damaged or no checkpoint"),
    "text": (write("weights"), "is truncated, damaged or no checkpoint"),
    "a web page": (write(PAGE), "is truncated, damaged or no checkpoint"),
    "another zip": (write(zipped(a="b")), "is truncated, damaged or no checkpoint"),
    "an empty zip": (write(zipped()), "is truncated, damaged or no checkpoint"),
    "code": (
        save(lambda state: {"state_dict": RunsCode()}),
        "it names posix.mkdir, which could run code",
    ),
    "no state_dict": (save(no_state), "it has no state_dict"),
    "a longer ctx": (
        save(prompt("ctx", lambda v: torch.cat([v, v]))),
        "ctx has shape (4, 128) in the file",
    ),
    "weights without values": (
        save(prompt("ctx", lambda v: v.to("meta"))),
        "prompt_learner.ctx is no tensor",
    ),
    "complex weights": (
        save(prompt("ctx", lambda v: v.to(torch.complex64))),
        "ctx has type torch.complex64",
    ),
    "whole numbers": (save(prompt("ctx", lambda v: v.long())), "ctx has type torch.int64"),
    "NaN": (save(prompt("ctx", lambda v: v * torch.nan)), "is NaN or infinite"),
    "no ctx": (save(prompt("ctx")), "it lacks prompt_learner.ctx"),
    "one tensor more": (save(prompt("more", lambda v: v)), "the model has no prompt_learner.more"),
    "a folder": (folder_instead, "MultiModalPromptLearner"),
    "a pipe": (pipe, "No model at"),
    "missing": (Path.unlink, "No model in"),
}


def assert_harmless(
    main: Callable[[], int], damaged: Path, kept: list[Path], tmp: Path, code: int, line: str
) -> None:
    before = snapshot(*kept)
    done = forked(main, tmp)
    assert_one_line(done, code, line)
    assert before.items() <= snapshot(*kept).items(), damaged  # a new log is no harm
    assert not Path("/tmp/owned-by-a-test").exists()


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_checkpoints(name, data, saved, tmp_path):
    damage, line = CHECKPOINTS[name]
    shutil.copytree(saved, tmp_path / "run")
    damage(tmp_path / "run" / MODEL)
    flags = ("--eval-only", "--model-dir", str(tmp_path / "run"))
    words = arguments("P2C", data, tmp_path / "out", *USUAL, flags=flags)
    assert_harmless(
        lambda: train.main(words), tmp_path, [data, tmp_path / "run"], tmp_path, 1, line
    )


MODELS = {
    "nowhere": ("P2C", "nowhere", (), 1, "No model in"),
    "another method's": ("MaPLe", "run", (), 1, "is of another method, architecture or config"),
    "another prompt learner's": ("CoOp", "run", (), 1, "No model in"),
    "an epoch that is not kept": ("P2C", "run", ("--load-epoch", "7"), 1, "(--load-epoch 2)"),
    "an epoch that is none": ("P2C", "run", ("--load-epoch", "two"), 2, "invalid int value"),
    "none": ("P2C", "", (), 2, "--eval-only needs --model-dir"),
}


@pytest.mark.parametrize("name", MODELS)
def test_models(name, data, saved, tmp_path):
    trainer, folder, more, code, line = MODELS[name]
    place = str(saved if folder == "run" else tmp_path / folder) if folder else ""
    words = [trainer, data, tmp_path / "out", *USUAL]
    main = lambda: train.main(arguments(*words, flags=("--eval-only", "--model-dir", place, *more)))  # noqa: E731
    assert_harmless(main, saved, [data, saved], tmp_path, code, line)


def state(change: Callable[[dict], object]) -> Callable[[Path], None]:
    """The saved run's checkpoint, changed or replaced by what is returned."""

    def changed(state: dict) -> object:
        new = change(state)
        return state if new is None else new

    return lambda run: save(changed)(run / MODEL)


def momentum(value: object) -> Callable[[dict], None]:
    def change(state: dict) -> None:
        for one in state["optimizer"]["state"].values():
            one["momentum_buffer"] = value

    return change


FOLDERS = {
    "another rate": (
        ("OPTIM.LR", "0.1"),
        lambda run: None,
        2,
        "holds another run (OPTIM.LR 0.0035; now 0.1)",
    ),
    "another seed": (("SEED", "7"), lambda run: None, 2, "holds another run (SEED 1; now 7)"),
    "another subset": (
        ("DATASET.SUBSAMPLE_CLASSES", "new"),
        lambda run: None,
        2,
        "holds another run",
    ),
    "cut models": ((), lambda run: cut(run / MODEL), 1, "There is no whole checkpoint in"),
    "code": ((), lambda run: save(lambda s: RunsCode())(run / MODEL), 1, "it names posix.mkdir"),
    "an epoch below 0": ((), state(lambda s: s | {"epoch": -1}), 1, "its epoch is no number"),
    "an epoch that is a word": (
        (),
        state(lambda s: s | {"epoch": "two"}),
        1,
        "its epoch is no number",
    ),
    "steps without end": (
        (),
        state(lambda s: s["scheduler"].update(_step_count=10**15)),
        1,
        "state of its scheduler",
    ),
    "steps below 0": (
        (),
        state(lambda s: s["scheduler"].update(_step_count=-5)),
        1,
        "state of its scheduler",
    ),
    "momentum of another shape": (
        (),
        state(momentum(torch.zeros(1, 7))),
        1,
        "state of its optimizer",
    ),
    "momentum that is a word": ((), state(momentum("fast")), 1, "state of its optimizer"),
    "a scheduler that is a word": (
        (),
        state(lambda s: s | {"scheduler": "x"}),
        1,
        "state of its scheduler",
    ),
    "weights that are a list": (
        (),
        state(lambda s: s | {"state_dict": [1]}),
        1,
        "it has no state_dict",
    ),
    "a tensor": ((), state(lambda s: torch.zeros(2)), 1, "it holds a Tensor, not a dict"),
    "a pipe as a model": ((), lambda run: pipe(run / MODEL), 1, "Cannot read the checkpoint"),
    "a pipe as its config": (
        (),
        lambda run: pipe(run / "config.yaml"),
        2,
        "It is a pipe or device",
    ),
    "another optimizer's state": (
        (),
        lambda run: save(lambda s: s | {"optimizer": {"state": {}, "param_groups": []}})(
            run / MODEL
        ),
        1,
        "Training cannot go on from",
    ),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_output_folders(name, data, saved, tmp_path):
    opts, damage, code, line = FOLDERS[name]
    run = tmp_path / "run"
    shutil.copytree(saved, run)
    damage(run)
    main = lambda: train.main(arguments("P2C", data, run, *USUAL, *opts))  # noqa: E731
    kept = [data, run / "MultiModalPromptLearner", run / "results.json", run / "log.txt"]
    assert_harmless(main, run, kept, tmp_path, code, line)


WEIGHTS = {
    "empty.pt": (write(""), 1, "the file is empty"),
    "page.pt": (write(PAGE), 1, "it is a web page"),
    "text.pt": (write("weights of CLIP"), 1, "it is no file of torch.save"),
    "zip.pt": (write(zipped(a="b")), 1, "not readable as CLIP weights"),
    "script.pt": (write(zipped(**{"a/constants.pkl": "b"})), 1, "SHA-256 is none of OpenAI's"),
    "code.pt": (save(lambda _: RunsCode()), 1, "names posix.mkdir and could run code"),
    "others.pt": (
        save(lambda _: {"weight": torch.zeros(2)}),
        1,
        "holds no CLIP weights under OpenAI's names",
    ),
    "list.pt": (save(lambda _: [torch.zeros(2)]), 1, "holds no CLIP weights under OpenAI's names"),
    "number.pt": (save(lambda _: 5), 1, "holds no CLIP weights under OpenAI's names"),
    "cut.safetensors": (
        lambda file: (shutil.copy(CLIP, file), cut(file)),
        1,
        "truncated or damaged",
    ),
    "empty.safetensors": (write(""), 1, "the file is empty"),
    "page.safetensors": (write(PAGE), 1, "it is a web page"),
    "pipe.pt": (pipe, 2, "no CLIP weights at"),
    "missing.pt": (lambda file: None, 2, "no CLIP weights at"),
    "folder.pt": (Path.mkdir, 2, "(a folder)"),
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights(name, data, tmp_path):
    damage, code, line = WEIGHTS[name]
    damage(tmp_path / name)
    opts = ("MODEL.BACKBONE.WEIGHTS", str(tmp_path / name))
    main = lambda: train.main(arguments("P2C", data, tmp_path / "out", *USUAL, *opts))  # noqa: E731
    assert_harmless(main, tmp_path, [data], tmp_path, code, line)


CONFIGS = {
    "an unknown key": (
        "OPTIM:\n  LRR: 0.1\n",
        "there is no config key OPTIM.LRR; did you mean OPTIM.LR?",
    ),
    "a section as a value": ("OPTIM: 3\n", "OPTIM is a section, which has no value of its own"),
    "a section with nothing in it": ("OPTIM:\n", "OPTIM is a section"),
    "a value as a section": ("OPTIM:\n  LR:\n    A: 1\n", "OPTIM.LR must be a number with a point"),
    "a word for a number": ("OPTIM:\n  LR: fast\n", "OPTIM.LR must be a number with a point"),
    "a number for a word": (
        "OPTIM:\n  NAME: 3\n",
        "OPTIM.NAME must be text, in a file in quotes, as adam",
    ),
    "words in quotes": ("OPTIM:\n  'it''s': 1\n", "there is no config key OPTIM.it's"),
    "NaN": ("OPTIM:\n  LR: .nan\n", "OPTIM.LR nan: must be 0 or more"),
    "infinity": ("OPTIM:\n  WEIGHT_DECAY: .inf\n", "OPTIM.WEIGHT_DECAY inf: must be below"),
    "a number as a key": ("1: 2\n", "there is no config key 1"),
    "on as a key": ("on: 2\n", "there is no config key True"),
    "no end": ("OPTIM: {LR: 0.1", "while parsing"),
    "a tab": ("OPTIM:\n\tLR: 0.1\n", "cannot start any token"),
    "another encoding": (b"# \xe9t\xe9\nOPTIM:\n  LR: 0.1\n", "codec can't decode"),
    "a control character": (b"OPTIM:\n  NAME: 'a\x1b[31m'\n", "special characters are not allowed"),
    "an object": (
        "OPTIM: !!python/object/apply:os.mkdir ['/tmp/owned-by-a-test']\n",
        "python/object/apply",
    ),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_config_files(name, data, tmp_path):
    content, line = CONFIGS[name]
    write(content)(tmp_path / "my.yaml")
    flags = ("--config-file", str(tmp_path / "my.yaml"))
    main = lambda: train.main(arguments("P2C", data, tmp_path / "out", flags=flags))  # noqa: E731
    assert_harmless(main, tmp_path, [data], tmp_path, 2, line)


def split(change: Callable[[dict], object]) -> Callable[[Path], None]:
    """Another split file."""

    def damage(shapes: Path) -> None:
        file = shapes / "split_zhou_Shapes.json"
        file.write_text(json.dumps(change(json.loads(file.read_text()))))

    return damage


def first_image(shapes: Path) -> Path:
    return (
        shapes
        / "images"
        / json.loads((shapes / "split_zhou_Shapes.json").read_text())["test"][0][0]
    )


def at_first(damage: Callable[[Path], None]) -> Callable[[Path], None]:
    return lambda shapes: damage(first_image(shapes))


def huge_image(file: Path) -> None:
    """400 million pixels in 50 kB: what Pillow takes for an attack."""
    Image.new("1", (20_000, 20_000)).save(file, "PNG")


def entry(*changed: object) -> Callable[[dict], dict]:
    return lambda content: content | {"test": [list(changed), *content["test"]]}


def named(name: str) -> Callable[[dict], dict]:
    """The same name for the first two classes."""
    return lambda content: {
        part: [[p, i, name if i < 2 else n] for p, i, n in items] for part, items in content.items()
    }


def picks(number: int) -> Callable[[Path], None]:
    """A few-shot file of so many images."""

    def damage(shapes: Path) -> None:
        train = json.loads((shapes / "split_zhou_Shapes.json").read_text())["train"]
        (shapes / "split_fewshot").mkdir(exist_ok=True)
        (shapes / "split_fewshot" / "shot_2-seed_1.json").write_text(
            json.dumps({"train": train[:number], "val": []})
        )

    return damage


DATA = {
    "one image in a few-shot split": (picks(1), "not 2. Put the split file back"),
    "no image in a few-shot split": (picks(0), "picks 0 images of class 0"),
    "two classes of one name in a split": (split(named("owl")), 'are both called "owl"'),
    "a class without a name in a split": (split(named(" ")), "has no name"),
    "a split that is cut": (
        lambda shapes: cut(shapes / "split_zhou_Shapes.json"),
        "is not valid JSON",
    ),
    "an empty split": (
        lambda shapes: write("")(shapes / "split_zhou_Shapes.json"),
        "is not valid JSON",
    ),
    "a web page as a split": (
        lambda shapes: write(PAGE)(shapes / "split_zhou_Shapes.json"),
        "is not valid JSON",
    ),
    "a split that is a pipe": (
        lambda shapes: pipe(shapes / "split_zhou_Shapes.json"),
        "It is a pipe or device",
    ),
    "a split that is a list": (split(lambda content: content["train"]), "split_zhou_Shapes.json"),
    "a split without test": (
        split(lambda content: {k: content[k] for k in ("train", "val")}),
        "split_zhou_Shapes",
    ),
    "a name that changes": (
        split(lambda c: c | {"test": [[c["test"][0][0], 0, "x"], *c["test"]]}),
        "mismatch",
    ),
    "an item of two": (split(entry("a.png", 0)), "split_zhou_Shapes.json"),
    "a label in words": (split(entry("a.png", "none", "a")), "split_zhou_Shapes.json"),
    "a path that is a number": (split(entry(5, 0, "a")), "split_zhou_Shapes.json"),
    "a missing image": (at_first(Path.unlink), "0"),
    "an empty image": (at_first(write("")), "Cannot read the image"),
    "a cut image": (at_first(cut), "Cannot read the image"),
    "text as an image": (at_first(write("no image")), "Cannot read the image"),
    "a web page as an image": (at_first(write(PAGE)), "Cannot read the image"),
    "a huge image": (at_first(huge_image), "Cannot read the image"),
    "a pipe as an image": (at_first(pipe), "Cannot read the image"),
    "a folder as an image": (at_first(folder_instead), ".png"),
}


@pytest.mark.parametrize("name", DATA)
def test_data(name, data, tmp_path):
    damage, line = DATA[name]
    root = tmp_path / "data"
    shutil.copytree(data, root)
    damage(root / "shapes")
    flags = ("--no-train",) if "split" in name else ()
    opts = (*USUAL, "DATASET.NUM_SHOTS", "2")
    words = arguments("ZeroshotCLIP", root, tmp_path / "out", *opts, flags=flags)
    main = partial(train.main, words)
    assert_harmless(main, root, [root], tmp_path, 1, line)


def test_there_are_150_cases():
    tables = (
        VALUES,
        WORDS.strip().splitlines(),
        CHECKPOINTS,
        MODELS,
        FOLDERS,
        WEIGHTS,
        CONFIGS,
        DATA,
    )
    assert sum(map(len, tables)) >= 150
