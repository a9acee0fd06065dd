"""ProGrad's projected gradients against the plain reference, and its files."""

import pytest
import torch
from torch import Tensor

from reference import coop_plain, kgcoop_plain, prograd_plain
from reference.clip_plain import PlainCLIP
from reference.maple_plain import as_leaves, gradients
from tests.trainers.files import three_classes
from tests.trainers.methods import (
    assert_gradients,
    assert_logits,
    assert_refused,
    batch,
    build,
    class_names,
    parameters,
    shake,
    uneven_names,
    upstream_file,
)

TEMPLATE = "a photo of a {}."


def labels(
    plain: PlainCLIP, prompts, names: list[str], image: Tensor, conflict: bool, template: str
) -> Tensor:
    """(B,) The class that zero-shot CLIP would have more of, or, for a conflict, that it would have
    less of."""
    with torch.no_grad():
        zero_shot = plain.logits(
            plain.encode_image(image), kgcoop_plain.teacher_features(plain, names, template)
        )
        more = zero_shot.softmax(dim=-1) - coop_plain.logits(plain, prompts, names, image).softmax(
            dim=-1
        )
    return more.argmin(dim=-1) if conflict else more.argmax(dim=-1)


def step(trainer, image: Tensor, label: Tensor) -> dict[str, Tensor]:
    trainer.num_batches = 2  # not the epoch's last batch, so lr stays
    return trainer.forward_backward(
        {"img": image, "label": label, "domain": torch.zeros_like(label)}
    )


def check(
    trainer,
    weights,
    conflict: bool,
    temperature: float = 1.0,
    lam: float = 1.0,
    images: int = 3,
    template: str = TEMPLATE,
):
    """One step: the losses, the gradients, and the parameters after it.

    Both in double precision: the KL's gradient is a small difference of probabilities, and what a
        projection leaves can
    be far smaller than what it was taken from, of which single precision loses more than the 1e-5.
    """
    trainer.model.double(), trainer.model.clip.double()
    trainer.teacher = trainer.teacher.double()
    shake(trainer.model.learner)
    plain, names = PlainCLIP(weights, torch.float64), class_names(trainer)
    prompts = as_leaves(parameters(trainer), torch.float64)
    assert set(prompts) == {"ctx"}
    image = batch(weights, trainer.num_classes)[0][:images]
    label = labels(plain, prompts, names, image, conflict, template)
    xe, kl = prograd_plain.losses(plain, prompts, names, image, label, temperature, template)
    g_xe, g_kl = gradients(xe, prompts)["ctx"], gradients(kl, prompts)["ctx"]
    assert ((g_xe * g_kl).sum() < 0) == conflict
    expected = prograd_plain.project(g_xe, g_kl, lam)

    [group] = trainer.optim.param_groups
    before, lr, decay = prompts["ctx"].detach(), group["lr"], group["weight_decay"]
    log = step(trainer, image, label)
    assert {name: loss.item() for name, loss in log.items()} == pytest.approx(
        {"xe_loss": xe.item(), "kl_loss": kl.item()}, rel=1e-5
    )
    assert_gradients(trainer.model.learner, {"ctx": expected})
    moved = before - trainer.model.learner.ctx.detach()
    torch.testing.assert_close(
        moved, lr * (expected + decay * before), rtol=0, atol=1e-5 * moved.abs().max().item()
    )


FAST = ("OPTIM.LR", "0.1", "OPTIM.WARMUP_EPOCH", "-1")  # so that a step is seen in single precision


@pytest.mark.parametrize("conflict", [True, False])
@pytest.mark.parametrize(("temperature", "lam"), [(1.0, 1.0), (3.0, 0.4)])
def test_equals_the_reference(data, tmp_path, weights, monkeypatch, conflict, temperature, lam):
    uneven_names(monkeypatch)
    trainer = build(
        "ProGrad",
        data,
        tmp_path,
        weights,
        *FAST,
        "LOSS.T",
        str(temperature),
        "LOSS.LAMBDA",
        str(lam),
    )
    check(trainer, weights, conflict, temperature, lam)


def test_a_template_of_ones_own(data, tmp_path, weights, monkeypatch):
    uneven_names(monkeypatch)
    template = "{} texture."
    trainer = build("ProGrad", data, tmp_path, weights, *FAST, "DATASET.TEMPLATE", template)
    check(trainer, weights, conflict=True, template=template)


def test_logits(data, tmp_path, weights, monkeypatch):
    uneven_names(monkeypatch)
    trainer = build("ProGrad", data, tmp_path, weights)
    shake(trainer.model.learner)
    image, _ = batch(weights, trainer.num_classes)
    assert_logits(
        trainer,
        image,
        coop_plain.logits(PlainCLIP(weights), parameters(trainer), class_names(trainer), image),
    )


def test_on_vit_b16(tmp_path, vit_b16):
    """The size in use; few classes and one image, with which the two losses conflict."""
    trainer = build("ProGrad", tmp_path, tmp_path / "out", vit_b16, *three_classes(tmp_path), *FAST)
    check(trainer, vit_b16, conflict=True, images=1)


def test_each_tensor_is_projected_on_its_own(data, tmp_path, weights):
    """ctx and the vectors of two attributes; labels with which some of the three conflict and some
    do not."""
    trainer = build("ProGrad", data, tmp_path, weights, "TRAINER.ATPROMPT.USE_ATPROMPT", "True")
    learner = trainer.model.learner
    plain, names = PlainCLIP(weights), class_names(trainer)
    image, _ = batch(weights, trainer.num_classes)
    for seed in range(200):
        shake(learner)
        prompts = parameters(trainer)
        label = torch.randint(
            trainer.num_classes, (3,), generator=torch.Generator().manual_seed(seed)
        )
        xe, kl = prograd_plain.losses(
            plain, prompts, names, image, label, attributes=("color", "shape")
        )
        g_xe, g_kl = gradients(xe, prompts), gradients(kl, prompts)
        conflicts = {
            bool((g_xe[name] * g_kl[name]).sum() < 0) for name in ("ctx", "ctx_att1", "ctx_att2")
        }
        if conflicts == {True, False}:
            break
    assert conflicts == {True, False}
    step(trainer, image, label)
    assert_gradients(learner, prograd_plain.final_gradients(xe, kl, prompts))


def test_upstreams_file_loads(data, tmp_path, weights):
    shapes = {"ctx": (4, 64), "token_prefix": (9, 1, 64), "token_suffix": (9, 72, 64)}
    state = upstream_file(tmp_path / "upstream", shapes)
    trainer = build("ProGrad", data, tmp_path, weights)
    image, _ = batch(weights, trainer.num_classes)
    trainer.load_model(str(tmp_path / "upstream"), epoch=50)
    assert_logits(
        trainer, image, coop_plain.logits(PlainCLIP(weights), state, class_names(trainer), image)
    )


def test_a_setting_that_does_not_fit(data, tmp_path, capsys):
    assert_refused(
        "ProGrad", data, tmp_path, capsys, "LOSS.T 0.0: must be above 0", "LOSS.T", "0.0"
    )
