"""MMA (Yang et al., CVPR 2024): adapters in the upper blocks of both towers, sharing a layer."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from yacs.config import CfgNode

from clip.model import CLIP, Adapt
from dassl.engine import TRAINER_REGISTRY
from dassl.utils.errors import UsageError

from .base import CLIPTrainer
from .prompt_text import PromptText, ctx_words


def add_config(cfg: CfgNode) -> None:
    node = cfg.TRAINER.MMADAPTER = CfgNode()
    node.TEXT_CTX_INIT = "a photo of a"
    node.PREC = "amp"  # fp16, bf16, fp32, tf32, amp
    node.ADAPTER_START = 5  # first and last block with an adapter, counted from 1
    node.ADAPTER_END = 12
    node.ADAPTER_DIM = 32
    node.ADAPTER_SCALE = 0.001


class Scaled(torch.autograd.Function):
    """Multiplies by one factor forward and by another backward."""

    @staticmethod
    def forward(ctx, x: Tensor, forward: float, backward: float) -> Tensor:
        ctx.factor = backward
        return x * forward

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:
        return grad * ctx.factor, None, None


def narrow(width: int, dim: int) -> nn.Sequential:
    """(…, width) -> (…, dim)."""
    return nn.Sequential(nn.Linear(width, dim), nn.ReLU())


def around(width: int, dim: int) -> nn.Sequential:
    """Down to dim; the shared layer comes between; up again."""
    layers = nn.Sequential()
    layers.add_module("down", narrow(width, dim))
    layers.add_module("up", nn.Linear(dim, width))
    return layers


class Adapters(nn.Module):
    """text_adapter, visual_adapter and shared_adapter: {block, counted from 1: layers} each."""

    def __init__(self, node: CfgNode, clip_model: CLIP, classnames: list[str]):
        super().__init__()
        text, vision = clip_model.transformer, clip_model.visual.transformer
        first, last, dim = node.ADAPTER_START, node.ADAPTER_END, node.ADAPTER_DIM
        depth = min(text.layers, vision.layers)
        if not 1 <= first <= last <= depth:
            given = f"TRAINER.MMADAPTER.ADAPTER_START {first}, ADAPTER_END {last}"
            raise UsageError(f"{given}: this CLIP's towers have blocks 1 to {depth}")
        self.scale = node.ADAPTER_SCALE
        blocks = [str(block) for block in range(first, last + 1)]
        self.text_adapter = nn.ModuleDict({block: around(text.width, dim) for block in blocks})
        self.visual_adapter = nn.ModuleDict({block: around(vision.width, dim) for block in blocks})
        self.shared_adapter = nn.ModuleDict({block: narrow(dim, dim) for block in blocks})
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(layer.bias)
        self.text = PromptText(clip_model, classnames, [ctx_words(node.TEXT_CTX_INIT)])

    def adapt(self, tower: nn.ModuleDict) -> Adapt:
        """What is added to the outputs of a tower's blocks (eq. 3 to 5).

        Scaled by s, the adapters' own gradients would be too small to train them, so they are
        divided by s again; those that go on to earlier blocks are not.
        """

        def of_block(name: str) -> Callable[[Tensor], Tensor]:
            down, up, shared = tower[name].down, tower[name].up, self.shared_adapter[name]

            def adapter(h: Tensor) -> Tensor:
                x = Scaled.apply(h.to(up.weight.dtype), 1.0, self.scale)
                return Scaled.apply(up(shared(down(x))), self.scale, 1.0).to(h.dtype)

            return adapter

        return {int(name) - 1: of_block(name) for name in tower}

    def text_features(self, clip_model: CLIP) -> Tensor:
        """(C, D), not normalised."""
        adapt = self.adapt(self.text_adapter)
        return self.text.encode(clip_model, adapt=adapt, shared=True)[0]

    def image_features(self, clip_model: CLIP, image: Tensor) -> Tensor:
        """(B, 3, R, R) -> (B, D), not normalised."""
        return clip_model.encode_image(image, adapt=self.adapt(self.visual_adapter))


@TRAINER_REGISTRY.register()
class MultiModalAdapter(CLIPTrainer):
    node_name = "MMADAPTER"
    class_rows = ()
    model_name = "adapter_learner"
    graphed = divisible = True

    def check_cfg(self, cfg: CfgNode) -> None:
        super().check_cfg(cfg)
        node = cfg.TRAINER.MMADAPTER
        if node.ADAPTER_DIM < 1 or node.ADAPTER_SCALE <= 0:
            given = f"ADAPTER_DIM {node.ADAPTER_DIM}, ADAPTER_SCALE {node.ADAPTER_SCALE}"
            raise UsageError(f"TRAINER.MMADAPTER.{given}: must be 1 or more, and above 0")

    def build_learner(self, clip_model: CLIP, classnames: list[str]) -> nn.Module:
        return Adapters(self.node, clip_model, classnames)

    def clean_state_dict(self, name: str, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Without upstream's copies of the class names' tokens."""
        unused = "token_embedding", "tokenized_prompts"
        return {k: v for k, v in state_dict.items() if k not in unused}
