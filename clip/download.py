"""Downloads one file: checked, resumed where it was cut off, by one process at a time."""

import errno
import hashlib
import http.client
import os
import shutil
import string
import urllib.error
import urllib.parse
import urllib.request
from functools import cache
from http.client import HTTPResponse
from pathlib import Path

from tqdm import tqdm

from dassl.utils.errors import CannotWrite, Failure
from dassl.utils.lock import locked

CHUNK = 1 << 20
TIMEOUT = 30  # seconds without a byte
# ValueError is for an address that is none.
NETWORK_ERRORS = (OSError, http.client.HTTPException, ValueError)
HINT = "set CLIP_MIRROR to an address that has it or CLIP_WEIGHTS to a file of yours"


def sha256_of(path: Path) -> str:
    """Hex SHA-256 of a file. It is read once per process, unless it changes."""
    stat = path.stat()
    return _sha256_of_version(path, stat.st_ino, stat.st_size, stat.st_mtime_ns)


@cache
def _sha256_of_version(path: Path, *version: int) -> str:
    return _digest(path)


def _digest(path: Path, algorithm: str = "sha256") -> str:
    with open(path, "rb") as f:
        return hashlib.file_digest(f, algorithm).hexdigest()


def _kind(checksum: str) -> str:
    return "MD5" if len(checksum) == 32 else "SHA-256"


def _matches(path: Path, checksum: str) -> bool:
    """Whether a file has this SHA-256 or MD5; any has ""."""
    if not checksum:
        return True
    digest = _digest(path, "md5") if _kind(checksum) == "MD5" else sha256_of(path)
    return digest == checksum


def fetch(url: str, target: Path, checksum: str = "", hint: str = HINT) -> Path:
    """target, downloaded from url unless it is there already.

    A download that was cut off leaves `<target>.part`; the next one goes on from there.

    Args:
        checksum: the file's SHA-256 or MD5; "" takes any file.
        hint: what an error says can be done.

    Raises: Failure if the address does not answer, another file comes (it is removed), or
        target cannot be written.
    """

    def is_there() -> bool:
        return target.is_file() and _matches(target, checksum)

    if is_there():  # before locking, which a read-only folder does not allow
        return target
    try:
        with locked(target):
            if not is_there():  # no other process has been faster
                _download(url, target, checksum, hint)
    except CannotWrite as e:
        raise Failure(f"{e}, or {hint}") from e
    except OSError as e:
        raise Failure(f"{cannot_write(target, e)}, or {hint}") from e
    return target


def cannot_write(what: object, error: OSError) -> str:
    """One line that says why, and what to do."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    remedy = "free some space" if full else "mend that"
    return f"cannot write {what}: {reason_of(error)}; {remedy} and run again"


def is_web_page(file: Path) -> bool:
    """Whether it is one, as sites send instead of a file that they refuse."""
    with open(file, "rb") as f:
        return f.read(64).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<")


def _download(url: str, target: Path, checksum: str, hint: str) -> None:
    part = target.with_name(target.name + ".part")
    if not checksum:  # nothing would tell that the two pieces belong together
        part.unlink(missing_ok=True)
    while True:
        begun = _size(part)
        while error := _continue(url, part, have := _size(part)):
            if _size(part) > have:  # the connection was only cut
                continue
            kept = f"; {have:,} bytes are kept, run again to go on" if have else ""
            line = f"cannot download {url} ({error}){kept}; put the file at {target}"
            if target.is_file():
                line += f" (the file there is another, its {_kind(checksum)} is wrong)"
            raise Failure(f"{line}, or {hint}")
        page = is_web_page(part)
        if not page and _matches(part, checksum):
            os.replace(part, target)
            return
        part.unlink()
        if not begun:  # else an earlier run's part may be to blame: begin again
            why = "it is a web page" if page else f"its {_kind(checksum)} is wrong"
            raise Failure(f"{url}: not the file expected ({why}), removed; run again, or {hint}")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _continue(url: str, part: Path, have: int) -> str:
    """Appends what is missing after part's `have` bytes; why it stopped, "" at the end."""
    address = urllib.parse.quote(url, safe=string.punctuation)  # for é and spaces
    try:
        headers = {"Range": f"bytes={have}-"} if have else {}
        request = urllib.request.Request(address, headers=headers)
        response = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as e:
        if e.code != 416 or not have:
            return f"the server says {e.code} {reason_of(e.reason)}"
        # There is nothing behind the bytes we have.
        if e.headers.get("Content-Range", f"/{have}").endswith(f"/{have}"):
            return ""
        part.unlink()  # of another file
        return _continue(url, part, 0)
    except NETWORK_ERRORS as e:
        return reason_of(e)
    with response:
        if response.status != 206:  # the server sends all of it again
            have = 0
        total = (response.length or 0) + have  # 0: not known
        check_space(part.parent, total - have, url)
        if error := _append(response, part, have, total):
            return error
    size = _size(part)
    if not size:
        return "nothing came"
    return "" if size >= total else f"{size:,} of {total:,} bytes came"


def _append(response: HTTPResponse, part: Path, have: int, total: int) -> str:
    """Writes what comes after the first `have` bytes; why it stopped, "" at the end."""
    units = {"unit": "B", "unit_scale": True}
    bar = tqdm(total=total, initial=have, desc=part.stem, disable=None, **units)
    with open(part, "ab" if have else "wb") as f, bar:
        while True:
            try:
                chunk = response.read(CHUNK)
            except NETWORK_ERRORS as e:
                return reason_of(e)
            if not chunk:
                return ""
            f.write(chunk)
            bar.update(len(chunk))


def check_space(folder: Path, size: int, what: object) -> None:
    """Raises Failure if so many bytes do not fit on the folder's disk."""
    free = shutil.disk_usage(folder).free
    if size > free:
        sizes = f"it takes {size / 1e6:,.0f} MB, {free / 1e6:,.0f} MB are free"
        hint = "free some, or choose a folder on another disk"
        raise Failure(f"no space in {folder} for {what}: {sizes}; {hint}")


def reason_of(error: BaseException | str) -> str:
    """What an error says, in one short line; of nested ones the system's innermost."""
    chain = [error]
    while inner := _inner(chain[-1]):
        chain.append(inner)
    last = next((e for e in reversed(chain) if isinstance(e, OSError)), error)
    reason = getattr(last, "reason", None)
    said = reason if isinstance(reason, str) else str(last)
    said = getattr(last, "strerror", None) or said
    text = " ".join(said.split()) or type(last).__name__
    return "".join(c if c.isprintable() else "?" for c in text)[:200]


def _inner(error: BaseException | str) -> BaseException | None:
    reason = getattr(error, "reason", None)  # what URLError and urllib3's errors wrap
    if isinstance(reason, BaseException):
        return reason
    return getattr(error, "__cause__", None) or getattr(error, "__context__", None)
