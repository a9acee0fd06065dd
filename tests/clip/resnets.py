"""Random weights of CLIPs with a ResNet, in OpenAI's layout."""

from dataclasses import replace

import torch
from open_clip.modified_resnet import ModifiedResNet
from torch import Tensor, nn

from reference.weights import ARCHS, openai_state_dict


def rn50_state_dict(text_layers: int = 12, width: int = 64, size: int = 224) -> dict[str, Tensor]:
    """RN50's, or those of a narrower one for other images. No gain is one and no bias zero."""
    embed_dim = 16 * width
    arch = replace(
        ARCHS["tiny"], embed_dim=embed_dim, text_width=8 * width, text_layers=text_layers
    )
    ARCHS["RN50"] = arch
    weights = openai_state_dict("RN50")
    del ARCHS["RN50"]
    weights = {key: w for key, w in weights.items() if not key.startswith("visual.")}
    weights["input_resolution"] = torch.tensor(size)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tower = ModifiedResNet((3, 4, 6, 3), embed_dim, width * 32 // 64, size, width)
        for name, module in tower.named_modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
            elif isinstance(module, nn.BatchNorm2d):
                # The last norm of each block writes into the residual stream: small, so that it
                # stays O(1).
                nn.init.normal_(module.weight, 0.3 if name.endswith("bn3") else 1.0, 0.1)
                nn.init.normal_(module.bias, std=0.1)
                nn.init.normal_(module.running_mean, std=0.1)
                nn.init.uniform_(module.running_var, 0.5, 1.5)
    return weights | {f"visual.{key}": w.detach() for key, w in tower.state_dict().items()}
