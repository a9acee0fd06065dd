import os
import pickle
import random
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms as v1

from dassl.data import DataManager, DatasetWrapper
from dassl.data.cache import ImageCache
from dassl.data.data_manager import build_data_loader
from dassl.data.datasets import DatasetBase, Datum
from dassl.data.samplers import (
    RandomClassSampler,
    RandomDomainSampler,
    RandomSampler,
    SeqDomainSampler,
    SequentialSampler,
    build_sampler,
)
from dassl.data.transforms import INTERPOLATION_MODES, build_transform
from dassl.data.transforms.transforms import (
    Cutout,
    GaussianNoise,
    InstanceNormalization,
    Random2DTranslation,
)
from dassl.utils import Failure, UsageError, read_image


def datums(labels, domains=None):
    domains = domains or [0] * len(labels)
    return [
        Datum(f"{i}.png", y, d, f"class {y}")
        for i, (y, d) in enumerate(zip(labels, domains, strict=True))
    ]


def paths(items):
    return [item.impath for item in items]


# -- datasets


def test_datum_pickles_under_upstreams_name():
    datum = Datum("a/b.png", 3, 1, "cat")
    assert (datum.impath, datum.label, datum.domain, datum.classname) == ("a/b.png", 3, 1, "cat")
    assert b"dassl.data.datasets.base_dataset" in pickle.dumps(datum, 2)
    assert vars(datum) == {"_impath": "a/b.png", "_label": 3, "_domain": 1, "_classname": "cat"}


def test_fewshot_picks():
    # what random.seed(1) and random.sample give, once noted: label 2 comes first, as it appears
    # first
    items = datums([2, 2, 0, 2, 0, 1, 0, 2, 0])
    dataset = DatasetBase(items)
    random.seed(1)
    train, val = dataset.generate_fewshot_dataset(items, items, num_shots=2)
    assert paths(train) == ["1.png", "3.png", "2.png", "4.png", "5.png"]
    assert [item.label for item in val] == [2, 2, 0, 0, 1]
    assert paths(val) == ["0.png", "1.png", "8.png", "4.png", "5.png"]
    assert dataset.generate_fewshot_dataset(items, num_shots=-1) is items
    repeated = dataset.generate_fewshot_dataset(items, num_shots=3, repeat=True)
    assert [item.label for item in repeated] == [2] * 3 + [0] * 3 + [1] * 3


def test_splitting():
    items = datums([1, 0, 1], domains=[5, 4, 4])
    assert {k: paths(v) for k, v in DatasetBase.split_dataset_by_label(items).items()} == {
        1: ["0.png", "2.png"],
        0: ["1.png"],
    }
    assert list(DatasetBase.split_dataset_by_domain(items)) == [5, 4]


def test_dataset_attributes():
    dataset = DatasetBase(datums([1, 0, 1]), test=datums([0]))
    assert dataset.num_classes == 2 and dataset.val is None and dataset.train_u is None
    assert dataset.lab2cname == {0: "class 0", 1: "class 1"} and dataset.classnames == [
        "class 0",
        "class 1",
    ]


@pytest.mark.parametrize(
    ("train", "test", "told"),
    [
        (
            [Datum("a", 0, 0, "cat"), Datum("b", 0, 0, "dog")],
            [],
            'at b: label 0 is "dog" here, but "cat" in training',
        ),
        (
            [Datum("a", 0, 0, "cat")],
            [Datum("t", 0, 0, "dog")],
            'at t: label 0 is "dog" here, but "cat" in training',
        ),
        (
            [Datum("a", 0, 0, "cat")],
            [Datum("t", 1, 0, "cat")],
            'but "no training image" in training',
        ),
        ([Datum("a", 0, 0, "cat"), Datum("b", 2, 0, "owl")], [], "no training image has label 1"),
        ([], [Datum("t", 0, 0, "cat")], "has no training images"),
    ],
)
def test_labels_and_names_that_do_not_agree(train, test, told):
    with pytest.raises(Failure) as caught:
        DatasetBase(train, test=test)
    assert told in str(caught.value) and "\n" not in str(caught.value)


def test_two_labels_may_share_a_name():  # ImageNet's "missile" does
    assert DatasetBase([Datum("a", 0, 0, "missile"), Datum("b", 1, 0, "missile")]).num_classes == 2


def test_domains():
    dataset = DatasetBase(datums([0]))
    dataset.domains = ["art", "photo"]
    dataset.check_input_domains(["art"], ["photo"])
    with pytest.raises(UsageError, match="did you mean photo?"):
        dataset.check_input_domains(["art"], ["foto"])


# -- samplers


def test_class_sampler():
    items = datums([0] * 5 + [1] * 2 + [2] * 4 + [3])
    order = list(RandomClassSampler(items, batch_size=4, n_ins=2))
    labels = [items[i].label for i in order]
    assert len(order) % 4 == 0 and len(order) >= 4
    for start in range(0, len(order), 4):
        batch = labels[start : start + 4]
        assert batch[0] == batch[1] != batch[2] == batch[3]


def test_passes_of_samplers_are_as_long_as_they_say():
    items = datums([label for label in range(5) for _ in range(16)])
    sampler = RandomClassSampler(items, batch_size=8, n_ins=4)
    assert {len(sampler.one_pass()) for _ in range(30)} > {len(sampler)}  # they differ
    assert {len(list(sampler)) for _ in range(30)} == {len(sampler)}
    domains = datums([0] * 30, domains=[0] * 8 + [1] * 10 + [2] * 12)
    sampler = RandomDomainSampler(domains, 4, 2)
    assert {len(sampler.one_pass()) for _ in range(30)} > {len(sampler)}
    for order in (list(sampler) for _ in range(30)):
        assert len(order) == len(sampler)
        for start in range(0, len(order), 4):
            a, b, c, d = (domains[i].domain for i in order[start : start + 4])
            assert a == b != c == d
    with pytest.raises(UsageError, match="A batch of 10 is no multiple of 4 images per class"):
        RandomClassSampler(items, batch_size=10, n_ins=4)


def test_domain_samplers():
    items = datums([0] * 12, domains=[1] * 4 + [0] * 8)
    for sampler in (RandomDomainSampler(items, 4, 0), SeqDomainSampler(items, 4)):
        order = list(sampler)
        assert len(sampler) == len(order) == len(set(order)) == 8  # domain 1 is used up
        for start in (0, 4):
            assert sorted(items[i].domain for i in order[start : start + 4]) == [0, 0, 1, 1]
    assert [items[i].domain for i in SeqDomainSampler(items, 4)] == [0, 0, 1, 1] * 2
    with pytest.raises(UsageError, match="no multiple of the 2 domains"):
        RandomDomainSampler(items, 5, 0)
    with pytest.raises(UsageError, match="A batch of 4 domains: the images have 2"):
        RandomDomainSampler(items, 4, 4)


def test_sampler_by_name():
    assert isinstance(build_sampler("RandomSampler", data_source=[1, 2]), RandomSampler)
    assert list(build_sampler("SequentialSampler", data_source=[1, 2])) == [0, 1]
    assert list(SequentialSampler([1, 2])) == [0, 1] and sorted(RandomSampler([1, 2])) == [0, 1]
    with pytest.raises(UsageError, match="did you mean RandomSampler?"):
        build_sampler("RandomSampeler", data_source=[1])


# -- loaders


def draws(cfg, workers, passes=2):
    """Paths and images of all batches of some passes, and what the model's generator gives
    afterwards."""
    cfg.DATALOADER.NUM_WORKERS = workers
    loader = DataManager(cfg).train_loader_x
    torch.manual_seed(5)
    batches = [batch for _ in range(passes) for batch in loader]
    return [b["impath"] for b in batches], torch.stack([b["img"] for b in batches]), torch.rand(1)


def test_same_draws_whatever_the_number_of_workers(cfg):
    paths_0, images_0, after_0 = draws(cfg, 0)
    paths_2, images_2, after_2 = draws(cfg, 2)
    assert paths_0 == paths_2 and torch.equal(images_0, images_2) and torch.equal(after_0, after_2)
    assert images_0.shape == (8, 4, 3, 8, 8)  # 18 images, batches of 4: the last two are dropped
    assert paths_0[:4] != paths_0[4:]  # another order in the second pass
    assert (
        len({tuple(image.flatten().tolist()) for batch in images_0 for image in batch}) == 32
    )  # all differ


def test_batches(cfg):
    cfg.DATALOADER.TRAIN_X.BATCH_SIZE = 32
    dm = DataManager(cfg)
    assert [len(b["label"]) for b in dm.train_loader_x] == [18]  # fewer than a batch: kept
    assert [len(b["label"]) for b in dm.test_loader] == [12]
    batch = next(iter(dm.test_loader))
    assert sorted(batch) == ["domain", "img", "impath", "index", "label"]
    assert batch["label"].tolist() == [0, 1, 2] * 4 and batch["index"].tolist() == list(range(12))
    assert dm.num_classes == 3 and dm.lab2cname == {0: "a", 1: "b", 2: "c"}


def test_summary_table(cfg, capsys):
    cfg.VERBOSE = True
    DataManager(cfg)
    out = capsys.readouterr().out
    for line in (
        "Dataset    Noise",
        "# classes  3",
        "# train_x  18",
        "# val      6",
        "# test     12",
    ):
        assert line in out


def test_wrapper_options(cfg, image_root):
    cfg.DATALOADER.RETURN_IMG0, cfg.DATALOADER.K_TRANSFORMS = True, 2
    source = [Datum(f"{image_root}/0.png", 0, 0, "a")]
    weak, strong = build_transform(cfg), build_transform(cfg, choices=("random_flip",))
    item = DatasetWrapper(cfg, source, transform=[weak, strong], is_train=True)[0]
    assert [image.shape for image in item["img"] + item["img2"]] == [(3, 8, 8)] * 4
    plain = v1.Compose(
        [v1.Resize((8, 8)), v1.ToTensor(), v1.Normalize(cfg.INPUT.PIXEL_MEAN, cfg.INPUT.PIXEL_STD)]
    )
    assert torch.equal(item["img0"], plain(read_image(source[0].impath)))


def test_a_third_partys_wrapper_sees_plain_indices(cfg):
    class Wrapper(torch.utils.data.Dataset):
        def __init__(self, cfg, data_source, transform=None, is_train=False):
            self.data_source = data_source

        def __len__(self):
            return len(self.data_source)

        def __getitem__(self, idx):
            return {"label": self.data_source[idx].label, "idx": idx}

    batch = next(iter(DataManager(cfg, dataset_wrapper=Wrapper).train_loader_x))
    assert batch["label"].tolist() == [i % 3 for i in batch["idx"].tolist()]


class Draws(torch.utils.data.Dataset):
    """A third party's, whose items are random."""

    def __init__(self, cfg, data_source, transform=None, is_train=False):
        self.data_source = data_source

    def __len__(self):
        return len(self.data_source)

    def __getitem__(self, idx):
        return torch.rand(())


def test_what_a_third_partys_workers_draw_follows_from_the_seed(cfg):
    cfg.DATALOADER.NUM_WORKERS = 1

    def drawn(*seeds: int) -> list[torch.Tensor]:
        loader, found = DataManager(cfg, dataset_wrapper=Draws).train_loader_x, []
        for seed in seeds:
            torch.manual_seed(seed)
            found.append(torch.cat(list(loader)))
        return found

    (one, two), [resumed] = drawn(1, 2), drawn(2)
    assert torch.equal(resumed, two) and not torch.equal(one, two)


def test_a_test_loader_draws_nothing_from_the_models_generator(cfg):
    loader = DataManager(cfg).test_loader
    state = torch.get_rng_state()
    assert len(list(loader)) and torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_image_is_named_in_one_line(cfg, tmp_path, workers):
    cfg.DATALOADER.NUM_WORKERS = workers
    (tmp_path / "broken.png").write_bytes(b"")
    source = [Datum(str(tmp_path / "broken.png"), 0, 0, "a")]
    loader = build_data_loader(cfg, data_source=source, tfm=build_transform(cfg), is_train=False)
    with pytest.raises(Failure) as caught:
        next(iter(loader))
    line = str(caught.value)
    assert line.startswith(f"Cannot read the image {source[0].impath}: ") and "\n" not in line


# -- decoded images in memory


@pytest.fixture
def sources(tmp_path):
    """Datums of six files, each of another kind: JPEG, turned JPEG, 16-bit grey, palette,
    transparent, PNG."""
    noise = np.random.default_rng(0).integers(0, 256, (30, 20, 4), dtype=np.uint8)
    rgb = Image.fromarray(noise[..., :3])
    turned = Image.Exif()
    turned[0x0112] = 6
    rgb.save(tmp_path / "0.jpg")
    rgb.crop((0, 0, 18, 30)).save(tmp_path / "1.jpg", exif=turned)
    Image.fromarray(noise[..., 0].astype(np.uint16) * 257).save(tmp_path / "2.png")
    rgb.quantize(16).save(tmp_path / "3.png")
    Image.fromarray(noise).save(tmp_path / "4.png")
    rgb.crop((0, 0, 19, 11)).save(tmp_path / "5.png")
    return [
        Datum(str(path), i, 0, "abcdef"[i]) for i, path in enumerate(sorted(tmp_path.iterdir()))
    ]


def train_batches(cfg, sources, before=lambda loader: None, passes=2, **changes):
    """All of some passes' batches, as one tensor; `before` may change the loader."""
    cfg = cfg.clone()
    cfg.DATALOADER.update(changes)
    loader = build_data_loader(
        cfg, "RandomSampler", sources, batch_size=3, tfm=build_transform(cfg)
    )
    before(loader)
    torch.manual_seed(5)
    return torch.stack([batch["img"] for _ in range(passes) for batch in loader])


def fill_and_remove(loader):
    """From here on there are no files: what the batches hold comes from memory."""
    sources = loader.dataset.data_source
    loader.dataset.cache.fill([item.impath for item in sources])
    for item in sources:
        os.remove(item.impath)


def test_images_in_memory_are_the_files_to_the_bit(sources):
    cache = ImageCache(limit=10**6)
    cache.fill(item.impath for item in sources)
    before = [read_image(item.impath) for item in sources]
    for item in sources:
        os.remove(item.impath)
    for item, expected in zip(sources, before, strict=True):
        for _ in range(2):
            image = cache.read(item.impath)
            assert (image.mode, image.size, image.tobytes()) == (
                "RGB",
                expected.size,
                expected.tobytes(),
            )
            image.paste("red", (0, 0, 5, 5))  # in place: the next reader must not see it
    assert before[1].size == (30, 18)  # the camera's turn was made


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_from_memory_and_from_files_are_the_same(cfg, sources, workers, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    files = train_batches(cfg, sources, NUM_WORKERS=0, CACHE_MB=0)
    memory = train_batches(cfg, sources, fill_and_remove, NUM_WORKERS=workers)
    assert torch.equal(files, memory) and files.shape == (4, 3, 3, 8, 8)


def test_the_first_pass_decodes_before_the_workers_start(cfg, sources):
    def removing(loader):
        fill = loader.dataset.cache.fill

        def fill_then_remove(paths):
            fill(paths)
            for item in sources:
                Path(item.impath).unlink(missing_ok=True)

        loader.dataset.cache.fill = fill_then_remove

    files = train_batches(cfg, sources, NUM_WORKERS=0, CACHE_MB=0, passes=3)
    assert torch.equal(files, train_batches(cfg, sources, removing, NUM_WORKERS=1, passes=3))


def test_spawned_workers_have_the_images_too(cfg, sources):
    def spawning(loader):
        fill_and_remove(loader)
        loader.multiprocessing_context = "spawn"

    files = train_batches(cfg, sources, NUM_WORKERS=0, CACHE_MB=0)
    assert torch.equal(files, train_batches(cfg, sources, spawning, NUM_WORKERS=1))


def test_memory_is_bounded(sources, monkeypatch):
    paths = [item.impath for item in sources]
    sizes = [3 * 30 * 20, 3 * 30 * 18, 3 * 30 * 20]
    for limit, kept in ((sum(sizes), 3), (sum(sizes) - 1, 2), (sizes[0] - 1, 0), (0, 0)):
        cache = ImageCache(limit)
        cache.fill(paths)
        assert list(cache.where) == paths[:kept] and (
            0 if cache.pixels is None else len(cache.pixels)
        ) == sum(sizes[:kept])
        assert (
            cache.read(paths[5]).tobytes() == read_image(paths[5]).tobytes()
        )  # beyond: read from its file
    cache = ImageCache(2 * sizes[0])
    cache.fill([paths[0]] * 3)  # one image several times (few shots, repeated) is kept once
    assert len(cache.pixels) == sizes[0]
    monkeypatch.setattr(
        "dassl.data.cache._decoded_bytes", lambda path: 300
    )  # headers that are wrong
    cache = ImageCache(10**6)
    cache.fill(paths)
    assert not cache.where and cache.read(paths[0]).size == (20, 30)


def test_only_training_images_are_kept(cfg):
    dm = DataManager(cfg)
    list(dm.test_loader), list(dm.train_loader_x)
    assert dm.test_loader.dataset.cache.pixels is None
    assert len(dm.train_loader_x.dataset.cache.pixels) == 18 * 12 * 16 * 3


@pytest.mark.parametrize("content", [b"", b"whole", None])
def test_a_broken_training_image_is_named_in_one_line(cfg, sources, content):
    path = sources[0].impath
    with open(path, "rb") as file:  # cut off in the middle, its header is whole
        content = content and file.read()[:700]
    os.remove(path)
    if content is None:
        os.mkfifo(path)  # nobody will ever write to it
    else:
        Path(path).write_bytes(content)
    with pytest.raises(Failure) as caught:
        train_batches(cfg, sources, NUM_WORKERS=0)
    line = str(caught.value)
    assert line.startswith(f"Cannot read the image {path}: ") and "\n" not in line


def test_workers_and_batches_in_flight_are_bounded(cfg, sources, monkeypatch):
    cfg.DATALOADER.NUM_WORKERS, cfg.INPUT.SIZE = 8, (224, 224)
    for cores, batch, workers, ahead in (
        (1, 4, 1, 4),
        (64, 4, 8, 4),
        (64, 100, 8, 2),
        (64, 1000, 8, 1),
    ):
        monkeypatch.setattr(
            os, "sched_getaffinity", lambda _, n=cores: set(range(n)), raising=False
        )
        loader = build_data_loader(
            cfg, data_source=sources, batch_size=batch, tfm=build_transform(cfg)
        )
        assert (loader.num_workers, loader.prefetch_factor, loader.persistent_workers) == (
            workers,
            ahead,
            True,
        )


# -- transforms


@pytest.mark.parametrize("size", [(8, 8), (6, 10)])
@pytest.mark.parametrize("mode", ["bicubic", "bilinear"])
def test_test_transform_is_the_v1_pipeline_to_the_bit(cfg, image_root, size, mode):
    cfg.INPUT.SIZE, cfg.INPUT.INTERPOLATION = size, mode
    image = Image.open(image_root / "1.png")
    expected = v1.Compose(
        [
            v1.Resize(max(size), interpolation=v1.InterpolationMode(mode)),
            v1.CenterCrop(size),
            v1.ToTensor(),
            v1.Normalize(cfg.INPUT.PIXEL_MEAN, cfg.INPUT.PIXEL_STD),
        ]
    )
    assert torch.equal(build_transform(cfg, is_train=False)(image), expected(image))


def test_train_transform_is_the_v1_pipeline_to_the_bit(cfg, image_root):
    image = Image.open(image_root / "1.png")
    expected = v1.Compose(
        [
            v1.RandomResizedCrop(
                (8, 8), scale=(0.08, 1.0), interpolation=v1.InterpolationMode.BILINEAR
            ),
            v1.RandomHorizontalFlip(),
            v1.ToTensor(),
            v1.Normalize(cfg.INPUT.PIXEL_MEAN, cfg.INPUT.PIXEL_STD),
        ]
    )
    for seed in range(5):
        torch.manual_seed(seed)
        ours = build_transform(cfg)(image)
        torch.manual_seed(seed)
        assert torch.equal(ours, expected(image))


@pytest.mark.parametrize(
    "choice",
    [
        "random_flip",
        "random_crop",
        "random_translation",
        "colorjitter",
        "randomgrayscale",
        "gaussian_blur",
        "gaussian_noise",
        "cutout",
        "instance_norm",
        "randaugment",
        "center_crop",
    ],
)
def test_every_choice_gives_an_image_of_the_right_size(cfg, image_root, choice):
    cfg.INPUT.GB_K = 3
    transform = build_transform(cfg, choices=(choice,))
    image = transform(Image.open(image_root / "1.png"))
    assert image.shape == (3, 8, 8) and image.dtype == torch.float32 and type(image) is torch.Tensor


def test_a_crop_of_a_smaller_image(cfg):
    """CIFAR's way, at a size that the images do not have."""
    cfg.INPUT.CROP_PADDING = 0
    transform = build_transform(cfg, choices=("random_crop",))
    assert transform(Image.new("RGB", (3, 2))).shape == (3, 8, 8)


def test_cutout_and_instance_norm(cfg):
    cfg.INPUT.CUTOUT_LEN = 4
    white = Image.new("RGB", (8, 8), "white")
    for _ in range(5):
        cut = build_transform(cfg, choices=("cutout",))(white)
        assert 4 <= (cut[0] == 0).sum() <= 16 and torch.equal(cut[0], cut[1])
    image = build_transform(cfg, choices=("instance_norm",))(
        Image.effect_noise((8, 8), 60).convert("RGB")
    )
    torch.testing.assert_close(image.mean((1, 2)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(image.std((1, 2)), torch.ones(3))


def test_transforms_by_dassls_class_names():
    image = Image.effect_noise((20, 30), 60).convert("RGB")
    assert {Random2DTranslation(8, 6)(image).size for _ in range(9)} == {(6, 8)}
    resized = image.resize((6, 8), Image.BILINEAR)
    assert np.array_equal(
        Random2DTranslation(8, 6, p=0.0, interpolation=Image.BILINEAR)(image), resized
    )
    gray = torch.full((3, 99, 99), 0.5)
    assert torch.equal(GaussianNoise(p=0.0)(gray), gray)
    noise = GaussianNoise(mean=0.5, std=0.25, p=1.0)(gray) - gray
    assert noise.mean().item() == pytest.approx(
        0.5, abs=0.01
    ) and noise.std().item() == pytest.approx(0.25, abs=0.01)
    assert (Cutout()(gray) == 0).any() and InstanceNormalization()(gray).abs().max() < 1e-4


def test_a_transform_that_is_not_chosen_may_be_anything(cfg):
    cfg.INPUT.GB_K = 4
    cfg.INPUT.RRCROP_SCALE = (2, 3)
    assert build_transform(cfg, choices=("random_flip",))(Image.new("RGB", (9, 9))).shape[0] == 3


def test_unknown_transform(cfg):
    with pytest.raises(
        UsageError, match='Unknown transform "random_flipp": did you mean random_flip?'
    ):
        build_transform(cfg, choices=("random_flipp",))
    assert sorted(INTERPOLATION_MODES) == ["bicubic", "bilinear", "nearest"]
    cfg.INPUT.NO_TRANSFORM = True
    assert build_transform(cfg) is None


def test_what_tells_training_images_from_others(cfg, tmp_path):
    """Neither where their folder is nor their order; their names and labels do."""
    data = DataManager(cfg)
    items = data.dataset.train_x
    top = os.path.commonpath([item.impath for item in items])

    def told(files: list[tuple[str, int]], unlabeled: tuple[str, ...] = ()) -> str:
        other = DataManager(cfg)
        train_x = [SimpleNamespace(impath=path, label=label) for path, label in files]
        train_u = [SimpleNamespace(impath=path, label=0) for path in unlabeled]
        other.dataset = SimpleNamespace(train_x=train_x, train_u=train_u)
        return other.train_images

    there = [(f"b\udcff/{os.path.relpath(item.impath, top)}", item.label) for item in items]
    data.dataset = SimpleNamespace(train_x=items, train_u=None)
    assert told(there[::-1]) == data.train_images == told(there)
    (path, label), *rest = there
    changed = [
        told(rest),
        told([(path, label + 1), *rest]),
        told([(f"{path}x", label), *rest]),
        told(there, unlabeled=(path,)),
    ]
    assert len({data.train_images, *changed}) == 5
    assert told([]) and told([(path, 0)]) == told([(f"/c/{os.path.basename(path)}", 0)])
