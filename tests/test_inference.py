"""inference.cloud and inference.words, beside numpy or a model whose parameters are changed."""

import json
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from clip.clip import _tokenizer
from clip.weights import find_weights, read_state_dict
from dassl.utils import Failure, UsageError, mix_seed, seeded
from inference import cloud, words
from inference.asked import ask_each
from inference.load import load_run
from results import figures
from results.records import find_results
from trainers import draws

from .runs import run
from .trainers.methods import build, shake


def the_line(capsys, text):
    error = capsys.readouterr().err.splitlines()
    assert len(error) == 1 and error[0].startswith("error: ") and text in error[0], error


# the cloud


def accuracy(folder):
    return json.loads((folder / "results.json").read_text())["metrics"]["accuracy"]


@pytest.fixture
def moved(trained, tmp_path):
    """The same folders at another place; there is nothing at the old one."""
    yield trained.rename(tmp_path / "moved")
    (tmp_path / "moved").rename(trained)


def test_the_cloud_of_a_run_and_of_its_test_elsewhere(moved, capsys):
    """Without noise it is the accuracy of results.json, also after all was moved."""
    assert cloud.main([str(moved), "--sigmas", "0.5", "0", "--draws", "3"]) == 0
    out = capsys.readouterr().out
    for side, folder in (("base", moved / "train"), ("new", moved / "test")):
        got = json.loads((folder / "cloud.json").read_text())
        assert got["sigmas"] == [0, 0.5] and got["accuracy"][0] == [accuracy(folder)]
        assert len(got["accuracy"][1]) == 3 and got["trained_sigma"] == 0.015
        row = re.search(rf"Shapes +{side} +P2C +(\S+) +(\S+) ± (\S+) +1", out)
        expected = (accuracy(folder), np.mean(got["accuracy"][1]), np.std(got["accuracy"][1]))
        assert row.groups() == tuple(f"{x:.1f}" for x in expected)


def test_another_noise_says_that_it_takes_the_place(trained, tmp_path, capsys):
    folder = tmp_path / "train"
    shutil.copytree(trained / "train", folder)
    (folder / "cloud.json").unlink(missing_ok=True)
    for noise, line in ("gaussian", False), ("gmm", True):
        assert cloud.main([str(folder), "--sigmas", "0", "--draws", "1", "--noise", noise]) == 0
        assert ("place of what was measured with gaussian" in capsys.readouterr().err) is line


def test_the_table_says_which_baseline_is_no_fair_one(trained, data, tmp_path, capsys):
    """MaPLe without attributes, beside P2C; not where it is alone."""
    folder = shutil.copytree(trained / "train", tmp_path / "runs/p2c").parent
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", sys.stdout)
        assert run("MaPLe", data, folder / "maple") == 0
    for where, said in ((folder, True), (folder / "maple", False)):
        capsys.readouterr()
        assert cloud.main([str(where), "--sigmas", "0", "0.1", "--draws", "1"]) == 0
        out = capsys.readouterr().out
        assert ("MaPLe †" in out) == ("† MaPLe: no fair baseline" in out) == said
        assert "P2C †" not in out


def test_another_model_than_the_runs_is_noticed(trained, tmp_path, caplog):
    folder = tmp_path / "other"
    shutil.copytree(trained / "train", folder)
    path = folder / "results.json"
    of_run = json.loads(path.read_text())
    of_run["metrics"]["accuracy"] += 2
    path.write_text(json.dumps(of_run))
    assert cloud.main([str(folder), "--sigmas", "0"]) == 0
    assert "the model or the data are others" in caplog.text


@pytest.mark.parametrize("kind", ["gaussian", "gmm"])
def test_perturbed_is_what_the_text_tower_gets(trained, kind):
    """As of a model whose own text parameters have the noise added, its image side clean."""
    trainer = load_run(trained / "train")
    model, learner, sigma = trainer.model, trainer.model.learner, 0.4
    noise = cloud.make_noise(kind, trainer.cfg.TRAINER.P2C.DPD)
    before = {name: p.clone() for name, p in learner.state_dict().items()}
    text_prompts = ("ctx_att1", "ctx_att2", "ctx")  # in their order; ctx_att3 is in no prompt
    values = cloud.measure(trainer, [0.0, sigma], 2, noise).accuracy
    assert all(torch.equal(p, before[name]) for name, p in learner.state_dict().items())
    assert "vectors" not in vars(learner)

    batches = [trainer.parse_batch_test(batch) for batch in trainer.test_loader]
    with torch.no_grad():
        images = torch.cat([model.image_features(image) for image, _ in batches])
        labels = torch.cat([label for _, label in batches])
        for draw in (0, 1):
            with seeded(mix_seed(draw)):
                for name in text_prompts:
                    getattr(learner, name).copy_(before[name] + sigma * noise(before[name]))
            model.train(False)
            right = model.logits(images, model.text_features()).argmax(1) == labels
            assert values[1][draw] == pytest.approx(100 * right.float().mean().item(), abs=1e-4)


def test_noise_is_the_same_for_each_sigma_and_other_for_each_draw(trained):
    trainer = load_run(trained / "train")
    learner, seen = trainer.model.learner, []
    clean = {name: p.detach().clone() for name, p in learner.vectors().items()}
    features = trainer.model.text_features

    def spy():
        seen.append({name: (p - clean[name]).detach() for name, p in learner.vectors().items()})
        return features()

    trainer.model.text_features = spy
    cloud.measure(trainer, [0.1, 0.2], 2, torch.randn_like)
    for name in clean:
        first, second, doubled, _ = (each[name] for each in seen)
        assert torch.allclose(doubled, 2 * first, atol=1e-6)
        assert not torch.allclose(first, second, atol=1e-2)


def test_runs_that_have_no_cloud(trained, data, tmp_path, capsys):
    """They are said in a line each, and the others are measured."""
    shutil.copytree(trained / "train", tmp_path / "good")
    shutil.copytree(trained / "train", tmp_path / "no_model")
    shutil.rmtree(tmp_path / "no_model/MultiModalPromptLearner")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", sys.stdout)
        run("ZeroshotCLIP", data, tmp_path / "zero")
    capsys.readouterr()
    path = tmp_path / "no_model/results.json"
    path.write_text(path.read_text().replace('"seed": 1', '"seed": 2'))
    assert cloud.main([str(tmp_path), "--sigmas", "0"]) == 1
    errors = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("[")]
    assert len(errors) == 2
    assert errors[0].startswith(f"error: {tmp_path}/no_model: no checkpoint (MultiModal")
    assert errors[1].startswith("skipped: ZeroshotCLIP learns no vectors that are its text")
    assert (tmp_path / "good/cloud.json").exists() and not (tmp_path / "zero/cloud.json").exists()


def test_the_cloud_is_stopped(trained, monkeypatch, capsys):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(cloud, "measure", stop)
    with pytest.raises(SystemExit) as left:
        cloud.main([str(trained)])
    assert left.value.code == 130
    assert "error: stopped; 0 of 2 runs have their cloud.json" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("args", "code", "text"),
    [
        (("/nowhere",), 2, "/nowhere: no such folder"),
        (("{empty}",), 1, "no results of runs"),
        (("{empty}", "--sigmas", "-1"), 2, "0 or more"),
        (("{empty}", "--draws", "0"), 2, "--draws 0: must be 1 or more"),
    ],
)
def test_bad_input_of_the_cloud(args, code, text, tmp_path, capsys):
    with pytest.raises(SystemExit) as left:
        cloud.main([arg.format(empty=tmp_path) for arg in args])
    assert left.value.code == code
    the_line(capsys, text)


# the cloud of methods that draw, on random weights

NODE = {"BayesianPrompt": "VPT", "VaMP": "VAMP", "VaMP_MMRL": "VAMP", "EMPL": "EMPL"}
# How many times a test draws, and settings under which draws differ much.
DRAWING = {
    "BayesianPrompt": {"TEST_L": 3, "INIT_LOGVAR": -4},
    "BayesianPrompt unconditional": {"TEST_L": 3, "INIT_LOGVAR": -4, "VPT_TYPE": "coopvpt"},
    "VaMP": {"TEST_SAMPLES": 3, "INIT_STD": 0.3},
    "VaMP_MMRL": {"TEST_SAMPLES": 3, "INIT_STD": 0.3, "TRAINER.MMRL.FUSE": "fused"},
    "EMPL": {"TEST_SAMPLES": 3, "STEPS": 2, "STEP": 0.1, "INIT_NOISE": 0.3},
    "EMPL per batch": {"TEST_SAMPLES": 3, "STEPS": 1, "INIT_NOISE": 0.3, "PER": "batch"},
}
NORMAL = draws.normal
CASES = pytest.mark.parametrize("case", DRAWING)


def drawing(case: str, data, out, weights, n: int = 3, **more: object):
    """A shaken trainer of a case in eval mode, whose tests draw n times."""
    method, settings = case.split()[0], DRAWING[case] | more
    settings[next(iter(settings))] = n
    keys = [k if "." in k else f"TRAINER.{NODE[method]}.{k}" for k in settings]
    opts = [word for pair in zip(keys, map(str, settings.values()), strict=True) for word in pair]
    return shortened(build(method, data, out, weights, *opts))


def shortened(trainer):
    """Shaken, in eval mode, with a test of two batches of 12 and 8 images."""
    shake(trainer.model.learner)
    trainer.set_model_mode("eval")
    [batch] = trainer.test_loader
    parts = slice(0, 60, 5), slice(1, 40, 5)
    trainer.test_loader = [{k: v[part] for k, v in batch.items()} for part in parts]
    trainer.cfg.defrost()
    trainer.cfg.DATALOADER.FEATURES = ""
    return trainer


def with_draws(monkeypatch, trainer, sigma: float, n: int, only: Sequence[int]):
    """From here on the model has of the run's n draws `only` those, times sigma."""

    def chosen(like, _, *shape, seed):
        assert seed == trainer.seed
        return sigma * torch.stack([NORMAL(like, n, *shape, seed=seed)[:, i] for i in only], dim=1)

    monkeypatch.setattr(draws, "normal", chosen)
    trainer.model.eval()


def accuracy_of(predict, trainer) -> float:
    """Accuracy of `predict(images)` on the test's own batches, in percent."""
    right = total = 0
    for images, label in map(trainer.parse_batch_test, trainer.test_loader):
        with torch.no_grad():
            right += (predict(images).argmax(dim=1) == label).sum().item()
        total += len(label)
    return 100 * right / total


@CASES
def test_a_posterior_is_drawn_from(data, tmp_path, weights, monkeypatch, case):
    """Each draw alone and their average, beside a model whose draws are replaced by hand."""
    trainer = drawing(case, data, tmp_path, weights)
    of_run = accuracy_of(trainer.model_inference, trainer)
    got = cloud.measure_posterior(trainer, [0, 2], None)
    assert accuracy_of(trainer.model_inference, trainer) == of_run == got.average == got.as_tested
    assert [len(values) for values in got.accuracy] == [1, 3]
    for sigma, values in zip(got.sigmas, got.accuracy, strict=True):
        for i, value in enumerate(values):
            with_draws(monkeypatch, trainer, sigma, 3, [i])
            assert value == accuracy_of(trainer.model_inference, trainer), (sigma, i)
    with_draws(monkeypatch, trainer, 1, 3, range(3))
    assert got.average == accuracy_of(trainer.model_inference, trainer)
    assert len({*got.accuracy[0], *got.accuracy[1], got.average}) > 1


@CASES
def test_one_draw_is_a_test_of_one(data, tmp_path, weights, case):
    """By the method's own key, and the seed of the run."""
    got = cloud.measure_posterior(drawing(case, data, tmp_path / "3", weights), [1], 1)
    one = drawing(case, data, tmp_path / "1", weights, n=1)
    assert got.accuracy == [[accuracy_of(one.model_inference, one)]]
    assert got.average == got.accuracy[0][0] and got.as_tested is None


def test_without_draws_there_is_the_mean(data, tmp_path, weights, monkeypatch):
    """VaMP with TEST_SAMPLES 0 tests what is here σ 0; without a variance it has no posterior."""
    trainer = drawing("VaMP", data, tmp_path / "0", weights, n=0)
    got = cloud.measure_posterior(trainer, [0, 1], None)
    assert got.accuracy[0] == [accuracy_of(trainer.model_inference, trainer)] and not got.as_tested
    with_draws(monkeypatch, trainer, 1, 1, [0])
    trainer.model.learner.text_prompts.noise.spread = 1.0
    assert got.accuracy[1] == [accuracy_of(trainer.model_inference, trainer)] == [got.average]
    fixed = drawing("VaMP", data, tmp_path / "fixed", weights, VARIATIONAL=False)
    with pytest.raises(UsageError, match="VaMP has no posterior to draw prompts from"):
        cloud.check_posterior(fixed)


def sampled(method: str, data, out, weights):
    """ReBaPL with three samples, each shaken more."""
    trainer = shortened(build(method, data, out, weights))
    for _ in range(3):
        shake(trainer.model.learner, 0.2)
        trainer.samples.append(trainer.frozen_copy())
    shake(trainer.model.learner, 0.2)
    trainer.set_model_mode("eval")
    return trainer


def test_samples_one_by_one_and_their_average(data, tmp_path, weights):
    trainer = sampled("ReBaPL_MaPLe", data, tmp_path, weights)
    got = cloud.measure_posterior(trainer, [0, 1], None)
    assert got.sigmas == [1] and got.at(0) == [] and len(set(got.at(1))) > 1
    assert got.at(1) == [accuracy_of(sample, trainer) for sample in trainer.samples]
    assert got.average == got.as_tested == accuracy_of(trainer.model_inference, trainer)
    trainer.samples = []
    with pytest.raises(UsageError, match="ReBaPL_MaPLe's checkpoint has no samples"):
        cloud.measure_posterior(trainer, [1], None)


@pytest.mark.parametrize("method", ["BayesianPrompt", "EMPL", "EMPL per batch", "CoCoOp"])
def test_noise_on_a_context_from_which_prompts_are_made(data, tmp_path, weights, method):
    """As of a model whose own ctx has it added."""
    if method == "CoCoOp":
        trainer = shortened(build(method, data, tmp_path, weights))
    else:
        trainer = drawing(method, data, tmp_path, weights)
    got = cloud.measure(trainer, [0, 3], 2, torch.randn_like)
    assert got.accuracy[0] == [accuracy_of(trainer.model_inference, trainer)] == [got.as_tested]
    ctx = trainer.model.learner.ctx
    clean = ctx.detach().clone()
    for i, value in enumerate(got.accuracy[1]):
        with torch.no_grad(), seeded(mix_seed(i)):
            ctx.copy_(clean + 3 * torch.randn_like(clean))
        assert value == accuracy_of(trainer.model_inference, trainer)
    assert len({*got.accuracy[0], *got.accuracy[1]}) > 1


def test_noise_on_all_samples(data, tmp_path, weights):
    """The same on each; images are seen with the clean prompts."""
    trainer = sampled("ReBaPL_MaPLe", data, tmp_path, weights)
    got = cloud.measure(trainer, [0, 3], 2, torch.randn_like)
    assert got.accuracy[0] == [accuracy_of(trainer.model_inference, trainer)]
    assert not any("vectors" in vars(model.learner) for model in trainer.samples)

    def average(images):
        features = [model.image_features(images) for model in trainer.samples]
        logits = []
        for model, f in zip(trainer.samples, features, strict=True):
            clean = model.learner.ctx.clone()
            with seeded(mix_seed(1)):
                model.learner.ctx.copy_(clean + 3 * torch.randn_like(clean))
            logits.append(model.logits(f, model.text_features()))
            model.learner.ctx.copy_(clean)
        return sum(z.softmax(dim=-1) for z in logits)

    assert got.accuracy[1][1] == accuracy_of(average, trainer) != got.accuracy[1][0]


# the same as a command


@pytest.fixture(scope="module")
def rivals(data, tmp_path_factory) -> Path:
    """Output folders of methods with a posterior, and of MMRL, which has none."""
    out = tmp_path_factory.mktemp("rivals")
    of_bpl = "TRAINER.VPT.L", "3", "TRAINER.VPT.VPT_TYPE", "coopvpt"
    of_empl = "TRAINER.EMPL.SAMPLES", "2", "TRAINER.EMPL.STEPS", "1"
    cycles = "OPTIM.CYCLE_EPOCHS", "1", "TRAINER.REBAPL.NOISE_EPOCHS", "1"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", sys.stdout)
        for method, opts in (
            ("BayesianPrompt", of_bpl),
            ("VaMP", ("TRAINER.VAMP.TEST_SAMPLES", "2")),
            ("EMPL", of_empl),
            ("ReBaPL_CoOp", cycles),
            ("MMRL", ()),
        ):
            assert run(method, data, out / method, "OPTIM.MAX_EPOCH", "2", *opts) == 0
    return out


def test_the_cloud_of_posteriors(rivals, capsys, caplog):
    """Table, file and figure; a method without one is skipped with a line."""
    assert cloud.main([str(rivals), "--noise", "posterior", "--sigmas", "1", "0"]) == 0
    captured = capsys.readouterr()
    skipped = [line for line in captured.err.splitlines() if not line.startswith("[")]
    assert skipped == ["skipped: MMRL has no posterior to draw prompts from"] and not caplog.text
    for method, n in (("BayesianPrompt", 3), ("VaMP", 2), ("EMPL", 2), ("ReBaPL_CoOp", 2)):
        got = json.loads((rivals / method / "cloud.json").read_text())
        assert got["noise"] == "posterior" and got["draws"] == n and not got["trained_sigma"]
        assert got["average"] == accuracy(rivals / method)
        at = dict(zip(got["sigmas"], got["accuracy"], strict=True))
        assert list(at) == ([1] if method == "ReBaPL_CoOp" else [0, 1]) and len(at[1]) == n
        [row] = [line.split("  ") for line in captured.out.splitlines() if f" {method} " in line]
        cells = [cell.strip() for cell in row if cell.strip()][3:]
        shown = [f"{np.mean(a):.1f}" + f" ± {np.std(a):.1f}" * (len(a) > 1) for a in at.values()]
        shown = ["–", *shown] if method == "ReBaPL_CoOp" else shown
        assert cells == [*shown, f"{got['average']:.1f}", "1"]
    figure = figures.draw("cloud", find_results([rivals]))
    [ax] = figure.axes
    assert ax.get_xlabel() == "σ, × the posterior's deviation"
    assert {"BayesianPrompt", "EMPL"} < set(ax.get_legend_handles_labels()[1])
    stars = [line.get_ydata() for line in ax.get_lines() if line.get_marker() == "*"]
    averages = [accuracy(rivals / m) for m in ("BayesianPrompt", "EMPL", "ReBaPL_CoOp", "VaMP")]
    assert sorted(y[0] for y in stars if len(y)) == pytest.approx(sorted(averages))


@pytest.mark.parametrize(
    ("method", "more"),
    [
        ("VaMP", "; see --noise posterior"),
        ("MMRL", ""),
    ],
)
def test_methods_without_vectors_to_be_moved(rivals, method, more, capsys):
    assert cloud.main([str(rivals / method)]) == 1
    line = f"skipped: {method} learns no vectors that are its text prompts{more}"
    assert capsys.readouterr().err.splitlines()[1:] == [line]


@pytest.mark.parametrize(("method", "of"), [("BayesianPrompt", ""), ("EMPL", ""),
                                            ("ReBaPL_CoOp", "sample {i}, ")])  # fmt: skip
def test_the_words_of_a_context(rivals, method, of, capsys):
    """ReBaPL's are its samples': they are what it tests."""
    assert words.main([str(rivals / method), "1"]) == 0
    out = capsys.readouterr().out
    file = torch.load(rivals / method / "prompt_learner/model.pth.tar-2", weights_only=True)
    contexts = [state["ctx"] for state in file.get("samples", [file["state_dict"]])]
    names = [f"{of}ctx {k}".format(i=i) for i in range(1, 1 + len(contexts)) for k in range(1, 5)]
    rows = [line for line in out.splitlines() if re.match(r"(sample \d, )?ctx", line)]
    assert len(rows) == len(names) == 4 * (2 if of else 1)
    embedding = embeddings().float()
    for row, name, vector in zip(rows, names, torch.cat(contexts).float(), strict=True):
        word = _tokenizer.decoder[int((embedding - vector).norm(dim=1).argmin())]
        assert row.startswith(f"{name} ") and f"{word} " in row


@pytest.mark.parametrize(
    ("method", "text"),
    [("VaMP", "VaMP's text prompts are draws"), ("MMRL", "MMRL's text tokens appear in an upper")],
)
def test_methods_without_vectors_to_name(rivals, method, text, capsys):
    with pytest.raises(SystemExit) as left:
        words.main([str(rivals / method)])
    assert left.value.code == 1
    the_line(capsys, text)


# words


def embeddings() -> torch.Tensor:
    """(V, W) of the bundled CLIP."""
    return read_state_dict(find_weights("ViT-Tiny/8"))["token_embedding.weight"]


def test_the_nearest_words(trained, capsys):
    """By numpy, for the folder and for the file; shapes has no third attribute."""
    file = trained / "train/MultiModalPromptLearner/model.pth.tar-2"
    assert words.main([str(trained / "train"), "2"]) == 0
    out = capsys.readouterr().out
    assert words.main([str(file), "--topk", "2"]) == 0
    assert capsys.readouterr().out == out
    embedding = embeddings().float().numpy()
    state = torch.load(file, weights_only=True)["state_dict"]
    rows = [line for line in out.splitlines() if line.startswith("ctx")]
    names = [(f"ctx{a}", i) for a in ("", "_att1", "_att2") for i in (0, 1)]
    assert len(rows) == 6 and "ctx_att1 (color) 1 " in out and "ctx_att2 (shape) 2 " in out
    for (name, i), row in zip(names, rows, strict=True):
        vector = state[f"prompt_learner.{name}"][i].numpy()
        distance = np.sqrt(((embedding - vector) ** 2).sum(1))
        for k in np.argsort(distance)[:2]:
            assert f"{_tokenizer.decoder[k]} {distance[k]:.4f}" in row
    assert "Only 64 of its 49408 words (*) were trained" in out


def test_another_clip_is_refused(trained, tmp_path, capsys):
    """As if CLIP_WEIGHTS were no longer what it was in training."""
    folder = tmp_path / "train"
    shutil.copytree(trained / "train", folder)
    file = folder / "MultiModalPromptLearner/model.pth.tar-2"
    state = torch.load(file, weights_only=True)
    state["about"]["clip"]["sha256"] = "0" * 64
    torch.save(state, file)
    capsys.readouterr()
    with pytest.raises(Failure, match="trained on another CLIP .* than .*: set CLIP_WEIGHTS to"):
        load_run(folder)
    with pytest.raises(SystemExit, match="1"):
        words.main([str(folder), "1"])
    the_line(capsys, "name its CLIP with --backbone")
    assert words.main([str(folder), "1", "--backbone", "ViT-Tiny/8"]) == 0


def test_one_run_that_fails_stops_no_other(trained, monkeypatch, capsys):
    """Whatever it fails of: a full memory, a folder without permission."""
    found = find_results([trained])

    def ask(run):
        raise errors.pop()

    errors = [MemoryError(), PermissionError(13, "no", "there")]
    assert ask_each(found, ask, "cloud.json") == ({}, False) and len(found) == 2
    err = capsys.readouterr().err
    assert "error: no permission for there" in err and "error: the memory is full" in err


def test_a_word_is_its_own_nearest_and_class_specific_contexts(tmp_path, capsys):
    [photo] = _tokenizer.encode("photo")
    embedding = embeddings()
    path = tmp_path / "prompt_learner" / "model.pth.tar-9"
    path.parent.mkdir()
    ctx = embedding[torch.tensor([[photo, 0], [7, 8]])]
    torch.save({"state_dict": {"ctx": ctx}, "epoch": 9}, path)
    assert words.main([str(path), "1", "--backbone", "ViT-Tiny/8"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("ctx")]
    assert rows[0][-2:] == ["*photo</w>", "0.0000"] and rows[0][:4] == ["ctx,", "class", "0,", "1"]
    assert [row[-1] for row in rows] == ["0.0000"] * 4


def test_deep_prompts_are_named_by_their_block():
    state = {
        "prompt_learner.compound_prompts_text.0": 0,
        "text_encoder.transformer.resblocks.3.VPT_shallow": 1,
        "image_encoder.transformer.resblocks.3.VPT_shallow": 2,
        "prompt_learner.compound_prompt_projections.0.bias": 3,
    }
    assert words.learned_vectors(state, None, deep=True) == {"block 1": 0, "block 3": 1}
    assert words.learned_vectors(state, None, deep=False) == {}


@pytest.mark.parametrize(
    ("source", "more", "code", "text"),
    [
        ("nowhere", (), 2, "nowhere: no such file or folder"),
        ("empty", (), 2, "empty: no checkpoint in it"),
        ("damaged.pth", (), 1, "truncated, damaged or no checkpoint"),
        ("other.pth", (), 1, "it holds a list, not a dict"),
        ("narrow.pth", ("--backbone", "ViT-Tiny/8"), 2, "of 3 numbers, ViT-Tiny/8's words 128"),
        ("good.pth", ("--backbone", "ViT-Tiny"), 2, "did you mean ViT-Tiny/8?"),
        ("good.pth", ("0", "--backbone", "ViT-Tiny/8"), 2, "topk 0: must be 1 to 49408"),
    ],
)
def test_bad_input_of_the_words(source, more, code, text, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "damaged.pth").write_bytes(b"PK\x03\x04")
    torch.save([1], tmp_path / "other.pth")
    for name, width in (("narrow", 3), ("good", 128)):
        torch.save({"state_dict": {"ctx": torch.zeros(2, width)}}, tmp_path / f"{name}.pth")
    with pytest.raises(SystemExit) as left:
        words.main([str(tmp_path / source), *more])
    assert left.value.code == code
    the_line(capsys, text)
