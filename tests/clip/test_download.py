"""Weights by name, address and mirror, from a server on this machine."""

import hashlib
import io
import multiprocessing
import os
import random
import shutil
import socket
import sys
import tempfile
import threading
from pathlib import Path

import pytest
from open_clip.pretrained import get_pretrained_url

from clip import clip as clip_module
from clip import download
from clip import weights as weights_module
from clip.download import fetch, sha256_of
from clip.weights import OPENAI, find_weights
from dassl.utils.errors import Failure, UsageError

CONTENT = random.Random(0).randbytes(3_000_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def target(tmp_path) -> Path:
    return tmp_path / "cache" / "ViT-B-16.pt"


@pytest.fixture
def url(server) -> str:
    server.files["/x.pt"] = CONTENT
    return f"{server.address}/x.pt"


def part_of(target: Path, content: bytes = b"") -> Path:
    part = target.with_name(target.name + ".part")
    if content:
        part.parent.mkdir()
        part.write_bytes(content)
    return part


def failure_line(call, *args, kind=Failure, **kwargs) -> str:
    with pytest.raises(kind) as caught:
        call(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_addresses_are_openais():
    models = {name: url for name, url in clip_module._MODELS.items() if name != "ViT-Tiny/8"}
    assert len(models) == 9
    for name, url in models.items():
        at_open_clip = {"ViT-L/14@336px": "ViT-L-14-336"}.get(name, name.replace("/", "-"))
        assert url == get_pretrained_url(at_open_clip, "openai")


def test_a_name_is_downloaded_once_to_the_cache_in_home(server, monkeypatch, tmp_path):
    path = server.add_model(monkeypatch, "ViT-B/32", CONTENT)
    monkeypatch.setenv("CLIP_MIRROR", server.address + "/")
    found = find_weights("ViT-B/32")
    assert found == tmp_path / "home/.cache/clip/ViT-B-32.pt" and found.read_bytes() == CONTENT
    assert not part_of(found).exists()
    server.http.shutdown()  # offline
    assert find_weights("ViT-B/32") == found
    assert clip_module._download(clip_module._MODELS["ViT-B/32"]) == str(found)
    assert server.requests == [(path, None)]


def test_the_mirror_given_goes_before_the_environments(server, monkeypatch, tmp_path):
    server.add_model(monkeypatch, "RN50", CONTENT)
    monkeypatch.setenv("CLIP_MIRROR", "http://127.0.0.1:1")
    assert find_weights("RN50", mirror=server.address, root=str(tmp_path)) == tmp_path / "RN50.pt"
    line = failure_line(find_weights, "RN50", mirror="/data/mirror", kind=UsageError)
    assert line == "CLIP mirror '/data/mirror': not an http:// or https:// address"


def test_an_address_can_stand_for_a_model(server, monkeypatch, tmp_path):
    """Without a SHA-256 it is not checked: it may not take the place of OpenAI's file."""
    server.files |= {
        "/a/ViT-B-16.pt": CONTENT,
        "/b/ViT-B-16.pt": CONTENT[:9],
        f"/{SHA256}/x.pt": CONTENT,
    }
    one = find_weights("ViT-B/16", weights=f"{server.address}/a/ViT-B-16.pt?download=true")
    monkeypatch.setenv("CLIP_WEIGHTS", f"{server.address}/b/ViT-B-16.pt")
    other = find_weights("ViT-B/16")
    assert one.read_bytes() == CONTENT and other.read_bytes() == CONTENT[:9]
    assert one.suffix == ".pt" and one.parent == other.parent == tmp_path / "home/.cache/clip"
    assert {one.name, other.name}.isdisjoint({"ViT-B-16.pt"})
    assert find_weights("ViT-B/16") == other and len(server.requests) == 2
    assert find_weights("x", weights=f"{server.address}/{SHA256}/x.pt").name == "x.pt"


def test_what_was_cut_off_goes_on(server, url, target):
    server.cuts = [1_000_000, 500_000]
    assert fetch(url, target, SHA256).read_bytes() == CONTENT
    assert [given for _, given in server.requests] == [None, "bytes=1000000-", "bytes=1500000-"]


def test_a_connection_that_brings_nothing_ends_it_and_the_next_run_goes_on(server, url, target):
    server.cuts = [1_000_000, 0]
    line = failure_line(fetch, url, target, SHA256)
    assert (
        f"cannot download {url} (1,000,000 of 3,000,000 bytes came); 1,000,000 bytes are kept"
        in line
    )
    assert not target.exists() and part_of(target).stat().st_size == 1_000_000
    assert fetch(url, target, SHA256).read_bytes() == CONTENT
    assert server.requests[-1][1] == "bytes=1000000-"


def test_a_server_that_knows_no_ranges_begins_again(server, url, target):
    server.ranges, server.cuts = False, [1_000_000, 2_000_000]
    assert fetch(url, target, SHA256).read_bytes() == CONTENT
    assert len(server.requests) == 3


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize(
    "left", [CONTENT, CONTENT + b"more", b"other" + CONTENT[5:1000], b"x" * len(CONTENT)], ids=len
)
def test_whatever_an_earlier_run_left_the_file_comes_whole(server, url, target, left, ranges):
    server.ranges = ranges
    part_of(target, left)
    assert fetch(url, target, SHA256).read_bytes() == CONTENT
    assert not part_of(target).exists() and len(server.requests) <= 2


def test_an_unchecked_file_is_not_pieced_together(server, url, target):
    part_of(target, b"other")
    assert fetch(url, target).read_bytes() == CONTENT


def test_a_wrong_file_is_refused_and_removed(server, url, target):
    line = failure_line(fetch, url, target, "0" * 64)
    told = f"{url}: not the file expected (its SHA-256 is wrong), removed; run again, or set CLIP_"
    assert line.startswith(told)
    assert not target.exists() and not part_of(target).exists() and len(server.requests) == 1


def test_a_wrong_file_in_the_cache_is_replaced_once_the_right_one_is_there(server, url, target):
    target.parent.mkdir()
    target.write_bytes(CONTENT[:1000])
    line = failure_line(fetch, f"{server.address}/nothing", target, SHA256)
    assert f"put the file at {target} (the file there is another, its SHA-256 is wrong), or" in line
    assert target.read_bytes() == CONTENT[:1000]
    assert fetch(url, target, SHA256).read_bytes() == CONTENT


def test_an_answer_cut_inside_a_chunk_is_one_line(server, url, target):
    server.chunked = True
    assert "cannot download" in failure_line(fetch, url, target, SHA256)
    assert not target.exists()


def test_the_servers_no_is_told(server, target):
    line = failure_line(fetch, f"{server.address}/nothing.pt", target, SHA256)
    assert f"cannot download {server.address}/nothing.pt (the server says 404 Not Found)" in line
    assert len(server.requests) == 1


@pytest.mark.parametrize("length", ["abc", "", "-5", "1e3"])
def test_a_length_that_is_no_number_is_not_known(server, url, target, length):
    server.headers = {"Content-Length": length or " "}
    assert fetch(url, target, SHA256).read_bytes() == CONTENT


def test_416(server, url, target):
    """To who asks for all of it; for an earlier run's part: right, too long, another file's."""
    server.status = 416
    assert f"cannot download {url} (the server says 416 " in failure_line(
        fetch, url, target, SHA256
    )
    assert not part_of(target).exists()
    server.headers = {"X": "y"}  # tells the true length
    shutil.rmtree(target.parent)
    for left in (CONTENT, CONTENT + b"more", CONTENT[:9]):
        part_of(target, left)
        server.status = 416
        assert fetch(url, target, SHA256).read_bytes() == CONTENT
        shutil.rmtree(target.parent)
    # Not checked, cut, and then nothing more: not taken for whole.
    server.cuts = [1_000_000]
    answer = server.answer

    def no_more(request):
        server.status = 416 if request.headers["Range"] else 0
        answer(request)

    server.answer = no_more
    assert fetch(url, target).read_bytes() == CONTENT


def test_an_address_of_other_letters(server, target):
    server.files["/mod%C3%A8le%20%C3%A9t%C3%A9.pt"] = CONTENT
    assert fetch(f"{server.address}/modèle été.pt", target).read_bytes() == CONTENT
    line = failure_line(fetch, "http://127.0.0.1:1/x/modèle", target.with_name("y"))
    assert "x/modèle (" in line


def test_a_long_name_in_an_address(server):
    server.files["/" + "%C3%A9" * 200 + ".pt"] = CONTENT
    found = find_weights("ViT-B/16", weights=f"{server.address}/{'é' * 200}.pt")
    assert found.read_bytes() == CONTENT and found.suffix == ".pt"


@pytest.mark.parametrize("checksum", [SHA256, ""])
@pytest.mark.parametrize("page", [b"<!DOCTYPE html>", b"\xef\xbb\xbf\r\n <html>"])
def test_a_web_page_is_not_kept(server, url, target, page, checksum):
    server.files["/x.pt"] = page
    line = failure_line(fetch, url, target, checksum)
    assert line.startswith(
        f"{url}: not the file expected (it is a web page), removed; run again, or set CLIP_MIRROR"
    )
    assert not target.exists() and not part_of(target).exists()


def test_nothing_is_not_a_file(server, url, target):
    server.files["/x.pt"] = b""
    assert f"cannot download {url} (nothing came); put" in failure_line(fetch, url, target)
    assert not target.exists()


@pytest.mark.parametrize(
    "address", ["foo", "ftp:x", "http://", "http://[::1/x", "http://a b/", "http://127.0.0.1:x/"]
)
def test_an_address_that_is_none(address, target):
    assert failure_line(fetch, address, target).startswith(f"cannot download {address} (")


def test_what_a_server_says_is_one_short_line(target):
    with socket.create_server(("127.0.0.1", 0)) as other:

        def answer():
            connection = other.accept()[0]
            connection.recv(1000)
            connection.sendall(b"SSH-2.0 \x1b[31m" + b"x" * 5000 + b"\n\n")
            connection.close()

        thread = threading.Thread(target=answer)
        thread.start()
        line = failure_line(fetch, f"http://127.0.0.1:{other.getsockname()[1]}/x", target)
        thread.join()
    assert "(SSH-2.0 ?[31mxxx" in line and len(line) < 600


def test_offline_the_line_says_what_to_do(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        address = f"http://127.0.0.1:{nobody.getsockname()[1]}"
    line = failure_line(find_weights, "ViT-B/16", mirror=address)
    assert (
        line.startswith(f"cannot download {address}/5806e77")
        and "ViT-B-16.pt (Connection refused)" in line
    )
    assert f"put the file at {tmp_path}/home/.cache/clip/ViT-B-16.pt" in line
    assert "CLIP_MIRROR" in line and "CLIP_WEIGHTS" in line


def test_two_processes_download_once(server, url, target):
    server.delay = 0.3
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=fetch, args=(url, target, SHA256)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    assert target.read_bytes() == CONTENT and len(server.requests) == 1


def test_a_full_disk_is_one_line(server, url, target):
    target.parent.mkdir()
    part_of(target).symlink_to("/dev/full")
    line = failure_line(fetch, url, target, SHA256)
    assert (
        line.startswith(f"cannot write {target}: No space left on device; free some space")
        and "CLIP_WEIGHTS" in line
    )
    assert not target.exists()


@pytest.fixture
def read_only_folder():
    """A folder that this process may only read, also when the tests are run as root."""
    folder = Path(tempfile.mkdtemp(prefix="clip-cache-", dir="/tmp"))
    (folder / "there.pt").write_bytes(CONTENT)
    (folder / "there.pt").chmod(0o444)
    folder.chmod(0o555)
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    yield folder
    if root:
        os.seteuid(0)
    folder.chmod(0o755)
    shutil.rmtree(folder)


def test_a_cache_that_can_only_be_read(server, url, read_only_folder):
    assert fetch(url, read_only_folder / "there.pt", SHA256) and not server.requests
    line = failure_line(fetch, url, read_only_folder / "x.pt", SHA256)
    assert (
        line.startswith(f"Cannot write to {read_only_folder}: Permission denied.")
        and "CLIP_WEIGHTS" in line
    )


def test_a_terminal_sees_a_bar(url, target, monkeypatch, capsys):
    fetch(url, target.with_name("y.pt"), SHA256)
    assert capsys.readouterr() == ("", "")
    screen = io.StringIO()
    screen.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", screen)
    fetch(url, target, SHA256)
    assert "ViT-B-16.pt: 100%" in screen.getvalue() and "3.00M/3.00M" in screen.getvalue()


def test_a_file_is_hashed_once_until_it_changes(tmp_path, monkeypatch):
    hashed = []
    digest = download._digest
    monkeypatch.setattr(download, "_digest", lambda path: hashed.append(path) or digest(path))
    path = tmp_path / "x"
    path.write_bytes(CONTENT)
    assert sha256_of(path) == sha256_of(path) == SHA256 and len(hashed) == 1
    path.write_bytes(b"")
    assert sha256_of(path) == hashlib.sha256(b"").hexdigest()


def test_advice_for_an_address_of_ones_own(tmp_path, monkeypatch):
    """A mirror, and CLIP_WEIGHTS, would change nothing."""
    monkeypatch.delenv("CLIP_MIRROR", raising=False)
    url = "http://127.0.0.1:9/my.pt"
    with pytest.raises(Failure, match="or give MODEL.BACKBONE.WEIGHTS a file of yours"):
        find_weights("ViT-B/16", url, root=str(tmp_path))
    monkeypatch.setenv("CLIP_MIRROR", "http://127.0.0.1:9")
    with pytest.raises(Failure, match="set CLIP_MIRROR to an address"):
        find_weights("ViT-B/16", root=str(tmp_path))


def test_openais_address_is_asked_when_there_is_no_mirror(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(
        weights_module,
        "fetch",
        lambda url, target, sha256, hint: asked.append((url, target, sha256)) or target,
    )
    assert find_weights("ViT-B/16", root=str(tmp_path)) == tmp_path / "ViT-B-16.pt"
    sha256 = "5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f"
    assert asked == [(f"{OPENAI}/{sha256}/ViT-B-16.pt", tmp_path / "ViT-B-16.pt", sha256)]
