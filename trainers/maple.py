"""MaPLe (Khattak et al., CVPR 2023): deep prompts in both towers, the image tower's made from the
text tower's."""

from yacs.config import CfgNode

from dassl.engine import TRAINER_REGISTRY

from .multimodal import MultiModalTrainer


def add_config(cfg: CfgNode) -> None:
    cfg.TRAINER.MAPLE = CfgNode()
    cfg.TRAINER.MAPLE.N_CTX = 2
    cfg.TRAINER.MAPLE.CTX_INIT = "a photo of a"  # "": random
    cfg.TRAINER.MAPLE.PREC = "fp16"  # fp16, bf16, fp32, amp
    cfg.TRAINER.MAPLE.PROMPT_DEPTH = 9  # blocks that get prompts, the input counted as the first


@TRAINER_REGISTRY.register()
class MaPLe(MultiModalTrainer):
    """Its learner is in multimodal.py, as P2C builds on it."""

    @property
    def node(self) -> CfgNode:
        return self.cfg.TRAINER.MAPLE


@TRAINER_REGISTRY.register()
class MaPLe_ATP(MaPLe):
    """MaPLe with ATPrompt's attributes (Li et al., 2024)."""

    always_attributes = True
