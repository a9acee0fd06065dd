"""Training steps of several processes that share a batch, beside those of one.

In double precision, as rounding grows from step to step. All methods in one start of the processes.
"""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from dassl.engine import TrainerX
from dassl.utils import ranks
from tests.ranked import ranked
from tests.runs import CONFIGS
from tests.trainers.methods import build, in_double, shake, uneven_names
from trainers.shared_classes import Share

IMAGES = 5  # so the parts differ in size
STEPS = 20
KEPT = (0, 1, STEPS - 1)  # the steps whose gradients and parameters are compared, beside the losses
# What follows a method's name tells its cases apart.
OPTIONS = {
    "BayesianPrompt": ("TRAINER.VPT.L", "3"),
    "BayesianPrompt of all": ("TRAINER.VPT.L", "3", "TRAINER.VPT.VPT_TYPE", "coopvpt"),
    "CoOp csc": ("TRAINER.COOP.CSC", "True", "TRAINER.COOP.CTX_INIT", ""),
    "EMPL": ("TRAINER.EMPL.SAMPLES", "2", "TRAINER.EMPL.STEPS", "1"),
    "EMPL unrolled": ("TRAINER.EMPL.META", "unrolled", "TRAINER.EMPL.SAMPLES", "2"),
    "VaMP of all": ("TRAINER.VAMP.SAMPLE_SPECIFIC", "False", "TRAINER.VAMP.TRAIN_SAMPLES", "2"),
}
METHODS = {name for name in CONFIGS if "Zeroshot" not in name}
CASES = sorted(METHODS | OPTIONS.keys())
Way = list[dict[str, Tensor]]  # of each step the losses; of some the gradients, the parameters


def prepared(case: str, data: Path, out: Path, weights: dict[str, Tensor], *opts) -> TrainerX:
    name = case.split()[0]
    trainer = build(name, data, out, weights, *OPTIONS.get(case, ()), *opts)
    in_double(trainer)
    shake(trainer.model.learner)
    trainer.num_batches = 100  # no epoch ends, so the rate stays
    trainer.max_epoch = 3
    trainer.before_epoch()
    for group in trainer.optim.param_groups:
        group["lr"] = 0.01
    if "VaMP" in name:
        trainer.prototypes = torch.randn(16, trainer.model.clip.visual.output_dim).double()
    if "ReBaPL" in name:  # in a second cycle, while it samples
        if name != "ReBaPL_CoOp":
            trainer.references = torch.randn(6, 3, *trainer.cfg.INPUT.SIZE).double()
        trainer.before = [trainer.representation(trainer.frozen_copy(), trainer.all_rows())]
        shake(trainer.model.learner, by=0.01)
        for group in trainer.optim.param_groups:
            group["noise"] = 1e-3
    return trainer


def way(trainer: TrainerX) -> Way:
    """What STEPS training steps on random images give."""
    generator, found = torch.Generator().manual_seed(1), []
    torch.manual_seed(5)
    for step in range(STEPS):
        image = torch.randn(
            IMAGES, 3, *trainer.cfg.INPUT.SIZE, generator=generator, dtype=torch.float64
        )
        label = torch.randint(16, (IMAGES,), generator=generator)
        trainer.batch_idx = step
        log = trainer.forward_backward({"img": image, "label": label, "domain": label})
        now = {f"logged {name}": torch.as_tensor(value).clone() for name, value in log.items()}
        for name, p in trainer.model.learner.named_parameters() if step in KEPT else ():
            now[name] = p.detach().clone()
            if p.grad is not None:
                now[f"gradient of {name}"] = p.grad.clone()
        found.append(now)
    return found


def ways(data: Path, out: Path, weights: dict[str, Tensor], *opts) -> dict[str, Way]:
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        uneven_names(patch)
        for case in CASES:
            trainer = prepared(case, data, out / case, weights, *opts)
            found[case] = way(trainer)
    return found


@pytest.fixture(scope="module")
def alone(data, weights, tmp_path_factory) -> dict[str, Way]:
    return ways(data, tmp_path_factory.mktemp("alone"), weights)


@pytest.mark.parametrize(
    "processes, share_classes", [(2, "1000"), (3, "2")], ids=["images", "images and classes"]
)
def test_steps_are_those_of_one_process(processes, share_classes, alone, data, weights, tmp_path):
    def main() -> None:
        ranks.join()
        gather, gathered = Share.gather, []
        Share.gather = lambda *given: gathered.append(1) or gather(*given)
        out = tmp_path / f"{ranks.turns(range(processes))[0]}"
        torch.save(ways(data, out, weights, "TRAIN.SHARE_CLASSES", share_classes), f"{out}.pt")
        assert bool(gathered) == (share_classes == "2")
        ranks.end()

    done = ranked(main, processes, tmp_path)
    assert all(d.code == 0 for d in done), [(d.code, d.err) for d in done]
    for rank in range(processes):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for case in CASES:
            for step, (one, several) in enumerate(zip(alone[case], found[case], strict=True)):
                assert one.keys() == several.keys()
                for name, expected in one.items():
                    gap = (several[name] - expected).norm()
                    assert gap <= 1e-9 * expected.norm(), (case, step, name, gap)


def test_the_cases_move(alone):
    """Or they would show nothing: loss and gradients differ from step to step."""
    for case, steps in alone.items():
        assert steps[0]["logged " + ("xe_loss" if case == "ProGrad" else "loss")] > 0
        for name in steps[0]:
            if name.startswith("gradient of"):
                assert not torch.equal(steps[0][name], steps[1][name]), (case, name)
