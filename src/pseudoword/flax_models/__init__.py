"""CLIP text encoders, UNet and VAE in Flax NNX, read from folders in diffusers layout without torch.

Modules are called as diffusers' and transformers' are, and their attributes are called as the parameters in the files,
so that loading is a mapping of names. Arrays go in and come out as they do there, channels first; inside, channels are
last, which is what XLA computes convolutions in. Linear and 1×1 convolutional projections are one layer here.
"""

from pseudoword.flax_models.clip import CLIPTextModel, CLIPTextModelWithProjection, TextOutput
from pseudoword.flax_models.layers import Layers
from pseudoword.flax_models.loading import from_folder, load
from pseudoword.flax_models.noise import alphas_cumprod
from pseudoword.flax_models.unet import UNet2DConditionModel
from pseudoword.flax_models.vae import AutoencoderKL

__all__ = [
    "AutoencoderKL",
    "CLIPTextModel",
    "CLIPTextModelWithProjection",
    "Layers",
    "TextOutput",
    "UNet2DConditionModel",
    "alphas_cumprod",
    "from_folder",
    "load",
]
