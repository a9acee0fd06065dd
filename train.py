"""One run: train and test a method on a dataset, or test what was trained (--eval-only)."""

import argparse
import os
import random
import signal
import sys
from collections.abc import Iterable
from contextlib import nullcontext

if __name__ == "__main__":  # a Ctrl-C during the slow imports ends it without a traceback
    interrupt = signal.signal(signal.SIGINT, signal.SIG_DFL)

import torch
from yacs.config import CfgNode

import datasets  # registers the datasets
import trainers  # registers the methods
from dassl.commands import OneLineParser
from dassl.config import (
    check_output_dir,
    check_resume,
    check_schedule,
    check_values,
    get_cfg_default,
    keys_of_file,
    merge_command_line,
    merge_file,
    notes_on_training,
    record_config,
    recorded_value,
    text_of_method,
)
from dassl.data.datasets import DATASET_REGISTRY
from dassl.engine import TRAINER_REGISTRY, TrainerBase, build_trainer
from dassl.engine.loggers import check_loggers
from dassl.files import CONFIG
from dassl.utils import (
    Failure,
    UsageError,
    collect_env_info,
    expand_user,
    print_error,
    ranks,
    set_random_seed,
    setup_logger,
    tolerate_any_text,
)
from dassl.utils.errors import known
from dassl.utils.lock import sole_run

# flag -> config key
FLAGS = {
    "root": "DATASET.ROOT",
    "output_dir": "OUTPUT_DIR",
    "resume": "RESUME",
    "seed": "SEED",
    "source_domains": "DATASET.SOURCE_DOMAINS",
    "target_domains": "DATASET.TARGET_DOMAINS",
    "transforms": "INPUT.TRANSFORMS",
    "trainer": "TRAINER.NAME",
    "backbone": "MODEL.BACKBONE.NAME",
    "head": "MODEL.HEAD.NAME",
}
# Added to the error for a key given twice: where a user may have set it.
HINTS = {"DATASET.NUM_SHOTS": "; the scripts take it from SHOTS"}
# Flags that have no effect on a run of the other kind.
OF_TESTS, OF_TRAINING = ("model_dir", "load_epoch"), ("resume", "no_train")


class Once(argparse.Action):
    """A flag whose second value would silently replace the one that a script gives."""

    def __call__(self, parser, namespace, values, option_string=None):  # noqa: ANN001
        was = getattr(namespace, self.dest)
        if was not in (None, values):
            parser.error(f"{option_string} is given twice, as {was} and as {values}")
        setattr(namespace, self.dest, values)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """CoOp's flags, then config keys and values."""
    p = OneLineParser(description=__doc__)
    p.add_argument("--root", help="folder that holds all datasets")
    p.add_argument("--output-dir", help="folder of the log and the checkpoints")
    p.add_argument("--resume", help="output folder of a run to go on from in a new one: "
                   "more epochs, another rate")  # fmt: skip
    p.add_argument("--seed", type=int, action=Once, help="0 or more; negative: a random one")
    p.add_argument("--source-domains", nargs="+")
    p.add_argument("--target-domains", nargs="+")
    p.add_argument("--transforms", nargs="+", help="training transforms")
    p.add_argument("--config-file", help="the method's settings (configs/trainers)")
    p.add_argument("--dataset-config-file", help="the dataset's settings (configs/datasets)")
    p.add_argument("--trainer", help="the method")
    p.add_argument("--backbone", help="a CLIP: ViT-B/16, ViT-Tiny/8, …, or a file")
    p.add_argument("--head")
    p.add_argument("--eval-only", action="store_true", help="test the model in --model-dir")
    p.add_argument("--model-dir", default="", help="output folder of the training run to test")
    p.add_argument("--load-epoch", type=int, help="which epoch's model to test (default: the last)")
    p.add_argument("--no-train", action="store_true", help="build everything and stop")
    p.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE",
                   help="config keys and their values")  # fmt: skip
    return p.parse_args(argv)


def check_flags(args: argparse.Namespace) -> None:
    """Raises UsageError for flags that have no effect with --eval-only, or without it."""
    where = "with --eval-only, which trains nothing" if args.eval_only else "without --eval-only"
    for name in OF_TRAINING if args.eval_only else OF_TESTS:
        value = vars(args)[name]
        if value not in (None, "") and value is not False:  # an epoch may be 0
            raise UsageError(f"{as_flag(name)} has no effect {where}")


def as_flag(name: str) -> str:
    """output_dir -> --output-dir"""
    return f"--{name.replace('_', '-')}"


def default_cfg() -> CfgNode:
    """All keys that a config may have, the engine's, the datasets' and the methods'."""
    cfg = get_cfg_default()
    datasets.add_config(cfg)
    trainers.add_configs(cfg)
    return cfg


def setup_cfg(args: argparse.Namespace) -> CfgNode:
    """Defaults, dataset yaml, method yaml, its BY_DATASET, command line: the later wins.

    Raises UsageError for a file that is missing or wrong, an unknown key or one given twice, or a
    value that it cannot have.
    """
    cfg = default_cfg()
    given = dict(zip(args.opts[::2], args.opts[1::2], strict=False))
    for path in filter(None, (args.dataset_config_file, args.config_file)):
        if not os.path.isfile(path):
            raise UsageError(f"no config file {path}")
        merge_file(cfg, path, given.get("DATASET.NAME", ""), DATASET_REGISTRY.registered_names())
    flags = [(as_flag(name), key, vars(args)[name]) for name, key in FLAGS.items()]
    merge_command_line(cfg, flags, args.opts, HINTS)
    if not cfg.TRAINER.NAME or not cfg.DATASET.NAME:
        line = "give --trainer and --dataset-config-file (or DATASET.NAME); --help lists the flags"
        raise UsageError(line)
    check_values(cfg)
    cfg.OUTPUT_DIR, cfg.RESUME = expand_user(cfg.OUTPUT_DIR), expand_user(cfg.RESUME)
    cfg.DATASET.ROOT = expand_user(cfg.DATASET.ROOT)
    cfg.MODEL.INIT_WEIGHTS = expand_user(cfg.MODEL.INIT_WEIGHTS)
    args.model_dir = expand_user(args.model_dir)
    check_schedule(cfg)
    if cfg.SEED < 0 and ranks.count() == 1:
        cfg.SEED = random_seed(cfg)
    cfg.freeze()
    return cfg


def random_seed(cfg: CfgNode) -> int:
    """That of the run which is to go on, or in the output folder; else a new one."""
    for folder in filter(None, (cfg.RESUME, cfg.OUTPUT_DIR)):
        if isinstance(seed := recorded_value(folder, "SEED"), int):
            return seed  # older runs have recorded that it is random, and are drawn for once more
    return random.SystemRandom().randrange(2**31)


def of_other_methods(keys: Iterable[str], method: type[TrainerBase]) -> list[str]:
    """Those of the keys that other methods read and this one does not; none if it does not say."""
    own = method.config_names()
    all_methods = (TRAINER_REGISTRY.get(name) for name in TRAINER_REGISTRY.registered_names())
    others = {name for other in all_methods for name in other.config_names() or ()}
    others -= others if own is None else {*own}
    return [k for k in dict.fromkeys(keys) if k.removeprefix("TRAINER.").split(".")[0] in others]


def run(args: argparse.Namespace, cfg: CfgNode) -> None:
    """Seeds, logs, builds the trainer, and trains or tests."""
    if cfg.SEED >= 0:
        print(f"Setting fixed seed: {cfg.SEED}")
        set_random_seed(cfg.SEED)
    check_resume(cfg)
    if not args.eval_only:
        check_loggers(cfg)
    if ranks.first():
        check_output_dir(cfg)
        setup_logger(os.path.join(cfg.OUTPUT_DIR, "log.txt"))
    if ranks.count() > 1:
        print(f"Processes: {ranks.count()}")
    method = TRAINER_REGISTRY.get(cfg.TRAINER.NAME)
    if note := getattr(method, "note", ""):
        print(note)
    if torch.cuda.is_available() and cfg.USE_CUDA:
        torch.backends.cudnn.benchmark = True
    shown = text_of_method(cfg, method.config_names())
    print(f"** Arguments **\n{vars(args)}\n** Config **\n{shown}")
    print(f"All methods' settings: {os.path.join(cfg.OUTPUT_DIR, CONFIG)}")
    print(f"** System info **\n{collect_env_info()}\n")
    trainer = build_trainer(cfg)
    given = keys_of_file(args.config_file, default_cfg()) if args.config_file else []
    for key in of_other_methods([*given, *args.opts[::2]], method):
        print(f"{key} is no setting of {cfg.TRAINER.NAME}: it has no effect on this run")
    if args.eval_only:
        if not args.model_dir and trainer.get_model_names():
            line = "--eval-only needs --model-dir, the output folder of the training run to test"
            raise UsageError(line)
        trainer.load_model(args.model_dir, epoch=args.load_epoch)
        for line in notes_on_training(cfg, args.model_dir) if args.model_dir else ():
            print(line)
    else:
        ranks.check_batch(cfg.DATALOADER.TRAIN_X.BATCH_SIZE)
        test_only = getattr(DATASET_REGISTRY.get(cfg.DATASET.NAME), "test_only", False)
        if test_only and trainer.get_model_names() and not args.no_train:
            line = f"{cfg.DATASET.NAME} is for testing only: train on another dataset"
            raise UsageError(f"{line}, and test the model on this one with --eval-only")
    if ranks.first():
        record_config(cfg)  # only now: a run that does not begin does not claim the folder
    if args.eval_only:
        trainer.test()
    elif not args.no_train:
        trainer.train()


def outcome(argv: list[str] | None) -> tuple[int, str]:
    """Runs the program; its exit code, and a line if it ended in what a user can cause."""
    try:
        args = parse_args(argv)
        check_flags(args)
        cfg = setup_cfg(args)
        with sole_run(cfg.OUTPUT_DIR) if ranks.first() else nullcontext():
            run(args, cfg)
    except Failure as e:
        return e.exit_code, f"error: {e}"
    except Exception as e:
        if not (line := known(e)):
            raise
        return 1, f"error: {line}"
    except KeyboardInterrupt:
        return 130, "stopped; run the same command again to go on from the last checkpoint"
    return 0, ""


def main(argv: list[str] | None = None) -> int:
    """Runs the program; its exit code. An error that a user can cause ends in one line."""
    tolerate_any_text()
    ranks.join()
    with ranks.silent():
        code, line = outcome(argv)
    if not line:
        ranks.end()
        return code
    earlier = ranks.earlier_failure(code, line)
    code, line = earlier or (code, line)
    print_error(line, aloud=not earlier)
    return code


if __name__ == "__main__":
    signal.signal(signal.SIGINT, interrupt)
    sys.exit(main())
