"""The model of a trainer that does not bring its own."""

from torch import Tensor, nn
from yacs.config import CfgNode

from .backbone import build_backbone
from .head import build_head


class SimpleNet(nn.Module):
    """Backbone, optional head, linear classifier (if num_classes > 0)."""

    def __init__(self, cfg: CfgNode, model_cfg: CfgNode, num_classes: int, **kwargs):
        super().__init__()
        backbone, head = model_cfg.BACKBONE, model_cfg.HEAD
        self.backbone = build_backbone(
            backbone.NAME, cfg.VERBOSE, pretrained=backbone.PRETRAINED, **kwargs
        )
        self.fdim = self.backbone.out_features
        self.head = None
        if head.NAME and head.HIDDEN_LAYERS:
            self.head = build_head(
                head.NAME,
                cfg.VERBOSE,
                in_features=self.fdim,
                hidden_layers=head.HIDDEN_LAYERS,
                activation=head.ACTIVATION,
                bn=head.BN,
                dropout=head.DROPOUT,
                **kwargs,
            )
            self.fdim = self.head.out_features
        self.classifier = nn.Linear(self.fdim, num_classes) if num_classes > 0 else None

    def forward(self, x: Tensor, return_feature: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """Images (B, 3, H, W) -> logits (B, num_classes), or features (B, fdim) without a
        classifier."""
        features = self.backbone(x)
        if self.head is not None:
            features = self.head(features)
        if self.classifier is None:
            return features
        logits = self.classifier(features)
        return (logits, features) if return_feature else logits
