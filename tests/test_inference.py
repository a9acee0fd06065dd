"""inference.cloud and inference.words, beside numpy or a model whose parameters are changed."""

import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from clip.clip import _tokenizer
from clip.weights import find_weights, read_state_dict
from inference import cloud, words
from inference.load import load_run

from .runs import run


def the_line(capsys, text):
    error = capsys.readouterr().err.splitlines()
    assert len(error) == 1 and error[0].startswith("error: ") and text in error[0], error


# the cloud


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory) -> Path:
    """Output folders of P2C: of its training, and of its test on the new classes."""
    out = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", sys.stdout)
        assert run("P2C", data, out / "train", "OPTIM.MAX_EPOCH", "2") == 0
        flags = ("--eval-only", "--model-dir", str(out / "train"), "--load-epoch", "2")
        patch.setattr(sys, "argv", ["train.py", *flags])
        assert run("P2C", data, out / "test", "DATASET.SUBSAMPLE_CLASSES", "new", flags=flags) == 0
    return out


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
    values = cloud.measure(trainer, [0.0, sigma], 2, noise)
    assert all(torch.equal(p, before[name]) for name, p in learner.state_dict().items())
    assert "vectors" not in vars(learner)

    batches = [trainer.parse_batch_test(batch) for batch in trainer.test_loader]
    with torch.no_grad():
        images = torch.cat([model.image_features(image) for image, _ in batches])
        labels = torch.cat([label for _, label in batches])
        for draw in (0, 1):
            with cloud.seeded(cloud.mix_seed(draw)):
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
