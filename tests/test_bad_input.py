"""Wrong values, words, files and archives: each ends in one clear line and the right exit code, and costs nothing saved.

A line for each case. Every case runs in a process of its own, forked from this one.
"""

import io
import json
import os
import shutil
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image

import parse_test_res
import train
from clip.clip import BUNDLED
from datasets import doctor, prepare
from scripts import cloud, figures, protocol, report, runner, sweep, tables, words
from tests.forked import Done, forked
from tests.runs import REPO, arguments, run

PROGRAMS = {"train": train.main, "parse": parse_test_res.main, "doctor": doctor.main, "prepare": prepare.main}
PROGRAMS |= {
    m.__name__.removeprefix("scripts."): m.main for m in (cloud, figures, protocol, report, sweep, tables, words)
}
USUAL = ("OPTIM.MAX_EPOCH", "2", "DATALOADER.NUM_WORKERS", "0")
MODEL = "MultiModalPromptLearner/model.pth.tar-2"
CLIP = BUNDLED / "vit_tiny_8.safetensors"


def snapshot(*folders: Path) -> dict[Path, tuple[int, int]]:
    """Size and time of every file."""
    files = (Path(top, name) for folder in folders for top, _, names in os.walk(folder) for name in names)
    return {file: (file.lstat().st_size, file.lstat().st_mtime_ns) for file in files}


def assert_one_line(done: Done, code: int, line: str) -> None:
    assert "Traceback" not in done.err + done.out, done.err + done.out
    assert done.err.count("\n") == 1 and line in done.err, done.err
    assert done.err.startswith("error: ") or done.err.startswith("ERROR: "), done.err
    assert done.code == code


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
P2C | OPTIM 3 | OPTIM 3: is a section, which has no value of its own: give one of its keys, as OPTIM.NAME
P2C | TRAINER.P2C.DPD 0.1 | give one of its keys, as TRAINER.P2C.DPD.ENABLED
P2C | OPTIM.NAME sdg | did you mean sgd?
P2C | OPTIM.NAME None | Unknown optimizer "None"
P2C | OPTIM.NAME é | Unknown optimizer "é"
P2C | OPTIM.MOMENTUM -1.0 | must be 0 or more
P2C | OPTIM.WEIGHT_DECAY -1.0 | must be 0 or more
P2C | OPTIM.WEIGHT_DECAY 1e39 | must be below
P2C | OPTIM.SGD_NESTEROV True OPTIM.MOMENTUM 0.0 | needs OPTIM.MOMENTUM above 0 and OPTIM.SGD_DAMPNING 0
P2C | OPTIM.SGD_NESTEROV True OPTIM.SGD_DAMPNING 1 | needs OPTIM.MOMENTUM above 0 and OPTIM.SGD_DAMPNING 0
P2C | OPTIM.SGD_NESTEROV maybe | must be True or False
P2C | OPTIM.ADAM_BETA1 1.0 | must be 0 or more and below 1
P2C | OPTIM.ADAM_BETA2 -0.5 | must be 0 or more and below 1
P2C | OPTIM.RMSPROP_ALPHA -1.0 | must be 0 or more
P2C | OPTIM.GAMMA -0.1 | OPTIM.GAMMA -0.1: must be 0 or more
P2C | OPTIM.BASE_LR_MULT -1.0 | must be 0 or more
P2C | OPTIM.WARMUP_MIN_LR -1.0 | must be 0 or more
P2C | OPTIM.WARMUP_TYPE slow | Unknown OPTIM.WARMUP_TYPE "slow"
P2C | OPTIM.WARMUP_EPOCH 2 | the warm-up leaves no epoch to train in
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
P2C | INPUT.NO_TRANSFORM True | INPUT.NO_TRANSFORM True: there is no batch of images that are no tensors
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
P2C | INPUT.SIZE (48,48) | INPUT.SIZE (48, 48): ViT-Tiny/8 takes images of (32, 32)
P2C | INPUT.PIXEL_MEAN [0.5] | three numbers
P2C | INPUT.PIXEL_MEAN ['a','b','c'] | three numbers
P2C | INPUT.PIXEL_STD [0.0,0.0,0.0] | three numbers above 0
P2C | INPUT.PIXEL_STD [1e999,1.0,1.0] | INPUT.PIXEL_STD
P2C | INPUT.INTERPOLATION cubic | did you mean bicubic?
P2C | INPUT.TRANSFORMS ('flip',) | Unknown transform "flip"
P2C | INPUT.TRANSFORMS (5,) | Unknown transform "5"
P2C | INPUT.TRANSFORMS 'normalize' | must be a list
P2C | INPUT.CROP_PADDING 100000 | INPUT.CROP_PADDING 100000: must be from 0 to what INPUT.SIZE has, 32
P2C | INPUT.CROP_PADDING -1 | must be from 0 to
P2C | INPUT.RRCROP_SCALE (1,.5) | two numbers above 0 and at most 1, the smaller one first
P2C | INPUT.RRCROP_SCALE (2.0,3.0) | two numbers above 0
P2C | INPUT.RRCROP_SCALE (0.5,) | two numbers above 0
P2C | INPUT.RRCROP_SCALE ('a','b') | two numbers above 0
P2C | INPUT.GB_K 4 | INPUT.GB_K 4: must be odd and 1 or more
P2C | INPUT.GB_K -3 | must be odd and 1 or more
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
P2C | TRAINER.P2C.PREC fp8 | choose from fp32, fp16, bf16, amp
P2C | TRAINER.P2C.MAPPER.HIDDEN_SCALE 0 | must be 1 or more
P2C | TRAINER.P2C.MAPPER.HIDDEN_SCALE 1000000000 | must be at most 1000
P2C | TRAINER.P2C.DPD.SCHEDULE sigmoidal | choose from constant, linear
P2C | TRAINER.P2C.DPD.NOISE gauss | choose from gaussian, gmm
P2C | TRAINER.P2C.DPD.SIGMA_MAX -1.0 | must be 0 or more
P2C | TRAINER.P2C.DPD.SIGMA_MAX 1e300 | must be below
P2C | TRAINER.P2C.DPD.SIGMOID_K 1e-17 | must be from 0.001 to 1000
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
P2C | TRAINER.ATPROMPT.DATASET Owls | Owls has no attributes here
P2C | NOSUCHKEY 1 | there is no config key NOSUCHKEY
P2C | TRAINER.P2C | config keys and values come in pairs
P2C | OPTIM.LR 0.1 OPTIM.LR 0.2 | OPTIM.LR is given twice, as 0.1 and as 0.2
P2C | OPTIM.LR 0.1 --seed 3 | flags come before KEY VALUE pairs: move --seed
"""


@pytest.mark.parametrize("case", VALUES.strip().splitlines())
def test_values(case, data, tmp_path):
    trainer, opts, line = case.split(" | ")
    opts = opts.split()
    usual = [w for k, v in zip(USUAL[::2], USUAL[1::2], strict=True) if k not in opts for w in (k, v)]
    out = tmp_path / "out"
    done = forked(lambda: train.main(arguments(trainer, data, out, *usual, *opts)), tmp_path)
    assert_one_line(done, 2, line)
    assert not (out / "config.yaml").exists()  # a run that never began claims no folder


# -- words: program, arguments, exit code, what is said; {data}, {saved} and {tmp} are folders

WORDS = """
train | --sede 1 | 2 | unrecognized arguments
train | --seed one | 2 | argument --seed: invalid int value: 'one'
train | --seed 18446744073709551616 --trainer P2C DATASET.NAME Shapes | 2 | SEED 18446744073709551616: must be below 2^63
train | --config-file /nowhere.yaml | 2 | no config file /nowhere.yaml
train | --config-file {tmp} | 2 | no config file
train | --trainer P2C | 2 | give --trainer and --dataset-config-file
train | --trainer P2D --root {data} DATASET.NAME Shapes | 2 | Unknown trainer "P2D": did you mean P2C?
train | --trainer --root {data} | 2 | expected one argument
train | --trainer P2C --seed 1 DATASET.NAME Shapes SEED 2 | 2 | SEED is given twice, by --seed and as 2
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
figures | every {tmp} | 2 | invalid choice
report | {tmp}/nowhere | 2 | no such folder
report | {tmp} | 1 | no results
cloud | {tmp}/nowhere | 2 | no such folder
cloud | {tmp} | 1 | no results of runs
words | {tmp}/nowhere | 2 | no such file or folder
words | {saved} 0 | 2 | topk 0: must be 1 to
words | {saved} three | 2 | invalid int value
protocol | base2knew | 2 | invalid choice
protocol | xd --methods p2d --datasets shapes | 2 | invalid choice
protocol | base2new --seeds -1 | 2 | --seeds are 0 or more
protocol | few_shot --shots 0 | 2 | --shots 1 or more
protocol | base2new --seeds one | 2 | invalid int value
sweep | nowhere | 2 | ready sweeps are
sweep | | 2 | required
doctor | Shape | 2 | Unknown
doctor | --deeep | 2 | unrecognized arguments
prepare | eurosatt --root {tmp} | 2 | Unknown
prepare | | 2 | required
"""


@pytest.fixture(scope="module")
def saved(data, tmp_path_factory) -> Path:
    """The output folder of a P2C run of two epochs."""
    out = tmp_path_factory.mktemp("saved")
    assert run("P2C", data, out, *USUAL) == 0
    return out


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch) -> Iterator[None]:
    monkeypatch.chdir(REPO)
    for name in (*runner.ENVIRONMENT, "SHOW_DIR", "DATA_MIRROR"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("case", WORDS.strip().splitlines())
def test_words(case, data, saved, tmp_path):
    program, arguments, code, line = (
        case.split(" | ") if " | | " not in case else case.replace("| |", "|  |").split(" | ")
    )
    folders = {"data": data, "saved": saved, "tmp": tmp_path / "folder"}
    folders["tmp"].mkdir()
    before = snapshot(data, saved)
    done = forked(lambda: PROGRAMS[program](arguments.format(**folders).split()), tmp_path)
    assert done.code == int(code) and "Traceback" not in done.err, done.err
    last = done.err.strip().splitlines()[-1]
    assert line.replace("'", "") in last.replace("'", ""), done.err  # Python 3.12 and later have names without quotes
    assert last.lower().startswith("error: ") and (done.err.count("\n") == 1 or "warning" in done.err.lower())
    assert snapshot(data, saved) == before
