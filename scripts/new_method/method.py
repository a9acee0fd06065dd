"""NewMethod (paper, year): what it adds. To begin with, learned vectors behind the patches."""

import torch
from torch import Tensor, nn
from yacs.config import CfgNode

from clip.model import CLIP
from dassl.engine import TRAINER_REGISTRY

from .base import CLIPTrainer
from .prompt_text import hand_crafted_features, zero_shot_template


def add_config(cfg: CfgNode) -> None:
    node = cfg.TRAINER.NEWMETHOD = CfgNode()
    node.N_CTX = 4  # learned vectors
    node.PREC = "fp16"  # fp16, bf16, fp32, tf32, amp


class VisualPrompts(nn.Module):
    def __init__(self, n_ctx: int, clip_model: CLIP, class_features: Tensor):
        super().__init__()
        width = clip_model.visual.transformer.width
        self.ctx = nn.Parameter(torch.empty(n_ctx, width).normal_(std=0.02))
        self.register_buffer("class_features", class_features, persistent=False)

    def text_features(self, clip_model: CLIP) -> Tensor:  # (C, D)
        return self.class_features

    def image_features(self, clip_model: CLIP, image: Tensor) -> Tensor:  # (B, D)
        return clip_model.encode_image(image, self.ctx[None])


@TRAINER_REGISTRY.register()
class NewMethod(CLIPTrainer):
    node_name = "NEWMETHOD"
    class_rows = ()  # saved tensors that have a row for each class

    def build_learner(self, clip_model: CLIP, classnames: list[str]) -> nn.Module:
        features = hand_crafted_features(clip_model, classnames, [zero_shot_template(self.cfg)])
        return VisualPrompts(self.node.N_CTX, clip_model, features)
