"""MMRL++'s loss and gradients against the plain reference, what it has in common with MMRL, and its
files."""

import pytest
import torch

import train
from dassl.engine import TrainerX
from reference import mmrl_plain, mmrlpp_plain
from reference.clip_plain import PlainCLIP
from tests.runs import REPO
from tests.trainers.files import save, three_classes
from tests.trainers.methods import (
    assert_logits,
    assert_loss,
    assert_refused,
    batch,
    build,
    class_names,
    parameters,
    shake,
    uneven_names,
)
from tests.trainers.test_mmrl import FOLDER, check_vit_b16, upstreams


def options(**settings) -> list[str]:
    """Settings of TRAINER.MMRLpp."""
    return [
        text for key, value in settings.items() for text in (f"TRAINER.MMRLpp.{key}", str(value))
    ]


SMALL = {"N_REP_TOKENS": 3, "REP_DIM": 24}


def check_logits(trainer: TrainerX, weights, layers, beta) -> None:
    """Of both features, and of the class token's alone."""
    image, plain = batch(weights, trainer.num_classes)[0], PlainCLIP(weights)
    with torch.no_grad():
        params = parameters(trainer)
        found = mmrlpp_plain.features(plain, params, class_names(trainer), image, layers, beta)
        of_class, of_rep = mmrl_plain.both_logits(plain, found)
    assert (of_class - of_rep).norm() > 0.05 * of_class.norm()
    assert_logits(trainer, image, 0.7 * of_class + 0.3 * of_rep)
    trainer.model.fused = False
    assert_logits(trainer, image, of_class)


@pytest.mark.parametrize(
    ("layers", "beta", "reg_weight"), [([1, 2, 3], 0.9, 1.0), ([1, 3], 0.3, 5.0)]
)
def test_equals_the_reference(data, tmp_path, weights, monkeypatch, layers, beta, reg_weight):
    uneven_names(monkeypatch)
    opts = options(REP_LAYERS=layers, BETA=beta, REG_WEIGHT=reg_weight, **SMALL)
    trainer = build("MMRLpp", data, tmp_path, weights, *opts)
    shake(trainer.model.learner, 0.2)
    image, label = batch(weights, trainer.num_classes)
    plain, prompts, names = PlainCLIP(weights), parameters(trainer), class_names(trainer)
    weighed = {"beta": beta, "reg_weight": reg_weight}
    expected = mmrlpp_plain.loss(plain, prompts, names, image, label, layers, **weighed)
    assert_loss(trainer, image, label, expected, prompts)
    check_logits(trainer, weights, layers, beta)


def test_on_vit_b16(tmp_path, vit_b16):
    """The size in use, at the published settings."""
    layers = [6, 7, 8, 9, 10, 11, 12]
    opts = (*three_classes(tmp_path), *options(REP_LAYERS=layers, BETA=0.9))
    trainer = build("MMRLpp", tmp_path, tmp_path / "out", vit_b16, *opts)
    assert sum(p.numel() for p in trainer.model.learner.parameters()) == 813_312
    shake(trainer.model.learner)
    check_vit_b16(trainer, vit_b16, mmrlpp_plain.features, layers)


def test_starts_as_one_map_for_all_blocks_and_clips_projection(data, tmp_path, weights):
    trainer = build("MMRLpp", data, tmp_path, weights, *options(**SMALL))
    learner = trainer.model.learner
    space = learner.representation_learner
    for tokens in (space.image_tokens(), space.text_tokens()):
        assert torch.equal(tokens[0], tokens[1])
    assert torch.equal(learner.projection(trainer.model.clip), trainer.model.clip.visual.proj)
    for own in [*space.srra_r2vproj.srra, *space.srra_r2tproj.srra]:
        assert own["A"].abs().max() <= 0.5 and own["A"].std() > 0.2  # uniform, by rank 4


def test_with_nothing_of_the_older_tokens_it_is_mmrl(data, tmp_path, weights):
    """β 1, and MMRL's Linears and projection those which the low-rank ones are."""
    trainer = build("MMRLpp", data, tmp_path / "pp", weights, *options(BETA=1.0, **SMALL))
    learner, clip = trainer.model.learner, trainer.model.clip
    shake(learner, 0.2)
    small = [word.replace("MMRLpp", "MMRL") for word in options(**SMALL)]
    mmrl = build("MMRL", data, tmp_path / "mmrl", weights, *small)
    space, ours = mmrl.model.learner.representation_learner, learner.representation_learner
    with torch.no_grad():
        space.compound_rep_tokens.copy_(ours.compound_rep_tokens)
        for tower in ("r2vproj", "r2tproj"):
            shared = getattr(ours, f"srra_{tower}")
            linears = getattr(space, f"compound_rep_tokens_{tower}")
            for linear, own in zip(linears, shared.srra, strict=True):
                linear.weight.copy_(shared.weight + own["A"] @ own["B"])
                linear.bias.copy_(own["bias"])
        mmrl.model.learner.image_encoder["proj_rep"].copy_(learner.projection(clip))
    image, label = batch(weights, trainer.num_classes)
    torch.testing.assert_close(mmrl.loss(image, label)[0], trainer.loss(image, label)[0])
    torch.testing.assert_close(mmrl.model(image), trainer.model(image))


def test_upstreams_file_loads(data, tmp_path, weights):
    state = upstreams(weights, mmrlpp_plain.random_params(PlainCLIP(weights), [2, 3]))
    save(tmp_path / "upstream", FOLDER, state)
    trainer = build("MMRLpp", data, tmp_path, weights, *options(**SMALL))
    trainer.load_model(str(tmp_path / "upstream"), epoch=5)
    prompts = {key: state[key].float() for key in trainer.model.learner.state_dict()}
    image, names, plain = batch(weights, 16)[0], class_names(trainer), PlainCLIP(weights)
    found = mmrlpp_plain.features(plain, prompts, names, image, [2, 3])
    of_class, of_rep = mmrl_plain.both_logits(plain, found)
    assert_logits(trainer, image, 0.7 * of_class + 0.3 * of_rep)


@pytest.mark.parametrize(
    ("protocol", "dataset", "values"),
    [
        ("", "food101", (4, 10, 0.001, 1.0, 0.1)),
        ("_few_shot", "eurosat", (32, 100, 0.002, 0.01, 0.2)),
        ("_few_shot", "imagenet", (32, 5, 0.001, 0.2, 0.9)),
        ("_imnet", "imagenet", (32, 5, 0.001, 0.2, 0.9)),
        ("_cross_datasets", "imagenet", (32, 1, 0.001, 0.1, 0.9)),
        ("_cross_datasets", "imagenet_a", (32, 1, 0.001, 0.1, 0.8)),
        ("_cross_datasets", "stanford_cars", (32, 1, 0.001, 0.1, 0.3)),
    ],
)
def test_published_settings(protocol, dataset, values):
    file = f"{REPO}/configs/trainers/MMRLpp/vit_b16{protocol}.yaml"
    args = ["--trainer", "MMRLpp", "--config-file", file]
    args += ["--dataset-config-file", f"{REPO}/configs/datasets/{dataset}.yaml"]
    cfg = train.setup_cfg(train.parse_args(args))
    node, optim = cfg.TRAINER.MMRLpp, cfg.OPTIM
    found = optim.MAX_EPOCH, optim.LR, node.REG_WEIGHT, node.BETA
    assert (cfg.DATALOADER.TRAIN_X.BATCH_SIZE, *found) == values
    assert (node.PROJ_LORA_DIM, node.RES_LORA_DIM, node.REP_DIM) == (64, 4, 512)


@pytest.mark.parametrize(
    ("opts", "line"),
    [
        (options(BETA=1.1), "TRAINER.MMRLpp.BETA 1.1"),
        (options(RES_LORA_DIM=0), "TRAINER.MMRLpp.RES_LORA_DIM 0"),
        (options(PROJ_LORA_DIM=0), "TRAINER.MMRLpp.PROJ_LORA_DIM 0"),
        (options(REP_LAYERS=[5]), "REP_LAYERS [5]"),
        (options(ALPHA=-0.1), "TRAINER.MMRLpp.ALPHA -0.1"),
    ],
)
def test_a_setting_that_does_not_fit(data, tmp_path, capsys, opts, line):
    assert_refused("MMRLpp", data, tmp_path, capsys, line, *opts)
