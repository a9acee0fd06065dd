"""Reads what a benchmark's folder holds: class folders, images, annotation files."""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, TypeVar

from dassl.data.datasets import Datum
from dassl.files import regular
from dassl.utils import Failure, listdir_nohidden, read_json, write_json
from dassl.utils.images import IMAGE_SUFFIXES, is_image
from dassl.utils.lock import locked

T = TypeVar("T")
# Of a Mac's archive, a Synology's thumbnails, of a file system's check, of few-shot picks.
NO_CLASSES = ("__MACOSX", "@eaDir", "lost+found", "split_fewshot")
EXTRACT = "extract the images again, or get the file that belongs to them"


def some(names: Sequence[str], n: int) -> str:
    """The first n of them, for a message."""
    return ", ".join(names[:n]) + ", …" * (len(names) > n)


def class_folders(images: Path) -> list[str]:
    """The names of the class folders, sorted. Raises Failure if there are none."""
    names = listdir_nohidden(str(images), sort=True)
    folders = [n for n in names if n not in NO_CLASSES and (images / n).is_dir()]
    if not folders:
        remedy = "extract the archive again, or make one folder for each class"
        raise Failure(f"{images} holds no class folders: {remedy}")
    return folders


def list_images(folder: Path, others: list[str]) -> list[str]:
    """The names of the images in a folder, sorted.

    What else lies there, unless hidden, is added to `others`. Raises Failure if there are no
    images.
    """
    if not folder.is_dir():
        raise Failure(f"There is no folder {folder}: extract the archive again")
    with os.scandir(folder) as entries:
        found = {e.name: is_image(e) for e in entries if not e.name.startswith(".")}
    rest = [f"{folder.name}/{name}" for name in sorted(found) if not found[name]]
    others += rest
    if len(rest) == len(found):
        what = f" that Pillow can open, only {rest[0]}" if rest else ""
        remedy = "extract the archive again, or remove the folder if it is no class"
        raise Failure(f"{folder} holds no images{what}: {remedy}")
    return sorted(name for name in found if found[name])


class ListingCache:
    """`list_images`, remembered in a JSON file until a folder's modification time changes."""

    def __init__(self, file: Path):
        self.file = file
        try:
            old = read_json(str(file)) if file.exists() else {}
        except Failure:  # damaged: it is written anew
            old = {}
        entries = old.items() if isinstance(old, dict) else ()
        self.old = {key: entry for key, entry in entries if self.is_entry(entry)}
        self.new: dict[str, list] = {}

    @staticmethod
    def is_entry(entry: Any) -> bool:
        """A time and names."""
        return isinstance(entry, list) and list(map(type, entry)) == [int, str]

    def __call__(self, folder: Path, others: list[str]) -> list[str]:
        key = folder.relative_to(self.file.parent).as_posix()
        changed = folder.stat().st_mtime_ns if folder.is_dir() else 0
        entry = self.old.get(key)
        if not entry or entry[0] != changed:
            # One string a folder, not one an image: the file is small and read in no time.
            entry = [changed, "/".join(list_images(folder, others))]
        self.new[key] = entry
        return entry[1].split("/")

    def save(self, now: int) -> None:
        """Writes the file if it changes. `now`, in ns, is when the first folder was listed."""
        # A folder changed in the clock's last ticks can change again unseen: it is not kept.
        kept = {key: entry for key, entry in self.new.items() if now - entry[0] > 2e9}
        if kept != self.old:
            save_cache(kept, self.file)


def read_class_folders(
    images: Path,
    classes: Mapping[str, str],
    lister: Callable[[Path, list[str]], list[str]] = list_images,
) -> list[Datum]:
    """All images of class folders; `classes` are {folder: class name} by label.

    What lies there besides, and images beside the folders, is counted in a line.
    Raises: Failure for a class without images.
    """
    names = listdir_nohidden(str(images), sort=True)
    others = [n for n in names if n.lower().endswith(IMAGE_SUFFIXES) and n not in classes]
    items = [
        Datum(f"{images}/{folder}/{name}", label, classname=classname)
        for label, (folder, classname) in enumerate(classes.items())
        for name in lister(images / folder, others)
    ]
    if others:
        line = f"{images}: {len(others):,} files or folders are left out"
        print(f"{line}, being no images that Pillow can open: {some(others, 3)}")
    return items


def read_annotations(
    path: Path, form: str, parse: Callable[..., T], names: Path | None = None
) -> list[T]:
    """`parse(field, …)` of each line, blank ones left out.

    A line has as many fields as `form` has words; the last may hold spaces. `names` is the
    file of the names that `parse` looks up.

    Raises: Failure naming the file and, if `parse` cannot read one, the line.
    """
    try:
        lines = regular(path).read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError as e:
        raise missing(path) from e
    except (OSError, UnicodeError) as e:
        why = getattr(e, "strerror", e)
        raise Failure(f"Cannot read {path}: {why}. Extract or download it again") from e
    items = []
    for number, line in enumerate(map(str.strip, lines), start=1):
        if not line:
            continue
        where = f"{path}, line {number}"
        try:
            items.append(parse(*line.split(maxsplit=form.count(" "))))
        except KeyError as e:
            raise Failure(f"{where}: {e.args[0]!r} is not in {names}. Get both files again") from e
        except (TypeError, ValueError) as e:
            raise Failure(f'{where} is not "{form}": {line[:80]!r}. Get the file again') from e
    return items


def missing(path: Path) -> Failure:
    """The error for a file that the user has to get."""
    return Failure(f"{path} is missing: docs/DATASETS.md says where to get it")


def read_mat(path: Path, variable: str, *fields: str) -> list[Any]:
    """The elements of a MATLAB file's vector, of a struct array tuples of the fields.

    Raises: Failure for a file that is missing or another.
    """
    from scipy.io import loadmat  # slow to import, and only two datasets need it

    if not path.exists():
        raise missing(path)
    try:
        values = loadmat(regular(path), squeeze_me=True)[variable].reshape(-1)
        return (values[list(fields)] if fields else values).tolist()
    except Exception as e:  # a damaged file can raise anything
        why = str(e).splitlines()[0] if str(e) else type(e).__name__
        raise Failure(f"{path} is not the dataset's annotation file ({why}): get it again") from e


def read_classnames(path: Path, folders: Iterable[str] = ()) -> dict[str, str]:
    """{folder: class name} of a file with lines `folder name with spaces`, in its order.

    A folder ends at the first space, unless the line begins with one of `folders`: the longest.
    Raises: Failure as `read_annotations`, and for a folder that has two lines.
    """
    spaced = sorted((f for f in folders if " " in f), key=len, reverse=True)

    def parse(first: str, rest: str) -> tuple[str, str]:
        line = f"{first} {rest}"
        begins = (f for f in spaced if line.startswith(f) and line[len(f) :][:1].isspace())
        folder = next(begins, first)
        return folder, line[len(folder) :].strip()

    pairs = read_annotations(path, "folder name", parse)
    counts = Counter(folder for folder, _ in pairs)
    if twice := [folder for folder, n in counts.items() if n > 1]:
        raise Failure(f"{path} names the folder {twice[0]} in two lines: remove one")
    return dict(pairs)


def name_folders(images: Path, file: Path) -> dict[str, str]:
    """{class folder: its name in `file`}, sorted. Raises Failure for one without a name."""
    folders = class_folders(images)
    names = read_classnames(file, folders)
    if unnamed := [folder for folder in folders if folder not in names]:
        line = f"{file} has no name for the folder {images / unnamed[0]}"
        raise Failure(f"{line}: add a line, or remove the folder")
    return {folder: names[folder] for folder in folders}


def absent(items: Iterable[Datum]) -> Iterator[str]:
    """The paths of images that are not there."""
    present: dict[str, set[str]] = {}
    for item in items:
        folder, _, name = item.impath.rpartition("/")
        if folder not in present:  # one listing a folder, not one look-up an image
            present[folder] = set(os.listdir(folder)) if os.path.isdir(folder) else set()
        if name not in present[folder]:
            yield item.impath


def check_present(items: Iterable[Datum], source: object, remedy: str = EXTRACT) -> None:
    """Raises Failure for the first image that `source` names and that is not there."""
    for path in absent(items):
        raise Failure(f"{source} names {path}, which is not there: {remedy}")


_saving = ContextVar("saving", default=True)


@contextmanager
def nothing_saved() -> Iterator[None]:
    """For who only looks: splits, picks and listings are made but not written."""
    before = _saving.set(False)
    try:
        yield
    finally:
        _saving.reset(before)


def save_cache(content: object, path: Path) -> None:
    """Writes JSON for later runs, also if many start at once; a failure is only printed."""
    if not _saving.get():
        return
    try:
        with locked(path.parent / ".p2c"):
            write_json(content, str(path))
    except (Failure, OSError) as e:  # some network file systems have no locks
        print(f"Not saved for later runs: {e}")
