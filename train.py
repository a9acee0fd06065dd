"""One run: train and test a method on a dataset, or test what was trained (--eval-only)."""

import argparse
import errno
import os
import signal
import sys

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
    merge_command_line,
    merge_file,
    notes_on_training,
    record_config,
)
from dassl.engine import build_trainer
from dassl.utils import (
    Failure,
    UsageError,
    collect_env_info,
    expand_user,
    print_error,
    set_random_seed,
    setup_logger,
    tolerate_encoding,
)
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

MEMORY_FULL = (
    "the memory is full, the device's or the machine's; what was saved is kept. To train, lower "
    "DATALOADER.TRAIN_X.BATCH_SIZE or take PREC fp16, in another --output-dir; to test, "
    "lower DATALOADER.TEST.BATCH_SIZE"
)
WORKER_KILLED = (
    "a process that reads images was killed, as happens where memory or /dev/shm is full; what was saved is kept. "
    "Lower DATALOADER.NUM_WORKERS (0: no such processes) or DATALOADER.CACHE_MB and run again to go on"
)
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    p = OneLineParser(description=__doc__)
    p.add_argument("--root", help="folder that holds all datasets")
    p.add_argument("--output-dir", help="folder of the log and the checkpoints")
    p.add_argument(
        "--resume",
        help="output folder of a run to go on from in a new one: more epochs, another rate",
    )
    p.add_argument("--seed", type=int, help="0 or more; negative: a random one")
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
    p.add_argument(
        "opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="config keys and their values"
    )
    return p.parse_args(argv)


def setup_cfg(args: argparse.Namespace) -> CfgNode:
    """Defaults, dataset yaml, method yaml, command line: the later wins.

    Raises: UsageError for a file that is missing or wrong, an unknown key or one given twice, or a
        value that it cannot
    have.
    """
    cfg = get_cfg_default()
    datasets.add_config(cfg)
    trainers.add_configs(cfg)
    for path in filter(None, (args.dataset_config_file, args.config_file)):
        if not os.path.isfile(path):
            raise UsageError(f"no config file {path}")
        merge_file(cfg, path)
    flags = [
        (f"--{flag.replace('_', '-')}", key, getattr(args, flag)) for flag, key in FLAGS.items()
    ]
    merge_command_line(cfg, flags, args.opts)
    if not cfg.TRAINER.NAME or not cfg.DATASET.NAME:
        raise UsageError(
            "give --trainer and --dataset-config-file (or DATASET.NAME); --help lists the flags"
        )
    check_values(cfg)
    for node, key in (
        (cfg, "OUTPUT_DIR"),
        (cfg, "RESUME"),
        (cfg.DATASET, "ROOT"),
        (cfg.MODEL, "INIT_WEIGHTS"),
    ):
        node[key] = expand_user(node[key])
    args.model_dir = expand_user(args.model_dir)
    check_schedule(cfg)
    cfg.freeze()
    return cfg


def check_flags(args: argparse.Namespace) -> None:
    """Raises UsageError for flags that would have no effect beside each other."""
    testing, training = ("model_dir", "load_epoch"), ("resume", "no_train")
    for name in training if args.eval_only else testing:
        value = getattr(args, name)
        if value not in (None, "") and value is not False:  # an epoch may be 0
            where = (
                "with --eval-only, which trains nothing"
                if args.eval_only
                else "without --eval-only"
            )
            raise UsageError(f"--{name.replace('_', '-')} has no effect {where}")


def run(args: argparse.Namespace) -> None:
    check_flags(args)
    cfg = setup_cfg(args)
    with sole_run(cfg.OUTPUT_DIR):
        work(args, cfg)


def work(args: argparse.Namespace, cfg: CfgNode) -> None:
    if cfg.SEED >= 0:
        print(f"Setting fixed seed: {cfg.SEED}")
        set_random_seed(cfg.SEED)
    check_output_dir(cfg)
    check_resume(cfg)
    setup_logger(cfg.OUTPUT_DIR)
    if torch.cuda.is_available() and cfg.USE_CUDA:
        torch.backends.cudnn.benchmark = True
    print(
        f"** Arguments **\n{vars(args)}\n** Config **\n{cfg}\n** System info **\n{collect_env_info()}\n"
    )
    trainer = build_trainer(cfg)
    if args.eval_only:
        if not args.model_dir and trainer.get_model_names():
            raise UsageError(
                "--eval-only needs --model-dir, the output folder of the training run to test"
            )
        trainer.load_model(args.model_dir, epoch=args.load_epoch)
        for line in notes_on_training(cfg, args.model_dir) if args.model_dir else ():
            print(line)
    record_config(cfg)  # only now: a run that does not begin does not claim the folder
    if args.eval_only:
        trainer.test()
    elif not args.no_train:
        trainer.train()


def known(error: Exception) -> str:
    """What to tell the user where a library's exception says it; nothing of one that has to be
    looked into."""
    text = str(error)
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "DefaultCPUAllocator" in text:
        return MEMORY_FULL
    if "DataLoader worker (pid" in text:
        return WORKER_KILLED
    if isinstance(error, BrokenPipeError):
        return "nobody reads what is printed any more; what was saved is kept. Run the same command again to go on"
    if isinstance(error, OSError) and error.errno in NO_SPACE:
        where = error.filename or "a file"
        return f"cannot write {where}: {error.strerror}. Free some space, then run the same command again to go on"
    return ""


def main(argv: list[str] | None = None) -> int:
    tolerate_encoding()
    try:
        run(parse_args(argv))
    except Failure as e:
        print_error(f"error: {e}")
        return e.exit_code
    except Exception as e:
        if not (line := known(e)):
            raise
        print_error(f"error: {line}")
        return 1
    except KeyboardInterrupt:
        print_error("stopped; run the same command again to go on from the last checkpoint")
        return 130
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGINT, interrupt)
    sys.exit(main())
