"""Download one file, checked, resumed where it was cut off, and safe when several processes want it at once."""

import hashlib
import os
import urllib.error
import urllib.request
from pathlib import Path

from tqdm import tqdm

from dassl.utils.errors import Failure
from dassl.utils.lock import locked

CHUNK = 1 << 20
TRIES = 5


def sha256_of(path: Path) -> str:
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def fetch(url: str, target: Path, sha256: str) -> Path:
    """target, downloaded from url unless it is there already, once its SHA-256 is the one given.

    A download that was cut off leaves `<target>.part` and goes on from there.

    Raises: Failure if the address does not answer, the file is another one (it is removed) or the disk is full.
    """
    with locked(target):
        if target.is_file():
            if sha256_of(target) == sha256:
                return target
            target.unlink()
        part = target.with_name(target.name + ".part")
        for attempt in range(TRIES):
            before = part.stat().st_size if part.exists() else 0
            error = _continue(url, part)
            if error is None:
                break
            # Only a connection that brings something is worth another try at once.
            if (part.stat().st_size if part.exists() else 0) == before and attempt:
                raise Failure(
                    f"cannot download {url} ({error}); put the file at {target}, or set CLIP_MIRROR or CLIP_WEIGHTS"
                )
        else:
            raise Failure(f"{url} was cut off {TRIES} times; run again to go on from {part.stat().st_size >> 20} MB")
        if sha256_of(part) != sha256:
            part.unlink()
            raise Failure(f"{url}: not the expected file (its SHA-256 is wrong); removed, try again or set CLIP_MIRROR")
        os.replace(part, target)
    return target


def _continue(url: str, part: Path) -> str | None:
    """Append what is missing to part; None when all is there, else why it stopped."""
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            resumed = response.status == 206
            total = int(response.headers.get("Content-Length", 0)) + (have if resumed else 0)
            with (
                open(part, "ab" if resumed else "wb") as f,
                tqdm(total=total, initial=f.tell(), unit="B", unit_scale=True, desc=part.stem, disable=None) as bar,
            ):
                while chunk := response.read(CHUNK):
                    f.write(chunk)
                    bar.update(len(chunk))
        size = part.stat().st_size
        return None if size >= total else f"{size} of {total} bytes came"
    except urllib.error.HTTPError as e:
        return None if e.code == 416 else f"the server says {e.code} {e.reason}"  # 416: all of it is there
    except OSError as e:
        if (
            e.errno is not None
            and e.filename is None
            and not isinstance(e, urllib.error.URLError | TimeoutError | ConnectionError)
        ):
            raise Failure(f"{part}: {e.strerror}; free some space and run again") from e
        return str(getattr(e, "reason", e))
