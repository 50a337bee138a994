"""Fidelity and editability by pretrained models: CLIP-I, CLIP-T and DINO as DreamBooth defines them, DINOv2, SigLIP.

DreamBooth (Ruiz et al. 2023, arXiv 2208.12242, section 4.2): subject fidelity is the mean cosine between embeddings of
all pairs of generated and real pictures, CLIP's or ViT-S/16 DINO's; prompt fidelity the mean cosine between CLIP's
embeddings of prompt and picture. For text the word is replaced by its class word. DINOv2-base and SigLIP are newer
papers' measures; SigLIP's is the probability that prompt and picture belong together, another scale than CLIP-T's.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoTokenizer,
    CLIPImageProcessorPil,
    CLIPModel,
    Dinov2Model,
    SiglipModel,
    ViTModel,
)

from pseudoword.errors import MeasureUnavailable, RecipeError, first_line
from pseudoword.evaluate.prompts import Question
from pseudoword.evaluate.statistics import Scores

log = logging.getLogger(__name__)

BATCH = 32
IMAGENET: dict[str, Any] = {"image_mean": (0.485, 0.456, 0.406), "image_std": (0.229, 0.224, 0.225)}


@dataclass(frozen=True)
class Kind:
    """A kind of pretrained model that measures."""

    model: Any
    default: str
    """On the Hub."""
    images: str = ""
    """The measure that compares pictures with pictures, if it gives one."""
    text: str = ""
    """The measure that compares pictures with prompts, if it gives one."""
    preprocessing: str = "the model's own"

    @property
    def measures(self) -> tuple[str, ...]:
        """Names of what it measures."""
        return tuple(name for name in (self.images, self.text) if name)


KINDS = {
    "clip": Kind(CLIPModel, "openai/clip-vit-base-patch32", "clip-i", "clip-t"),
    "dino": Kind(
        ViTModel,
        "facebook/dino-vits16",
        "dino",
        preprocessing="shorter side to 8/7 of the input's, bicubic, centre cut, ImageNet's mean and deviation",
    ),
    "dinov2": Kind(Dinov2Model, "facebook/dinov2-base", "dinov2"),
    "siglip": Kind(SiglipModel, "google/siglip-base-patch16-512", text="siglip"),
}
"""Models by the names that options give them."""


class Similarity:
    """One pretrained model, and what it says of pictures. RecipeError if it cannot be loaded."""

    def __init__(self, name: str, source: str | None = None) -> None:
        self.kind = KINDS[name]
        self.source = source or self.kind.default
        try:
            config = AutoConfig.from_pretrained(self.source)
            if config.model_type != self.kind.model.config_class.model_type:
                raise RecipeError(
                    f"{name} is measured with a {self.kind.model.config_class.model_type} model, "
                    f"but {self.source!r} is a {config.model_type} model."
                )
            loaded, info = self.kind.model.from_pretrained(
                self.source, dtype=torch.float32, output_loading_info=True, **self._plain()
            )
            if info["missing_keys"]:
                raise RecipeError(
                    f"{self.source!r} cannot measure {name}: it lacks {len(info['missing_keys'])} tensors that a "
                    f"{config.model_type} model has, such as {min(info['missing_keys'])!r}."
                )
            self.processor = self._processor(config)
        except (OSError, ValueError) as error:
            on_the_hub = isinstance(error, OSError) and source is None  # a place that was named must be right
            raise (MeasureUnavailable if on_the_hub else RecipeError)(
                f"Cannot load {self.source!r} to measure {name} with: {first_line(error)}. "
                "Name a folder that holds it, or leave the measure out."
            ) from error
        if self.kind.text:
            self.tokenizer = self._tokenizer()
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model: Any = loaded.eval().to(self.device)

    def _plain(self) -> dict[str, bool]:
        """Leave out ViT's pooling layer, which DINO's files do not have."""
        return {"add_pooling_layer": False} if self.kind.model is ViTModel else {}

    def _processor(self, config: Any) -> Any:
        if self.kind.model is ViTModel:
            side = config.image_size
            return CLIPImageProcessorPil(size={"shortest_edge": side * 8 // 7}, crop_size=side, **IMAGENET)
        return AutoImageProcessor.from_pretrained(self.source, backend="pil")

    def _tokenizer(self) -> Any:
        try:
            return AutoTokenizer.from_pretrained(self.source)
        except (OSError, ValueError) as error:
            raise RecipeError(f"{self.source!r} has no tokenizer that can be read: {first_line(error)}.") from error

    @torch.no_grad()
    def embed(self, pictures: Sequence[Image.Image]) -> Float[Tensor, "pictures width"]:
        """Return embeddings of length 1: CLIP's and SigLIP's projected ones, DINO's of the class token."""
        made = [self._embed_some(pictures[i : i + BATCH]) for i in range(0, len(pictures), BATCH)]
        return torch.nn.functional.normalize(torch.cat(made), dim=1)

    def _embed_some(self, pictures: Sequence[Image.Image]) -> Tensor:
        pixels = self.processor([p.convert("RGB") for p in pictures], return_tensors="pt")["pixel_values"]
        pixels = pixels.to(self.device)
        if self.kind.text:
            return self.model.get_image_features(pixel_values=pixels, return_dict=True).pooler_output.float().cpu()
        return self.model(pixel_values=pixels).last_hidden_state[:, 0].float().cpu()

    @torch.no_grad()
    def embed_text(self, texts: Sequence[str]) -> Float[Tensor, "texts width"]:
        """Return embeddings of length 1 of prompts, cut at the model's length."""
        length = self.model.config.text_config.max_position_embeddings
        ids = self.tokenizer(
            list(texts), padding="max_length", truncation=True, max_length=length, return_tensors="pt"
        )["input_ids"].to(self.device)  # no mask: CLIP reads no further than the end, and SigLIP was trained on padding
        made = self.model.get_text_features(input_ids=ids, return_dict=True).pooler_output
        return torch.nn.functional.normalize(made.float().cpu(), dim=1)

    @torch.no_grad()
    def measure(
        self, pictures: Sequence[Image.Image], real: Float[Tensor, "real width"], texts: Sequence[str]
    ) -> dict[str, Float[np.ndarray, " pictures"]]:
        """Return for each picture its mean cosine with real pictures' embeddings, and how well its own text fits it."""
        seen = self.embed(pictures)
        found: dict[str, np.ndarray] = {}
        if self.kind.images:
            found[self.kind.images] = (seen @ real.T).mean(dim=1).numpy().astype(np.float64)
        if self.kind.text:
            said = {text: i for i, text in enumerate(dict.fromkeys(texts))}
            known = self.embed_text(list(said))[[said[text] for text in texts]]
            found[self.kind.text] = self._fit((seen * known).sum(dim=1)).numpy().astype(np.float64)
        return found

    def _fit(self, cosine: Tensor) -> Tensor:
        """Return a cosine, or for SigLIP the probability that it stands for (Zhai et al. 2023, section 3.2)."""
        if self.kind.model is not SiglipModel:
            return cosine
        return torch.sigmoid(cosine * self.model.logit_scale.exp().cpu() + self.model.logit_bias.cpu())


class Pretrained:
    """A yardstick of pretrained models: a word's pictures beside real ones, and beside prompts with its class word."""

    def __init__(self, models: Sequence[Similarity], real: Sequence[Image.Image], class_word: str) -> None:
        self.models, self.class_word = models, class_word
        self._real = [model.embed(real) for model in models]
        measured = [name for model in models for name in model.kind.measures]
        self.fidelity = _first(("dino", "clip-i", "dinov2"), measured)
        self.editability = _first(("clip-t", "siglip"), measured)

    @property
    def told(self) -> list[str]:
        """What the numbers depend on, for people."""
        lines = [
            f"{', '.join(model.kind.measures)}: {model.source}, preprocessing: {model.kind.preprocessing}"
            for model in self.models
        ]
        return [*lines, f"In prompts that are compared with pictures the word is replaced by {self.class_word!r}."]

    def measure(self, questions: Sequence[Question], pictures: Sequence[Sequence[Image.Image]]) -> dict[str, Scores]:
        """Measure pictures, a list for each question; text only where something besides the word is asked for."""
        count = len(pictures[0])
        flat = [picture for line in pictures for picture in line]
        texts = [question.saying(self.class_word) for question in questions for _ in range(count)]
        found: dict[str, Scores] = {}
        for model, real in zip(self.models, self._real, strict=True):
            for name, values in model.measure(flat, real, texts).items():
                found[name] = values.reshape(len(questions), count)
                if name == model.kind.text:
                    found[name][[question.plain for question in questions]] = np.nan
        return found


def _first(wanted: Sequence[str], measured: Sequence[str]) -> str:
    return next((name for name in wanted if name in measured), "")
