"""ReBaPL: its force and whole trainings against the plain reference, its limits, its samples in
tests and files, and runs that are stopped and go on."""

import math
from functools import partial

import pytest
import torch
from torch import Tensor

from dassl.engine import TrainerX
from reference import coop_plain, maple_plain, mmrl_plain, rebapl_plain
from reference.clip_plain import PlainCLIP
from tests.fake_cuda import FakeCuda
from tests.runs import REPO, run
from tests.trainers import test_capture
from tests.trainers.files import accuracies, read, three_classes
from tests.trainers.methods import (
    assert_logits,
    assert_refused,
    batch,
    build,
    class_names,
    in_double,
    parameters,
    shake,
    upper_layers,
)
from tests.trainers.test_amp import amp
from train import parse_args, setup_cfg
from trainers.base import CLIPTrainer
from trainers.coop import PromptLearner
from trainers.draws import log_mean_probability
from trainers.rebapl import ends_part, noise_std
from trainers.repulsion import DISTANCES

FOLDERS = {  # the others' is MaPLe's
    "ReBaPL_CoOp": "prompt_learner",
    "ReBaPL_MMRL": "MultiModalRepresentationLearner",
}
QUIET = ("TRAINER.P2C.DPD.ENABLED", "False", "TRAINER.P2C.AUX.ENABLED", "False")


def options(**settings) -> list[str]:
    """Settings of TRAINER.REBAPL; those of a distance with lower-case names."""
    words = []
    for key, value in settings.items():
        section = "REPULSION." if key.islower() else ""
        words += [f"TRAINER.REBAPL.{section}{key.upper()}", str(value)]
    return words


def cycles(epochs: int, length: int, noisy: int = 1, **settings) -> list[str]:
    given = ["OPTIM.MAX_EPOCH", str(epochs), "OPTIM.CYCLE_EPOCHS", str(length)]
    return [*given, *options(NOISE_EPOCHS=noisy, **settings)]


# -- the distances

PLAIN = {
    "mmd": rebapl_plain.mmd,
    "wasserstein": rebapl_plain.wasserstein,
    "mse": rebapl_plain.mse,
}


def points(n: int = 5, by: float = 0.3) -> tuple[Tensor, Tensor]:
    """Two sets of n points, the second one another order of the first's, shaken."""
    x = torch.randn(n, 3, dtype=torch.float64)
    return x.requires_grad_(), x.detach().roll(1, 0) + by * torch.randn(n, 3, dtype=torch.float64)


@pytest.mark.parametrize("name", DISTANCES)
def test_a_distance_and_its_gradient(name):
    x, y = points()
    ours, plain = DISTANCES[name](x, y), PLAIN[name](x, y)
    torch.testing.assert_close(ours, plain)
    torch.testing.assert_close(*(torch.autograd.grad(d, x)[0] for d in (ours, plain)))
    assert DISTANCES[name](x, x.detach()) == 0
    torch.testing.assert_close(DISTANCES[name](y, x), ours)
    shuffled = DISTANCES[name](x, y.roll(2, 0))
    assert torch.allclose(shuffled, ours) is (name != "mse")


def test_a_shift_is_as_far_as_it_is_long():
    x, _ = points()
    shift = torch.tensor([0.1, -0.2, 0.3], dtype=torch.float64)
    for name in ("wasserstein", "mse"):
        torch.testing.assert_close(DISTANCES[name](x, x.detach() + shift), shift.square().sum())


def test_the_kernels_bandwidth():
    x, y = points()
    torch.testing.assert_close(DISTANCES["mmd"](x, y, 0.3), rebapl_plain.mmd(x, y, 0.3))


@pytest.mark.parametrize("name", DISTANCES)
def test_a_step_down_the_potential_leads_away(name):
    x, y = points(by=0.01)
    distance = DISTANCES[name](x, y)
    [gradient] = torch.autograd.grad(0.001 / (distance + 1e-6), x)
    assert DISTANCES[name](x - 1e-3 * gradient / gradient.norm(), y) > distance


# -- the force, and whole trainings


def unit(x: Tensor) -> Tensor:
    return x / x.norm(dim=-1, keepdim=True)


class Plain:
    """The reference's view of a trainer, whose references are few and random."""

    def __init__(self, trainer: TrainerX, weights, dtype=torch.float64, images=4):
        self.trainer, self.clip = trainer, PlainCLIP(weights, dtype)
        size = weights["input_resolution"].item()
        self.images = torch.randn(images, 3, size, size, dtype=dtype)
        trainer.references = self.images
        self.names = class_names(trainer)
        name = type(trainer).__name__
        self.host = name.removeprefix("ReBaPL_")
        self.words = {"attributes": ("color", "shape")} if self.host == "P2C" else {}
        if self.host == "MaPLe":
            self.words = {"frozen_words": "of a"}

        self.layers = upper_layers(weights)

    def text(self, prompts) -> Tensor:
        if self.host == "CoOp":
            return coop_plain.text_features(self.clip, prompts, self.names)
        if self.host == "MMRL":
            return self.mmrls(prompts, self.images).text
        return maple_plain.text_features(self.clip, prompts, self.names, **self.words)

    def image(self, prompts) -> Tensor:
        if self.host == "MMRL":
            return self.mmrls(prompts, self.images).of_class
        return maple_plain.image_features(self.clip, prompts, self.images)

    def mmrls(self, prompts, image: Tensor) -> mmrl_plain.Features:
        return mmrl_plain.features(self.clip, prompts, self.names, image, self.layers)

    def features(self, prompts) -> Tensor:
        """What is compared."""
        parts, of = [], self.trainer.cfg.TRAINER.REBAPL.REPULSION.FEATURES
        if of != "text":
            parts.append(unit(self.image(prompts)))
        if of != "image":
            parts.append(unit(self.text(prompts)))
        return torch.cat(parts)

    def logits(self, prompts, image: Tensor) -> Tensor:
        if self.host == "CoOp":
            return coop_plain.logits(self.clip, prompts, self.names, image)
        if self.host == "MMRL":
            both = mmrl_plain.both_logits(self.clip, self.mmrls(prompts, image))
            return 0.7 * both[0] + 0.3 * both[1]
        return maple_plain.maple_forward(self.clip, prompts, self.names, image, **self.words).logits

    def loss(self, prompts, given) -> Tensor:
        image, label = given
        if self.host == "MMRL":
            found = self.mmrls(prompts, image)
            return mmrl_plain.loss_of(self.clip, found, self.names, image, label)
        return torch.nn.functional.cross_entropy(self.logits(prompts, image), label)


def doubled(name, data, tmp_path, weights, *opts) -> TrainerX:
    trainer = build(name, data, tmp_path, weights, *QUIET, *opts)
    in_double(trainer)
    shake(trainer.model.learner)
    return trainer


def train(trainer: TrainerX, weights, steps_of_epoch: int) -> list[list[rebapl_plain.Step]]:
    """Trains on random batches; returns them with what was drawn."""
    trainer.num_batches, size = steps_of_epoch, weights["input_resolution"].item()
    generator, epochs, repulsion = torch.Generator().manual_seed(1), [], trainer.repulsion
    dtype = trainer.references.dtype
    for epoch in range(trainer.max_epoch):
        trainer.epoch = epoch
        trainer.before_epoch()
        epochs.append([])
        for trainer.batch_idx in range(steps_of_epoch):
            image = torch.randn(2, 3, size, size, generator=generator, dtype=dtype)
            label = torch.randint(trainer.num_classes, (2,), generator=generator)
            seed = 100 * trainer.epoch + trainer.batch_idx
            torch.manual_seed(seed)
            trainer.forward_backward({"img": image, "label": label, "domain": label})
            torch.manual_seed(seed)
            n, rows = len(trainer.all_rows()), None
            if trainer.before and 0 < repulsion.ROWS < n:
                rows = torch.randperm(n)[: repulsion.ROWS].sort().values
            named = trainer.model.learner.named_parameters()
            drawn = {name: torch.randn_like(p) for name, p in named if p.grad is not None}
            epochs[-1].append(rebapl_plain.Step((image, label), rows, drawn))
    return epochs


CASES = {
    "as published": ("ReBaPL_MaPLe", {"distance": "mmd", "rows": 3}),
    "as the code": (
        "ReBaPL_MaPLe",
        {"distance": "mse", "features": "both", "rows": 12, "strength": 0.75},
    ),
    "eq. 16 to 18": (
        "ReBaPL_CoOp",
        {"NOISE": "paper", "FRICTION": 0.3, "SAMPLES_PER_CYCLE": 2}
        | {"features": "text", "distance": "wasserstein", "rows": 4, "against": "all"}
        | {"add_to": "parameters"},
    ),
    "AdamW first": ("ReBaPL_MMRL", {"EXPLORE": "adamw", "distance": "wasserstein", "rows": 3}),
    "all rows": ("ReBaPL_P2C", {"distance": "mmd", "rows": -1, "bandwidth": 0.5}),
}


@pytest.mark.parametrize("case", CASES)
def test_two_cycles_are_the_references(case, data, tmp_path, weights):
    """Parameters and samples after two cycles of two epochs, within 1e-9 of how far they moved."""
    name, settings = CASES[case]
    settings = {"eps": 1e-3} | settings  # at 1e-6 the first force is rounding
    given = cycles(4, 2, **settings)
    trainer = doubled(name, data, tmp_path, weights, *given)
    plain, start = Plain(trainer, weights), parameters(trainer)
    epochs = train(trainer, weights, steps_of_epoch=2)

    node, repulsion, optim = trainer.sampler, trainer.repulsion, trainer.cfg.OPTIM
    n_images, momentum = len(trainer.train_loader_x.dataset), 0.9
    noise = partial(
        rebapl_plain.published_noise, momentum=0.9, temperature=100.0, n_images=n_images
    )
    if node.NOISE == "paper":
        momentum = 0.7
        noise = partial(rebapl_plain.papers_noise, friction=0.3, n_images=n_images)
    distance = PLAIN[repulsion.DISTANCE]
    if repulsion.DISTANCE == "mmd":
        distance = partial(distance, bandwidth=repulsion.BANDWIDTH)
    expected = rebapl_plain.train(
        start, epochs, plain.loss, plain.features, distance, length=2, last=1,
        base_rate=optim.LR, noise=noise, momentum=momentum, strength=repulsion.STRENGTH,
        epsilon=1e-3, sampled_steps=(2, 3) if node.SAMPLES_PER_CYCLE == 2 else (3,),
        against_all=repulsion.AGAINST == "all", directly=repulsion.ADD_TO == "parameters",
        adamw_first=node.EXPLORE == "adamw",
    )  # fmt: skip
    samples = [sample for of_cycle in expected.samples for sample in of_cycle]
    assert len(samples) == len(trainer.samples) == 2 * node.SAMPLES_PER_CYCLE
    states = [(trainer.model, expected.params), *zip(trainer.samples, samples, strict=True)]
    for model, there in states:
        for key, p in model.learner.named_parameters():
            moved = (there[key] - start[key]).norm()
            assert moved > 0 or key == "ctx_att3", key
            assert (p - there[key]).norm() <= 1e-9 * moved, key

    image = epochs[0][0].batch[0]
    mean = rebapl_plain.mean_probability([plain.logits(sample, image) for sample in samples])
    trainer.set_model_mode("eval")
    with torch.no_grad():
        torch.testing.assert_close(trainer.model_inference(image).softmax(-1), mean)


def force_and_reference(trainer, weights, images=4):
    """The force away from what the parameters were before they were shaken, and the oracle's."""
    plain, was = Plain(trainer, weights, torch.float32, images), parameters(trainer)
    trainer.before = [trainer.representation(trainer.frozen_copy(), trainer.all_rows())]
    shake(trainer.model.learner)
    now, node = parameters(trainer), trainer.repulsion
    with torch.no_grad():
        others = [plain.features(was)]
    value = rebapl_plain.potential(
        plain.features(now), others, PLAIN[node.DISTANCE], node.STRENGTH, node.EPS
    )
    expected = maple_plain.gradients(value, now)
    force = trainer.force()
    named = {key: force.get(p) for key, p in trainer.model.learner.named_parameters()}
    return named, expected


def assert_force(force, expected, tolerance):
    assert any(g is not None for g in expected.values())
    for key, g in expected.items():
        assert (force[key] is None) is (g is None), key
        if g is not None:
            assert (force[key] + g).norm() <= tolerance * g.norm(), key


def test_on_vit_b16(tmp_path, vit_b16):
    """The size in use, at the published settings, images and classes compared."""
    keys = ("TRAINER.MAPLE.PROMPT_DEPTH", "9", *options(features="both", rows=-1))
    trainer = build(
        "ReBaPL_MaPLe", tmp_path, tmp_path / "out", vit_b16, *three_classes(tmp_path), *keys
    )
    assert_force(*force_and_reference(trainer, vit_b16, images=2), 1e-5)


def test_a_hosts_own_noise_is_no_distance(data, tmp_path, weights):
    """P2C's text prompts are shaken in training, but not where they are compared."""
    keys = ("TRAINER.P2C.DPD.SIGMA_MAX", "0.5", *options(features="text", rows=-1, eps=0.1))
    trainer = build("ReBaPL_P2C", data, tmp_path, weights, *keys)
    trainer.before_epoch()
    assert trainer.model.learner.sigma == 0.5
    assert_force(*force_and_reference(trainer, weights), 1e-4)
    assert trainer.model.training


def test_amps_force_is_fp32s(data, tmp_path, weights):
    """Beside the loss's gradient, which is scaled: so the repulsion is, too."""
    trainer = amp(build("ReBaPL_MaPLe", data, tmp_path, weights, *options(rows=-1)))
    force, expected = force_and_reference(trainer, weights)
    trainer.scaler.update(2.0**12)
    assert_force(force, expected, 0.05)
    trainer.model_update = trainer.scaler.step = lambda *_: None  # keeps the gradients
    trainer.scaler.update = lambda *_: None
    image, label = batch(weights, 16)
    trainer.forward_backward({"img": image, "label": label, "domain": label})
    with_force = {p: p.grad / 2.0**12 for p in trainer.model.learner.parameters()}
    trainer.gradients(image, label)
    both = [torch.cat([t[p].flatten() for p in with_force]) for t in (with_force, trainer.force())]
    of_loss = torch.cat([p.grad.flatten() / 2.0**12 for p in with_force])
    torch.testing.assert_close(both[0], of_loss - both[1], rtol=0.01, atol=0.01 * both[1].norm())
    assert both[1].norm() > 0.1 * of_loss.norm()


@pytest.fixture
def cuda(monkeypatch):
    fake = FakeCuda()
    fake.install(monkeypatch)
    return fake


def test_captured_steps_are_repelled_too(data, tmp_path, weights, cuda):
    """A GPU replays the loss's gradients; the force and the noise are no part of that."""
    keys = cycles(3, 1, 1, rows=3, images=4, max_force=1.0)
    plain, captured = (
        build("ReBaPL_MaPLe", data, tmp_path / path, weights, *keys) for path in "ab"
    )
    shake(plain.model)
    captured.model.load_state_dict(plain.model.state_dict())
    plain.compute.refused = True
    given = test_capture.batches(weights)
    expected = test_capture.train(plain, given)
    seen = test_capture.train(captured, test_capture.on_gpu(given))
    assert cuda.calls.count("replay") == len(seen) and "distance" in seen[-1]
    torch.testing.assert_close(seen, expected)


def test_a_force_is_no_longer_than_allowed(data, tmp_path, weights):
    free, short, weak = (
        build("ReBaPL_MaPLe", data, tmp_path / name, weights, *options(rows=-1, max_force=most))
        for name, most in (("a", 0.0), ("b", 1e-3), ("c", 1e9))
    )
    forces = []
    for trainer in (free, short, weak):
        torch.manual_seed(0)
        force, _ = force_and_reference(trainer, weights)
        forces.append(torch.cat([f.flatten() for f in force.values()]))
    assert forces[1].norm().item() == pytest.approx(1e-3)
    torch.testing.assert_close(forces[1] / 1e-3, forces[0] / forces[0].norm())
    assert torch.equal(forces[2], forces[0])


def test_a_force_that_overflows_is_not_added_to_parameters(data, tmp_path, weights, monkeypatch):
    """Added to a gradient it makes the scaler leave out the step."""
    keys = options(rows=-1, add_to="parameters")
    trainer = build("ReBaPL_MaPLe", data, tmp_path, weights, *keys)
    force_and_reference(trainer, weights)
    ctx = trainer.model.learner.ctx
    monkeypatch.setattr(trainer, "force", lambda: {ctx: torch.full_like(ctx, torch.inf)})
    image, label = batch(weights, 16)
    trainer.epoch, trainer.batch_idx, trainer.num_batches = 0, 0, 2
    trainer.forward_backward({"img": image, "label": label, "domain": label})
    assert ctx.isfinite().all()


def test_the_references_are_the_seeds_and_leave_the_training_alone(data, tmp_path, weights):
    """Augmented training images, the same whatever is drawn before; another seed's are others."""
    first, again, other = (
        build("ReBaPL_MaPLe", data, tmp_path / name, weights, *options(images=5)) for name in "abc"
    )
    other.reference_seed = 2
    torch.manual_seed(7)
    before = torch.get_rng_state()
    drawn = first.references
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(8)
    assert torch.equal(again.references, drawn) and not torch.equal(other.references, drawn)
    assert drawn.shape == (5, 3, *first.cfg.INPUT.SIZE)
    assert len({image.sum().item() for image in drawn}) == 5
    # A resumed run has no seed of its own where SEED is negative.
    del other.references
    other.resume_state(first.state_to_resume())
    assert torch.equal(other.references, drawn)


# -- limits


@pytest.mark.parametrize("host", ["MaPLe", "CoOp", "P2C", "MMRL"])
def test_one_cycle_without_noise_and_repulsion_is_the_host(host, data, tmp_path):
    """Bit for bit the host's training by SGD with that schedule."""
    same = ["OPTIM.LR_SCHEDULER", "cyclic_cosine", "OPTIM.CYCLE_EPOCHS", "3"]
    assert run(host, data, tmp_path / "host", "OPTIM.NAME", "sgd", *same) == 0
    ours = f"ReBaPL_{host}"
    quiet = options(NOISE_EPOCHS=2, TEMPERATURE=0.0, EXPLORE="sghmc", strength=0.0)
    assert run(ours, data, tmp_path / "ours", *same, *quiet) == 0
    folder = FOLDERS.get(ours, "MultiModalPromptLearner")
    expected, got = read(tmp_path / "host", folder), read(tmp_path / "ours", folder)
    assert expected.keys() == got.keys()
    assert all(torch.equal(expected[key], got[key]) for key in got)


def test_adamw_to_the_end_is_mmrl(data, tmp_path):
    """Without a sampling stage and repulsion, bit for bit."""
    same = ["OPTIM.LR_SCHEDULER", "cyclic_cosine", "OPTIM.CYCLE_EPOCHS", "3"]
    assert run("MMRL", data, tmp_path / "host", *same) == 0
    opts = [*same, *options(NOISE_EPOCHS=0, strength=0.0)]
    assert run("ReBaPL_MMRL", data, tmp_path / "ours", *opts) == 0
    expected, got = (read(tmp_path / name, FOLDERS["ReBaPL_MMRL"]) for name in ("host", "ours"))
    assert expected.keys() == got.keys()
    assert all(torch.equal(expected[key], got[key]) for key in got)
    assert len(samples_in(tmp_path / "ours", "ReBaPL_MMRL", 3)) == 1


def test_repulsion_begins_with_the_second_cycle(data, tmp_path):
    """The first is bit for bit the same with any strength."""
    states = []
    for name, strength in (("with", 0.001), ("without", 0.0)):
        opts = cycles(2, 1, strength=strength)
        assert run("ReBaPL_MaPLe", data, tmp_path / name, "TRAIN.CHECKPOINT_FREQ", "1", *opts) == 0
        states.append([read(tmp_path / name, "MultiModalPromptLearner", e) for e in (1, 2)])
    key = "prompt_learner.ctx"
    (first, second), (first_without, second_without) = states
    assert all(torch.equal(first[k], first_without[k]) for k in first)
    assert not torch.equal(second[key], second_without[key])


@pytest.mark.parametrize("explore", ["sghmc", "adamw"])
def test_which_epochs_have_noise_and_how_much(data, tmp_path, weights, explore):
    """The published list, at the published rates; 5 classes of 16 shots are 80 images."""
    keys = ("OPTIM.LR", "0.002", *cycles(15, 5, 3, EXPLORE=explore))
    trainer = build("ReBaPL_MaPLe", data, tmp_path, weights, *keys)
    trainer.train_loader_x = type("Loader", (), {"dataset": range(80)})
    noise, explored = [], []
    for trainer.epoch in range(15):
        trainer.before_epoch()
        explored.append(trainer.optim.adamw)
        [group] = trainer.optim.param_groups
        noise.append((group["noise"], group["lr"]))
        trainer.optim.step(), trainer.sched.step()
    assert [e for e, (std, _) in enumerate(noise) if std] == [2, 3, 4, 7, 8, 9, 12, 13, 14]
    assert explored == [explore == "adamw" and not std for std, _ in noise]
    std, lr = noise[2]
    assert std == pytest.approx(100 * math.sqrt(2 * 0.001809 * 0.9) / 80, rel=1e-3)
    assert lr == pytest.approx(0.001809, rel=1e-3)
    at_the_top = 0.002 * noise_std(trainer.sampler, 0.002, 0.9, 80)
    assert at_the_top == pytest.approx(1.5e-4)


# -- chains and samples


@pytest.mark.parametrize("chains", ["sequential", "parallel"])
def test_where_the_second_cycle_starts(chains, data, tmp_path, weights):
    trainer = doubled("ReBaPL_MaPLe", data, tmp_path, weights, *cycles(4, 2, CHAINS=chains))
    Plain(trainer, weights)
    trainer.max_epoch = 2
    train(trainer, weights, steps_of_epoch=2)
    ended = parameters(trainer)
    momenta = [state["momentum_buffer"].clone() for state in trainer.optim.state.values()]
    trainer.epoch = 2
    trainer.before_epoch()
    starts, [group] = parameters(trainer), trainer.optim.param_groups
    if chains == "sequential":
        assert all(torch.equal(starts[key], ended[key]) for key in ended)
        kept = [state["momentum_buffer"] for state in trainer.optim.state.values()]
        assert len(kept) == len(ended) and all(map(torch.equal, kept, momenta))
        assert group["lr"] == pytest.approx(0.5 * trainer.cfg.OPTIM.LR)
        return
    moved = [key for key in ended if not torch.equal(starts[key], ended[key])]
    assert "proj.weight" in moved and "compound_prompts_text.0" in moved
    assert not trainer.optim.state and group["lr"] == 1e-5
    assert starts["proj.weight"].std() < 0.08  # as it is built, not shaken
    trainer.optim.step(), trainer.sched.step()
    assert group["lr"] == trainer.cfg.OPTIM.LR


def test_which_steps_end_a_part():
    def ends(steps, parts):
        return [step for step in range(-2, steps + 1) if ends_part(step, steps, parts)]

    assert ends(9, 1) == [9]
    assert ends(9, 3) == [3, 6, 9]
    assert ends(9, 4) == [3, 5, 7, 9]
    assert ends(3, 3) == [1, 2, 3]


def test_a_cycles_samples_differ(data, tmp_path, weights):
    """And the last of them is how the cycle ended."""
    keys = cycles(2, 2, 2, SAMPLES_PER_CYCLE=3)
    trainer = doubled("ReBaPL_CoOp", data, tmp_path, weights, *keys, *options(features="text"))
    train(trainer, weights, steps_of_epoch=3)
    first, second, third = (sample.learner.ctx for sample in trainer.samples)
    assert not torch.equal(first, second) and not torch.equal(second, third)
    assert torch.equal(third, trainer.model.learner.ctx)
    assert len(trainer.present) == 3 and not trainer.before
    trainer.epoch = 4
    trainer.before_epoch()
    assert len(trainer.before) == 3 and not trainer.present


def sampled(data, tmp_path, weights, *shakes: float, name="ReBaPL_MaPLe", **settings) -> TrainerX:
    """A trainer in eval mode with a sample after each shake."""
    trainer = build(name, data, tmp_path, weights, *options(**settings))
    trainer.num_batches = 9
    for by in shakes:
        shake(trainer.model.learner, by)
        trainer.samples.append(trainer.frozen_copy())
    trainer.set_model_mode("eval")
    return trainer


@torch.no_grad()
def test_one_sample_is_the_model_and_equal_ones_are_one(data, tmp_path, weights):
    image, _ = batch(weights, 16)
    trainer = sampled(data, tmp_path, weights, 0.05)
    one = trainer.model_inference(image)
    torch.testing.assert_close(one, trainer.model(image).log_softmax(-1))
    trainer.samples += [trainer.frozen_copy(), trainer.frozen_copy()]
    torch.testing.assert_close(trainer.model_inference(image), one)


@torch.no_grad()
def test_probabilities_are_averaged_and_logits_on_request(data, tmp_path, weights):
    image, _ = batch(weights, 16)
    got = {}
    for average in ("probabilities", "logits"):
        trainer = sampled(data, tmp_path / average, weights, 0.05, 0.05, 0.05, AVERAGE=average)
        logits = [sample(image) for sample in trainer.samples]
        got[average] = trainer.model_inference(image)
        assert trainer.model.learner is not trainer.samples[-1].learner
    expected = rebapl_plain.mean_probability(logits)
    torch.testing.assert_close(got["probabilities"].exp(), expected)
    torch.testing.assert_close(got["logits"], sum(logits) / 3)
    assert not torch.allclose(got["logits"].softmax(-1), expected, rtol=0.01)


@torch.no_grad()
@pytest.mark.parametrize(("classes", "alpha"), [("base", 0.7), ("new", 1)])
def test_mmrls_samples_read_what_mmrl_reads(classes, alpha, data, tmp_path, weights):
    """Of new classes the class token's feature alone: known after the samples are loaded."""
    name, run = "ReBaPL_MMRL", tmp_path / "run"
    trainer = sampled(data, run, weights, 0.05, 0.05, name=name)
    trainer.save_model(2, str(run))
    opts = ("DATASET.SUBSAMPLE_CLASSES", classes, *options(AVERAGE="logits"))
    tested = build(name, data, tmp_path / "test", weights, *opts)
    tested.load_model(str(run))
    tested.set_model_mode("eval")
    image, _ = batch(weights, 16)
    plain, expected = Plain(tested, weights, torch.float32), 0
    for sample in trainer.samples:
        found = plain.mmrls(dict(sample.learner.named_parameters()), image)
        of_class, of_rep = mmrl_plain.both_logits(plain.clip, found)
        expected += (alpha * of_class + (1 - alpha) * of_rep) / len(trainer.samples)
    assert_logits(tested, image, expected)


def test_the_mean_of_probabilities_near_0():
    logits = torch.tensor([[0.0, 200.0], [0.0, 300.0]])
    expected = torch.tensor([-200 - math.log(2), 0.0])
    torch.testing.assert_close(log_mean_probability(logits), expected)


def test_a_test_reads_each_samples_classes_once(data, tmp_path, weights, monkeypatch):
    """However many batches it has; and its batches are those of any size."""
    trainer = sampled(data, tmp_path, weights, 0.05, 0.05, name="ReBaPL_CoOp", features="text")
    counted, text_features = [], PromptLearner.text_features
    monkeypatch.setattr(
        PromptLearner, "text_features", lambda *given: counted.append(1) or text_features(*given)
    )
    images = torch.cat([batch(weights, 16)[0] for _ in range(3)])
    with torch.no_grad():
        singly = torch.cat([trainer.model_inference(image[None]) for image in images])
        torch.testing.assert_close(trainer.model_inference(images), singly)
    assert len(counted) == 2


# -- files, and runs that stop and go on

TWO_CYCLES = ("TRAIN.CHECKPOINT_FREQ", "1", *cycles(4, 2))


def samples_in(folder, name: str, epoch: int) -> list[dict[str, Tensor]]:
    path = folder / FOLDERS.get(name, "MultiModalPromptLearner") / f"model.pth.tar-{epoch}"
    return torch.load(path, weights_only=True)["samples"]


def test_a_file_holds_the_samples_so_far_and_a_test_takes_them(data, tmp_path, capsys):
    name = "ReBaPL_CoOp"
    assert run(name, data, tmp_path / "run", *TWO_CYCLES) == 0
    out = capsys.readouterr().out
    assert [line.split("]")[0] for line in out.splitlines() if " sample " in line] == [
        "epoch [2/4",
        "epoch [4/4",
    ]
    trained = [line for line in out.splitlines() if line.startswith("* accuracy")]
    assert [len(samples_in(tmp_path / "run", name, e)) for e in (1, 2, 3, 4)] == [0, 1, 1, 2]
    first, second = samples_in(tmp_path / "run", name, 4)
    assert torch.equal(second["ctx"], read(tmp_path / "run", "prompt_learner", 4)["ctx"])
    assert torch.equal(first["ctx"], read(tmp_path / "run", "prompt_learner", 2)["ctx"])
    for epoch, told in ((1, 0), (3, 1), (4, 2)):
        flags = ("--eval-only", "--model-dir", str(tmp_path / "run"), "--load-epoch", str(epoch))
        assert run(name, data, tmp_path / f"test{epoch}", *TWO_CYCLES, flags=flags) == 0
        out = capsys.readouterr().out
        assert (f"Samples averaged: {told}\n" in out) is (told > 0)
    assert [line for line in out.splitlines() if line.startswith("* accuracy")] == trained
    # A host tests the present state.
    flags = ("--eval-only", "--model-dir", str(tmp_path / "run"))
    assert run("CoOp", data, tmp_path / "host", flags=flags) == 0
    assert len(accuracies(capsys)) == 1


def test_a_sample_that_does_not_fit_is_named(data, tmp_path, capsys):
    assert run("ReBaPL_CoOp", data, tmp_path / "run", *cycles(2, 2)) == 0
    path = tmp_path / "run" / "prompt_learner" / "model.pth.tar-2"
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["samples"][0]["ctx"] = torch.zeros(3, 128)
    torch.save(checkpoint, path)
    flags = ("--eval-only", "--model-dir", str(tmp_path / "run"))
    assert run("ReBaPL_CoOp", data, tmp_path / "test", *cycles(2, 2), flags=flags) == 1
    err = capsys.readouterr().err
    assert "sample 1 in" in err and "ctx has shape (3, 128)" in err
    assert len(err.strip().splitlines()) == 1


def everything(path) -> list[Tensor]:
    """The tensors of a checkpoint: weights, momentum, samples, representations."""

    def tensors(value) -> list[Tensor]:
        if isinstance(value, Tensor):
            return [value]
        if isinstance(value, dict):
            value = list(value.values())
        return [t for part in value for t in tensors(part)] if isinstance(value, list) else []

    return tensors(torch.load(path, weights_only=True))


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("ReBaPL_MaPLe", {"SAMPLES_PER_CYCLE": 2, "against": "all", "rows": 7}),
        ("ReBaPL_P2C", {"CHAINS": "parallel", "features": "both", "rows": 7}),
    ],
)
@pytest.mark.parametrize("epoch", [2, 3])
def test_a_run_stopped_in_its_second_cycle(name, settings, epoch, data, tmp_path, monkeypatch):
    """In its first or in its second epoch: it ends bit for bit as if it had never been."""
    stopped_and_whole(
        name, cycles(4, 2, 1, images=8, **settings), epoch, tmp_path, data, monkeypatch
    )


@pytest.mark.parametrize("epoch", [1, 2, 3])
def test_a_run_stopped_in_either_stage(epoch, data, tmp_path, monkeypatch):
    """Its second epoch of AdamW, the first of SGHMC, or the second."""
    opts = cycles(4, 4, 2, EXPLORE="adamw")
    stopped_and_whole("ReBaPL_MMRL", opts, epoch, tmp_path, data, monkeypatch)


def stopped_and_whole(name, opts, epoch, tmp_path, data, monkeypatch) -> None:
    """A run of four epochs that is stopped in one of them and goes on ends as one that is not."""
    assert run(name, data, tmp_path / "whole", *opts) == 0
    go_on = CLIPTrainer.forward_backward

    def killed(trainer, batch):
        if (trainer.epoch, trainer.batch_idx) == (epoch, 2):
            raise KeyboardInterrupt
        return go_on(trainer, batch)

    with monkeypatch.context() as patch:
        patch.setattr(CLIPTrainer, "forward_backward", killed)
        assert run(name, data, tmp_path / "killed", *opts) == 130
    assert run(name, data, tmp_path / "killed", *opts) == 0
    file = f"{FOLDERS.get(name, 'MultiModalPromptLearner')}/model.pth.tar-4"
    whole, resumed = (everything(tmp_path / run / file) for run in ("whole", "killed"))
    assert len(whole) == len(resumed) > 20
    assert all(map(torch.equal, whole, resumed))


def test_more_cycles_but_no_others(data, tmp_path, capsys):
    first = tmp_path / "first"
    assert run("ReBaPL_CoOp", data, first, *cycles(2, 1)) == 0
    flags = ("--resume", str(first))
    assert run("ReBaPL_CoOp", data, tmp_path / "more", *cycles(3, 1), flags=flags) == 0
    assert len(samples_in(tmp_path / "more", "ReBaPL_CoOp", 3)) == 3
    capsys.readouterr()
    assert run("ReBaPL_CoOp", data, tmp_path / "other", *cycles(4, 2), flags=flags) == 2
    err = capsys.readouterr().err
    assert "another OPTIM.CYCLE_EPOCHS (1; now 2)" in err and len(err.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("protocol", "dataset", "epochs", "weight", "dim"),
    [
        ("", "stanford_cars", (15, 5, 3), 7.0, 512),
        ("", "eurosat", (15, 5, 3), 0.01, 2048),
        ("_cross_datasets", "imagenet", (6, 2, 1), 0.2, 512),
    ],
)
def test_settings_on_mmrl(protocol, dataset, epochs, weight, dim):
    """ReBaPL's, and MMRL's by dataset."""
    args = ["--trainer", "ReBaPL_MMRL", "--dataset-config-file"]
    args += [f"{REPO}/configs/datasets/{dataset}.yaml", "--config-file"]
    args += [f"{REPO}/configs/trainers/ReBaPL_MMRL/vit_b16{protocol}.yaml"]
    cfg = setup_cfg(parse_args(args))
    node, optim = cfg.TRAINER.REBAPL, cfg.OPTIM
    assert epochs == (optim.MAX_EPOCH, optim.CYCLE_EPOCHS, node.NOISE_EPOCHS)
    assert (optim.NAME, optim.LR, optim.WEIGHT_DECAY) == ("sghmc", 0.001, 5e-4)
    assert (weight, dim) == (cfg.TRAINER.MMRL.REG_WEIGHT, cfg.TRAINER.MMRL.REP_DIM)
    repulsion = node.REPULSION
    assert (repulsion.STRENGTH, repulsion.ROWS, repulsion.DISTANCE) == (1e-4, 64, "wasserstein")
    assert node.EXPLORE == "adamw" and node.SAMPLES_PER_CYCLE == 1


@pytest.mark.parametrize(
    ("opts", "line"),
    [
        (cycles(5, 2), "OPTIM.MAX_EPOCH 5"),
        (cycles(3, 3, 4), "TRAINER.REBAPL.NOISE_EPOCHS 4"),
        (cycles(2, 3), "OPTIM.MAX_EPOCH 2"),
        (cycles(3, 3, NOISE="none"), "TRAINER.REBAPL.NOISE none: must be code or paper"),
        (cycles(3, 3, EXPLORE="sgd"), "TRAINER.REBAPL.EXPLORE sgd"),
        (cycles(3, 3, distance="l2"), "TRAINER.REBAPL.REPULSION.DISTANCE l2"),
        (cycles(3, 3, SAMPLES_PER_CYCLE=5), "TRAINER.REBAPL.SAMPLES_PER_CYCLE 5"),
        (cycles(3, 3, SAMPLES_PER_CYCLE=0), "TRAINER.REBAPL.SAMPLES_PER_CYCLE 0"),
        (cycles(3, 3, FRICTION=1.1), "TRAINER.REBAPL.FRICTION 1.1"),
        (cycles(3, 3, eps=0.0), "TRAINER.REBAPL.REPULSION.EPS 0.0"),
        (cycles(3, 3, rows=0), "TRAINER.REBAPL.REPULSION.ROWS 0"),
        ([*cycles(3, 3), "OPTIM.NAME", "sgd"], "OPTIM.NAME sgd"),
        ([*cycles(3, 3), "OPTIM.CYCLE_EPOCHS", "0"], "OPTIM.CYCLE_EPOCHS"),
        (
            [*cycles(3, 3, CHAINS="parallel"), "MODEL.INIT_WEIGHTS", "some.pth"],
            "MODEL.INIT_WEIGHTS: each chain of TRAINER.REBAPL.CHAINS parallel",
        ),
        (
            [*cycles(4, 2, CHAINS="parallel"), "OPTIM.WARMUP_EPOCH", "2"],
            "OPTIM.WARMUP_EPOCH 2: a chain of CHAINS parallel has OPTIM.CYCLE_EPOCHS 2",
        ),
    ],
)
def test_a_setting_that_does_not_fit(data, tmp_path, capsys, opts, line):
    assert_refused("ReBaPL_MaPLe", data, tmp_path, capsys, line, *opts)


def test_coops_images_do_not_change(data, tmp_path, capsys):
    opts = cycles(3, 3, features="image")
    assert_refused("ReBaPL_CoOp", data, tmp_path, capsys, "REPULSION.FEATURES image", *opts)
