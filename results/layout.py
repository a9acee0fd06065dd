"""The folder of each run, as in MaPLe's and CoOp's scripts: from a run to it, and back.

Imports nothing slow: each run begins here.
"""

import re
from functools import cache
from typing import NamedTuple

BASE2NEW = "{dataset}/shots_{shots}/{trainer}/{cfg}/seed{seed}"
TRAINED = "{out}/{dataset}/{trainer}/{cfg}_{shots}shots/seed{seed}"
# By the methods' scripts. A cross-dataset training is a few-shot training of all classes.
FOLDERS = {
    "base2new_train": f"{{out}}/base2new/train_base/{BASE2NEW}",
    "base2new_test": f"{{out}}/base2new/test_new/{BASE2NEW}",
    "xd_test": "{out}/evaluation/{trainer}/{cfg}_{shots}shots/{dataset}/seed{seed}",
    "few_shot": TRAINED,
    "xd_train": TRAINED,
}
TESTED = {"base2new_test": "base2new_train", "xd_test": "xd_train"}  # whose models they test


class Place(NamedTuple):
    """What a run's folder says about it."""

    out: str  # the folder of all runs, $OUTPUT
    script: str  # a key of FOLDERS
    trainer: str
    cfg: str  # the name of its file in configs/trainers/<trainer>/
    dataset: str  # the name of its file in configs/datasets/
    shots: str
    seed: str

    @property
    def folder(self) -> str:
        """Its path, with /."""
        return FOLDERS[self.script].format_map(self._asdict())


def place_of(folder: str) -> Place | None:
    """The run whose folder it is; None if its path, with /, has another layout.

    In the place of xd_train, `script` is few_shot. train_base/ and test_new/ need no base2new/.
    """
    for script in FOLDERS:
        if match := re.fullmatch(_pattern(script), folder):
            return Place(script=script, **match.groupdict())
    return None


@cache
def _pattern(script: str) -> str:
    """The regular expression of a script's folders."""
    parts = {"out": r"[\s\S]*?", "shots": r"\d+", "seed": r"\d+"}
    template = FOLDERS[script].replace("/base2new", "(?:/base2new)?")
    return re.sub(r"{(\w+)}", lambda m: f"(?P<{m[1]}>{parts.get(m[1], '[^/]+')})", template)


def usual_source(dataset: str) -> str:
    """What the model tested on `dataset` was trained on, where nobody says otherwise."""
    return "shapes" if dataset.lower().startswith("shapes") else "imagenet"
