"""The config in a run's folder, and what may differ from it in a later run."""

from collections.abc import Iterator
from pathlib import Path

from yacs.config import CfgNode

from dassl.files import CONFIG, FINAL, FREE
from dassl.utils import UsageError, atomic_write, mkdir_if_missing

from .merge import all_keys, get_value, one_line_errors, read_file

# What else may differ where a training goes on in another folder.
_SCHEDULE = ("OPTIM.", "DATALOADER.")
_OPTIMIZER = ("OPTIM.NAME", "OPTIM.STAGED_LR", "OPTIM.NEW_LAYERS", "OPTIM.CYCLE_EPOCHS")
# What makes a model what it is.
_LEARNED = ("MODEL.BACKBONE.", "TRAINER.")


def record_config(cfg: CfgNode) -> None:
    """Writes cfg to its output folder; to be called when the run really begins."""
    mkdir_if_missing(cfg.OUTPUT_DIR)
    with atomic_write(f"{cfg.OUTPUT_DIR}/{CONFIG}", "w") as file:
        file.write(cfg.dump())


def plain_config(cfg: CfgNode) -> dict:
    """The values as plain data, dicts and lists, but for those that change no result.

    So equal trainings in other folders, with more workers …, have equal ones.
    """

    def plain(node: CfgNode, prefix: str = "") -> dict:
        return {
            key: plain(value, f"{prefix}{key}.")
            if isinstance(value, CfgNode)
            else get_value(node, key)
            for key, value in node.items()
            if not f"{prefix}{key}".startswith(FREE)
        }

    return plain(cfg)


def check_output_dir(cfg: CfgNode) -> None:
    """Raises UsageError if the output folder has a run of another config."""
    for key, was, now in _differences(cfg, cfg.OUTPUT_DIR):
        if not key.startswith(FREE) or key in FINAL:
            line = f"{cfg.OUTPUT_DIR} holds another run ({key} {was}; now {now})"
            raise UsageError(
                f"{line}: choose another --output-dir (for the scripts, another OUTPUT), or remove "
                "that folder and the tests of its model"
            )


def check_resume(cfg: CfgNode) -> None:
    """Raises UsageError if the run in cfg.RESUME cannot go on with cfg.

    More epochs, another rate or batch size and a wider precision are what one resumes for.
    """
    for key, was, now in _differences(cfg, cfg.RESUME) if cfg.RESUME else ():
        free = key.startswith(FREE + _SCHEDULE) or key.endswith(".PREC")
        if not free or key in _OPTIMIZER:
            line = f"{cfg.RESUME} cannot be continued with another {key} ({was}; now {now})"
            hint = "to start from its weights, give MODEL.INIT_WEIGHTS its file instead of --resume"
            raise UsageError(f"{line}: {hint}")


def notes_on_training(cfg: CfgNode, model_dir: str) -> list[str]:
    """A line for each setting of the method that model_dir's run had otherwise."""
    found = [d for d in _differences(cfg, model_dir) if d[0].startswith(_LEARNED)]
    return [f"Note: trained with {key} {was!r}, tested with {now!r}" for key, was, now in found]


def recorded_value(folder: str, key: str) -> object:
    """A dotted key's value in a folder's run; None if the folder or its config does not have it."""
    return get_value(_recorded(folder), key)


def _recorded(folder: str) -> CfgNode:
    """The config of a folder's run, empty if there is none. Raises UsageError if it is broken."""
    file = Path(folder) / CONFIG
    before = CfgNode()
    if file.exists():
        try:
            with one_line_errors(before, str(file)):
                before.update(read_file(file))
        except UsageError as error:
            line = f"{error}. It says which run the folder holds: get it back, or remove it"
            raise UsageError(f"{line} if you are sure that the settings are the same") from error
    return before


def _differences(cfg: CfgNode, folder: str) -> Iterator[tuple[str, object, object]]:
    """Key, recorded and present value, where cfg differs from a folder's run."""
    before = _recorded(folder)
    known = {*all_keys(before)}  # a value may be None
    for key in all_keys(cfg):
        was, now = get_value(before, key), get_value(cfg, key)
        if key in known and was != now:
            yield key, was, now
