"""The parameters after 20 training steps, against PyTorch's plain optimizers on the references'
gradients.

In double precision, as rounding grows from step to step: in single precision they are 1e-3 of the
    way apart then.
MaPLe, with its own batches and learning rates, is in tests/test_train.py.
"""

from functools import partial

import pytest
import torch

from reference import (
    bpl_plain,
    cocoop_plain,
    coop_plain,
    empl_plain,
    kgcoop_plain,
    maple_plain,
    mma_plain,
    mmrl_plain,
    mmrlpp_plain,
    prograd_plain,
    promptsrc_plain,
    tcp_plain,
)
from reference.clip_plain import PlainCLIP
from tests.trainers.methods import (
    build,
    class_names,
    in_double,
    parameters,
    shake,
    two_templates,
    upper_layers,
)

STEPS, CLASSES = 20, 16
sgd = partial(torch.optim.SGD, lr=0.01, momentum=0.9, weight_decay=5e-4)
adamw = partial(torch.optim.AdamW, lr=0.01, betas=(0.9, 0.999), weight_decay=5e-4)
adam = partial(torch.optim.Adam, lr=0.01, betas=(0.9, 0.999), eps=1e-3, weight_decay=5e-4)


def prograd(plain, prompts, names, image, label):
    return prograd_plain.final_gradients(
        *prograd_plain.losses(plain, prompts, names, image, label), prompts
    )


def p2c(plain, prompts, names, image, label):
    loss = maple_plain.maple_forward(
        plain, prompts, names, image, label, attributes=("color", "shape")
    ).loss
    return maple_plain.gradients(loss, prompts)


def upper(loss):
    """The gradients of a reference's loss, with tokens in all blocks but the first."""
    return lambda plain, prompts, *rest: maple_plain.gradients(
        loss(plain, prompts, *rest, layers=upper_layers(plain.state_dict())), prompts
    )


def mma(plain, prompts, names, image, label):
    return mma_plain.gradients(mma_plain.loss(plain, prompts, names, image, label), prompts)


def bpl(plain, prompts, names, image, label):
    rows = 1 if "mean_posterior" in prompts else len(image)
    noise = torch.randn(rows, 2, prompts["ctx"].shape[1], dtype=torch.float64)
    loss = bpl_plain.loss(plain, prompts, names, image, label, noise.expand(len(image), -1, -1))
    return maple_plain.gradients(loss, prompts)


def empl(plain, prompts, names, image, label):
    """With the step's own draws."""
    noise = torch.randn(len(image), 2, 1 + 1, *prompts["ctx"].shape, dtype=image.dtype)
    settings = empl_plain.Settings()
    loss = empl_plain.loss(plain, prompts, names, image, label, noise, settings)
    return maple_plain.gradients(loss, prompts)


def of(loss, **settings):
    """The gradients of a reference's loss."""
    return lambda plain, prompts, *rest: maple_plain.gradients(
        loss(plain, prompts, *rest, **settings), prompts
    )


# A method, and settings.
CASES = {
    "CoOp": (sgd, of(coop_plain.loss)),
    "CoOp_ATP": (sgd, of(coop_plain.loss, attributes=("color", "shape"))),
    "CoCoOp": (sgd, of(cocoop_plain.loss)),
    "KgCoOp": (sgd, of(kgcoop_plain.loss)),
    "ProGrad": (sgd, prograd),
    "PromptSRC": (sgd, of(promptsrc_plain.loss)),
    "TCP": (adam, of(tcp_plain.loss, layer=2)),
    "MultiModalAdapter": (sgd, mma),
    "MMRL": (adamw, upper(mmrl_plain.loss)),
    "MMRLpp": (adamw, upper(mmrlpp_plain.loss)),
    "EMPL TRAINER.EMPL.SAMPLES 2 TRAINER.EMPL.STEPS 1": (sgd, empl),
    "P2C TRAINER.P2C.DPD.ENABLED False TRAINER.P2C.AUX.ENABLED False": (sgd, p2c),
    "BayesianPrompt TRAINER.VPT.L 2": (sgd, bpl),
    "BayesianPrompt TRAINER.VPT.L 2 TRAINER.VPT.VPT_TYPE coopvpt": (sgd, bpl),
    "ReBaPL_CoOp": (sgd, of(coop_plain.loss)),  # in its first cycle; the others: test_rebapl.py
    "ReBaPL_MMRL": (adamw, upper(mmrl_plain.loss)),
    "ReBaPL_P2C TRAINER.P2C.DPD.ENABLED False TRAINER.P2C.AUX.ENABLED False": (sgd, p2c),
}


@pytest.mark.parametrize("method", CASES)
def test_parameters_after_20_steps(method, data, tmp_path, weights, monkeypatch):
    two_templates(monkeypatch)
    optimizer, gradients = CASES[method]
    method, *opts = method.split()
    trainer = build(method, data, tmp_path, weights, *opts)
    in_double(trainer)
    shake(trainer.model.learner)
    trainer.num_batches = STEPS + 1  # no epoch ends, so the rate stays
    trainer.before_epoch()
    for group in trainer.optim.param_groups:
        group["lr"] = 0.01
    prompts, names, plain = (
        parameters(trainer),
        class_names(trainer),
        PlainCLIP(weights, torch.float64),
    )
    start = {name: p.detach().clone() for name, p in prompts.items()}
    reference = optimizer(prompts.values(), foreach=False)
    generator = torch.Generator().manual_seed(1)
    size = weights["input_resolution"].item()
    for step in range(STEPS):
        image = torch.randn(2, 3, size, size, generator=generator, dtype=torch.float64)
        label = torch.randint(CLASSES, (2,), generator=generator)
        trainer.batch_idx = step
        torch.manual_seed(step)  # both draw the same
        trainer.forward_backward({"img": image, "label": label, "domain": label})
        torch.manual_seed(step)
        for name, gradient in gradients(plain, prompts, names, image, label).items():
            prompts[name].grad = gradient
        reference.step()
    got = dict(trainer.model.learner.named_parameters())
    for name, p in prompts.items():
        moved = (p - start[name]).norm()
        assert moved > 0 or p.grad is None, name
        tolerance = (
            1e-5 if method == "TCP" else 1e-9
        )  # its teacher is made with the trainer, in single precision
        assert (got[name] - p).norm() <= tolerance * moved, name
