"""Where `prepare` gets the benchmarks from, and what to do by hand for those it cannot get."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torchvision import datasets as tv

DRIVE = "drive:"  # before the id of a file on Google Drive
EUROSAT = "https://huggingface.co/datasets/torchgeo/eurosat/resolve"
EUROSAT += "/c877bcd43f099cd0196738f714544e355477f3fd/EuroSAT.zip"


@dataclass(frozen=True)
class Source:
    """A file below the dataset's folder; or, if it says what to move where, an archive."""

    name: str
    address: str
    md5: str = ""  # "": what it holds is checked by extracting or reading it
    # {folder in the archive: folder below the dataset's}
    moves: Mapping[str, str] = field(default_factory=dict)
    inner: str = ""  # the archive in the archive that holds the images


def archive(url: str, moves: Mapping[str, str], md5: str = "", inner: str = "") -> Source:
    """An archive under the name it has in its address."""
    return Source(url.rpartition("/")[2], url, md5, moves, inner)


def drive(name: str, file_id: str, moves: Mapping[str, str] | None = None) -> Source:
    """A file on Google Drive, where CoOp's authors put theirs."""
    return Source(name, DRIVE + file_id, moves=moves or {})


def split(name: str, file_id: str) -> Source:
    """The split file of CoOp's authors."""
    return drive(f"split_zhou_{name}.json", file_id)


def flowers(key: str, moves: Mapping[str, str] | None = None) -> Source:
    """One of Oxford Flowers' files, by torchvision's name of it."""
    name, md5 = tv.Flowers102._file_dict[key]
    return Source(name, tv.Flowers102._download_url_prefix + name, md5, moves or {})


def variant(name: str, md5: str) -> Source:
    """ImageNet-A or -R, from their first author's page."""
    url = f"https://people.eecs.berkeley.edu/~hendrycks/{name}.tar"
    return archive(url, {name: name}, md5)


_PETS = [
    archive(url, {n: n for n in ("images", "annotations") if n in url}, md5)
    for url, md5 in tv.OxfordIIITPet._RESOURCES
]
_CALTECH = archive(
    "https://data.caltech.edu/records/mzrjq-6wc02/files/caltech-101.zip",
    {"101_ObjectCategories": "101_ObjectCategories"},
    "3138e1922a9193bfa496528edbbc45d0",
    inner="caltech-101/101_ObjectCategories.tar.gz",
)
_UCF = "UCF-101-midframes"
_CLASSNAMES = drive("classnames.txt", "1-61f_ol79pViBFDG_IDlUQSwoLcn2XXF")

# torchvision does not expose the addresses and MD5s of Caltech101 and EuroSAT: they are copied from
# their `download`.
SOURCES = {
    "Caltech101": [_CALTECH, split("Caltech101", "1hyarUivQE36mY6jSomru6Fjd-JzwcCzN")],
    "OxfordPets": [*_PETS, split("OxfordPets", "1501r8Ber4nNKvmlFVQZ8SeUHTcdTTEqs")],
    "StanfordCars": [split("StanfordCars", "1ObCFbaAgVu0I-k_Au-gIUcefirdAuizT")],
    "OxfordFlowers": [
        flowers("image", {"jpg": "jpg"}),
        flowers("label"),
        drive("cat_to_name.json", "1AkcxCXeK_RCGCEC_GvmWxjcjaNhu-at0"),
        split("OxfordFlowers", "1Pp0sRXzZFZq15zVOzKjKBu4A9i01nozT"),
    ],
    "Food101": [
        archive(tv.Food101._URL, {"food-101": "."}, tv.Food101._MD5),
        split("Food101", "1QK0tGi096I0Ba6kggatX1ee6dJFIcEJl"),
    ],
    "FGVCAircraft": [archive(tv.FGVCAircraft._URL, {"fgvc-aircraft-2013b/data": "."})],
    "SUN397": [split("SUN397", "1y2RD81BYuiyvebdN-JymPfyWYcd8_MUq")],
    "DescribableTextures": [
        archive(tv.DTD._URL, {"dtd": "."}, tv.DTD._MD5),
        split("DescribableTextures", "1u3_QfB467jqHgNXC00UIzbLZRQCg2S7x"),
    ],
    "EuroSAT": [
        archive(EUROSAT, {"2750": "2750"}, "c8fa014336c82ac7804f0398fcb19387"),
        split("EuroSAT", "1Ip7yaCWFi0eaOFUGga0lUdVi_DDQth1o"),
    ],
    "UCF101": [
        drive(f"{_UCF}.zip", "10Jqome3vtUA2keJkNanAiFpgbyC9Hc2O", {_UCF: _UCF}),
        split("UCF101", "1I0S0q91hJfsV9Gf4xDIjgDq4AqBNJb1y"),
    ],
    "ImageNet": [_CLASSNAMES],
    "ImageNetV2": [_CLASSNAMES],
    "ImageNetSketch": [_CLASSNAMES],
    "ImageNetA": [variant("imagenet-a", "c3e55429088dc681f30d81f4726b6595"), _CLASSNAMES],
    "ImageNetR": [variant("imagenet-r", "a61312130a589d0ca1a8fca1f2bd3337"), _CLASSNAMES],
}

# {folder} is the dataset's.
BY_HAND = {
    "ImageFolder": """\
Your own images are not downloaded. Put them there, and classnames.txt if the names say little:
  one folder of images for each class   {folder}/<class>/""",
    "StanfordCars": """\
The images' own links are dead. From a copy of the original archives (Kaggle, a colleague) put
  cars_train.tgz                   extracted   {folder}/cars_train/00001.jpg …
  cars_test.tgz                    extracted   {folder}/cars_test/00001.jpg …
  car_devkit.tgz                   extracted   {folder}/devkit/cars_meta.mat, cars_train_annos.mat
  cars_test_annos_withlabels.mat               {folder}/cars_test_annos_withlabels.mat""",
    "SUN397": """\
The images' own site is gone. From a copy put
  SUN397.tar.gz (MD5 8ca2778205c41d23104230ba66911c7a)   extracted   {folder}/SUN397/a/abbey/ …
  ClassName.txt, Training_01.txt, Testing_01.txt (only without a split file)   {folder}/""",
    "ImageNet": """\
The images need an account at https://image-net.org/download-images. From there put
  ILSVRC2012_img_train.tar   one archive a class, each extracted   {folder}/images/train/<wnid>/
  ILSVRC2012_img_val.tar         extracted   {folder}/images/val/
  ILSVRC2012_devkit_t12.tar.gz   extracted   {folder}/ILSVRC2012_devkit_t12/
and give this command again: by the devkit's labels it sorts the validation images into folders of
their classes, images/val/<wnid>/. Without a devkit, --labels FILE takes a list of one wnid for each
image, 1 to 50,000.""",
    "ImageNetV2": """\
The images are downloaded by hand, from https://huggingface.co/datasets/vaishaal/ImageNetV2. Put
  imagenetv2-matched-frequency.tar.gz
      extracted   {folder}/imagenetv2-matched-frequency-format-val/0/ … 999/""",
    "ImageNetSketch": """\
The images are downloaded by hand, as https://github.com/HaohanWang/ImageNet-Sketch says. Put
  the archive's 1,000 wnid folders   {folder}/images/<wnid>/""",
}
