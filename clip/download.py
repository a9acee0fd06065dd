"""Download one file, checked, resumed where it was cut off, and safe when several processes want it at once."""

import hashlib
import http.client
import os
import shutil
import urllib.error
import urllib.request
from contextlib import ExitStack
from functools import cache
from pathlib import Path

from tqdm import tqdm

from dassl.utils.errors import Failure
from dassl.utils.lock import locked

CHUNK = 1 << 20
TIMEOUT = 30  # seconds without a byte
NETWORK_ERRORS = (OSError, http.client.HTTPException)
HINT = "set CLIP_MIRROR to an address that has it or CLIP_WEIGHTS to a file of yours"


def sha256_of(path: Path) -> str:
    """Hex SHA-256 of a file. One that has not changed is read once per process: OpenAI's are large."""
    stat = path.stat()
    return _sha256_of_version(path, stat.st_ino, stat.st_size, stat.st_mtime_ns)


@cache
def _sha256_of_version(path: Path, *version: int) -> str:
    return _digest(path)


def _digest(path: Path, algorithm: str = "sha256") -> str:
    with open(path, "rb") as f:
        return hashlib.file_digest(f, algorithm).hexdigest()


def _matches(path: Path, checksum: str) -> bool:
    """Whether a file has this SHA-256, or if it has 32 digits MD5; "" is any file's."""
    return not checksum or (_digest(path, "md5") if len(checksum) == 32 else sha256_of(path)) == checksum


def fetch(url: str, target: Path, checksum: str = "", hint: str = HINT) -> Path:
    """target, downloaded from url unless it is there already with the SHA-256 or MD5 given ("": any).

    A download that was cut off leaves `<target>.part`, and the next one goes on from there. `hint` is what an error
    says can be done.

    Raises: Failure if the address does not answer, what comes is another file (it is removed), or it cannot be written.
    """

    def is_there() -> bool:
        return target.is_file() and _matches(target, checksum)

    if is_there():  # before locking, which a read-only folder does not allow
        return target
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(target))
        except Failure as e:
            raise Failure(f"{e}, or {hint}") from e
        try:
            if not is_there():  # no other process has been faster
                _download(url, target, checksum, hint)
        except OSError as e:
            raise Failure(f"cannot write {target}: {e.strerror}; free some space and run again, or {hint}") from e
    return target


def _download(url: str, target: Path, checksum: str, hint: str) -> None:
    part, kind = target.with_name(target.name + ".part"), "MD5" if len(checksum) == 32 else "SHA-256"
    if not checksum:  # nothing would tell that the two pieces belong together
        part.unlink(missing_ok=True)
    while True:
        begun = _size(part)
        while error := _continue(url, part, have := _size(part)):
            if _size(part) <= have:  # else the connection was only cut
                kept = f"; {have:,} bytes are kept, run again to go on" if have else ""
                wrong = f" (the file there is another, its {kind} is wrong)" if target.is_file() else ""
                raise Failure(f"cannot download {url} ({error}){kept}; put the file at {target}{wrong}, or {hint}")
        if _matches(part, checksum):
            os.replace(part, target)
            return
        part.unlink()
        if not begun:  # else what an earlier run left may be to blame: once more from the beginning
            raise Failure(f"{url}: not the file expected (its {kind} is wrong), removed; run again, or {hint}")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _continue(url: str, part: Path, have: int) -> str:
    """Append to part what is missing after its `have` bytes; "" when all is there, else why it stopped."""
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as e:
        # 416: nothing is missing
        return "" if e.code == 416 else f"the server says {e.code} {e.reason}"
    except NETWORK_ERRORS as e:
        return _words(e)
    resumed = response.status == 206  # else the server sends all of it again
    total = int(response.headers.get("Content-Length", 0)) + resumed * have
    check_space(part.parent, total - resumed * have, url)
    with (
        response,
        open(part, "ab" if resumed else "wb") as f,
        tqdm(total=total, initial=f.tell(), unit="B", unit_scale=True, desc=part.stem, disable=None) as bar,
    ):
        while True:
            try:
                chunk = response.read(CHUNK)
            except NETWORK_ERRORS as e:
                return _words(e)
            if not chunk:
                break
            f.write(chunk)
            bar.update(len(chunk))
        size = f.tell()
    return "" if size >= total else f"{size:,} of {total:,} bytes came"


def check_space(folder: Path, size: int, what: object) -> None:
    """Raises Failure if so many bytes do not fit on the folder's disk."""
    free = shutil.disk_usage(folder).free
    if size > free:
        line = f"no space in {folder} for {what}: it takes {size / 1e6:,.0f} MB, {free / 1e6:,.0f} MB are free"
        raise Failure(f"{line}; free some, or choose a folder on another disk")


def _words(error: Exception) -> str:
    cause = getattr(error, "reason", error)  # URLError wraps the error that tells
    return getattr(cause, "strerror", None) or str(cause) or type(cause).__name__
