"""MaPLe's and P2C's prompts, losses and gradients against the plain references, in double
precision."""

import pytest
import torch
from yacs.config import CfgNode

import trainers
from clip.model import CLIP, build_model
from dassl.config import get_cfg_default
from dassl.engine import TrainerBase
from reference import p2c_plain
from reference.clip_plain import PlainCLIP
from reference.maple_plain import as_leaves, gradients, maple_forward, prompts_from_checkpoint
from trainers.atprompt import attribute_layout, attribute_words, sliced_as_upstream
from trainers.base import CustomCLIP
from trainers.maple import MaPLe, MultiModalPromptLearner
from trainers.p2c import SCHEDULES, MixtureNoise, P2CPromptLearner, sigma_at
from trainers.prompt_text import Gap

CLASSNAMES = [
    "striped_red hexagon",
    "cat",
    "Boeing 737-200 (old)",
    "a name of many more words than the others",
]
ATTRIBUTES = ("color", "playfulness")
SIGMA = 0.5  # far more than in use, so that noise at a wrong place would be seen


@pytest.fixture
def cfg() -> CfgNode:
    cfg = get_cfg_default()
    trainers.add_configs(cfg)
    cfg.TRAINER.MAPLE.PROMPT_DEPTH = cfg.TRAINER.P2C.PROMPT_DEPTH = 3
    cfg.TRAINER.ATPROMPT.N_ATT1 = 3
    return cfg


def batch(clip: CLIP) -> tuple[torch.Tensor, torch.Tensor]:
    size = clip.visual.input_resolution
    label = torch.tensor([0, 3, 2] if size < 224 else [0, 3])  # two, for time
    generator = torch.Generator().manual_seed(1)
    return torch.randn(len(label), 3, size, size, generator=generator).to(clip.dtype), label


def shake(learner: torch.nn.Module) -> None:
    """Random parameters, so that the deep projections, which start equal, differ."""
    generator = torch.Generator().manual_seed(2)
    for p in learner.parameters():
        p.data += 0.05 * torch.randn(p.shape, generator=generator).to(p)


def check_gradients(
    learner: torch.nn.Module, reference: dict[str, torch.Tensor], tolerance: float
) -> None:
    """Equal, relative to each tensor's length; None where the reference has none; none of them all
    zero."""
    checked = 0
    for name, p in learner.named_parameters():
        expected = reference[name]
        if expected is None:
            assert p.grad is None, name
            continue
        assert expected.norm() > 0, name
        assert (p.grad - expected).norm() <= tolerance * expected.norm(), name
        checked += 1
    assert checked >= 8


def maple_learner(cfg, clip, attributes=()):
    node, att = cfg.TRAINER.MAPLE, cfg.TRAINER.ATPROMPT
    learner = MultiModalPromptLearner(node, clip, CLASSNAMES, att=att, attributes=attributes)
    return learner.to(clip.logit_scale.dtype)


def p2c_learner(cfg, clip):
    node, att = cfg.TRAINER.P2C, cfg.TRAINER.ATPROMPT
    learner = P2CPromptLearner(node, clip, CLASSNAMES, att=att, attributes=ATTRIBUTES)
    return learner.to(clip.logit_scale.dtype)


def saved(learner: torch.nn.Module) -> torch.nn.ModuleDict:
    """What a checkpoint holds the state of."""
    return torch.nn.ModuleDict({MaPLe.key_prefix: learner})


def check_maple(cfg, clip, plain, attributes, tolerance, upstream_slicing=False):
    if attributes:
        cfg.TRAINER.MAPLE.CTX_INIT = ""
    cfg.TRAINER.ATPROMPT.UPSTREAM_SLICING = upstream_slicing
    learner = maple_learner(cfg, clip, attributes)
    shake(learner)
    model = CustomCLIP(clip, learner)
    image, label = batch(clip)
    loss = torch.nn.functional.cross_entropy(model(image), label)
    loss.backward()
    prompts = as_leaves(prompts_from_checkpoint(saved(learner).state_dict()))
    words = "" if attributes else "of a"
    expected = maple_forward(
        plain, prompts, CLASSNAMES, image, label, attributes, words, upstream_slicing
    )
    assert abs(loss - expected.loss) <= tolerance * expected.loss
    check_gradients(learner, gradients(expected.loss, prompts), tolerance)


@pytest.mark.parametrize("attributes", [(), ATTRIBUTES])
def test_maple_equals_the_reference(cfg, clip64, weights, attributes):
    check_maple(cfg, clip64, PlainCLIP(weights, torch.float64), attributes, 1e-10)


@pytest.mark.parametrize(
    "attributes", [("playfulness", "energy"), ("color", "shape"), ("playfulness", "playfulness")]
)
def test_upstreams_slicing_equals_the_reference(cfg, clip64, weights, attributes):
    check_maple(
        cfg, clip64, PlainCLIP(weights, torch.float64), attributes, 1e-10, upstream_slicing=True
    )


def test_upstreams_oxford_pets_never_says_energy():
    """Its prompt, from facts/p2c.md: att1 "play" att2 "x" ctx "x" name."""
    node = CfgNode({"N_ATT1": 2, "N_ATT2": 2, "N_ATT3": 2})
    play, x = 1222, 343
    expected = [Gap("ctx_att1", 2), [play], Gap("ctx_att2", 2), [x], Gap("ctx", 2), [x]]
    assert (
        sliced_as_upstream([*attribute_layout(node, ("playfulness", "energy")), Gap("ctx", 2)])
        == expected
    )
    short = [*attribute_layout(node, ("color", "shape")), Gap("ctx", 2)]
    assert sliced_as_upstream(short) == [*short, []]


def check_p2c(cfg, clip, plain, tolerance):
    learner = p2c_learner(cfg, clip).train()
    shake(learner)
    model = CustomCLIP(clip, learner)
    drawn = {}

    class Recorded(torch.nn.Module):  # the reference is told what was drawn
        def forward(self, p):
            drawn[next(n for n, q in learner.named_parameters() if q is p)] = n = torch.randn_like(
                p
            )
            return n

    learner.noise = Recorded()
    learner.sigma.fill_(SIGMA)
    image, label = batch(clip)
    logits = model(image)
    torch.manual_seed(5)
    aux = learner.aux_loss()
    torch.manual_seed(5)
    aux_names = (
        ("ctx_att1", "ctx_att2", "ctx") if cfg.TRAINER.P2C.AUX.PROMPTS == "all" else ("ctx",)
    )
    rows = sum(len(getattr(learner, name)) for name in aux_names)
    eta = cfg.TRAINER.P2C.AUX.SIGMA * torch.randn(
        rows, learner.ctx.shape[1], dtype=learner.ctx.dtype
    )
    # far more than in use, so that L_aux is seen in the sum; it may be negative (Table 5)
    weight = -70.0
    loss = torch.nn.functional.cross_entropy(logits, label) + weight * aux
    loss.backward()

    assert set(drawn) == {"ctx", "ctx_att1", "ctx_att2"}
    prompts = as_leaves(prompts_from_checkpoint(saved(learner).state_dict()))
    given = {name: SIGMA * n for name, n in drawn.items()}
    expected = p2c_plain.p2c_loss(
        plain, prompts, CLASSNAMES, image, label, ATTRIBUTES, given, eta, weight,
        aux_names=aux_names, stop_gradient=cfg.TRAINER.P2C.AUX.STOP_GRADIENT,
    )  # fmt: skip
    assert abs(loss - expected.loss) <= tolerance * abs(expected.loss)
    assert abs(aux - expected.aux) <= tolerance * expected.aux
    check_gradients(learner, gradients(expected.loss, prompts), tolerance)


@pytest.mark.parametrize("mlp", [True, False])
def test_p2c_equals_the_reference(cfg, clip64, weights, mlp):
    cfg.TRAINER.P2C.MAPPER.MLP = mlp
    check_p2c(cfg, clip64, PlainCLIP(weights, torch.float64), 1e-10)


@pytest.mark.parametrize("prompts", ["ctx", "all"])
@pytest.mark.parametrize("stop_gradient", [True, False])
def test_the_auxiliary_loss_of_eq_3_to_6_equals_the_reference(
    cfg, clip64, weights, prompts, stop_gradient
):
    cfg.TRAINER.P2C.AUX.PROMPTS, cfg.TRAINER.P2C.AUX.STOP_GRADIENT = prompts, stop_gradient
    check_p2c(cfg, clip64, PlainCLIP(weights, torch.float64), 1e-10)


def test_on_vit_b16_in_single_precision(cfg, vit_b16):
    """The size in use: loss and every gradient, where both sides round, each CPU in its own way."""
    torch.set_num_threads(2)
    clip, plain = build_model(vit_b16).requires_grad_(False), PlainCLIP(vit_b16)
    check_maple(cfg, clip, plain, (), 2e-5)
    check_p2c(cfg, clip, plain, 2e-5)


def test_names_and_shapes_are_the_familys(cfg, clip64):
    state = saved(p2c_learner(cfg, clip64)).state_dict()
    shapes = {name: tuple(t.shape) for name, t in state.items()}
    assert shapes == {
        "prompt_learner.ctx": (2, 64),
        "prompt_learner.ctx_att1": (3, 64),
        "prompt_learner.ctx_att2": (4, 64),
        "prompt_learner.ctx_att3": (4, 64),
        "prompt_learner.proj.fc1.weight": (128, 64),
        "prompt_learner.proj.fc1.bias": (128,),
        "prompt_learner.proj.fc2.weight": (128, 128),
        "prompt_learner.proj.fc2.bias": (128,),
        "prompt_learner.compound_prompts_text.0": (2, 64),
        "prompt_learner.compound_prompts_text.1": (2, 64),
        "prompt_learner.compound_prompt_projections.0.weight": (128, 64),
        "prompt_learner.compound_prompt_projections.0.bias": (128,),
        "prompt_learner.compound_prompt_projections.1.weight": (128, 64),
        "prompt_learner.compound_prompt_projections.1.bias": (128,),
    }


def test_initial_values(cfg, clip64):
    cfg.TRAINER.P2C.N_CTX = cfg.TRAINER.ATPROMPT.N_ATT1 = 20
    learner = p2c_learner(cfg, clip64)
    assert learner.ctx.std().item() == pytest.approx(0.02, rel=0.1)
    assert learner.ctx_att1.std().item() == pytest.approx(0.01, rel=0.1)
    assert learner.compound_prompts_text[0].std().item() == pytest.approx(0.02, rel=0.1)
    first, second = learner.compound_prompt_projections
    assert torch.equal(first.weight, second.weight) and first.weight is not second.weight


def test_maple_starts_from_a_photo(cfg, clip64):
    learner = maple_learner(cfg, clip64)
    a, photo, of = 320, 1125, 539
    assert torch.equal(learner.ctx.data, clip64.token_embedding.weight[[a, photo]])
    # With "of a" frozen behind them the whole prompt is the hand-crafted one.
    prefix = learner.text.prefix(learner.vectors())[0]
    assert torch.equal(prefix, clip64.token_embedding.weight[[49406, a, photo, of, a]])


def test_upstreams_checkpoint_evaluates_to_the_references_logits(cfg, weights, tmp_path):
    """A file as ATPrompt's MaPLe writes it: the whole CLIP, half and single precision, buffers, a
    pickled scheduler."""
    cfg.TRAINER.MAPLE.CTX_INIT = ""
    clip = build_model(weights).requires_grad_(False)
    model = CustomCLIP(clip, maple_learner(cfg, clip, ATTRIBUTES))
    whole_model = saved(model.learner)
    state = whole_model.state_dict()
    learned = {k: v + 0.05 * torch.randn_like(v) for k, v in state.items()}
    half = {
        k: v.half() if "compound_prompt_projections" in k or "ctx" in k else v
        for k, v in learned.items()
    }
    whole = {
        f"image_encoder.{k.removeprefix('visual.')}": v.half()
        for k, v in weights.items()
        if "visual" in k
    }
    whole |= {
        f"text_encoder.{k}": v.half() for k, v in weights.items() if k.startswith("transformer")
    }
    buffers = {
        f"prompt_learner.token_{n}": torch.randn(4, 5, 64).half()
        for n in ("prefix", "middle1", "middle2", "suffix")
    }
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0035)
    successor = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 5)
    file = {
        "state_dict": half | whole | buffers,
        "epoch": 5,
        "optimizer": optimizer.state_dict(),
        "val_result": None,
    }
    file["scheduler"] = {"successor": successor, "last_epoch": 5}  # upstream pickles the object
    folder = tmp_path / "MultiModalPromptLearner"
    folder.mkdir()
    torch.save(file, folder / "model.pth.tar-5")

    trainer = MaPLe.__new__(MaPLe)
    TrainerBase.__init__(trainer)
    trainer.register_model("MultiModalPromptLearner", whole_model)
    trainer.load_model(str(tmp_path), epoch=5)
    image, _ = batch(clip)
    prompts = {k: v.float() for k, v in prompts_from_checkpoint(half).items()}
    expected = maple_forward(PlainCLIP(weights), prompts, CLASSNAMES, image, attributes=ATTRIBUTES)
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(image), expected.logits, rtol=1e-4, atol=1e-4)


def test_attributes_of_target_source_or_ones_own(cfg):
    node, cfg.DATASET.NAME = cfg.TRAINER.ATPROMPT, "OxfordFlowers"
    assert attribute_words(cfg) == ()
    node.USE_ATPROMPT = True
    assert attribute_words(cfg) == ("color", "habitat", "growth")
    node.DATASET = "ImageNet"
    assert attribute_words(cfg) == ("color", "shape")
    node.ATT_NUM, node.ATT1_TEXT = 1, "petals"
    assert attribute_words(cfg) == ("petals",)


# Noise


def node(cfg, **changes):
    for key, value in changes.items():
        cfg.TRAINER.P2C.DPD[key] = value
    return cfg.TRAINER.P2C.DPD


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("warmup", [0, 2])
def test_sigma_follows_the_schedule(cfg, schedule, warmup):
    dpd = node(cfg, SCHEDULE=schedule, WARMUP_EPOCHS=warmup, SIGMOID_K=7.0)
    for epoch in range(6):
        expected = p2c_plain.sigma_at_epoch(schedule, epoch, 6, 0.015, warmup, 7.0)
        assert sigma_at(dpd, epoch, 6) == pytest.approx(expected, abs=1e-12)


def test_schedules_by_hand():
    """Ends and middle; the rising sigmoid as facts/p2c.md lists it."""
    expected = {
        "constant": (1, 1, 1),
        "linear": (1, 0.5, 0),
        "cosine": (1, 0.5, 0),
        "sigmoid": (1, 0.5, 0),
    }
    for name, values in expected.items():
        assert [SCHEDULES[name](p, 10.0) for p in (0, 0.5, 1)] == pytest.approx(values, abs=1e-12)
    rising = [SCHEDULES["sigmoid_rising"](p, 10.0) for p in (0, 0.2, 0.4, 0.6, 0.8, 1)]
    assert rising == pytest.approx([0, 0.041, 0.266, 0.734, 0.959, 1], abs=5e-4)


@pytest.mark.parametrize("standardize", [True, False])
def test_mixture_moments(standardize):
    means, stds, weights = (-2.0, 0.5, 1.0), (0.5, 0.2, 1.0), (1.0, 2.0, 1.0)
    torch.manual_seed(0)
    x = MixtureNoise(means, stds, weights, standardize)(torch.empty(400_000))
    mean, var = (
        (0, 1) if standardize else p2c_plain.mixture_moments(means, stds, [w / 4 for w in weights])
    )
    assert x.mean().item() == pytest.approx(mean, abs=0.01) and x.var().item() == pytest.approx(
        var, rel=0.01
    )


@pytest.mark.parametrize("spread", [1e-2, 1e-4])
def test_a_narrow_mixture_far_from_zero_is_standardised_too(spread):
    torch.manual_seed(0)
    x = MixtureNoise((5.0, 5.0), (spread, spread), (1.0, 3.0), True)(torch.empty(100_000))
    assert abs(x.mean()) < 0.02 and x.std().item() == pytest.approx(1, abs=0.02)


def test_mixture_is_no_gaussian():
    """Two far components leave a gap where a Gaussian of that variance has a third of its draws."""
    torch.manual_seed(0)
    x = MixtureNoise((-1.0, 1.0), (0.1, 0.1), (1.0, 1.0), True)(torch.empty(10_000))
    assert ((x.abs() < 0.4).float().mean() < 0.01) and ((x > 0).float().mean() - 0.5).abs() < 0.02


@pytest.mark.parametrize("noise", ["gmm", "gaussian"])
def test_noise_is_fresh_independent_and_of_size_sigma(cfg, clip64, noise):
    cfg.TRAINER.P2C.N_CTX = cfg.TRAINER.ATPROMPT.N_ATT1 = cfg.TRAINER.ATPROMPT.N_ATT2 = 20
    node(cfg, NOISE=noise)
    learner = p2c_learner(cfg, clip64).train()
    learner.sigma.fill_(0.3)
    draws = [{k: v - getattr(learner, k) for k, v in learner.vectors().items()} for _ in range(20)]
    for name in ("ctx", "ctx_att1", "ctx_att2"):
        values = torch.stack([d[name].flatten() for d in draws])
        assert (
            values.std().item() == pytest.approx(0.3, rel=0.02) and abs(values.mean().item()) < 0.01
        )
        steps = torch.corrcoef(values)
        assert (
            steps - torch.eye(20)
        ).abs().max() < 0.15  # 1280 values a step: chance stays below 0.11
    tensors = torch.corrcoef(
        torch.stack([torch.stack([d[k].flatten() for d in draws]).flatten() for k in draws[0]])
    )
    assert (tensors - torch.eye(3)).abs().max() < 0.05


def test_no_noise_outside_training(cfg, clip64):
    learner = p2c_learner(cfg, clip64)
    learner.sigma.fill_(0.3)
    learner.eval()
    assert all(v is getattr(learner, k) for k, v in learner.vectors().items())
    image, _ = batch(clip64)
    model = CustomCLIP(clip64, learner).eval()
    with torch.no_grad():
        assert torch.equal(model(image), model(image))
        assert not torch.equal(model.train()(image), model(image))


def test_noise_leaves_the_image_side_alone(cfg, clip64):
    learner = p2c_learner(cfg, clip64).train()
    learner.sigma.fill_(0.3)
    image, _ = batch(clip64)
    with torch.no_grad():
        assert torch.equal(
            learner.image_features(clip64, image), learner.image_features(clip64, image)
        )


def test_aux_gradient_comes_through_the_noisy_branch_alone(cfg, clip64):
    """With a linear F, F(ctx + η) − F(ctx) = W η: the loss does not depend on ctx, yet the clean
    side is no constant.

    Were the clean side not detached, ctx would get no gradient at all; with it detached it gets the
    noisy branch's.
    """
    cfg.TRAINER.P2C.MAPPER.MLP = False
    learner = p2c_learner(cfg, clip64)
    learner.aux_loss().backward()
    assert learner.ctx.grad.norm() > 0
    touched = {n for n, p in learner.named_parameters() if p.grad is not None}
    assert touched == {"ctx", "proj.weight"} | ({"proj.bias"} & touched)


def test_aux_loss_is_in_single_precision_under_amp(cfg, clip64):
    """F(ctx + η) − F(ctx) is a small difference, which half precision would round away."""
    learner, losses = p2c_learner(cfg, clip64).float(), []
    for enabled in (True, False):
        torch.manual_seed(1)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            losses.append(learner.aux_loss())
    assert losses[0].dtype == torch.float32 and torch.equal(*losses)


def test_aux_gradient_without_the_stop_and_of_all_prompts(cfg, clip64):
    """With a linear F ctx and bias cancel; with an MLP every vector in use gets its gradient, the
    third's does not."""
    cfg.TRAINER.P2C.AUX.STOP_GRADIENT, cfg.TRAINER.P2C.MAPPER.MLP = False, False
    learner = p2c_learner(cfg, clip64)
    learner.aux_loss().backward()
    assert (
        learner.proj.weight.grad.norm() > 0
        and learner.ctx.grad.abs().max() < 1e-15 > learner.proj.bias.grad.norm()
    )
    cfg.TRAINER.P2C.AUX.PROMPTS, cfg.TRAINER.P2C.MAPPER.MLP = "all", True
    learner = p2c_learner(cfg, clip64).train()
    learner.sigma.fill_(1e6)  # DPD's noise has no part in it
    aux = learner.aux_loss()
    aux.backward()
    assert aux < 1 and learner.ctx_att3.grad is None
    assert min(p.grad.norm() for p in (learner.ctx, learner.ctx_att1, learner.ctx_att2)) > 0


def test_features_are_kept_in_eval_until_something_changes(cfg, clip64):
    model = CustomCLIP(clip64, p2c_learner(cfg, clip64)).eval()
    with torch.no_grad():
        first = model.text_features()
        assert model.text_features() is first
        state = {k: v + 0.1 * torch.randn_like(v) for k, v in model.state_dict().items()}
        model.load_state_dict(state)
        second = model.text_features()
        assert not torch.allclose(second, first)
        model.learner.ctx += torch.randn_like(model.learner.ctx)  # as a step of an optimizer
        third = model.text_features()
        assert not torch.allclose(third, second) and model.text_features() is third
        assert model.train().eval().text_features() is not third
    model.text_features().sum().backward()  # kept ones would have no gradient
    assert model.learner.ctx.grad.norm() > 0
