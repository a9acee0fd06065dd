"""Upstream's pickled lists of images, read without running anything they hold."""

import os
import pickle
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from dassl.data.datasets import Datum
from dassl.files import regular
from dassl.utils import Failure

Values = tuple[str, int, int, str]  # impath, label, domain, classname


class _Refused(Exception):
    """The name of something that has no place in a list of images."""


class _Unpickler(pickle.Unpickler):
    """Knows plain data and a Datum of its own, which a file may spoil, unlike ours."""

    def __init__(self, file: Any):
        super().__init__(file)
        self.stand_in = stand_in = type("Datum", (), {})
        self.admitted = {
            ("dassl.data.datasets.base_dataset", "Datum"): stand_in,
            # Protocols 0 and 1 make objects with these, under Python 3's and 2's names.
            ("copyreg", "_reconstructor"): lambda *_: stand_in(),
            ("copy_reg", "_reconstructor"): lambda *_: stand_in(),
            ("builtins", "object"): None,
            ("__builtin__", "object"): None,
        }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.admitted:
            raise _Refused(f"{module}.{name}")
        return self.admitted[module, name]


def read_pickle(path: Path, names: Iterable[str], folder: Path) -> list[list[Datum]]:
    """The lists of these names in {"train": [Datum, …], …}, with their images in `folder`.

    Raises: Failure if the file is damaged, of another form, names anything but Datum, or
        images that are not there.
    """
    try:
        with open(regular(path), "rb") as file:
            unpickler = _Unpickler(file)
            content = unpickler.load()
        lists = [[_values(item, unpickler.stand_in) for item in content[name]] for name in names]
    except _Refused as e:
        line = f"Refused to read {path}: it names {e}"
        raise Failure(f"{line}, which has no place in a list of images") from e
    except OSError as e:
        raise Failure(f"Cannot read {path}: {e.strerror}") from e
    except Exception as e:  # a damaged file can raise anything
        line = f"{path} is truncated, damaged or no list of images"
        raise Failure(f"{line}. Remove it and it is made anew") from e
    return [list(_reroot(values, folder, path)) for values in lists]


def _values(item: Any, stand_in: type) -> Values:
    values = vars(item)["_impath"], item._label, item._domain, item._classname
    if type(item) is not stand_in or [type(v) for v in values] != [str, int, int, str]:
        raise ValueError("not a Datum")
    return values


def _reroot(items: Iterable[Values], folder: Path, source: Path) -> Iterator[Datum]:
    """Datums below `folder`: of each path, Windows' too, the longest end that exists there.

    Raises: Failure, naming `source`, for a path of which no end exists.
    """
    # The folder's place on the other machine: looked for once, as it is the same for all.
    elsewhere = None
    for impath, *rest in items:
        path = os.path.normpath("/" + impath.replace("\\", "/")).lstrip("/")
        if elsewhere is None or not path.startswith(elsewhere):
            starts = ["", *(path[: i + 1] for i, c in enumerate(path) if c == "/")]
            there = (s for s in starts if os.path.isfile(f"{folder}/{path[len(s) :]}"))
            elsewhere = next(there, None)
        if elsewhere is None:
            line = f"{source} names {impath}, which is not below {folder}"
            raise Failure(f"{line}: extract the images again, or remove the file")
        yield Datum(f"{folder}/{path[len(elsewhere) :]}", *rest)
