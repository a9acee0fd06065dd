"""Preparation from a server on this machine, with archives of trees in the real layouts."""

import dataclasses
import hashlib
import io
import json
import shutil
import sys
import tarfile
import types
import zipfile
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from clip import download as download_module
from datasets import doctor, prepare
from datasets.sources import BY_HAND, DRIVE, SOURCES, Source

from ..clip.conftest import Server, server  # noqa: F401 (a fixture)
from .test_doctor import NAMES, counts, listing  # noqa: F401 (a fixture)
from .test_fifteen import ALL, load, make_tree
from .trees import WNIDS, text

CONFIGS = {name: config for config, name in NAMES.items()}
PUBLISHED = dict(doctor.PUBLISHED)  # before a test has replaced them
FREE = sorted(set(SOURCES) - set(BY_HAND))


@pytest.fixture(autouse=True)
def no_settings(monkeypatch) -> None:
    monkeypatch.delenv("DATA_MIRROR", raising=False)
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setitem(sys.modules, "gdown", None)  # no test asks Google


def members(source: Source, folder: Path) -> dict[str, bytes]:
    """What the original archive holds: the folders that are moved, as they lie in a whole tree."""
    return {
        f"{inside}/{path.relative_to(folder / below).as_posix()}": path.read_bytes()
        for inside, below in source.moves.items()
        for path in sorted((folder / below).rglob("*"))
        if path.is_file() and not path.name.startswith(("split_zhou", ".p2c"))
    }


def pack(name: str, content: dict[str, bytes]) -> bytes:
    """An archive of the kind its name says."""
    out = io.BytesIO()
    if name.endswith(".zip"):
        with zipfile.ZipFile(out, "w") as archive:
            for member, data in content.items():
                archive.writestr(member, data)
    else:
        with tarfile.open(fileobj=out, mode="w" if name.endswith(".tar") else "w:gz") as archive:
            for member, data in content.items():
                info = tarfile.TarInfo(member)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


class World:
    """A server that has a dataset's sources, and an empty data folder."""

    def __init__(self, http: Server, tmp_path: Path, monkeypatch, capsys):
        self.server, self.monkeypatch, self.capsys = http, monkeypatch, capsys
        self.made, self.root = tmp_path / "made", tmp_path / "data"

    def path(self, source: Source) -> str:
        """The source's on the mirror."""
        if source.address.startswith(DRIVE):
            return f"/drive/{source.name}"
        return "/" + source.address.split("/", 3)[3]

    def publish(self, name: str) -> Path:
        """Puts a dataset on the server, with right checksums; returns the folder it is of."""
        folder = make_tree(CONFIGS[name], self.made)
        load(CONFIGS[name], self.made)  # makes the split file
        sources = []
        for source in SOURCES[name]:
            if source.moves:
                content = members(source, folder)
                if source.inner:
                    content = {
                        source.inner: pack(source.inner, content),
                        "__MACOSX/caltech-101/._x": b"x",
                    }
                data = pack(source.name, content)
            else:
                data = (folder / source.name).read_bytes()
            sources.append(self.serve(source, data))
        self.monkeypatch.setitem(SOURCES, name, sources)
        return folder

    def serve(self, source: Source, data: bytes) -> Source:
        self.server.files[self.path(source)] = data
        return dataclasses.replace(source, md5=hashlib.md5(data).hexdigest() if source.md5 else "")

    def replace_archive(self, name: str, data: bytes) -> None:
        """Another first archive, with its checksum."""
        first, *others = SOURCES[name]
        self.monkeypatch.setitem(SOURCES, name, [self.serve(first, data), *others])

    def prepare(self, *args: str, mirror: bool = True) -> tuple[int, str, str]:
        """Exit code, output, errors."""
        where = ("--mirror", self.server.address + "/") if mirror else ()
        code = prepare.main([*args, "--root", str(self.root), *where])
        return code, *self.capsys.readouterr()


@pytest.fixture
def world(server, tmp_path, monkeypatch, capsys) -> World:  # noqa: F811
    return World(server, tmp_path, monkeypatch, capsys)


def test_every_dataset_has_sources_of_its_own():
    assert set(SOURCES) == set(doctor.PUBLISHED)
    assert len(FREE) == 10
    for name, sources in SOURCES.items():
        assert (name in FREE) == any(source.moves for source in sources)
        without_md5 = {s.name for s in sources if not s.md5 and not s.address.startswith(DRIVE)}
        assert without_md5 <= {"fgvc-aircraft-2013b.tar.gz"}


@pytest.mark.parametrize("name", FREE)
def test_whole(name, world):
    made = world.publish(name)
    code, out, err = world.prepare(CONFIGS[name])
    known = ALL[CONFIGS[name]]
    assert (code, err) == (0, "")
    assert out.splitlines()[-1].startswith(f"{name}: found, ")
    assert load(CONFIGS[name], world.root).classnames == known.classnames
    folder = world.root / known.folder
    for path in made.rglob("*.jpg"):
        assert (folder / path.relative_to(made)).read_bytes() == path.read_bytes()
    assert all((folder / source.name).exists() for source in SOURCES[name] if not source.moves)
    assert not (folder / ".prepare").exists() and not list(world.root.rglob("__MACOSX"))

    before, requests = listing(world.root), len(world.server.requests)
    assert world.prepare(name.upper())[0] == 0
    assert len(world.server.requests) == requests and listing(world.root) == before


@pytest.mark.parametrize("name", ["EuroSAT", "DescribableTextures"])
def test_a_cut_connection_is_resumed(name, world):
    world.publish(name)
    world.server.cuts = [300, 200]
    assert world.prepare(name)[0] == 0
    ranges = [
        header for path, header in world.server.requests if path == world.path(SOURCES[name][0])
    ]
    assert ranges == [None, "bytes=300-", "bytes=500-"]


def test_a_later_run_goes_on(world):
    world.publish("EuroSAT")
    world.server.cuts = [3000, 0]
    code, _, err = world.prepare("eurosat")
    assert (
        code == 1
        and err.startswith("error: cannot download")
        and "3,000 bytes are kept, run again" in err
    )
    assert err.count("\n") == 1 and "CLIP" not in err
    assert world.prepare("eurosat")[0] == 0
    ranges = [header for path, header in world.server.requests if path.endswith(".zip")]
    assert ranges == [None, "bytes=3000-", "bytes=3000-"]


def test_a_wrong_checksum(world):
    world.publish("OxfordFlowers")
    world.server.files[world.path(SOURCES["OxfordFlowers"][0])] = pack(
        "x.tgz", {"jpg/image_00001.jpg": b"x"}
    )
    code, _, err = world.prepare("oxford_flowers")
    assert code == 1 and err.count("\n") == 1
    assert "102flowers.tgz: not the file expected (its MD5 is wrong), removed; run again" in err
    assert "or give --mirror" in err
    folder = world.root / "oxford_flowers"
    assert (
        not (folder / "jpg").exists()
        and not list(folder.rglob("*tgz"))
        and not list(folder.rglob("*.part"))
    )


def link(member: str, target: str, kind: bytes = tarfile.SYMTYPE) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        info = tarfile.TarInfo(member)
        info.type, info.linkname = kind, target
        archive.addfile(info)
    return out.getvalue()


def zip_link(member: str, target: str) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        info = zipfile.ZipInfo(member)
        info.external_attr = 0o120777 << 16
        archive.writestr(info, target)
    return out.getvalue()


@pytest.mark.parametrize(
    "member",
    ["../evil.jpg", "2750/../../../evil.jpg", "/tmp/evil.jpg", "..\\evil.jpg", "C:/evil.jpg"],
)
@pytest.mark.parametrize("name", ["EuroSAT", "DescribableTextures"])
def test_members_that_lead_outside_are_refused(name, member, world, tmp_path):
    world.publish(name)
    world.replace_archive(name, pack(SOURCES[name][0].name, {member: b"evil"}))
    code, _, err = world.prepare(name)
    assert code == 1 and err.count("\n") == 1
    assert f"its member {member!r} leads outside its folder and was not extracted" in err
    assert not list(tmp_path.rglob("*evil*")) and not Path("/tmp/evil.jpg").exists()
    assert not list((world.root).rglob(SOURCES[name][0].name))


@pytest.mark.parametrize(
    ("name", "archive"),
    [
        ("DescribableTextures", link("dtd/images", "/etc")),
        ("DescribableTextures", link("dtd/images", "../../..")),
        ("DescribableTextures", link("dtd/a/b/c", "../../x")),  # it would be moved up
        ("DescribableTextures", link("dtd/a", "dtd/images/x", tarfile.LNKTYPE)),
        ("DescribableTextures", link("dtd/passwd", "/etc/passwd", tarfile.LNKTYPE)),
        ("DescribableTextures", link("dtd/null", "", tarfile.CHRTYPE)),
        ("EuroSAT", zip_link("2750/River", "/etc")),
    ],
    ids=[
        "absolute",
        "relative",
        "within",
        "hard within",
        "hard",
        "device",
        "zip",
    ],  # archives have the time in them
)
def test_links_that_lead_outside_are_refused(name, archive, world):
    world.publish(name)
    world.replace_archive(name, archive)
    code, _, err = world.prepare(name)
    assert code == 1 and "leads outside its folder and was not extracted" in err
    assert not [path for path in world.root.rglob("*") if path.is_symlink()]


@pytest.mark.parametrize(
    ("name", "cut", "line"),
    [
        ("FGVCAircraft", lambda data: data[: len(data) // 2], "it cannot be extracted"),
        (
            "FGVCAircraft",
            lambda data: b"\n<!DOCTYPE html>",
            "not the file expected (it is a web page), removed",
        ),
        (
            "FGVCAircraft",
            lambda data: b"Too many downloads",
            "it is no archive, or only the beginning of one. It is",
        ),
        (
            "FGVCAircraft",
            lambda data: pack("x.tar.gz", {"x" * 300: b"x"}),
            "it cannot be extracted (File name too long)",
        ),
        (
            "FGVCAircraft",
            lambda data: pack("x.tar.gz", {"x": b"x", "x/y": b"x"}),
            "it cannot be extracted (Not a direct",
        ),
        (
            "UCF101",
            lambda data: pack("x.zip", {"x/" + "é" * 130: b"x"}),
            "it cannot be extracted (File name too long)",
        ),
        (
            "UCF101",
            lambda data: pack("x.zip", {"é": b"x"}).replace("é".encode(), b"\xc3("),
            "it cannot be extracted (invalid continuation byte). It",
        ),
        (
            "UCF101",
            lambda data: data[: len(data) // 2],
            "it is no archive, or only the beginning of one. It is removed;",
        ),
        (
            "UCF101",
            lambda data: b"<html>Too many downloads</html>",
            "not the file expected (it is a web page), removed",
        ),
        ("UCF101", lambda data: b"", "(nothing came); put the file at"),
        (
            "UCF101",
            lambda data: pack("x.zip", {"other/x.jpg": b"x"}),
            "it holds no folder UCF-101-midframes",
        ),
        (
            "Caltech101",
            lambda data: pack("x.zip", {"other/x.jpg": b"x"}),
            "it holds no 101_ObjectCategories.tar.gz",
        ),
    ],
)
def test_another_archive_is_removed(name, cut, line, world):
    world.publish(name)
    whole = world.server.files[world.path(SOURCES[name][0])]
    world.replace_archive(name, cut(whole))
    code, _, err = world.prepare(name)
    assert code == 1 and line in err and err.count("\n") == 1
    world.replace_archive(name, whole)
    assert world.prepare(name)[0] == 0


@pytest.mark.parametrize("free", [1000, 20_000])  # too little for the download, for what it holds
def test_no_space(free, world):
    world.publish("EuroSAT")
    out = io.BytesIO()
    with zipfile.ZipFile(
        out, "w", zipfile.ZIP_STORED if free == 1000 else zipfile.ZIP_DEFLATED
    ) as archive:
        archive.writestr("2750/River/1.jpg", bytes(30_000))
    world.replace_archive("EuroSAT", out.getvalue())
    world.monkeypatch.setattr(
        download_module.shutil,
        "disk_usage",
        lambda path: types.SimpleNamespace(total=0, used=0, free=free),
    )
    code, _, err = world.prepare("eurosat")
    assert code == 1 and err.count("\n") == 1
    assert (
        err.startswith(f"error: no space in {world.root}/eurosat/.prepare") and "free some" in err
    )


def test_half_extracted_is_mended(world):
    """So are a broken image and a split that was made of the half."""
    made = world.publish("EuroSAT")
    images = world.root / "eurosat" / "2750"
    shutil.copytree(made / "2750", images)
    (images / "River" / "River_1.jpg").unlink()
    load("eurosat", world.root)
    (images / "River" / "River_2.jpg").write_bytes(b"half")
    (images / "River" / "mine.txt").write_text("kept")
    code, out, _ = world.prepare("eurosat")
    assert code == 0 and "does not fit the images: it is now split_zhou_EuroSAT.json.old" in out
    assert (images / "River" / "River_2.jpg").read_bytes() == (
        made / "2750" / "River" / "River_2.jpg"
    ).read_bytes()
    assert (images / "River" / "mine.txt").exists()
    assert (images.parent / "split_zhou_EuroSAT.json").read_bytes() == (
        made / "split_zhou_EuroSAT.json"
    ).read_bytes()


def test_a_split_of_a_part_is_replaced_where_the_images_are_put_by_hand(world):
    made = world.publish("SUN397")
    folder = world.root / "sun397"
    shutil.copytree(made, folder)
    split = folder / "split_zhou_SUN397.json"
    content = json.loads(split.read_text())
    split.write_text(json.dumps(content | {"train": content["train"][:-1]}))
    assert doctor.main(["sun397", "--root", str(world.root)]) == 1
    assert world.prepare("sun397")[0] == 0
    assert json.loads(split.read_text()) == content
    split.write_text(
        json.dumps(content | {"train": content["train"] + [["a/abbey/absent.jpg", 0, "abbey"]]})
    )
    assert world.prepare("sun397")[0] == 1
    assert (
        "absent" in split.read_text()
    )  # this may be the right one: the images are to be completed


def test_again(world):
    made = world.publish("EuroSAT")
    world.prepare("eurosat")
    broken = world.root / "eurosat" / "2750" / "River" / "River_2.jpg"
    broken.write_bytes(b"half")
    assert world.prepare("eurosat")[0] == 0 and broken.read_bytes() == b"half"
    assert world.prepare("eurosat", "--again")[0] == 0
    assert broken.read_bytes() == (made / "2750" / "River" / "River_2.jpg").read_bytes()


def test_what_lies_elsewhere_is_not_downloaded(world):
    make_tree("dtd", world.root).rename(world.root / "DTD")
    code, out, _ = world.prepare("dtd")
    assert code == 1 and not world.server.requests
    assert out.splitlines()[-1] == f"  mv {world.root}/DTD {world.root}/dtd"


def stub_gdown(monkeypatch, files: dict[str, Path]) -> list[str]:
    """A gdown that copies `files` by their ids; returns the list of ids it was asked for."""
    asked = []

    def download(id: str, output: str, resume: bool) -> str:
        asked.append(id)
        if id not in files:
            link = "Cannot retrieve the public link of the file."
            raise ValueError(f"{link}\nYou may need to change the permission")
        shutil.copy(files[id], output)
        return output

    monkeypatch.setitem(sys.modules, "gdown", types.SimpleNamespace(download=download))
    return asked


def test_google_drive(world, monkeypatch):
    made = world.publish("UCF101")
    archive, split = SOURCES["UCF101"]
    (made / archive.name).write_bytes(world.server.files[world.path(archive)])
    ids = {source.address.removeprefix(DRIVE): made / source.name for source in (archive, split)}
    asked = stub_gdown(monkeypatch, ids)
    assert world.prepare("ucf101", mirror=False)[0] == 0
    assert asked == list(ids) and not world.server.requests
    assert world.prepare("ucf101", mirror=False)[0] == 0 and asked == list(ids)


def test_without_its_split_file_a_dataset_is_whole(world, monkeypatch, tmp_path):
    """Google refuses, or sends a web page instead."""
    world.publish("DescribableTextures")
    archive, split = SOURCES["DescribableTextures"]
    local = dataclasses.replace(archive, address=world.server.address + world.path(archive))
    monkeypatch.setitem(SOURCES, "DescribableTextures", [local, split])
    page = tmp_path / "page.html"
    page.write_text("<html>")
    for files, reason in (
        ({}, "Cannot retrieve the public link of the file."),
        ({split.address[len(DRIVE) :]: page}, "is a web page; put the file itself there"),
    ):
        stub_gdown(monkeypatch, files)
        code, out, _ = world.prepare("dtd", mirror=False)
        assert (
            code == 0
            and out.startswith(f"Without {split.name}: ")
            and reason in out.splitlines()[0]
        )
        assert out.splitlines()[-1].startswith("DescribableTextures: found")
        assert not list(world.root.rglob("split_zhou*"))
    assert [path for path, _ in world.server.requests] == [world.path(archive)]


def nested(*errors: Exception) -> Exception:
    """Each raised while the one before it was handled."""
    for inner, error in pairwise(errors):
        error.__context__ = inner
    return errors[-1]


NO_NAME = nested(
    OSError(-3, "Temporary failure in name resolution"),
    ValueError("<HTTPSConnection(host='drive.google.com', port=443)>: Failed to resolve"),
    ValueError(
        "HTTPSConnectionPool(host='drive.google.com', port=443): Max retries exceeded with url: /uc"
    ),
    OSError(
        "HTTPSConnectionPool(host='drive.google.com', port=443): Max retries exceeded with url: /uc"
    ),
)
GDOWN_SAYS = {
    "Temporary failure in name resolution": NO_NAME,
    "404 Client Error: Not Found": OSError("404 Client Error:\n  Not Found"),
    "ValueError": ValueError(),
    "Tunnel connection failed: 403 Forbidden": nested(
        OSError("Tunnel connection failed: 403 Forbidden"), ValueError("Max r")
    ),
}


@pytest.mark.parametrize("reason", GDOWN_SAYS)
def test_gdowns_errors_are_for_people(reason, world, monkeypatch):
    def download(**_):
        raise GDOWN_SAYS[reason]

    monkeypatch.setitem(sys.modules, "gdown", types.SimpleNamespace(download=download))
    code, _, err = world.prepare("ucf101", mirror=False)
    where = f"https://drive.google.com/file/d/{SOURCES['UCF101'][0].address.removeprefix(DRIVE)}"
    assert (
        code == 1
        and err.startswith(f"error: cannot download {where} ({reason}); try again later")
        and err.count("\n") == 1
    )


def test_a_web_page_that_gdown_brings(world, monkeypatch, tmp_path):
    """It is not kept as an archive, nor as class names, though its lines could be some."""
    made = world.publish("UCF101")
    page = tmp_path / "page.html"
    page.write_text("<html> <body>\nToo many\n</body> </html>\n")
    asked = stub_gdown(
        monkeypatch, {source.address.removeprefix(DRIVE): page for source in SOURCES["UCF101"]}
    )
    for _ in range(2):
        code, _, err = world.prepare("ucf101", mirror=False)
        assert (
            code == 1
            and "it is a web page. It is removed; run again" in err
            and err.count("\n") == 1
        )
    assert len(asked) == 2 and made.exists()
    stub_gdown(
        monkeypatch, {source.address.removeprefix(DRIVE): page for source in SOURCES["ImageNet"]}
    )
    assert (
        "imagenet/classnames.txt is a web page; put the"
        in world.prepare("imagenet", mirror=False)[1]
    )
    assert not list(world.root.rglob("*.txt"))


@pytest.mark.parametrize(
    ("mirror", "code", "line"),
    [
        ("foo", 2, "the mirror 'foo' is no http:// or https:// address"),
        ("file:///tmp", 2, "the mirror 'file:///tmp' is no http:// or https:// address"),
        ("http://", 1, "cannot download http:/"),
        ("http://[::1", 1, "(Invalid IPv6 URL)"),
        ("http://127.0.0.1:x", 1, "(nonnumeric port: 'x')"),
        (
            "http://127.0.0.1:1/é",
            1,
            "cannot download http://127.0.0.1:1/é/phelber/EuroSAT.zip (Connection refused)",
        ),
    ],
)
def test_a_mirror_that_is_none(mirror, code, line, world, monkeypatch):
    monkeypatch.setitem(
        SOURCES,
        "EuroSAT",
        [Source("x.zip", "https://a.b/phelber/EuroSAT.zip", moves={"2750": "2750"})],
    )
    for given in (("--mirror", mirror), ()):
        monkeypatch.setenv("DATA_MIRROR", mirror)
        assert prepare.main(["eurosat", "--root", str(world.root), *given]) == code
        out, err = world.capsys.readouterr()
        assert line in err and err.count("\n") == 1 and out == ""


def test_a_file_in_a_folders_place(world):
    world.publish("EuroSAT")
    (world.root / "eurosat" / "2750").mkdir(parents=True)
    (world.root / "eurosat" / "2750" / "River").write_text("")
    code, _, err = world.prepare("eurosat")
    line = f"cannot write {world.root}/eurosat/2750/River: File exists; mend that and run again"
    assert code == 1 and err == f"error: {line}\n"


def test_gdown_is_not_installed(world):
    code, out, _ = world.prepare("stanford_cars", mirror=False)
    assert (
        code == 1
        and f"needs gdown: pip install gdown, or put the file at {world.root}/stanford_cars/split"
        in out.splitlines()[0]
    )


@pytest.mark.parametrize("name", [name for name in BY_HAND if name in SOURCES])
def test_by_hand(name, world):
    """What can be had is there; the rest is explained, and when it has been done all is well."""
    made = world.publish(name)
    code, out, err = world.prepare(name)
    folder = world.root / ALL[CONFIGS[name]].folder
    assert code == 1 and err == ""
    assert f"extracted   {folder}/" in out or f"   {folder}/images/<wnid>/" in out
    assert f"then: python -m datasets.doctor {name} --root {world.root}\n{name}: missing, " in out
    assert all((folder / source.name).exists() for source in SOURCES[name])
    requests = len(world.server.requests)
    shutil.copytree(made, folder, dirs_exist_ok=True)
    assert world.prepare(name)[0] == 0 and len(world.server.requests) == requests


def test_ones_own_images(world):
    code, out, err = world.prepare("image_folder")
    assert code == 1 and err == ""
    assert out.startswith("Your own images are not downloaded. Put them there, and classnames.txt")
    assert f"   {world.root}/<class>/\nthen: python -m datasets.doctor ImageFolder" in out
    assert "ImageFolder: missing, 0 images, – classes\n" in out
    for name in ("auk", "owl"):
        text(world.root / name / "0.jpg"), text(world.root / name / "1.jpg")
    code, out, err = world.prepare("image_folder")
    assert code == 0 and err == "" and out.startswith("ImageFolder: found, 4 images, 2 classes\n")


# -- ImageNet's validation images


@pytest.fixture
def flat(tmp_path) -> Path:
    """ImageNet as extracted, val in one folder: images 1 to 22, two of each class, mixed."""
    folder = make_tree("imagenet", tmp_path / "data")
    val = folder / "images" / "val"
    paths = sorted(val.rglob("*.JPEG"), key=lambda path: path.name)
    for number, path in enumerate(paths, start=1):
        path.rename(path.with_name(f"ILSVRC2012_val_{number:08d}.JPEG"))
    sort = {path.name: path.parent.name for path in val.rglob("*.JPEG")}
    (folder.parent / "sorted.json").write_text(json.dumps(sort))
    for path in list(val.rglob("*.JPEG")):
        path.rename(val / path.name)
    for path in list(val.iterdir()):
        if path.is_dir():
            path.rmdir()
    return folder


def sort_of(folder: Path) -> dict[str, str]:
    """{image: wnid} as they lie; a loose one has "val"."""
    return {path.name: path.parent.name for path in (folder / "images" / "val").rglob("*.JPEG")}


def devkit(folder: Path, wnids: list[str]) -> Path:
    """As extracted: wnids numbered from 1 in an order of its own, larger groups at the end."""
    known = [*reversed(WNIDS), "n00001740"]
    synsets = np.empty(
        (len(known), 1), dtype=[("ILSVRC2012_ID", object), ("WNID", object), ("words", object)]
    )
    for i, wnid in enumerate(known):
        synsets[i, 0] = (np.uint16(i + 1), wnid, "name, other name")
    data = folder / "ILSVRC2012_devkit_t12" / "data"
    data.mkdir(parents=True)
    savemat(data / "meta.mat", {"synsets": synsets})
    numbers = data / "ILSVRC2012_validation_ground_truth.txt"
    numbers.write_text("".join(f"{known.index(wnid) + 1}\n" for wnid in wnids))
    return numbers


def test_validation_images_are_sorted_by_the_devkit(flat, world):
    right = json.loads((world.root / "sorted.json").read_text())
    code, out, _ = world.prepare("imagenet")
    assert (
        code == 1
        and f"extracted   {flat}/ILSVRC2012_devkit_t12/\n" in out
        and "--labels FILE" in out
    )
    assert set(sort_of(flat).values()) == {"val"}
    numbers = devkit(flat, [right[name] for name in sorted(right)])
    whole = numbers.read_text()
    numbers.write_text(whole[:-20])
    code, _, err = world.prepare("imagenet")
    assert (
        code == 1
        and err.startswith(f"error: {numbers} has no label for {flat}/images/val/ILSVRC")
        and err.count("\n") == 1
    )
    assert set(sort_of(flat).values()) == {"val"}
    numbers.write_text(whole)
    # begun before and interrupted
    first = min(right)
    (flat / "images" / "val" / right[first]).mkdir()
    (flat / "images" / "val" / first).rename(flat / "images" / "val" / right[first] / first)
    code, out, _ = world.prepare("imagenet")
    assert code == 0 and out == "ImageNet: found, 88 of 88 images, 11 of 11 classes\n"
    assert sort_of(flat) == right and len(load("imagenet", world.root).test) == 22
    assert world.prepare("imagenet")[0] == 0


LISTS = {
    "wnids in the images' order": lambda right: [right[name] for name in sorted(right)],
    "names and wnids": lambda right: [f"{name} {wnid}" for name, wnid in right.items()],
    "Caffe's": lambda right: [
        f"{name} {sorted(WNIDS).index(wnid)}" for name, wnid in right.items()
    ],
    "numbers alone": lambda right: [
        str(sorted(WNIDS).index(right[name])) for name in sorted(right)
    ],
    "Kaggle's": lambda right: [
        "ImageId,PredictionString",
        *(f"{n[:-5]},{w} 85 1 499 272 " for n, w in right.items()),
    ],
    "a script": lambda right: [
        *(f"mkdir {w}" for w in WNIDS),
        *(f"mv {n} {w}/" for n, w in right.items()),
    ],
}


@pytest.mark.parametrize("kind", LISTS)
def test_validation_images_are_sorted_by_a_list(kind, flat, world, tmp_path):
    right = json.loads((world.root / "sorted.json").read_text())
    text(tmp_path / "labels.txt", *LISTS[kind](right))
    assert world.prepare("imagenet", "--labels", str(tmp_path / "labels.txt"))[0] == 0
    assert sort_of(flat) == right


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        (
            [str(n % 11 + 1) for n in range(22)],
            "'11' names no class of ImageNet; for the devkit's numbers put its meta.mat",
        ),
        (["tench"] * 22, "'tench' names no class of ImageNet"),
        (["n01440764"] * 21, "has no label for"),
        (["n01440764"] * 23, "has 23 labels, not 50,000: it is of other images"),
        (None, "no such file"),
    ],
)
def test_labels_that_are_none(lines, told, flat, world, tmp_path):
    if lines:
        text(tmp_path / "labels.txt", *lines)
    code, _, err = world.prepare("imagenet", "--labels", str(tmp_path / "labels.txt"))
    assert code == (1 if lines else 2) and err.count("\n") == 1
    assert f"{tmp_path}/labels.txt" in err and told in err
    assert set(sort_of(flat).values()) == {"val"}


def test_errors_of_the_user(world, tmp_path, capsys):
    assert world.prepare("eurosta")[0] == 2
    code, _, err = world.prepare("eurosat", "--labels", "x")
    assert (
        code == 2
        and err == "error: --labels are of ImageNet's validation images: give it with imagenet\n"
    )
    code, _, err = world.prepare("imagenet", "--labels", str(tmp_path / "none"))
    assert code == 2 and err == f"error: --labels {tmp_path}/none: no such file\n"
    assert not world.root.exists()
    world.publish("EuroSAT")
    assert "the server says 404" in world.prepare("dtd")[2]
    shutil.rmtree(world.root)
    world.root.write_text("a file")
    code, _, err = world.prepare("eurosat")
    assert code == 1 and err.startswith("error: Cannot") and err.count("\n") == 1


def test_two_at_once(world):
    world.publish("EuroSAT")
    world.server.delay = 0.2
    with ThreadPoolExecutor(2) as pool:
        found = [
            pool.submit(prepare.prepare, "EuroSAT", world.root, world.server.address)
            for _ in range(2)
        ]
    assert [f.result().state for f in found] == ["found", "found"]
    assert len(world.server.requests) == len(SOURCES["EuroSAT"])


def test_the_mirror_from_the_environment(world, monkeypatch):
    world.publish("EuroSAT")
    monkeypatch.setenv("DATA_MIRROR", world.server.address)
    assert world.prepare("eurosat", mirror=False)[0] == 0


def test_the_documented_sizes():
    text = (Path(__file__).parents[2] / "docs" / "DATASETS.md").read_text()
    for name, numbers in PUBLISHED.items():
        cells = " | ".join(f"{n:,}" if n else "–" for n in numbers)
        assert f"| `{CONFIGS[name]}` | {name} | {cells} |" in text
