"""KgCoOp (Yao et al., CVPR 2023): CoOp whose text features are kept near those of hand-crafted
prompts."""

from collections.abc import Mapping
from functools import cached_property

from torch import Tensor

from dassl.engine import TRAINER_REGISTRY

from .context import ContextTrainer
from .prompt_text import hand_crafted_features, zero_shot_template

TEACHER = {"DescribableTextures": "a photo of a {}, a type of texture."}


@TRAINER_REGISTRY.register()
class KgCoOp(ContextTrainer):
    frozen_image_tower = True

    @cached_property
    def teacher(self) -> Tensor:
        """(C, D), unit length, computed when training begins."""
        return hand_crafted_features(
            self.model.clip, self.classnames, [zero_shot_template(self.cfg, TEACHER)]
        )

    def loss(self, image: Tensor, label: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross-entropy + W · (1 − mean over classes of cos(text, teacher)).

        For unit vectors eq. 4's ‖w − w′‖² is 2 (1 − cos): as in the published code, W weighs half
        of it.
        """
        return self.loss_near(self.teacher, self.node.W, image, label)

    def clean_state_dict(self, name: str, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Without what upstream's files hold and nothing uses."""
        return {
            k: v
            for k, v in state_dict.items()
            if k != "bias_vectors" and not k.startswith("meta_net.")
        }
