"""CoCoOp (Zhou et al., CVPR 2022): each image shifts the context and has its own text features."""

from collections import OrderedDict
from collections.abc import Sequence

from torch import Tensor, nn
from yacs.config import CfgNode

from clip.model import CLIP
from dassl.engine import TRAINER_REGISTRY

from .coop import CoOp, PromptLearner
from .draws import ConditionalCLIP


def add_config(cfg: CfgNode) -> None:
    node = cfg.TRAINER.COCOOP = CfgNode()
    node.N_CTX = 16
    node.CTX_INIT = None  # words to start from, which then also set N_CTX; none: random
    node.PREC = "fp16"  # fp16, bf16, fp32, tf32, amp


class ConditionalPromptLearner(PromptLearner):
    """`meta_net` makes of an image's feature (D) a vector (W) that is added to ctx (§3.2)."""

    def __init__(self, clip_model: CLIP, classnames: Sequence[str], n_ctx: int, words, **options):
        super().__init__(clip_model, classnames, n_ctx, words, **options)
        dim, width = clip_model.visual.output_dim, clip_model.transformer.width
        first, second = nn.Linear(dim, dim // 16), nn.Linear(dim // 16, width)
        layers = OrderedDict(linear1=first, relu=nn.ReLU(), linear2=second)
        self.meta_net = nn.Sequential(layers)

    def conditional_text_features(self, clip_model: CLIP, image_features: Tensor) -> Tensor:
        """(B, D) unit length -> (B, C, D), not normalised."""
        shift = self.meta_net(image_features)[:, None]  # (B, 1, W)
        vectors = self.vectors()
        return self.text.encode(clip_model, vectors | {"ctx": vectors["ctx"] + shift})


class CoCoOpCLIP(ConditionalCLIP):
    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, R, R) -> logits (B, C), float32."""
        features = self.image_features(image)
        return self.conditional_logits(features, features)


@TRAINER_REGISTRY.register()
class CoCoOp(CoOp):
    frozen_image_tower = graphed = divisible = takes_attributes = True
    node_name = "COCOOP"
    model_class = CoCoOpCLIP

    def build_learner(self, clip_model: CLIP, classnames: list[str]) -> nn.Module:
        n_ctx, words = self.start()
        return ConditionalPromptLearner(
            clip_model,
            classnames,
            n_ctx,
            words,
            att=self.cfg.TRAINER.ATPROMPT,
            attributes=self.attributes(),
        )


@TRAINER_REGISTRY.register()
class CoCoOp_ATP(CoCoOp):
    """With ATPrompt's attributes (Li et al., 2024), which the image does not shift."""

    frozen_image_tower = graphed = divisible = takes_attributes = always_attributes = True
