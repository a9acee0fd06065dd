"""Downloads a benchmark, checks it and lays it out; says what to do by hand for what cannot be had
freely.

Run again after an error: a download goes on where it was cut, and what is whole is left alone.
"""

import argparse
import errno
import os
import shutil
import stat
import sys
import tarfile
import zipfile
from pathlib import Path, PureWindowsPath
from urllib.parse import urlsplit

from tqdm import tqdm

from clip.download import cannot_write, check_space, fetch, is_web_page, reason_of
from dassl.commands import OneLineParser
from dassl.data.datasets import DATASET_REGISTRY
from dassl.utils import Failure, UsageError, expand_user, print_error, read_json, tolerate_encoding
from dassl.utils.lock import locked

from . import default_root
from .doctor import Finding, command, dataset_name, examine
from .imagenet_val import sort_validation_images
from .readers import read_classnames
from .sources import BY_HAND, DRIVE, SOURCES, Source

HINT = "give --mirror an address that has it"
# What an archive's names can be to blame for; other errors of the system are the machine's.
BAD_NAMES = (
    errno.ENAMETOOLONG,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EEXIST,
    errno.ELOOP,
    errno.EINVAL,
    errno.EILSEQ,
)


def prepare(name: str, root: Path, mirror: str = "", again: bool = False) -> Finding:
    """Lays out what is missing of a dataset and returns the doctor's finding after that.

    Args:
        mirror: an address that stands for all hosts.
        again: lay it out once more though it looks whole.

    Raises: Failure for an archive that cannot be had, is another one, or would write outside the
        dataset's folder.
    """
    finding = examine(name, root)
    folder = root / DATASET_REGISTRY.get(name).dataset_dir
    if not again and finding.mend not in ("", command("prepare", name, root)):
        return finding  # the images are there, in another place
    if not plan(finding, folder, again) and not lists_too_few(finding):
        return finding
    with locked(folder / ".prepare"):
        finding = examine(name, root)  # another process may have been faster
        todo = plan(finding, folder, again)
        archives = [source for source in todo if source.moves]
        for source in archives:
            lay_out(source, folder, mirror)
        if archives or lists_too_few(finding):
            set_aside_wrong_split(name, root, folder)
            todo = plan(examine(name, root), folder)
        for source in todo:
            if not source.moves:
                get_file(source, folder, mirror)
        shutil.rmtree(folder / ".prepare", ignore_errors=True)
    return examine(name, root)


def plan(finding: Finding, folder: Path, again: bool = False) -> list[Source]:
    """What to get: of a whole dataset at most its split file, the others' archives and the files
    that are not there."""
    missing = [s for s in SOURCES[finding.name] if not s.moves and not (folder / s.name).exists()]
    if finding.state == "found" and not again:
        return [s for s in missing if s.name.startswith("split_zhou")]
    return [s for s in SOURCES[finding.name] if s.moves or s in missing]


def lists_too_few(finding: Finding) -> bool:
    """Whether it can be read and is not whole: if by its split file, that was made of a part of the
    images."""
    return finding.state != "found" and finding.classes is not None


def set_aside_wrong_split(name: str, root: Path, folder: Path) -> None:
    """If the archives are laid out and the dataset is not whole, its split file does not fit."""
    split_file = folder / f"split_zhou_{name}.json"
    if split_file.exists() and examine(name, root).state != "found":
        kept = split_file.with_name(split_file.name + ".old")
        print(f"{split_file} does not fit the images: it is now {kept.name}")
        split_file.rename(kept)


def get_file(source: Source, folder: Path, mirror: str) -> None:
    """One that the dataset can perhaps do without, so that an error is only said: the doctor has
    the last word."""
    target = folder / ".prepare" / source.name
    try:
        download(source, target, mirror)
        check_content(target)
        shutil.move(target, folder / source.name)
    except Failure as e:
        # Whoever gets it by hand puts it where it belongs.
        print(f"Without {source.name}: {str(e).replace(str(target), str(folder / source.name))}")


def check_content(file: Path) -> None:
    """Raises Failure, removing it, for a file that is not what its name says: a web page that says
    "later"."""
    try:
        if is_web_page(file):
            raise Failure(f"{file} is a web page; put the file itself there")
        if file.suffix == ".json":
            read_json(str(file))
        elif file.suffix == ".txt":
            read_classnames(file)
    except Failure:
        file.unlink()
        raise


def download(source: Source, target: Path, mirror: str) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if not source.address.startswith(DRIVE):
        url = mirror.rstrip("/") + urlsplit(source.address).path if mirror else source.address
        fetch(url, target, source.md5, HINT)
    elif mirror:
        fetch(f"{mirror.rstrip('/')}/drive/{source.name}", target, hint=HINT)
    elif not target.exists():
        download_from_drive(source.address.removeprefix(DRIVE), target)


def download_from_drive(file_id: str, target: Path) -> None:
    """Raises Failure with one line for whatever goes wrong."""
    where = f"https://drive.google.com/file/d/{file_id}"
    try:
        import gdown  # needed for nothing else
    except ImportError as e:
        raise Failure(f"{where} needs gdown: pip install gdown, or put the file at {target}") from e
    try:
        gdown.download(id=file_id, output=str(target), resume=True)
    except Exception as e:  # gdown has many
        raise Failure(
            f"cannot download {where} ({reason_of(e)}); try again later, put it at {target}, or {HINT}"
        ) from e
    if not target.exists():
        raise Failure(f"cannot download {where}; try again later, put it at {target}, or {HINT}")


def lay_out(source: Source, folder: Path, mirror: str) -> None:
    """Downloads an archive and moves what it holds into place. Raises Failure; then a bad archive
    is removed."""
    file = folder / ".prepare" / source.name
    download(source, file, mirror)
    extracted = folder / ".prepare" / "extracted"
    shutil.rmtree(extracted, ignore_errors=True)
    extracted.mkdir()
    try:
        extract(file, extracted)
        if source.inner:
            extract(extracted / source.inner, extracted)
        if absent := [inside for inside in source.moves if not (extracted / inside).is_dir()]:
            raise BadArchive(f"it holds no folder {absent[0]}")
    except BadArchive as e:
        file.unlink()
        raise Failure(
            f"{source.name} of {source.address}: {e}. It is removed; run again, or {HINT}"
        ) from e
    else:
        for inside, below in source.moves.items():
            merge(extracted / inside, folder / below)
        file.unlink()
    finally:
        shutil.rmtree(extracted, ignore_errors=True)


class BadArchive(Exception):
    """An archive is damaged, is another one, or would write outside its folder."""


def extract(file: Path, into: Path) -> None:
    """Raises BadArchive; Failure if the disk has no space for it."""
    if not file.exists():
        raise BadArchive(f"it holds no {file.name}")
    is_zip = file.suffix == ".zip"
    if not (zipfile.is_zipfile if is_zip else tarfile.is_tarfile)(file):
        raise BadArchive(
            "it is a web page"
            if is_web_page(file)
            else "it is no archive, or only the beginning of one"
        )
    try:
        (extract_zip if is_zip else extract_tar)(file, into)
    except (BadArchive, Failure):
        raise
    except Exception as e:  # a damaged file can raise anything
        if isinstance(e, OSError) and e.errno and e.errno not in BAD_NAMES:
            raise
        raise BadArchive(f"it cannot be extracted ({reason_of(e)})") from e


def extract_zip(file: Path, into: Path) -> None:
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        for member in members:
            check_member(member.filename, stat.S_ISLNK(member.external_attr >> 16))
        check_space(into, sum(member.file_size for member in members), file)
        for member in tqdm(members, desc=f"extracting {file.name}", disable=None):
            archive.extract(member, into)


def extract_tar(file: Path, into: Path) -> None:
    check_space(
        into, file.stat().st_size, file
    )  # at least that: images do not shrink in an archive
    with tarfile.open(file) as archive:
        for member in tqdm(archive, desc=f"extracting {file.name}", disable=None):
            check_member(member.name)
            try:
                archive.extract(member, into, filter="data")
            except tarfile.FilterError as e:  # a link that leads outside, a device
                raise refusal(member.name) from e


def check_member(name: str, is_link: bool = False) -> None:
    path = PureWindowsPath(name)  # knows both kinds of slashes, and drives
    if path.anchor or ".." in path.parts or is_link:
        raise refusal(name)


def refusal(member: str) -> BadArchive:
    return BadArchive(f"its member {member!r} leads outside its folder and was not extracted")


def merge(source: Path, target: Path) -> None:
    """Moves files to the same places below `target`, over what is there."""
    for path, _, files in os.walk(source):
        there = target / Path(path).relative_to(source)
        there.mkdir(parents=True, exist_ok=True)
        for name in files:
            shutil.move(os.path.join(path, name), there / name)


def run(args: argparse.Namespace) -> int:
    name, root = dataset_name(args.name), Path(expand_user(args.root))
    if args.labels and name != "ImageNet":
        raise UsageError("--labels are of ImageNet's validation images: give it with imagenet")
    if args.mirror and not args.mirror.startswith(("http://", "https://")):
        raise UsageError(f"the mirror {args.mirror!r} is no http:// or https:// address")
    finding = prepare(name, root, args.mirror, args.again)
    folder = root / DATASET_REGISTRY.get(name).dataset_dir
    if name == "ImageNet":
        sort_validation_images(folder, args.labels)
        finding = examine(name, root)
    whole = finding.state == "found"
    if name in BY_HAND and (args.again or not whole):
        print(BY_HAND[name].format(folder=folder) + f"\nthen: {command('doctor', name, root)}")
    if finding.mend == command("prepare", name, root):
        finding.mend = ""  # it has just been done
    print(finding.line)
    return int(not whole)


def main(argv: list[str] | None = None) -> int:
    tolerate_encoding()
    p = OneLineParser("python -m datasets.prepare", description=__doc__)
    p.add_argument("name", metavar="NAME", help="DATASET.NAME or config file")
    p.add_argument(
        "--root",
        default=default_root(),
        help="folder that holds all datasets (default: DATA, or data)",
    )
    mirror = os.environ.get("DATA_MIRROR", "")
    p.add_argument(
        "--mirror", default=mirror, help="address that stands for all hosts (default: DATA_MIRROR)"
    )
    p.add_argument("--again", action="store_true", help="lay out again what looks whole")
    labels = (
        "ImageNet: labels of the validation images, to sort them by (default: those of the devkit)"
    )
    p.add_argument("--labels", type=Path, metavar="FILE", help=labels)
    try:
        return run(p.parse_args(argv))
    except Failure as e:
        print_error(f"error: {e}")
        return e.exit_code
    except OSError as e:
        print_error(f"error: {cannot_write(e.filename2 or e.filename or 'the dataset', e)}")
        return 1
    except KeyboardInterrupt:
        print_error("stopped; run the same command again to go on")
        return 130


if __name__ == "__main__":
    sys.exit(main())
