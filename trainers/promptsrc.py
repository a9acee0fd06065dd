"""PromptSRC (Khattak et al., ICCV 2023): prompts in both towers, held to what frozen CLIP knows."""

from collections.abc import Mapping
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from yacs.config import CfgNode

from clip.model import CLIP
from clip.simple_tokenizer import open_clip_file
from dassl.engine import TRAINER_REGISTRY
from dassl.utils.errors import Failure, UsageError

from .base import CLIPTrainer
from .coop import PromptLearner
from .frozen_clip import check_depth
from .prompt_text import ctx_words, hand_crafted_features


def add_config(cfg: CfgNode) -> None:
    node = cfg.TRAINER.PROMPTSRC = CfgNode()
    node.N_CTX_VISION = node.N_CTX_TEXT = 4
    node.CTX_INIT = "a photo of a"  # for the text; "": random
    node.PREC = "fp16"  # fp16, bf16, fp32, tf32, amp
    # Blocks that get prompts, the input counted as the first.
    node.PROMPT_DEPTH_VISION = node.PROMPT_DEPTH_TEXT = 9
    node.TEXT_LOSS_WEIGHT = 25.0
    node.IMAGE_LOSS_WEIGHT = 10.0
    node.GPA_MEAN = 15.0  # Gaussian weights of the epochs, counted from 1, in the final average
    node.GPA_STD = 1.0


def deep_prompts(depth: int, n_ctx: int, width: int) -> nn.ModuleDict:
    """The prompts (n_ctx, width) of blocks 1 … depth − 1 under upstream's names."""

    def block() -> nn.ParameterDict:
        return nn.ParameterDict({"VPT_shallow": torch.empty(n_ctx, width).normal_(std=0.02)})

    blocks = nn.ModuleDict({str(i): block() for i in range(1, depth)})
    return nn.ModuleDict({"transformer": nn.ModuleDict({"resblocks": blocks})})


def by_block(tower: nn.ModuleDict) -> dict[int, Tensor]:
    """{block: prompts (n_ctx, width)}."""
    return {int(i): block["VPT_shallow"] for i, block in tower["transformer"]["resblocks"].items()}


class VLPromptLearner(nn.Module):
    """Prompts of both towers; nothing connects them."""

    def __init__(self, node: CfgNode, clip_model: CLIP, classnames: list[str]):
        super().__init__()
        text, vision = clip_model.transformer, clip_model.visual.transformer
        check_depth("TRAINER.PROMPTSRC.PROMPT_DEPTH_TEXT", node.PROMPT_DEPTH_TEXT, text)
        check_depth("TRAINER.PROMPTSRC.PROMPT_DEPTH_VISION", node.PROMPT_DEPTH_VISION, vision)
        n_text, n_vision = node.N_CTX_TEXT, node.N_CTX_VISION
        if n_vision < 1:
            raise UsageError(f"TRAINER.PROMPTSRC.N_CTX_VISION {n_vision}: must be 1 or more")
        words = ctx_words(node.CTX_INIT)
        self.prompt_learner = PromptLearner(clip_model, classnames, n_text, words)
        self.text_encoder = deep_prompts(node.PROMPT_DEPTH_TEXT, n_text, text.width)
        self.image_encoder = deep_prompts(node.PROMPT_DEPTH_VISION, n_vision, vision.width)
        vpt = torch.empty(n_vision, vision.width).normal_(std=0.02)
        self.image_encoder.register_parameter("VPT", nn.Parameter(vpt))

    def text_features(self, clip_model: CLIP) -> Tensor:
        """(C, D), not normalised."""
        learner = self.prompt_learner
        where = learner.text.where["ctx"]  # the deep prompts replace ctx
        deep = {block: (where, p[None, None]) for block, p in by_block(self.text_encoder).items()}
        return learner.text.encode(clip_model, learner.vectors(), deep, shared=True)[0]

    def image_features(self, clip_model: CLIP, image: Tensor) -> Tensor:
        """(B, 3, R, R) -> (B, D), not normalised."""
        deep = {block: p[None] for block, p in by_block(self.image_encoder).items()}
        return clip_model.encode_image(image, self.image_encoder.VPT[None], deep)


@TRAINER_REGISTRY.register()
class PromptSRC(CLIPTrainer):
    node_name = "PROMPTSRC"
    class_rows = ()
    model_name = "VLPromptLearner"
    graphed = divisible = True

    def check_cfg(self, cfg: CfgNode) -> None:
        super().check_cfg(cfg)
        std = cfg.TRAINER.PROMPTSRC.GPA_STD
        if std <= 0:
            raise UsageError(f"TRAINER.PROMPTSRC.GPA_STD {std}: must be above 0")

    def build_learner(self, clip_model: CLIP, classnames: list[str]) -> nn.Module:
        self.average: dict[str, Tensor] = {}
        return VLPromptLearner(self.node, clip_model, classnames)

    @cached_property
    def teacher(self) -> Tensor:
        """(C, D), unit length: the mean over 60 templates, computed when training begins."""
        templates = open_clip_file("zero_shot_metadata").OPENAI_IMAGENET_TEMPLATES[:60]
        return hand_crafted_features(
            self.model.clip,
            self.classnames,
            templates=[template("{}") for template in templates],
            each_normalized=False,
        )

    def loss(self, image: Tensor, label: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """L_CE + λ₁ L_SCL-text + λ₂ L_SCL-image + L_SCL-logits (eq. 2 to 5)."""
        model, node = self.model, self.node
        text, visual = model.text_features(), model.image_features(image)
        frozen = model.frozen_image_features(image)
        logits = model.logits(visual, text)
        log_p = F.log_softmax(logits, dim=-1)
        zero_shot = F.log_softmax(model.logits(frozen, self.teacher), dim=-1)
        kl = F.kl_div(log_p, zero_shot, reduction="sum", log_target=True) / logits.numel()
        near_text = node.TEXT_LOSS_WEIGHT * F.l1_loss(text, self.teacher)
        near_image = node.IMAGE_LOSS_WEIGHT * F.l1_loss(visual, frozen)
        loss = F.cross_entropy(logits, label) + near_text + near_image + kl
        return loss, {"text": near_text.detach(), "image": near_image.detach(), "kl": kl.detach()}

    def after_epoch(self) -> None:
        """Adds the epoch's prompts to the average; after the last it is the model (§3.3, GPA)."""
        epochs = torch.arange(1, self.max_epoch + 1, dtype=torch.float64)
        weights = (-0.5 * ((epochs - self.node.GPA_MEAN) / self.node.GPA_STD) ** 2).softmax(0)
        for key, p in self.model.learner.state_dict().items():
            self.average[key] = self.average.get(key, 0) + float(weights[self.epoch]) * p
        if self.epoch + 1 == self.max_epoch:
            print("The model is now the average over the epochs")
            self.model.learner.load_state_dict(self.average)
        super().after_epoch()

    def state_to_resume(self) -> dict:
        return super().state_to_resume() | {"average": self.average, "max_epoch": self.max_epoch}

    def resume_state(self, state: Mapping) -> None:
        super().resume_state(state)
        if "average" not in state:
            why = "The checkpoint has no average over its epochs, as upstream's have none"
            raise Failure(f"{why}: train from scratch")
        before = state.get("max_epoch", self.max_epoch)  # older files have none
        if before != self.max_epoch:
            line = f"OPTIM.MAX_EPOCH {self.max_epoch}: the weights of the average are those of"
            so = "so the training cannot go on with another number: train from scratch"
            raise UsageError(f"{line} {before} epochs, {so}")
        self.average = {key: value.to(self.device) for key, value in state["average"].items()}

    def clean_state_dict(self, name: str, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The prompts: upstream's files hold two whole CLIPs too."""
        return {k: v for k, v in state_dict.items() if "VPT" in k or k == "prompt_learner.ctx"}
