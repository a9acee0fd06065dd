"""MMRL++ (Guo & Gu, IJCV 2026): MMRL with fewer parameters, its tokens mixed from block to block.

All blocks of a tower share one matrix, to which each adds a low-rank change of its own; the second
projection is CLIP's with a low-rank change. A block's new tokens are mixed with the block before's
outputs at their places.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from yacs.config import CfgNode

from clip.model import CLIP, Prompts
from dassl.config import allow
from dassl.engine import TRAINER_REGISTRY

from .mmrl import MMRL, MultiModalRepresentationLearner, mmrl_node


def add_config(cfg: CfgNode) -> None:
    node = cfg.TRAINER.MMRLpp = mmrl_node()
    node.RES_LORA_DIM = 4  # rank of each block's change
    node.PROJ_LORA_DIM = 64  # rank of the projection's change
    node.BETA = 0.9  # weight of the new tokens in the mixture; 1: no mixture, as MMRL


allow("from 1 to 1000", lambda v: 1 <= v <= 1000, "RES_LORA_DIM PROJ_LORA_DIM")
allow("from 0 to 1", lambda v: 0 <= v <= 1, "MMRLpp.BETA")


def low_rank(rows: int, rank: int, columns: int) -> dict[str, Tensor]:
    """A (rows, rank) and B (rank, columns), whose product starts as 0."""
    a = nn.init.kaiming_uniform_(torch.empty(rows, rank), a=math.sqrt(5))
    return {"A": a, "B": torch.zeros(rank, columns)}


class SharedAligner(nn.Module):
    """A Linear for each listed block, (K, d) -> (K, width): the same but for low rank and bias."""

    def __init__(self, linear: nn.Linear, blocks: int, rank: int):
        super().__init__()
        self.weight, bias = nn.Parameter(linear.weight.detach().clone()), linear.bias.detach()
        rows, columns = linear.weight.shape
        own = [low_rank(rows, rank, columns) | {"bias": bias.clone()} for _ in range(blocks)]
        self.srra = nn.ModuleList(nn.ParameterDict(tensors) for tensors in own)

    def forward(self, r: Tensor) -> list[Tensor]:
        return [F.linear(r, self.weight + own["A"] @ own["B"], own["bias"]) for own in self.srra]


class LowRankSpace(nn.Module):
    """K vectors R (K, d), and an aligner to either tower's width."""

    def __init__(self, node: CfgNode, clip_model: CLIP):
        super().__init__()
        r = torch.empty(node.N_REP_TOKENS, node.REP_DIM).normal_(std=0.02)
        self.compound_rep_tokens = nn.Parameter(r)
        to_image = nn.Linear(node.REP_DIM, clip_model.visual.transformer.width)
        to_text = nn.Linear(node.REP_DIM, clip_model.transformer.width)
        blocks, rank = len(node.REP_LAYERS), node.RES_LORA_DIM
        self.srra_r2vproj = SharedAligner(to_image, blocks, rank)
        self.srra_r2tproj = SharedAligner(to_text, blocks, rank)

    def image_tokens(self) -> list[Tensor]:
        """(K, Wv) for each listed block."""
        return self.srra_r2vproj(self.compound_rep_tokens)

    def text_tokens(self) -> list[Tensor]:
        """(K, W) for each listed block."""
        return self.srra_r2tproj(self.compound_rep_tokens)


class ProgressiveLearner(MultiModalRepresentationLearner):
    space_class = LowRankSpace

    def start_projection(self, shape: torch.Size) -> dict[str, Tensor]:
        return low_rank(shape[0], self.node.PROJ_LORA_DIM, shape[1])

    def projection(self, clip_model: CLIP) -> Tensor:
        """(Wv, D), which starts as CLIP's."""
        return clip_model.visual.proj + self.image_encoder["A"] @ self.image_encoder["B"]

    def compose(self, tokens: Tensor) -> Prompts:
        """β of these, and 1 − β of the block before's outputs at the tokens' places."""
        beta = self.node.BETA
        return lambda older: beta * tokens + (1 - beta) * older


@TRAINER_REGISTRY.register()
class MMRLpp(MMRL):
    node_name = "MMRLpp"
    learner_class = ProgressiveLearner
    graphed = divisible = True
