"""Zero-shot trainers as a third party writes them: nothing is registered as a model, nothing is
trained."""

import torch

from clip import clip
from dassl.engine import TRAINER_REGISTRY, TrainerX

from .coop_style import load_clip_to_cpu

CUSTOM_TEMPLATES = {"EuroSAT": "a centered satellite photo of {}.", "Shapes": "a photo of a {}."}
ENSEMBLE = ["itap of a {}.", "a bad photo of the {}.", "a photo of the large {}."]


@TRAINER_REGISTRY.register()
class ThirdPartyZeroshot(TrainerX):
    def build_model(self):
        cfg = self.cfg
        classnames = self.dm.dataset.classnames
        clip_model = load_clip_to_cpu(cfg)
        clip_model.to(self.device)
        template = CUSTOM_TEMPLATES.get(cfg.DATASET.NAME, "a photo of a {}.")
        prompts = torch.cat(
            [clip.tokenize(template.format(c.replace("_", " "))) for c in classnames]
        ).to(self.device)
        with torch.no_grad():
            text_features = clip_model.encode_text(prompts)
        self.text_features = text_features / text_features.norm(dim=-1, keepdim=True)
        self.clip_model = clip_model

    def model_inference(self, image):
        image_features = self.clip_model.encode_image(image)
        image_features = image_features / image_features.norm(dim=-1, keepdim=True)
        logit_scale = self.clip_model.logit_scale.exp()
        return logit_scale * image_features @ self.text_features.t()


@TRAINER_REGISTRY.register()
class ThirdPartyZeroshotEnsemble(ThirdPartyZeroshot):
    templates = ENSEMBLE

    def build_model(self):
        classnames = self.dm.dataset.classnames
        clip_model = load_clip_to_cpu(self.cfg).to(self.device)
        for params in clip_model.parameters():
            params.requires_grad_(False)
        mean = 0
        for template in self.templates:
            prompts = torch.cat([clip.tokenize(template.format(c)) for c in classnames]).to(
                self.device
            )
            features = clip_model.encode_text(prompts)
            mean = mean + features / features.norm(dim=-1, keepdim=True)
        self.text_features = mean / mean.norm(dim=-1, keepdim=True)
        self.clip_model = clip_model
