"""A FixMatch-like trainer as a third party writes it: a weak and a strong transform, K of each,
unlabeled images."""

import torch
from torch.nn import functional as F

from dassl.data import DataManager
from dassl.data.transforms import build_transform
from dassl.engine import TRAINER_REGISTRY, TrainerXU
from dassl.metrics import compute_accuracy


@TRAINER_REGISTRY.register()
class ThirdPartyFixMatch(TrainerXU):
    def __init__(self, cfg):
        super().__init__(cfg)
        self.weight_u = cfg.TRAINER.FIXMATCH.WEIGHT_U
        self.conf_thre = cfg.TRAINER.FIXMATCH.CONF_THRE

    def check_cfg(self, cfg):
        assert len(cfg.TRAINER.FIXMATCH.STRONG_TRANSFORMS) > 0

    def build_data_loader(self):
        cfg = self.cfg
        weak = build_transform(cfg, is_train=True)
        strong = build_transform(cfg, is_train=True, choices=cfg.TRAINER.FIXMATCH.STRONG_TRANSFORMS)
        dm = DataManager(cfg, custom_tfm_train=[weak, strong])
        self.train_loader_x = dm.train_loader_x
        self.train_loader_u = dm.train_loader_u
        self.val_loader = dm.val_loader
        self.test_loader = dm.test_loader
        self.num_classes = dm.num_classes
        self.num_source_domains = dm.num_source_domains
        self.lab2cname = dm.lab2cname
        self.dm = dm

    def forward_backward(self, batch_x, batch_u):
        weak_x, label_x, weak_u, strong_u = self.parse_batch_train(batch_x, batch_u)
        with torch.no_grad():
            guess = torch.stack([F.softmax(self.model(view), dim=1) for view in weak_u]).mean(dim=0)
            confidence, label_u = guess.max(dim=1)
            mask = (confidence >= self.conf_thre).float()
        output_x = self.model(weak_x[0])
        loss_x = F.cross_entropy(output_x, label_x)
        losses_u = [
            F.cross_entropy(self.model(view), label_u, reduction="none") for view in strong_u
        ]
        loss_u = (torch.stack(losses_u).mean(dim=0) * mask).mean()
        self.model_backward_and_update(loss_x + self.weight_u * loss_u)
        if (self.batch_idx + 1) == self.num_batches:
            self.update_lr()
        acc_x = compute_accuracy(output_x, label_x)[0].item()
        return {
            "loss_x": loss_x.item(),
            "loss_u": loss_u.item(),
            "acc_x": acc_x,
            "confident": mask.mean().item(),
        }

    def parse_batch_train(self, batch_x, batch_u):
        views = []
        for batch, key in ((batch_x, "img"), (batch_u, "img"), (batch_u, "img2")):
            images = batch[key]
            if self.cfg.DATALOADER.K_TRANSFORMS == 1:
                images = [images]
            assert len(images) == self.cfg.DATALOADER.K_TRANSFORMS
            views.append([image.to(self.device) for image in images])
        weak_x, weak_u, strong_u = views
        return weak_x, batch_x["label"].to(self.device), weak_u, strong_u
