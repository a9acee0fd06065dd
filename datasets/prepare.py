"""Downloads a benchmark, checks it and lays it out, or says what to do by hand.

Run again after an error: downloads go on where they were cut, what is whole is left alone.
"""

import argparse
import errno
import os
import shutil
import stat
import tarfile
import zipfile
from pathlib import Path, PureWindowsPath
from urllib.parse import urlsplit

from tqdm import tqdm

from clip.download import cannot_write, check_space, fetch, is_web_page, reason_of
from dassl.commands import OneLineParser, command_line
from dassl.data.datasets import DATASET_REGISTRY
from dassl.utils import expand_user, read_json
from dassl.utils.errors import Failure, UsageError
from dassl.utils.lock import locked
from dassl.utils.logger import print_error, tolerate_any_text

from .doctor import Finding, add_root, command, dataset_name, examine, read, split_file
from .imagenet_val import sort_validation_images
from .readers import read_classnames
from .shapes import DrawnBenchmark
from .sources import BY_HAND, DRIVE, SOURCES, Source

HINT = "give --mirror an address that has it"
# Errors that an archive's names can cause; others are the machine's.
BAD_NAMES = (errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.EEXIST)
BAD_NAMES += (errno.ELOOP, errno.EINVAL, errno.EILSEQ)


def prepare(name: str, root: Path, mirror: str = "", again: bool = False) -> Finding:
    """Lays out what is missing of a dataset and returns the doctor's finding after that.

    Args:
        mirror: an address that stands for all hosts.
        again: lay it out once more though it looks whole.

    Raises: Failure for an archive that cannot be had, is another one, or would write outside the
        dataset's folder.
    """
    finding = examine(name, root)
    kind = DATASET_REGISTRY.get(name)
    folder = root / kind.dataset_dir
    if name not in SOURCES:
        if issubclass(kind, DrawnBenchmark) and (again or finding.state != "found"):
            split_file(folder, name).unlink(missing_ok=True)
            read(name, root)  # which draws it
        return examine(name, root)
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
    """What to get: archives and missing files, of a whole dataset only its split file."""
    todo = [s for s in SOURCES[finding.name] if s.moves or not (folder / s.name).exists()]
    if finding.state == "found" and not again:
        return [s for s in todo if s.name.startswith("split_zhou")]
    return todo


def lists_too_few(finding: Finding) -> bool:
    """Whether a dataset can be read and is not whole: its split file may be of a part."""
    return finding.state != "found" and finding.classes is not None


def set_aside_wrong_split(name: str, root: Path, folder: Path) -> None:
    """Renames the split file if it does not fit the images, which are all there now."""
    split = split_file(folder, name)
    if split.exists() and examine(name, root).state != "found":
        kept = split.with_name(split.name + ".old")
        print(f"{split} does not fit the images: it is now {kept.name}")
        split.rename(kept)


def get_file(source: Source, folder: Path, mirror: str) -> None:
    """Downloads a file; an error is only printed, as the dataset may do without it."""
    target = folder / ".prepare" / source.name
    try:
        download(source, target, mirror)
        check_content(target)
        shutil.move(target, folder / source.name)
    except Failure as e:
        # Whoever gets it by hand puts it where it belongs.
        line = str(e).replace(str(target), str(folder / source.name))
        print(f"Without {source.name}: {line}")


def check_content(file: Path) -> None:
    """Removes a file that is not what its name says, as a web page. Raises Failure."""
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
    """Downloads a source to target. Raises Failure."""
    target.parent.mkdir(parents=True, exist_ok=True)
    mirror = mirror.rstrip("/")
    if not source.address.startswith(DRIVE):
        url = mirror + urlsplit(source.address).path if mirror else source.address
        fetch(url, target, source.md5, HINT)
    elif mirror:
        fetch(f"{mirror}/drive/{source.name}", target, hint=HINT)
    elif not target.exists():
        download_from_drive(source.address.removeprefix(DRIVE), target)


def download_from_drive(file_id: str, target: Path) -> None:
    """Downloads a file from Google Drive. Raises Failure for whatever goes wrong."""
    where = f"https://drive.google.com/file/d/{file_id}"
    try:
        import gdown  # needed for nothing else
    except ImportError as e:
        remedy = f"pip install gdown, or put the file at {target}"
        raise Failure(f"{where} needs gdown: {remedy}") from e
    remedy = f"try again later, put it at {target}, or {HINT}"
    try:
        gdown.download(id=file_id, output=str(target), resume=True)
    except Exception as e:  # gdown has many
        raise Failure(f"cannot download {where} ({reason_of(e)}); {remedy}") from e
    if not target.exists():
        raise Failure(f"cannot download {where}; {remedy}")


def lay_out(source: Source, folder: Path, mirror: str) -> None:
    """Downloads an archive and moves what it holds into place.

    Raises: Failure; a bad archive is removed then.
    """
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
        for inside, below in source.moves.items():
            merge(extracted / inside, folder / below)
    except BadArchive as e:
        file.unlink()
        line = f"{source.name} of {source.address}: {e}"
        raise Failure(f"{line}. It is removed; run again, or {HINT}") from e
    finally:
        shutil.rmtree(extracted, ignore_errors=True)
    file.unlink()


class BadArchive(Exception):
    """An archive is damaged, is another one, or would write outside its folder."""


def extract(file: Path, into: Path) -> None:
    """Raises BadArchive; Failure if the disk has no space for it."""
    if not file.exists():
        raise BadArchive(f"it holds no {file.name}")
    is_zip = file.suffix == ".zip"
    if not (zipfile.is_zipfile if is_zip else tarfile.is_tarfile)(file):
        what = "a web page" if is_web_page(file) else "no archive, or only the beginning of one"
        raise BadArchive(f"it is {what}")
    try:
        (extract_zip if is_zip else extract_tar)(file, into)
    except (BadArchive, Failure):
        raise
    except Exception as e:  # a damaged file can raise anything
        if isinstance(e, OSError) and e.errno and e.errno not in BAD_NAMES:
            raise
        raise BadArchive(f"it cannot be extracted ({reason_of(e)})") from e


def extract_zip(file: Path, into: Path) -> None:
    """Extracts members that stay in their folder. Raises BadArchive for others."""
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        for member in members:
            check_member(member.filename, stat.S_ISLNK(member.external_attr >> 16))
        check_space(into, sum(member.file_size for member in members), file)
        for member in tqdm(members, desc=f"extracting {file.name}", disable=None):
            archive.extract(member, into)


def extract_tar(file: Path, into: Path) -> None:
    """Extracts members that stay in their folder. Raises BadArchive at another."""
    # It takes at least its own size: images do not shrink in an archive.
    check_space(into, file.stat().st_size, file)
    with tarfile.open(file) as archive:
        for member in tqdm(archive, desc=f"extracting {file.name}", disable=None):
            check_member(member.name, member.issym() or member.islnk())
            try:
                archive.extract(member, into, filter="data")
            except tarfile.FilterError as e:  # a link that leads outside, a device
                raise refusal(member.name) from e


def check_member(name: str, is_link: bool = False) -> None:
    """Raises BadArchive for a member that could be written outside its folder."""
    path = PureWindowsPath(name)  # knows both kinds of slashes, and drives
    if path.anchor or ".." in path.parts or is_link:
        raise refusal(name)


def refusal(member: str) -> BadArchive:
    """The error for a member that leads outside."""
    return BadArchive(f"its member {member!r} leads outside its folder and was not extracted")


def merge(source: Path, target: Path) -> None:
    """Moves files to the same places below `target`, over what is there."""
    for path, _, files in os.walk(source):
        there = target / Path(path).relative_to(source)
        there.mkdir(parents=True, exist_ok=True)
        for name in files:
            shutil.move(os.path.join(path, name), there / name)


def run(args: argparse.Namespace) -> int:
    """The exit code."""
    name, root = dataset_name(args.name), Path(expand_user(args.root))
    if args.labels and name != "ImageNet":
        raise UsageError("--labels are of ImageNet's validation images: give it with imagenet")
    if args.labels and not args.labels.is_file():
        raise UsageError(f"--labels {args.labels}: no such file")
    if args.mirror and not args.mirror.startswith(("http://", "https://")):
        raise UsageError(f"the mirror {args.mirror!r} is no http:// or https:// address")
    finding = prepare(name, root, args.mirror, args.again)
    folder = root / DATASET_REGISTRY.get(name).dataset_dir
    if name == "ImageNet":
        sort_validation_images(folder, args.labels)
        finding = examine(name, root)
    whole = finding.state == "found"
    if name in BY_HAND and (args.again or not whole):
        print(BY_HAND[name].format(folder=folder))
        print(f"then: {command('doctor', name, root)}")
    if finding.mend == command("prepare", name, root):
        finding.mend = ""  # it has just been done
    print(finding.line)
    return int(not whole)


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    tolerate_any_text()
    p = OneLineParser("python -m datasets.prepare", description=__doc__)
    p.add_argument("name", metavar="NAME", help="DATASET.NAME or config file")
    add_root(p)
    mirror = os.environ.get("DATA_MIRROR", "")
    text = "address that stands for all hosts (default: DATA_MIRROR)"
    p.add_argument("--mirror", default=mirror, help=text)
    p.add_argument("--again", action="store_true", help="lay out again what looks whole")
    text = "ImageNet: labels to sort its validation images by (default: those of the devkit)"
    p.add_argument("--labels", type=Path, metavar="FILE", help=text)
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
    command_line(main)
