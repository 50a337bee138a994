"""A concept's pictures as a recipe asks for them: found before any model is loaded, then framed for one."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float
from PIL import Image

from pseudoword import augmentations
from pseudoword.contracts import Sizes
from pseudoword.data import caption_files, folder, images, masks, rows
from pseudoword.data.captions import TEMPLATES, Captions, read_templates
from pseudoword.data.folder import Found
from pseudoword.data.framing import Frame, Framing, Placement
from pseudoword.data.masks import Mask
from pseudoword.errors import RecipeError
from pseudoword.recipe import ConceptRecipe, Data

log = logging.getLogger(__name__)


class ConceptPictures:
    """The pictures of a concept; PicturesError says what is wrong with them."""

    def __init__(self, wanted: ConceptRecipe, data: Data, found: Found | None = None) -> None:
        """Take what was found, or look for it and tell what is not used."""
        self.wanted, self.data = wanted, data
        self.found = found or find(wanted.pictures, data)
        if found is None:
            self.found.tell()
        self.pictures = self.found.pictures
        self.captions = _captions(wanted, data, self.found)
        self.masks = _masks(data, self.found)

    def __len__(self) -> int:
        """Return the length of an epoch: pictures times repeats."""
        return len(self.pictures) * self.data.repeats

    def facts(self) -> list[str]:
        """Return what a resumed run must find again: names and hashes of pictures, captions and masks."""
        facts = []
        for picture, texts, mask in zip(self.pictures, self.captions.texts, self.masks, strict=True):
            captioned = f" captioned {_hash(texts)}" if self.data.captions == "files" else ""
            facts.append(picture.fact + captioned + (f" masked {mask.fact}" if mask else ""))
        if self.wanted.templates is not None:
            facts.append(f"{Path(self.wanted.templates).name} {_hash(self.captions.texts[0])}")
        return facts

    def framed(self, sizes: Sizes) -> FramedPictures:
        """Return the pictures cut to a base's sizes; names those that are enlarged for it."""
        framing = _framing(self.data, sizes)
        frames = [framing.frames(picture.size) for picture in self.pictures]
        small = [p.path.name for p, own in zip(self.pictures, frames, strict=True) if own[0].enlarged]
        if small:
            log.warning("Smaller than %d pixels, so enlarged, which teaches blur: %s", framing.size, ", ".join(small))
        for mask, own in zip(self.masks, frames, strict=True):
            if mask and self.data.mask_outside == 0:
                mask.refuse_black(own)
        return FramedPictures(self, frames)


def find(pictures: str, data: Data) -> Found:
    """Return what a folder or dataset holds; PicturesError if that is no picture."""
    if rows.is_dataset(pictures):
        return rows.look(pictures, data.split)
    return folder.look(pictures, recursive=data.recursive, masks=data.masks == "files")


def _captions(wanted: ConceptRecipe, data: Data, found: Found) -> Captions:
    """Return what may stand beside each picture; CaptionError names what is missing or wrong."""
    if data.captions == "files":
        own = caption_files.of_pictures(found)
        texts = [[caption_files.placed(c, p, wanted.token)] for c, p in zip(own, found.pictures, strict=True)]
        names = [f"{p.path.name} from {c.source}" for c, p in zip(own, found.pictures, strict=True)]
        return Captions(wanted.token, texts, names, data.shuffle_tags, data.keep_tags, data.caption_dropout)
    unused = [p.name for p in (*found.texts.values(), *found.metadata)] + [c.source for c in found.given.values()]
    if unused:
        log.info("There are captions (%s, …), but templates are used; captions 'files' uses the captions.", unused[0])
    if wanted.templates is None:
        name, templates = "templates", [template.format(wanted.token) for template in TEMPLATES[wanted.property]]
    else:
        name, templates = wanted.templates, read_templates(wanted.templates, wanted.token)
    every = range(len(found.pictures))
    return Captions(wanted.token, [templates for _ in every], [name for _ in every], dropout=data.caption_dropout)


def _masks(data: Data, found: Found) -> list[Mask | None]:
    """Return each picture's mask; PicturesError names what is wrong."""
    if data.masks == "none":
        return [None for _ in found.pictures]
    own = masks.from_files(found) if data.masks == "files" else masks.from_alpha(found.pictures)
    count = sum(mask is not None for mask in own)
    if count:
        log.info("Masks weight the loss of %d of %d pictures, %g outside", count, len(own), data.mask_outside)
    return own


def _hash(texts: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16]


def _framing(data: Data, sizes: Sizes) -> Framing:
    """Return how a base's pictures are framed; RecipeError if it cannot read pictures of this size."""
    size = data.resolution or sizes.resolution
    multiple = sizes.bucket_multiple if data.fit == "bucket" else sizes.latent_factor
    if size % multiple:
        wanting = "fit 'bucket' on this base" if data.fit == "bucket" else "this base"
        raise RecipeError(f"resolution must be a multiple of {multiple} for {wanting}, but is {size}.")
    return Framing(size, data.fit, data.crops, multiple)


@dataclass(frozen=True)
class FramedPictures:
    """A concept's pictures at their training sizes."""

    own: ConceptPictures
    frames: list[list[Frame]]
    """Of each picture."""

    def __len__(self) -> int:
        """Return the length of an epoch."""
        return len(self.own)

    def image(self, picture: int) -> Image.Image:
        """Return a picture whole, upright and in RGB."""
        return images.read_rgb(self.own.pictures[picture].source, self.own.data.alpha_colour)

    def pixels(self, picture: int, flipped: bool) -> list[Float[np.ndarray, "3 height width"]]:
        """Return each frame of a picture in [-1, 1], mirrored left to right if `flipped`."""
        image = self.image(picture)
        return [images.pixels(frame.cut(image), flipped) for frame in self.frames[picture]]

    def placement(self, picture: int, frame: int, flipped: bool) -> Placement:
        """Return where a frame is in its picture."""
        return self.frames[picture][frame].placement(self.own.pictures[picture].size, flipped=flipped)

    def augmented(self, image: Image.Image, picture: int, frame: int, rng: np.random.Generator) -> Augmented:
        """Return a frame of a picture, whose decoded image this is, changed as the recipe's augmentations say."""
        plain = self.frames[picture][frame]
        box, chosen = plain.box, augmentations.read(self.own.data.augment or ())
        for augmentation in chosen:
            box = augmentation.box(box, rng)
        changed, mask = Frame(box, plain.size), self.own.masks[picture]
        if mask and not mask.weights(changed, (8, 8), self.own.data.mask_outside).any():
            changed = plain  # where nothing counts, nothing could be learned
        seen = changed.cut(image)
        for augmentation in chosen:
            seen = augmentation.picture(seen, rng)
        return Augmented(self, picture, changed, seen)

    def weights(
        self, picture: int, frame: int, flipped: bool, shape: tuple[int, int]
    ) -> Float[np.ndarray, "height width"] | None:
        """Return how much each place of a frame counts, `shape` of them; None if the picture has no mask."""
        return self.weights_of(picture, self.frames[picture][frame], flipped, shape)

    def weights_of(
        self, picture: int, frame: Frame, flipped: bool, shape: tuple[int, int]
    ) -> Float[np.ndarray, "height width"] | None:
        """Return how much each place of any frame of a picture counts; None if the picture has no mask."""
        mask = self.own.masks[picture]
        if mask is None:
            return None
        weights = mask.weights(frame, shape, self.own.data.mask_outside)
        return np.ascontiguousarray(weights[:, ::-1]) if flipped else weights


@dataclass(frozen=True)
class Augmented:
    """A frame of a picture as one step sees it."""

    of: FramedPictures
    picture: int
    frame: Frame
    image: Image.Image
    """At its training size."""

    def pixels(self, flipped: bool) -> Float[np.ndarray, "3 height width"]:
        """Return it in [-1, 1], mirrored left to right if `flipped`."""
        return images.pixels(self.image, flipped)

    def placement(self, flipped: bool) -> Placement:
        """Return where it is in its picture."""
        return self.frame.placement(self.of.own.pictures[self.picture].size, flipped=flipped)

    def weights(self, flipped: bool, shape: tuple[int, int]) -> Float[np.ndarray, "height width"] | None:
        """Return how much each place of it counts; None if the picture has no mask."""
        return self.of.weights_of(self.picture, self.frame, flipped, shape)
