"""inference.gap: its numbers beside loops over all pairs, its rows beside a run's own model."""

import itertools
import json
import math
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure

from inference import gap, gap_features, gap_numbers
from inference.gap_figure import Shown, draw
from inference.gap_numbers import Features, measure, picture
from inference.load import load_run
from results.panels import Page
from trainers.base import CustomCLIP
from trainers.empl import EMPLCLIP

from .runs import run
from .test_inference import CASES, drawing, sampled, the_line, with_draws

ZERO_SHOT = ["zero-shot ViT-Tiny/8", "zero-shot ViT-Tiny/8, mean of 8 prompts"]


def plain(f, own, text):
    """{name: number} by loops over all pairs, in numpy; a mean over nothing is None."""

    def cos(a, b):
        lengths = np.linalg.norm(a) * np.linalg.norm(b)
        return None if lengths < 1e-12 else float(a @ b) / lengths

    def mean(values):
        values = [value for value in values if value is not None]
        return sum(values) / len(values) if values else None

    def absolute(value):
        return None if value is None else abs(value)

    d = [a - b for a, b in zip(f, own, strict=True)]
    middle = sum(d) / len(d)
    n = range(len(d))
    return {
        "size": mean([np.linalg.norm(gap) for gap in d]),
        "mean": np.linalg.norm(middle),
        "constancy": mean([cos(d[i], d[j]) for i in n for j in n if i != j]),
        "image": mean([absolute(cos(middle, f[i] - f[j])) for i in n for j in n if i != j]),
        "text": mean([absolute(cos(middle, a - b)) for a, b in itertools.permutations(text, 2)]),
    }


def agrees(measured, expected, abs=1e-10):
    for name, value in expected.items():
        got = getattr(measured, name)
        assert math.isnan(got) if value is None else got == pytest.approx(value, abs=abs), name


def unit(*shape):
    return F.normalize(torch.randn(*shape, dtype=torch.float64) + 0.3, dim=-1)


def features(n, classes, dim=5):
    """Of n images whose classes are the first `classes` but one of all."""
    text, label = unit(classes, dim), torch.arange(n) % max(1, classes - 1)
    return Features(unit(n, dim), text[label], text, label, 50.0)


# the numbers


@pytest.mark.parametrize("block", [1, 3, 256])
@pytest.mark.parametrize(("n", "classes"), [(7, 4), (6, 2), (5, 1), (1, 3), (1, 1)])
def test_the_numbers_are_those_of_plain_loops(n, classes, block, monkeypatch):
    """Also with one class, one image, and a class without images."""
    monkeypatch.setattr(gap_numbers, "BLOCK", block)
    given = features(n, classes)
    agrees(measure(given), plain(*(t.numpy() for t in given[:3])))


def test_gaps_of_size_zero_and_equal_features_have_no_direction():
    given = features(6, 3)
    image = given.image.clone()
    image[0], image[3] = given.own[0], image[4]  # a gap of zero; two equal images
    image[1] = F.normalize(given.own[1] + 1e-3 * torch.randn(5), dim=0)  # small is not zero
    text = torch.cat([given.text, given.text[:1]])
    given = given._replace(image=image, text=text)
    agrees(measure(given), plain(*(t.numpy() for t in given[:3])))
    assert math.isnan(picture(given).cosine[0]) and not picture(given).cosine[1:].isnan().any()

    none = measure(given._replace(image=given.own))
    assert (none.size, none.mean) == (0, 0)
    assert all(math.isnan(number) for number in (none.constancy, none.image, none.text))
    assert picture(given._replace(image=given.own)).cosine.isnan().all()


def test_a_gap_that_is_constant_and_orthogonal():
    """Images and texts in planes that are parallel, and one apart."""
    angle = torch.linspace(0, 3, 6, dtype=torch.float64)
    text = torch.stack([angle.cos(), angle.sin(), torch.zeros(6)], dim=1)
    image = text + torch.tensor([0.0, 0.0, 1.0])  # of no unit length, which none of this needs
    got = measure(Features(image, text, text, torch.arange(6), 100.0))
    assert got[2:] == pytest.approx((1, 1, 1, 0, 0), abs=1e-12)
    seen = picture(Features(image, text, text, torch.arange(6), 100.0))
    assert seen.image[:, 0] == pytest.approx(torch.ones(6)) and seen.cosine == pytest.approx(1)
    assert seen.own[:, 0] == pytest.approx(torch.zeros(6), abs=1e-12)


def test_nearly_equal_features():
    """Distances that are small beside 1 are not lost in the products they come from."""
    points = F.normalize(1 + 1e-5 * torch.randn(9, 5, dtype=torch.float64), dim=1)
    direction = torch.randn(5, dtype=torch.float64)
    pairs = itertools.combinations(points, 2)
    expected = [abs(float(F.cosine_similarity(a - b, direction, dim=0))) for a, b in pairs]
    got = gap_numbers.mean_abs_cosine(direction, points)
    assert got == pytest.approx(np.mean(expected), rel=1e-8)


@pytest.mark.parametrize("dim", [1, 2, 128])
def test_the_cosine_of_random_directions(dim):
    """1, 2/π, and near √(2 / πD)."""
    expected = {1: 1, 2: 2 / math.pi, 128: math.sqrt(2 / (math.pi * 128))}[dim]
    assert gap_numbers.chance(dim) == pytest.approx(expected, rel=3e-3)


def test_the_picture_keeps_the_gap_and_the_widest_direction():
    """By numpy's SVD; the distance of both means is the mean gap's length, all of it along x."""
    given = features(9, 4)
    seen = picture(given)
    ends = seen.image.mean(dim=0) - seen.own.mean(dim=0)
    assert ends.tolist() == pytest.approx([measure(given).mean, 0], abs=1e-10)
    d = (given.image - given.own).mean(dim=0).numpy()
    both = np.concatenate([given.image, given.own]) - given.own.mean(dim=0).numpy()
    both = both - np.outer(both @ d, d) / (d @ d)
    y = torch.cat([seen.image, seen.own])[:, 1].numpy()
    assert np.linalg.norm(y) == pytest.approx(np.linalg.svd(both)[1][0])
    assert np.corrcoef(seen.image[:, 1], given.label)[0, 1] > 0


# of runs


@pytest.fixture(scope="module")
def runs(data, tmp_path_factory) -> Path:
    """Output folders: zero-shot CLIP's, CoOp's and its test on the new classes, CoCoOp's, P2C's."""
    out = tmp_path_factory.mktemp("runs")
    two = ("OPTIM.MAX_EPOCH", "2", "DATALOADER.TEST.BATCH_SIZE", "24")
    flags = ("--eval-only", "--model-dir", str(out / "coop"), "--load-epoch", "2")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", sys.stdout)
        assert run("ZeroshotCLIP", data, out / "zero") == 0
        assert run("CoOp", data, out / "coop", *two) == 0
        assert run("CoCoOp", data, out / "cocoop", *two) == 0
        assert run("P2C", data, out / "p2c", *two) == 0
        patch.setattr(sys, "argv", ["train.py", *flags])
        assert run("CoOp", data, out / "new", "DATASET.SUBSAMPLE_CLASSES", "new", flags=flags) == 0
    return out


@pytest.fixture(scope="module")
def zero_shot(runs) -> dict[str, float]:
    """{name: number} of zero-shot CLIP on the base classes, by its own run."""
    features, _ = gap_features.gather(load_run(runs / "zero"), zero_shot=False)
    return measure(features[""])._asdict()


@torch.no_grad()
def by_the_model(folder):
    """{name: number} of a run by loops, its features image by image."""
    trainer = load_run(folder)
    model, image, own, texts, right = trainer.model, [], [], [], 0
    for batch in trainer.test_loader:
        for pixels, label in zip(*trainer.parse_batch_test(batch), strict=True):
            feature = model.image_features(pixels[None])
            if hasattr(model.learner, "conditional_text_features"):
                text = model.learner.conditional_text_features(model.clip, feature)[0]
            else:
                text = model.learner.text_features(model.clip)
            text = F.normalize(text, dim=1)
            right += int((model(pixels[None]).argmax() == label).item())
            image.append(feature[0].double().numpy())
            own.append(text[label].double().numpy())
            texts.append(text.double().numpy())
    return plain(image, own, np.mean(texts, axis=0)) | {"accuracy": 100 * right / len(image)}


@pytest.fixture
def no_figures(monkeypatch):
    monkeypatch.setattr(gap, "figures", lambda *_: None)


@pytest.mark.usefixtures("no_figures")
@pytest.mark.parametrize("method", ["coop", "new", "cocoop", "p2c"])
def test_a_run_is_measured_as_its_model_is(method, runs, zero_shot, tmp_path, capsys):
    shutil.copytree(runs / method, tmp_path / method)
    if method == "new":  # its model is where --model-dir says, seen from its folder
        shutil.copytree(runs / "coop", tmp_path / "coop")
        (tmp_path / "coop/results.json").unlink()
    assert gap.main([str(tmp_path / method)]) == 0
    [numbers] = json.loads((tmp_path / method / "gap.json").read_text())["gap"].values()
    expected = by_the_model(tmp_path / method)
    agrees(gap_numbers.Gap(**numbers), expected, abs=1e-5)
    rows = rows_of(capsys.readouterr().out)
    side = "new" if method == "new" else "base"
    name = {"cocoop": "CoCoOp", "p2c": "P2C"}.get(method, "CoOp")
    assert list(rows) == [(side, name) for name in (*ZERO_SHOT, name)]
    assert as_numbers(rows[side, name]) == pytest.approx(in_order(expected), abs=0.0011)
    if side == "base":  # of the same images, whatever the method makes of them
        own = as_numbers(rows[side, ZERO_SHOT[0]])
        assert own == pytest.approx(in_order(zero_shot), abs=0.0011)


def in_order(numbers):
    """As the table's columns are."""
    rounded = round(numbers["accuracy"], 1)
    return [rounded, *(numbers[key] for key in ("size", "mean", "constancy", "image", "text"))]


def as_numbers(cells):
    """A row's cells without the seeds, of which there is one."""
    assert cells[-1] == "1"
    return [float(cell) for cell in cells[:-1]]


def rows_of(out):
    """{(classes, method): cells} of the printed table."""
    lines = [re.split(r"  +", line.strip()) for line in out.splitlines() if line[:6] == "Shapes"]
    return {(classes, method): cells for _, classes, method, *cells in lines}


def test_several_runs_in_one_table_and_their_figures(runs, tmp_path, capsys):
    """Zero-shot CLIP is there once for each set of classes, and equal to its own run."""
    assert gap.main([str(runs), "--out", str(tmp_path)]) == 0
    captured = capsys.readouterr()
    rows = rows_of(captured.out)
    base = [*ZERO_SHOT, "CoCoOp", "CoOp", "P2C", "ZeroshotCLIP"]
    assert set(rows) == {("base", m) for m in base} | {("new", m) for m in [*ZERO_SHOT, "CoOp"]}
    assert [method for side, method in rows if side == "base"][:2] == ZERO_SHOT
    assert rows["base", "ZeroshotCLIP"] == rows["base", ZERO_SHOT[0]] != rows["base", ZERO_SHOT[1]]
    made = [
        f"gap_Shapes_{side}.{suffix}"
        for side in ("base", "new")
        for suffix in ("pdf", "png", "txt")
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == made
    assert all(str(tmp_path / name) in captured.out for name in made)
    assert "0.071 (128 numbers)" in captured.out
    assert captured.err.splitlines() == [
        f"[{i}/5] {runs / name}"
        for i, name in enumerate(["cocoop", "coop", "new", "p2c", "zero"], start=1)
    ]


def test_kept_features_and_images_give_the_same(runs, monkeypatch):
    """CoOp's test has kept its images' features; without any, an image is encoded once."""
    trainer = load_run(runs / "coop")
    encode, calls = trainer.frozen_clip().encode_image, []

    def counted(image, *more):
        if not more:  # it calls itself for a few images each
            calls.append(len(image))
        return encode(image, *more)

    monkeypatch.setattr(trainer.frozen_clip(), "encode_image", counted)
    kept, _ = gap_features.gather(trainer, zero_shot=True)
    assert not calls
    trainer.cfg.defrost()
    trainer.cfg.DATALOADER.FEATURES = ""
    fresh, zero_shot = gap_features.gather(trainer, zero_shot=True)
    assert sum(calls) == len(trainer.test_loader.dataset)
    for one, other in zip(kept[""], fresh[""], strict=True):
        assert one == other if isinstance(one, float) else torch.equal(one, other)
    assert torch.equal(zero_shot[""].image, fresh[""].image)
    assert not gap_features.gather(trainer, zero_shot=False)[1]


def test_texts_of_each_image():
    """Each image's own is kept, and of a class the mean over the images of all batches."""
    image, text, label = unit(5, 4), unit(5, 3, 4), torch.tensor([0, 2, 2, 0, 1])
    gathered = gap_features.Gathered()
    for part in (slice(0, 2), slice(2, 5)):
        gathered.add(image[part], text[part], label[part])
    got = gathered.features()
    assert torch.equal(got.image, image) and torch.equal(got.label, label)
    assert got.own.tolist() == [text[i, c].tolist() for i, c in enumerate(label)]
    assert torch.allclose(got.text, text.mean(dim=0))
    nearest = [max(range(3), key=lambda c: float(image[i] @ text[i, c])) for i in range(5)]
    assert got.accuracy == 100 * np.mean(np.array(nearest) == label.numpy())


def test_numbers_in_json():
    """What cannot be compared is null."""
    assert json.dumps(gap.numbers(measure(features(1, 1)))).count("null") == 3


def test_a_figure_is_of_all_seeds(tmp_path, monkeypatch):
    rows = [gap.Row(name, None, shown) for name, shown in (("A", 1), ("B", 2), ("A", 3))]
    drawn = []
    monkeypatch.setattr(gap, "draw", lambda methods, page: drawn.append(dict(methods)) or Figure())
    monkeypatch.setattr(gap, "save", lambda _, name, folder, *__: drawn.append((name, folder)))
    args = gap.parse_args([str(tmp_path), "--out", str(tmp_path)])
    gap.figures({("Shapes", "base"): rows}, args, Page())
    assert drawn == [{"A": [1, 3], "B": [2]}, ("gap_Shapes_base", tmp_path)]


@pytest.mark.usefixtures("no_figures")
def test_seeds_are_pooled(runs, tmp_path, capsys):
    """Mean ± population std; here of two that differ in their context."""
    for seed in (1, 2):
        folder = tmp_path / f"seed{seed}"
        shutil.copytree(runs / "coop", folder)
        path = folder / "results.json"
        path.write_text(path.read_text().replace('"seed": 1', f'"seed": {seed}'))
    file = tmp_path / "seed2/prompt_learner/model.pth.tar-2"
    state = torch.load(file, weights_only=True)
    state["state_dict"]["ctx"] *= 3
    torch.save(state, file)
    assert gap.main([str(tmp_path)]) == 0
    captured = capsys.readouterr()
    numbers = [
        json.loads((tmp_path / f"seed{seed}/gap.json").read_text())["gap"][""]["constancy"]
        for seed in (1, 2)
    ]
    *_, cos, _, _, seeds = rows_of(captured.out)["base", "CoOp"]
    assert (cos, seeds) == (f"{np.mean(numbers):.3f} ± {np.std(numbers):.3f}", "2")
    assert numbers[0] != numbers[1]


@pytest.mark.usefixtures("no_figures")
def test_a_method_with_draws_has_a_row_for_one_and_one_for_their_mean(
    runs, tmp_path, monkeypatch, capsys
):
    """As such a method would say them in PAIRS; the rows are each other's where draws are equal."""

    def draws(model, image):
        f, text = model.image_features(image), model.text_features()
        several = torch.stack([text, text.roll(1, dims=1)])
        return {"one draw": (f, several[0]), "mean of 2 draws": (f, model.unit(several.mean(0)))}

    monkeypatch.setitem(gap_features.PAIRS, CustomCLIP.forward, draws)
    folder = tmp_path / "run"
    shutil.copytree(runs / "coop", folder)
    assert gap.main([str(folder), "--out", str(tmp_path)]) == 0
    rows = rows_of(capsys.readouterr().out)
    assert [method for _, method in rows] == [*ZERO_SHOT, "CoOp, one draw", "CoOp, mean of 2 draws"]
    got = json.loads((folder / "gap.json").read_text())["gap"]
    agrees(gap_numbers.Gap(**got["one draw"]), by_the_model(folder), abs=1e-5)
    assert got["mean of 2 draws"]["size"] != pytest.approx(got["one draw"]["size"], abs=1e-3)


# of methods that draw, or that have samples, on random weights


@torch.no_grad()
def seen(monkeypatch, trainer, draw: int):
    """[image features (N, D), texts (N, C, D)] that a test with that draw alone compares.

    MMRL's of its two features; and the labels.
    """
    with_draws(monkeypatch, trainer, 1, 3, [draw])
    model, calls = trainer.model, []
    name = "row_logits" if isinstance(model, EMPLCLIP) else "logits"  # EMPL's energy takes others
    logits = getattr(model, name)
    monkeypatch.setattr(model, name, lambda f, t: calls.append((f, t)) or logits(f, t))
    found, labels = [], []
    for images, label in map(trainer.parse_batch_test, trainer.test_loader):
        calls.clear()
        model(images)
        last = calls[-2:] if getattr(model, "fused", False) else calls[-1:]
        found.append([(f.flatten(0, -2), t.expand(len(label), *t.shape[-2:])) for f, t in last])
        labels.append(label)
    whole = [[torch.cat(t) for t in zip(*each, strict=True)] for each in zip(*found, strict=True)]
    return whole, torch.cat(labels)


def expected(image, texts, label):
    """{name: number}, by loops."""
    rows = range(len(label))
    own = [texts[i, label[i]].double().numpy() for i in rows]
    numbers = plain(list(image.double().numpy()), own, texts.double().mean(dim=0).numpy())
    right = sum(int((texts[i] @ image[i]).argmax() == label[i]) for i in rows)
    return numbers | {"accuracy": 100 * right / len(label)}


@CASES
def test_one_draw_and_the_mean_of_all(data, tmp_path, weights, monkeypatch, case):
    """The mean text feature has unit length, as each draw's; an image's feature is the same."""
    trainer = drawing(case, data, tmp_path, weights)
    got, _ = gap_features.gather(trainer, zero_shot=False)
    of_draws = [seen(monkeypatch, trainer, i) for i in range(3)]
    what = "chain" if trainer.node_name == "EMPL" else "draw"
    features = ["class token, ", "representation tokens, "] if "MMRL" in case else [""]
    names = [f"{f}{which}" for f in features for which in (f"one {what}", f"mean of 3 {what}s")]
    assert sorted(got) == sorted(names)
    for k, feature in enumerate(features):
        image, first = of_draws[0][0][k]
        mean = F.normalize(sum(pairs[k][1] for pairs, _ in of_draws), dim=-1)
        label = of_draws[0][1]
        for which, texts in ((f"one {what}", first), (f"mean of 3 {what}s", mean)):
            agrees(measure(got[feature + which]), expected(image, texts, label), abs=1e-5)
    sizes = [measure(got[name]).size for name in names]
    assert abs(sizes[1] - sizes[0]) > 1e-4


def test_one_draw_alone_has_one_row(data, tmp_path, weights):
    got, _ = gap_features.gather(drawing("VaMP", data, tmp_path, weights, n=1), zero_shot=False)
    assert list(got) == [""]


@torch.no_grad()
def test_the_last_sample_and_the_mean_of_all(data, tmp_path, weights):
    """Of samples each has image features of its own. A single one is as a model is."""
    trainer = sampled("ReBaPL_MaPLe", data, tmp_path, weights)
    got, _ = gap_features.gather(trainer, zero_shot=False)
    assert list(got) == ["last sample", "mean of 3 samples' image features and text features"]
    images, label = map(
        torch.cat, zip(*map(trainer.parse_batch_test, trainer.test_loader), strict=True)
    )
    image = [sample.image_features(images) for sample in trainer.samples]
    texts = [sample.text_features() for sample in trainer.samples]
    mean = [F.normalize(sum(f), dim=-1) for f in (image, texts)]
    for features, (f, t) in zip(got.values(), ((image[2], texts[2]), mean), strict=True):
        agrees(measure(features), expected(f, t.expand(len(label), -1, -1), label), abs=1e-5)
    trainer.samples = trainer.samples[:1]
    [[name, features]] = gap_features.gather(trainer, zero_shot=False)[0].items()
    assert name == "" and torch.allclose(features.image, image[0], atol=1e-6)


def test_samples_of_two_features(data, tmp_path, weights):
    got, _ = gap_features.gather(sampled("ReBaPL_MMRL", data, tmp_path, weights), zero_shot=False)
    which = "last sample", "mean of 3 samples' image features and text features"
    features = "class token", "representation tokens"
    assert sorted(got) == sorted(f"{f}, {w}" for f in features for w in which)


@pytest.mark.usefixtures("no_figures")
def test_another_model_than_the_runs_is_noticed(runs, tmp_path, caplog):
    shutil.copytree(runs / "coop", tmp_path / "run")
    path = tmp_path / "run/results.json"
    of_run = json.loads(path.read_text())
    of_run["metrics"]["accuracy"] += 2
    path.write_text(json.dumps(of_run))
    assert gap.main([str(tmp_path)]) == 0
    assert "the model or the data are others" in caplog.text


@pytest.mark.usefixtures("no_figures")
def test_runs_that_cannot_be_measured(runs, tmp_path, monkeypatch, capsys):
    """They are said in a line each, and the others are measured."""
    for name in ("coop", "cocoop", "p2c"):
        shutil.copytree(runs / name, tmp_path / name)
    shutil.rmtree(tmp_path / "coop/prompt_learner")
    kept = {CustomCLIP.forward: gap_features.shared}
    monkeypatch.setattr(gap_features, "PAIRS", kept)
    assert gap.main([str(tmp_path)]) == 1
    errors = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("[")]
    why = "its features are not in inference/gap_features.py, PAIRS"
    assert errors[0] == f"skipped: CoCoOp: {why}"
    assert errors[1].startswith(f"error: {tmp_path}/coop: no checkpoint (prompt_learner)")
    assert len(errors) == 2 and (tmp_path / "p2c/gap.json").exists()
    assert gap.main([str(tmp_path / "cocoop")]) == 1  # nothing was measured
    shutil.rmtree(tmp_path / "coop")
    assert gap.main([str(tmp_path)]) == 0


def test_it_is_stopped(runs, monkeypatch, capsys):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(gap, "gather", stop)
    with pytest.raises(SystemExit) as left:
        gap.main([str(runs)])
    assert left.value.code == 130
    assert "error: stopped; 0 of 5 runs have their gap.json" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("args", "code", "text"),
    [
        (("/nowhere",), 2, "/nowhere: no such folder"),
        ((), 2, "the following arguments are required: RUN"),
        (("{empty}",), 1, "no results of runs"),
    ],
)
def test_bad_input(args, code, text, tmp_path, capsys):
    with pytest.raises(SystemExit) as left:
        gap.main([arg.format(empty=tmp_path) for arg in args])
    assert left.value.code == code
    the_line(capsys, text)


def test_figures_that_cannot_be_written(runs, tmp_path, capsys):
    shutil.copytree(runs / "zero", tmp_path / "run")
    with pytest.raises(SystemExit) as left:
        gap.main([str(tmp_path / "run"), "--out", str(tmp_path / "run/results.json")])
    assert left.value.code == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: cannot write to ")


# the figure


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("n", "classes"), [(9, 4), (1, 1)])
def test_the_figure(n, classes):
    """A panel of each method with all its points, and histograms that add up to 100%."""
    methods = {name: [Shown(trainer, picture(features(n, classes)))]
               for name, trainer in (("zero-shot", "ZeroshotCLIP"), ("P2C", "P2C"))}  # fmt: skip
    none = Shown("Mine", picture(Features(*[torch.eye(3)] * 3, torch.arange(3), 0)))
    methods["no gap"] = [none]
    figure = draw(methods, Page())
    titles = [ax.get_title() for ax in figure.axes]
    assert titles == [*methods, "Size of the gaps", "Direction of the gaps"]
    for ax, [shown] in zip(figure.axes, methods.values(), strict=False):
        drawn = [line.get_xydata() for line in ax.get_lines()]
        assert np.array_equal(drawn[0], shown.picture.image)
        assert any(np.array_equal(points, shown.picture.own) for points in drawn)
        assert (ax.get_xlim(), ax.get_ylim()) == (figure.axes[0].get_xlim(),
                                                  figure.axes[0].get_ylim())  # fmt: skip
    for ax, empty in zip(figure.axes[-2:], (0, 1), strict=True):
        shares = [patch.get_data().values.sum() for patch in ax.patches]
        assert shares == pytest.approx([100, 100, 100 * (1 - empty)])


def test_histograms_of_several_seeds():
    """Their mean, and each as a thin line behind it."""
    shown = [Shown("P2C", picture(features(9, 4))), Shown("P2C", picture(features(9, 4)))]
    figure = draw({"P2C": shown}, Page())
    for ax in figure.axes[1:]:
        one, two, mean = [patch.get_data().values for patch in ax.patches]
        assert mean == pytest.approx((one + two) / 2)
    assert "mean over 2 seeds, thin: single seeds" in figure.get_label()
