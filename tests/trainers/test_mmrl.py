"""MMRL's loss and gradients against the plain reference, what each of its parts reads, which logits
a test takes, and its files."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

import train
import trainers.base
from dassl.config import get_cfg_default, record_config
from dassl.engine import TrainerX
from dassl.utils import Failure
from inference.gap_features import check as check_gap
from inference.gap_features import pairs_of
from reference import mmrl_plain
from reference.clip_plain import PlainCLIP
from reference.maple_plain import as_leaves
from tests.runs import REPO
from tests.trainers.files import read, save, three_classes
from tests.trainers.methods import (
    UNEVEN,
    assert_logits,
    assert_loss,
    assert_refused,
    batch,
    build,
    class_names,
    in_double,
    parameters,
    shake,
    uneven_names,
)
from trainers.mmrl import MMRL, fuse, mmrl_loss, mmrl_node

FOLDER = "MultiModalRepresentationLearner"


def options(**settings) -> list[str]:
    """Settings of TRAINER.MMRL."""
    return [text for key, value in settings.items() for text in (f"TRAINER.MMRL.{key}", str(value))]


SMALL = {"N_REP_TOKENS": 3, "REP_DIM": 24}  # no number is another's


def made(data, out, weights, **settings) -> TrainerX:
    """A small one whose parameters all matter."""
    trainer = build("MMRL", data, out, weights, *options(**SMALL | settings))
    shake(trainer.model.learner)
    return trainer


def check_vit_b16(trainer: TrainerX, weights, features, layers) -> None:
    """Logits in single precision; loss and gradients in double, as in single the cosines' rounding,
    a hundredfold in the logits, makes almost 1e-5 of the gradients."""
    image, label = (t[:2] for t in batch(weights, 3))
    plain, names = PlainCLIP(weights, torch.float64), class_names(trainer)
    prompts = as_leaves(parameters(trainer), torch.float64)
    found = features(plain, prompts, names, image, layers)
    of_class, of_rep = (z.detach() for z in mmrl_plain.both_logits(plain, found))
    assert (of_class - of_rep).norm() > 0.05 * of_class.norm()
    assert_logits(trainer, image, 0.7 * of_class + 0.3 * of_rep)
    in_double(trainer)
    trainer.set_model_mode("train")
    expected = mmrl_plain.loss_of(plain, found, names, image, label)
    assert_loss(trainer, image, label, expected, prompts, tolerance=1e-9)


def check_logits(trainer: TrainerX, weights, layers, alpha=0.7) -> None:
    """Of both features, and of the class token's alone."""
    image, plain = batch(weights, trainer.num_classes)[0], PlainCLIP(weights)
    with torch.no_grad():
        params = parameters(trainer)
        found = mmrl_plain.features(plain, params, class_names(trainer), image, layers)
        of_class, of_rep = mmrl_plain.both_logits(plain, found)
    assert (of_class - of_rep).norm() > 0.05 * of_class.norm()
    for trainer.model.fused in (True, False):
        alpha = alpha if trainer.model.fused else 1
        assert_logits(trainer, image, alpha * of_class + (1 - alpha) * of_rep)


@pytest.mark.parametrize(
    ("layers", "alpha", "reg_weight"),
    [([2, 3], 0.7, 1.0), ([1, 3], 0.4, 6.0), ([1, 2], 0.7, 0.0), ([3], 0.7, 0.5)],
)
def test_equals_the_reference(data, tmp_path, weights, monkeypatch, layers, alpha, reg_weight):
    """A block that is not listed, behind one that is, leaves the tokens as they are."""
    uneven_names(monkeypatch)
    weighed = {"alpha": alpha, "reg_weight": reg_weight}
    settings = {key.upper(): value for key, value in weighed.items()}
    trainer = made(data, tmp_path, weights, REP_LAYERS=layers, **settings)
    image, label = batch(weights, trainer.num_classes)
    plain, prompts, names = PlainCLIP(weights), parameters(trainer), class_names(trainer)
    expected = mmrl_plain.loss(plain, prompts, names, image, label, layers, **weighed)
    assert_loss(trainer, image, label, expected, prompts)
    check_logits(trainer, weights, layers, alpha)


def test_on_vit_b16(tmp_path, vit_b16):
    """The size in use, at the published settings."""
    layers = [6, 7, 8, 9, 10, 11, 12]
    opts = (*three_classes(tmp_path), *options(REP_LAYERS=layers))
    trainer = build("MMRL", tmp_path, tmp_path / "out", vit_b16, *opts)
    assert sum(p.numel() for p in trainer.model.learner.parameters()) == 4_992_256
    shake(trainer.model.learner)
    check_vit_b16(trainer, vit_b16, mmrl_plain.features, layers)


def test_parameters_of_a_wider_space(tmp_path, vit_b16):
    opts = (*three_classes(tmp_path), *options(REP_LAYERS=[6, 7, 8, 9, 10, 11, 12], REP_DIM=2048))
    trainer = build("MMRL", tmp_path, tmp_path / "out", vit_b16, *opts)
    assert sum(p.numel() for p in trainer.model.learner.parameters()) == 18_762_496


def test_a_towers_projections_start_equal(data, tmp_path, weights):
    learner = build("MMRL", data, tmp_path, weights).model.learner
    space, rep = learner.representation_learner, learner.image_encoder["proj_rep"]
    for projections in (space.compound_rep_tokens_r2vproj, space.compound_rep_tokens_r2tproj):
        first, second = projections
        assert torch.equal(first.weight, second.weight) and torch.equal(first.bias, second.bias)
        assert first.weight is not second.weight
    assert space.compound_rep_tokens.std().item() == pytest.approx(0.02, rel=0.1)
    assert rep.std().item() == pytest.approx(len(rep) ** -0.5, rel=0.1)


@pytest.mark.parametrize("dataset", ["OxfordPets", "DescribableTextures", "UCF101", "Caltech101"])
def test_each_datasets_words(data, tmp_path, weights, dataset):
    """Also those that begin with the class's name."""
    trainer = build("MMRL", data, tmp_path, weights, *options(**SMALL))
    trainer.cfg.defrost()
    trainer.cfg.DATASET.NAME = dataset
    learner = trainer.build_learner(trainer.model.clip, UNEVEN)
    words = {
        "OxfordPets": "a photo of a {}, a type of pet.",
        "DescribableTextures": "{} texture.",
        "UCF101": "a photo of a person doing {}.",
        "Caltech101": "a photo of a {}.",
    }
    prompts = {key: p.detach() for key, p in learner.named_parameters()}
    plain = PlainCLIP(weights)
    tokens = mmrl_plain.all_tokens(prompts, "t", [2, 3])
    expected = mmrl_plain.text_features(plain, tokens, UNEVEN, [2, 3], words[dataset])
    with torch.no_grad():
        ours = learner.text_features(trainer.model.clip)
    assert (ours - expected).norm() <= 1e-5 * expected.norm()


@pytest.mark.parametrize(("prec", "near"), [("bf16", 0.05), ("fp16", 0.005)])
def test_in_half_precision(data, tmp_path, weights, monkeypatch, prec, near):
    monkeypatch.setattr(trainers.base, "choose_precision", lambda prec, device: prec)
    image, label = batch(weights, 16)
    whole, half = (made(data, tmp_path / p, weights, PREC=p) for p in ("fp32", prec))
    assert half.model.learner.text_below.dtype == half.model.clip.dtype != torch.float32
    expected, ours = (trainer.gradients(image, label)["loss"] for trainer in (whole, half))
    torch.testing.assert_close(ours, expected, rtol=near, atol=0)
    assert half.model(image).dtype == torch.float32


# What is read, and what is not


def test_below_the_first_listed_block_both_towers_are_clips(data, tmp_path, weights):
    """And what each keeps or shares of it is what the plain towers have there."""
    trainer = made(data, tmp_path, weights, REP_LAYERS=[3])
    learner, clip = trainer.model.learner, trainer.model.clip
    image, _ = batch(weights, trainer.num_classes)
    plain, prompts = PlainCLIP(weights), parameters(trainer)
    with torch.no_grad():
        below = learner.image_below(clip, image)
        tokens = mmrl_plain.all_tokens(prompts, "v", [3])
        expected = mmrl_plain.image_states(plain, tokens, image, [3])[1]
        torch.testing.assert_close(below, expected, rtol=1e-5, atol=1e-5)
        frozen, own = learner.frozen_features(clip, below), clip.encode_image(image)
        torch.testing.assert_close(frozen, own, rtol=1e-5, atol=1e-5)
        name = class_names(trainer)[0]
        tokens = mmrl_plain.all_tokens(prompts, "t", [3])
        state = mmrl_plain.text_states(plain, tokens, [name], [3])[1][0]
    p, longest = 5, len(mmrl_plain.sentence(name, mmrl_plain.TEMPLATE)) - 5  # SOS a photo of a
    ours = torch.cat([learner.text_below[0, :p], learner.text_below[0, p : p + longest]])
    torch.testing.assert_close(ours, state[: p + longest], rtol=1e-5, atol=1e-5)
    assert "text_below" not in learner.state_dict()


def test_the_lower_blocks_run_once_for_the_frozen_and_the_prompted_pass(data, tmp_path, weights):
    trainer = made(data, tmp_path, weights, REP_LAYERS=[3])
    image, label = batch(weights, trainer.num_classes)
    trainer.loss(image, label)  # the teacher is there now
    runs = {"visual": [0, 0, 0], "text": [0, 0, 0]}
    towers = {
        "visual": trainer.model.clip.visual.transformer,
        "text": trainer.model.clip.transformer,
    }
    for tower, transformer in towers.items():
        for i, block in enumerate(transformer.resblocks):

            def count(*_, tower=tower, i=i):
                runs[tower][i] += 1

            block.register_forward_hook(count)
    trainer.loss(image, label)
    assert runs == {"visual": [1, 1, 2], "text": [0, 0, 1]}


def test_a_blocks_tokens_change_nothing_before_it(data, tmp_path, weights):
    """Neither do the tokens of a listed block see what the block before made of the older ones."""
    trainer = made(data, tmp_path, weights)  # blocks 2 and 3
    learner, clip = trainer.model.learner, trainer.model.clip
    image, _ = batch(weights, trainer.num_classes)
    seen = []
    clip.visual.transformer.resblocks[2].register_forward_pre_hook(
        lambda block, given: seen.append(given[0].clone())
    )
    with torch.no_grad():
        learner.image_features(clip, image)
        learner.representation_learner.compound_rep_tokens_r2vproj[1].bias += 1
        learner.image_features(clip, image)
    own = len(clip.visual.positional_embedding)
    torch.testing.assert_close(seen[0][:, :own], seen[1][:, :own], rtol=0, atol=0)
    gap = seen[1][:, own:] - seen[0][:, own:]  # overwritten: the bias alone
    torch.testing.assert_close(gap, torch.ones_like(gap), rtol=1e-4, atol=1e-4)


def test_alone_in_the_last_block(data, tmp_path, weights):
    """The class token that reaches it is CLIP's, and its feature is not."""
    trainer = made(data, tmp_path, weights, REP_LAYERS=[3])
    learner, clip = trainer.model.learner, trainer.model.clip
    image, _ = batch(weights, trainer.num_classes)
    seen = []
    clip.visual.transformer.resblocks[2].register_forward_pre_hook(
        lambda block, given: seen.append(given[0][:, 0].clone())
    )
    with torch.no_grad():
        prompted, own = learner.image_features(clip, image), clip.encode_image(image)
    assert torch.equal(*seen)
    assert (prompted - own).norm() > 1e-3 * own.norm()


def test_the_two_features_of_one_state_through_one_projection_are_one(data, tmp_path, weights):
    """K = 1, proj_rep = proj, and the last block's token is the class token that reaches it."""
    trainer = made(data, tmp_path, weights, REP_LAYERS=[3], N_REP_TOKENS=1)
    learner, clip = trainer.model.learner, trainer.model.clip
    image, _ = batch(weights, trainer.num_classes)
    with torch.no_grad():
        learner.image_encoder["proj_rep"].copy_(clip.visual.proj)
        below = learner.image_below(clip, image[:1])
        layer = learner.representation_learner.compound_rep_tokens_r2vproj[0]
        layer.weight.zero_(), layer.bias.copy_(below[0, 0])
        of_class, of_rep = learner.both_features(clip, below)
    torch.testing.assert_close(of_class, of_rep, rtol=1e-5, atol=1e-5)


# The loss


@pytest.mark.parametrize(("alpha", "without"), [(1.0, "image_encoder.proj_rep"), (0.0, None)])
def test_only_one_feature_is_read(data, tmp_path, weights, alpha, without):
    """α 1 and λ 0: plain cross-entropy of the class token; α 0: of the representation tokens."""
    trainer = made(data, tmp_path, weights, ALPHA=alpha, REG_WEIGHT=0.0)
    model, (image, label) = trainer.model, batch(weights, trainer.num_classes)
    loss, _ = trainer.loss(image, label)
    loss.backward()
    of_class, of_rep = model.both_features(model.learner.image_below(model.clip, image))
    logits = model.logits(of_class if alpha else of_rep, model.text_features())
    torch.testing.assert_close(loss, F.cross_entropy(logits, label), rtol=1e-6, atol=1e-6)
    for name, p in model.learner.named_parameters():
        assert p.grad.any() != (name == without), name
    torch.testing.assert_close(model(image), logits, rtol=0, atol=0)


def test_near_frozen_clip_costs_nothing_and_weight_scales_the_rest():
    rng = torch.Generator().manual_seed(0)
    unit = [F.normalize(torch.randn(n, 8, generator=rng), dim=-1) for n in (4, 4, 5, 5)]
    label, logits = torch.tensor([0, 1, 2, 3]), (torch.randn(4, 5), torch.randn(4, 5))
    image, other_image, text, other_text = unit

    def loss(weight, image, text):
        node = mmrl_node()
        node.REG_WEIGHT = weight
        return mmrl_loss(node, label, logits, image, text)[0]

    cross_entropies = 0.7 * F.cross_entropy(logits[0], label) + 0.3 * F.cross_entropy(
        logits[1], label
    )
    near = loss(3.0, (image, image), (text, text))
    torch.testing.assert_close(near, cross_entropies, rtol=1e-5, atol=1e-5)
    once, thrice = (loss(w, (image, other_image), (text, other_text)) for w in (1.0, 3.0))
    torch.testing.assert_close(thrice - near, 3 * (once - near), rtol=1e-4, atol=1e-4)
    assert once - near > 0.1


def test_fused_probabilities():
    node, of_class, of_rep = mmrl_node(), torch.randn(4, 5) * 50, torch.randn(4, 5) * 50
    node.FUSE_WHAT = "probabilities"
    expected = 0.7 * of_class.softmax(-1) + 0.3 * of_rep.softmax(-1)
    ours = fuse(node, of_class, of_rep)
    torch.testing.assert_close(ours.exp(), expected, rtol=1e-4, atol=1e-6)
    node.ALPHA = 1.0
    torch.testing.assert_close(fuse(node, of_class, of_rep), of_class.log_softmax(-1))


# Which logits a test reads


@pytest.mark.parametrize(
    ("task", "fuse", "source", "dataset", "classes", "fused"),
    [
        ("", "auto", "Food101", "Food101", "base", True),
        ("", "auto", "Food101", "Food101", "new", False),
        ("", "auto", "Food101", "Food101", "all", True),
        ("", "auto", "ImageNet", "ImageNet", "all", True),
        ("", "auto", "ImageNet", "Food101", "all", False),
        ("", "auto", "ImageNet", "ImageNetV2", "all", False),
        ("", "auto", "ImageNet", "ImageNetA", "all", False),
        ("", "auto", "ImageNet", "ImageNetR", "all", False),
        ("", "auto", "ImageNet", "ImageNetSketch", "all", False),
        ("", "auto", "Food101", "ImageNet", "all", False),
        ("B2N", "auto", "Food101", "Food101", "base", True),
        ("B2N", "auto", "Food101", "Food101", "new", False),
        ("B2N", "auto", "Food101", "Food101", "all", False),
        ("FS", "auto", "Food101", "Food101", "all", True),
        ("FS", "auto", "ImageNet", "Food101", "new", True),
        ("CD", "auto", "ImageNet", "ImageNet", "all", True),
        ("CD", "auto", "Food101", "Food101", "all", False),
        ("CD", "auto", "ImageNet", "ImageNetV2", "all", False),
        ("B2N", "fused", "Food101", "Food101", "new", True),
        ("FS", "class", "Food101", "Food101", "all", False),
    ],
)
def test_which_logits(task, fuse, source, dataset, classes, fused):
    cfg = get_cfg_default()
    trainers.add_configs(cfg)
    given = {"TASK": task, "TRAINER.MMRL.FUSE": fuse}
    given |= {"DATASET.NAME": dataset, "DATASET.SUBSAMPLE_CLASSES": classes}
    cfg.merge_from_list([word for pair in given.items() for word in pair])
    assert MMRL.fuses(SimpleNamespace(cfg=cfg, node=cfg.TRAINER.MMRL), source) is fused


def test_a_runs_folder_says_what_its_model_was_trained_on(data, tmp_path, weights, capsys):
    """Shapes' base classes in both runs, but for the second model they are another dataset's."""
    trainer = made(data, tmp_path / "run", weights)
    trainer.save_model(0, str(tmp_path / "run"))
    record_config(trainer.cfg)
    assert trainer.model.fused
    config, image = tmp_path / "run" / "config.yaml", batch(weights, 16)[0]
    plain, prompts = PlainCLIP(weights), parameters(trainer)
    found = mmrl_plain.features(plain, prompts, class_names(trainer), image, [2, 3])
    of_class, of_rep = mmrl_plain.both_logits(plain, found)
    trainer.load_model(str(tmp_path / "run"))
    assert_logits(trainer, image, 0.7 * of_class + 0.3 * of_rep)
    [file] = tmp_path.glob("run/*/model.pth.tar-1")
    checkpoint = torch.load(file, weights_only=True)
    checkpoint["about"]["trained_on"] = "ImageNet"
    torch.save(checkpoint, file)
    trainer.load_model(str(tmp_path / "run"))
    assert_logits(trainer, image, of_class)

    del checkpoint["about"]  # as older files, of which the run's config says it
    torch.save(checkpoint, file)
    trainer.load_model(str(tmp_path / "run"))
    assert_logits(trainer, image, 0.7 * of_class + 0.3 * of_rep)
    config.write_text(config.read_text().replace("NAME: Shapes\n", "NAME: ImageNet\n"))
    trainer.load_model(str(tmp_path / "run"))
    assert_logits(trainer, image, of_class)
    assert "Logits: class token" in capsys.readouterr().out
    config.unlink()  # as upstream's folders have none
    trainer.load_model(str(tmp_path / "run"))
    out = capsys.readouterr().out
    assert "does not say which dataset" in out and "Logits: both features" in out
    assert_logits(trainer, image, 0.7 * of_class + 0.3 * of_rep)


def test_the_gap_is_measured_for_both_features(data, tmp_path, weights):
    trainer = made(data, tmp_path, weights)
    trainer.set_model_mode("eval")
    image, plain, prompts = batch(weights, 16)[0], PlainCLIP(weights), parameters(trainer)
    check_gap(trainer)
    with torch.no_grad():
        pairs = pairs_of(trainer, image)
        found = mmrl_plain.features(plain, prompts, class_names(trainer), image, [2, 3])
    text, *expected = (F.normalize(f, dim=-1) for f in found)
    assert list(pairs) == ["class token", "representation tokens"]
    for (feature, texts), of_image in zip(pairs.values(), expected, strict=True):
        torch.testing.assert_close(feature, of_image, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(texts, text, rtol=1e-4, atol=1e-5)


# Files


def upstreams(weights, prompts) -> dict[str, torch.Tensor]:
    """Half precision; the whole CLIP, and the words of other classes."""
    state = {key: p.detach().half() for key, p in prompts.items()}
    state["prompt_embeddings"] = torch.randn(9, 77, 64).half()
    for key, w in weights.items():
        if key.startswith("visual."):
            state[f"image_encoder.{key.removeprefix('visual.')}"] = w.half()
        elif key.startswith(("transformer.", "ln_final.", "positional", "text_projection")):
            state[f"text_encoder.{key}"] = w.half()
    return state


def test_upstreams_file_loads(data, tmp_path, weights):
    state = upstreams(weights, mmrl_plain.random_params(PlainCLIP(weights), [2, 3]))
    save(tmp_path / "upstream", FOLDER, state)
    trainer = build("MMRL", data, tmp_path, weights, *options(**SMALL))
    trainer.load_model(str(tmp_path / "upstream"), epoch=5)
    prompts = {key: state[key].float() for key in trainer.model.learner.state_dict()}
    image, names = batch(weights, trainer.num_classes)[0], class_names(trainer)
    plain = PlainCLIP(weights)
    found = mmrl_plain.features(plain, prompts, names, image, [2, 3])
    of_class, of_rep = mmrl_plain.both_logits(plain, found)
    assert_logits(trainer, image, 0.7 * of_class + 0.3 * of_rep)


def test_ours_has_what_upstream_reads(data, tmp_path, weights):
    """Upstream loads a whole model, and what a file lacks stays as it is: CLIP's."""
    trainer = made(data, tmp_path, weights)
    trainer.save_model(4, str(tmp_path))
    ours, params = read(tmp_path, FOLDER, 5), mmrl_plain.random_params(PlainCLIP(weights), [2, 3])
    theirs = upstreams(weights, params)
    assert ours.keys() == params.keys() and not ours.keys() - theirs.keys()
    assert all(ours[key].shape == theirs[key].shape for key in ours)


def test_a_file_of_other_layers_is_refused(data, tmp_path, weights):
    save(tmp_path / "other", FOLDER, mmrl_plain.random_params(PlainCLIP(weights), [1, 2, 3]))
    trainer = build("MMRL", data, tmp_path, weights, *options(**SMALL))
    with pytest.raises(Failure, match="r2vproj.2"):
        trainer.load_model(str(tmp_path / "other"), epoch=5)


# Settings


@pytest.mark.parametrize(
    ("protocol", "dataset", "values"),
    [
        ("", "stanford_cars", (4, 10, 7.0, 512)),
        ("", "eurosat", (4, 10, 0.01, 2048)),
        ("_few_shot", "eurosat", (32, 50, 0.01, 2048)),
        ("_few_shot", "imagenet", (32, 5, 0.5, 512)),
        ("_imnet", "imagenet", (32, 5, 0.5, 512)),
        ("_cross_datasets", "imagenet", (32, 1, 0.2, 512)),
        ("_cross_datasets", "eurosat", (32, 1, 0.2, 512)),
    ],
)
def test_published_settings(protocol, dataset, values):
    args = [
        "--trainer",
        "MMRL",
        "--config-file",
        f"{REPO}/configs/trainers/MMRL/vit_b16{protocol}.yaml",
    ]
    args += ["--dataset-config-file", f"{REPO}/configs/datasets/{dataset}.yaml"]
    cfg = train.setup_cfg(train.parse_args(args))
    node, optim = cfg.TRAINER.MMRL, cfg.OPTIM
    found = cfg.DATALOADER.TRAIN_X.BATCH_SIZE, optim.MAX_EPOCH, node.REG_WEIGHT, node.REP_DIM
    assert found == values
    assert (optim.NAME, optim.LR, optim.WEIGHT_DECAY) == ("adamw", 0.001, 5e-4)
    assert node.ALPHA == 0.7 and node.REP_LAYERS == [6, 7, 8, 9, 10, 11, 12]


@pytest.mark.parametrize(
    ("opts", "line"),
    [
        (options(REP_LAYERS=[2, 5]), "REP_LAYERS [2, 5]"),
        (options(REP_LAYERS=[0, 1]), "REP_LAYERS [0, 1]"),
        (options(REP_LAYERS=[3, 2]), "REP_LAYERS [3, 2]"),
        (options(REP_LAYERS=[2, 2]), "REP_LAYERS [2, 2]"),
        (options(REP_LAYERS=[]), "REP_LAYERS []"),
        (options(REP_LAYERS=["a"]), "REP_LAYERS ['a']"),
        (options(N_REP_TOKENS=0), "TRAINER.MMRL.N_REP_TOKENS 0"),
        (options(REP_DIM=0), "TRAINER.MMRL.REP_DIM 0"),
        (options(ALPHA=1.5), "TRAINER.MMRL.ALPHA 1.5"),
        (options(REG_WEIGHT=-1.0), "TRAINER.MMRL.REG_WEIGHT -1.0"),
        (options(FUSE="both"), "TRAINER.MMRL.FUSE both"),
        (options(FUSE_WHAT="features"), "TRAINER.MMRL.FUSE_WHAT features"),
        (("TASK", "XD"), "TASK XD"),
        (("TRAINER.ATPROMPT.USE_ATPROMPT", "True"), "TRAINER.ATPROMPT.USE_ATPROMPT"),
    ],
)
def test_a_setting_that_does_not_fit(data, tmp_path, capsys, opts, line):
    assert_refused("MMRL", data, tmp_path, capsys, line, *opts)
