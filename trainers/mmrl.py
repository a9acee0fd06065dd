"""MMRL (Guo & Gu, CVPR 2025): in both towers' upper blocks, tokens projected from one shared space.

An image has two features: its class token's, through CLIP's own projection, and that of its
representation tokens, through a learned one.
"""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from yacs.config import CfgNode

from clip.clip import _tokenizer
from clip.model import CLIP, Prompts
from dassl.config import allow, recorded_value
from dassl.engine import TRAINER_REGISTRY
from dassl.utils.errors import UsageError

from .base import CLIPTrainer, CustomCLIP
from .prompt_text import PromptText, hand_crafted_features, zero_shot_template


def mmrl_node() -> CfgNode:
    node = CfgNode()
    node.N_REP_TOKENS = 5
    node.REP_LAYERS = [6, 7, 8, 9, 10, 11, 12]  # blocks that get tokens, counted from 1
    node.REP_DIM = 512  # of the shared space
    node.PREC = "amp"  # fp16, bf16, fp32, tf32, amp
    node.ALPHA = 0.7  # weight of the class token's logits; of the others': 1 - ALPHA
    node.REG_WEIGHT = 1.0  # λ, weight of what holds the features near frozen CLIP's
    node.FUSE = "auto"  # which logits a test reads: auto, fused, class; see MMRL.fuses
    node.FUSE_WHAT = "logits"  # logits, probabilities
    return node


def add_config(cfg: CfgNode) -> None:
    cfg.TASK = ""  # upstream's B2N, FS or CD, which decides where FUSE is auto
    cfg.TRAINER.MMRL = mmrl_node()


allow("from 1 to 1000", lambda v: 1 <= v <= 1000, "N_REP_TOKENS")
allow("from 1 to 10000", lambda v: 1 <= v <= 10**4, "REP_DIM")
allow("0 or more", lambda v: v >= 0, "REG_WEIGHT")
allow("from 0 to 1", lambda v: 0 <= v <= 1, "MMRL.ALPHA MMRLpp.ALPHA")
allow("auto, fused or class", lambda v: v in ("auto", "fused", "class"), "FUSE")
allow("logits or probabilities", lambda v: v in ("logits", "probabilities"), "FUSE_WHAT")
allow('B2N, FS, CD or ""', lambda v: v in ("B2N", "FS", "CD", ""), "TASK")


def listed_blocks(layers: Sequence[int], clip_model: CLIP) -> list[int]:
    """REP_LAYERS counted from 0. Raises UsageError unless both towers have them."""
    depth = min(clip_model.transformer.layers, clip_model.visual.transformer.layers)
    blocks = [layer - 1 for layer in layers if layer in range(1, depth + 1)]
    if not blocks or len(blocks) < len(layers) or blocks != sorted(set(blocks)):
        why = f"this CLIP's towers have blocks 1 to {depth}: list some, in ascending order"
        raise UsageError(f"REP_LAYERS {list(layers)}: {why}")
    return blocks


class SharedSpace(nn.Module):
    """K vectors R (K, d), and for each listed block a Linear to either tower's width."""

    def __init__(self, node: CfgNode, clip_model: CLIP):
        super().__init__()
        r = torch.empty(node.N_REP_TOKENS, node.REP_DIM).normal_(std=0.02)
        self.compound_rep_tokens = nn.Parameter(r)
        to_image = nn.Linear(node.REP_DIM, clip_model.visual.transformer.width)
        to_text = nn.Linear(node.REP_DIM, clip_model.transformer.width)
        blocks = range(len(node.REP_LAYERS))  # whose Linears start equal
        self.compound_rep_tokens_r2vproj = nn.ModuleList(deepcopy(to_image) for _ in blocks)
        self.compound_rep_tokens_r2tproj = nn.ModuleList(deepcopy(to_text) for _ in blocks)

    def image_tokens(self) -> list[Tensor]:
        """(K, Wv) for each listed block."""
        return [project(self.compound_rep_tokens) for project in self.compound_rep_tokens_r2vproj]

    def text_tokens(self) -> list[Tensor]:
        """(K, W) for each listed block."""
        return [project(self.compound_rep_tokens) for project in self.compound_rep_tokens_r2tproj]


class MultiModalRepresentationLearner(nn.Module):
    """The shared space, the second projection, and a prompt of words for each class.

    Below the first listed block both towers are CLIP's own, so what reaches that block of each
    class's text is computed once: `text_below` (1, P + T, W).
    """

    space_class = SharedSpace

    def __init__(self, node: CfgNode, clip_model: CLIP, classnames: Sequence[str], template: str):
        super().__init__()
        self.node, self.blocks = node, listed_blocks(node.REP_LAYERS, clip_model)
        self.representation_learner = self.space_class(node, clip_model)
        self.image_encoder = nn.ParameterDict(self.start_projection(clip_model.visual.proj.shape))
        before, ending = template.split("{}")
        self.text = PromptText(clip_model, classnames, [_tokenizer.encode(before)], ending=ending)
        self.keep_text_below(clip_model)

    def keep_text_below(self, clip_model: CLIP) -> None:
        below = self.text.tokens(clip_model, self.blocks[0])
        self.register_buffer("text_below", below, persistent=False)

    def start_projection(self, shape: torch.Size) -> dict[str, Tensor]:
        """The representation tokens' projection (Wv, D): random, not a copy of CLIP's."""
        return {"proj_rep": torch.randn(shape) * shape[0] ** -0.5}

    def projection(self, clip_model: CLIP) -> Tensor:
        """(Wv, D)."""
        return self.image_encoder["proj_rep"]

    def compose(self, tokens: Tensor) -> Prompts:
        """What a later listed block gets at the tokens' places: here these instead of its input."""
        return tokens

    def by_block(self, tokens: Sequence[Tensor]) -> dict[int, Prompts]:
        """{listed block: its tokens}."""
        first, *later = tokens
        return dict(zip(self.blocks, [first, *map(self.compose, later)], strict=True))

    def encode_text(
        self, clip_model: CLIP, tokens: Sequence[Tensor], shared: bool = False
    ) -> Tensor:
        """(G, C, D), not normalised: at the first listed block tokens appear behind SOS.

        tokens: (1 or G, 1 or C, K, W) for each listed block. shared: see PromptText.encode.
        """
        appear, replace = slice(1, 1), slice(1, 1 + tokens[0].shape[2])
        deep = {block: (replace, made) for block, made in self.by_block(tokens).items()}
        deep[self.blocks[0]] = appear, tokens[0]
        below, first = self.text_below, self.blocks[0]
        return self.text.encode_tokens(clip_model, below, first, deep, shared)

    def text_features(self, clip_model: CLIP) -> Tensor:
        """(C, D), not normalised."""
        tokens = [t[None, None] for t in self.representation_learner.text_tokens()]
        return self.encode_text(clip_model, tokens, shared=True)[0]

    def image_prompts(self) -> dict[int, Prompts]:
        return self.by_block([t[None] for t in self.representation_learner.image_tokens()])

    def image_features(self, clip_model: CLIP, image: Tensor) -> Tensor:
        """The class token's: (B, 3, R, R) -> (B, D), not normalised."""
        return clip_model.encode_image(image, deep=self.image_prompts())

    @torch.no_grad()
    def image_below(self, clip_model: CLIP, image: Tensor) -> Tensor:
        """What reaches the first listed block: (B, 3, R, R) -> (B, 1 + patches, Wv)."""
        return clip_model.image_tokens(image, self.blocks[0])

    def both_features(self, clip_model: CLIP, below: Tensor) -> tuple[Tensor, Tensor]:
        """Of `image_below`'s tokens the class token's feature and the others': (B, D) each."""
        prompts, first = self.image_prompts(), self.blocks[0]
        x = clip_model.encode_image_tokens(below, first, prompts, read_prompts=True)
        projection = self.projection(clip_model)
        rep = x[:, 1:].to(projection.dtype).mean(dim=1) @ projection
        return x[:, 0] @ clip_model.visual.proj, rep

    @torch.no_grad()
    def frozen_features(self, clip_model: CLIP, below: Tensor) -> Tensor:
        """CLIP's own, of `image_below`'s tokens: (B, D), not normalised."""
        x = clip_model.encode_image_tokens(below, self.blocks[0])
        return x[:, 0] @ clip_model.visual.proj


class MMRLCLIP(CustomCLIP):
    fused = True  # logits are of both features; False: of the class token's alone

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, R, R) -> logits (B, C), float32."""
        if not self.fused:
            return super().forward(image)
        text, node = self.text_features(), self.learner.node
        features = self.both_features(self.learner.image_below(self.clip, image))
        return fuse(node, *(self.logits(f, text) for f in features))

    def both_features(self, below: Tensor) -> tuple[Tensor, Tensor]:
        """The class token's and the others' (B, D), unit length, float32."""
        class_features, rep = self.learner.both_features(self.clip, below)
        return self.unit(class_features), self.unit(rep)


def fuse(node: CfgNode, class_logits: Tensor, rep_logits: Tensor) -> Tensor:
    """The logits (…, C) of a test that reads both features."""
    alpha = node.ALPHA
    if node.FUSE_WHAT == "logits":
        return alpha * class_logits + (1 - alpha) * rep_logits
    log_p = torch.stack([class_logits, rep_logits], dim=-1).log_softmax(dim=-2)
    return (log_p + log_p.new_tensor([alpha, 1 - alpha]).log()).logsumexp(dim=-1)


def mmrl_loss(
    node: CfgNode,
    label: Tensor,
    logits: tuple[Tensor, Tensor],
    image: tuple[Tensor, Tensor],
    text: tuple[Tensor, Tensor],
) -> tuple[Tensor, dict[str, Tensor]]:
    """α CE(class) + (1 − α) CE(rep) + λ (1 − cos(image, frozen)) + λ (1 − cos(text, frozen)).

    Args:
        logits: (B, C) of the class token's features and of the representation tokens'.
        image: the class token's features and frozen CLIP's, (B, D) of unit length.
        text: the texts' and frozen CLIP's, (…, C, D) of unit length.
    """
    of_class, of_rep = (F.cross_entropy(z, label) for z in logits)
    gaps = (1 - (ours * frozen).sum(dim=-1).mean() for ours, frozen in (image, text))
    near_image, near_text = (node.REG_WEIGHT * gap for gap in gaps)
    loss = node.ALPHA * of_class + (1 - node.ALPHA) * of_rep + near_image + near_text
    terms = {"class": of_class, "rep": of_rep, "image": near_image, "text": near_text}
    return loss, {name: term.detach() for name, term in terms.items()}


@TRAINER_REGISTRY.register()
class MMRL(CLIPTrainer):
    node_name = "MMRL"
    more_config = ("TASK",)
    class_rows = ()
    model_name = "MultiModalRepresentationLearner"
    model_class = MMRLCLIP
    learner_class = MultiModalRepresentationLearner
    graphed = divisible = True

    def build_learner(self, clip_model: CLIP, classnames: list[str]) -> nn.Module:
        return self.learner_class(self.node, clip_model, classnames, zero_shot_template(self.cfg))

    def build_model(self) -> None:
        super().build_model()
        self.trained_on = self.cfg.DATASET.NAME
        self.model.fused = self.fuses(self.trained_on)

    @cached_property
    def teacher(self) -> Tensor:
        """(C, D), unit length: frozen CLIP's texts, computed when training begins."""
        template = zero_shot_template(self.cfg)
        return hand_crafted_features(self.model.clip, self.classnames, [template])

    def loss(self, image: Tensor, label: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        model, learner = self.model, self.model.learner
        below, text = learner.image_below(model.clip, image), model.text_features()
        features = model.both_features(below)
        frozen = model.unit(learner.frozen_features(model.clip, below))
        logits = tuple(model.logits(f, text) for f in features)
        return mmrl_loss(self.node, label, logits, (features[0], frozen), (text, self.teacher))

    def fuses(self, source: str) -> bool:
        """Whether a test of a model trained on the dataset `source` reads both features.

        With FUSE auto and no TASK: both on classes it was trained on; on others the class token's
        alone, which generalises better.
        """
        name, classes = self.cfg.DATASET.NAME, self.cfg.DATASET.SUBSAMPLE_CLASSES
        if self.node.FUSE != "auto":
            return self.node.FUSE == "fused"
        of_task = {"B2N": classes == "base", "FS": True, "CD": name == "ImageNet"}
        return of_task.get(self.cfg.TASK, classes != "new" and name == source)

    def about(self) -> dict[str, Any]:
        return super().about() | {"trained_on": self.trained_on}

    def load_more(self, checkpoint: dict, source: str) -> None:
        super().load_more(checkpoint, source)
        self.trained_on = self.trained.get("trained_on", self.cfg.DATASET.NAME)
        self.model.fused = self.fuses(self.trained_on)

    def load_model(self, directory: str, epoch: int | None = None) -> None:
        super().load_model(directory, epoch)
        if directory and "trained_on" not in self.trained:  # an older file, or upstream's
            own = self.cfg.DATASET.NAME
            recorded = recorded_value(directory, "DATASET.NAME")
            if recorded is None:  # upstream's folders have no config
                line = f"Note: {directory} does not say which dataset its model was trained on"
                hint = f"TRAINER.{self.node_name}.FUSE class if it is not"
                print(f"{line}: taken to be {own}; {hint}")
            self.trained_on = recorded or own
            self.model.fused = self.fuses(self.trained_on)
        print(f"Logits: {'both features' if self.model.fused else 'class token'}")

    def clean_state_dict(self, name: str, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What is learned: upstream's files hold the whole CLIP and the classes' words too."""
        own, space = self.weights_to_save(name), "representation_learner."
        return {k: v for k, v in state_dict.items() if k in own or k.startswith(space)}
