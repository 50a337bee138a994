"""`TextualInversionDataset`: the guide's dataset class, public, and the contract of a dataset that `train` takes."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np

from pseudoword.concept import Property
from pseudoword.data import captions, folder, images
from pseudoword.data.folder import Picture
from pseudoword.data.framing import Frame, Framing, Placement
from pseudoword.errors import PicturesError


@runtime_checkable
class Dataset(Protocol):
    """What `train(recipe, dataset=…)` takes: items are dicts of `pixel_values` [3, h, w] and `input_ids` [tokens].

    For a base of several text encoders items have `input_ids_1` and `input_ids_2`, and may say where the picture was
    cut: `original_size` (height, width) and `crop_top_left`. The word's ids in them are those of the dataset's own
    `tokenizer` (`tokenizer_1`, `tokenizer_2`), if it has that, else they count from the table's size. Where it has
    `cacheable = True`, item `i` is promised to be the same every time, and its latents are encoded once.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, i: int, /) -> dict[str, Any]: ...


class TextualInversionDataset:
    """Pictures of a folder with a random caption and a random mirroring each, as in the guide's script.

    Read straight through, it is the guide's dataset. `train` asks it for `pixels(picture, flipped)` and `templates`
    instead and encodes each picture once, unless a subclass defines its own `__getitem__` (random augmentation, say):
    then every step loads its items, unless the subclass says `cacheable = True`. `pictures` are those of the folder, if
    it was scanned before.
    """

    cacheable: bool = True

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "__getitem__" in vars(cls) and "cacheable" not in vars(cls):
            cls.cacheable = False

    def __init__(
        self,
        data_root: str | Path,
        tokenizer: Any,
        learnable_property: Property = "object",
        size: int = 512,
        repeats: int = 100,
        interpolation: Literal["linear", "bilinear", "bicubic", "lanczos"] = "bicubic",
        flip_p: float = 0.5,
        set: str = "train",  # noqa: A002 (the guide's name)
        placeholder_token: str = "*",
        center_crop: bool = False,
        *,
        pictures: list[Picture] | None = None,
    ) -> None:
        if interpolation not in images.INTERPOLATION:
            raise PicturesError(f"interpolation is one of {', '.join(images.INTERPOLATION)}, not {interpolation!r}.")
        self.data_root = data_root
        self.tokenizer = tokenizer
        self.learnable_property: Property = learnable_property
        self.size = size
        self.interpolation = interpolation
        self.flip_p = flip_p
        self.placeholder_token = placeholder_token
        self.center_crop = center_crop
        self.pictures = pictures or folder.scan(data_root)
        self.image_paths = [str(picture.path) for picture in self.pictures]
        self.num_images = len(self.pictures)
        self.templates = captions.TEMPLATES["style" if learnable_property == "style" else "object"]
        self._length = self.num_images * repeats if set == "train" else self.num_images

    def __len__(self) -> int:
        """Return the length of an epoch: pictures times repeats."""
        return self._length

    def __getitem__(self, i: int) -> dict[str, Any]:
        """Return `pixel_values` [3, size, size] in [-1, 1] and `input_ids` [tokens] as torch tensors."""
        import torch

        text = random.choice(self.templates).format(self.placeholder_token)
        flipped = random.random() < self.flip_p
        return {
            "input_ids": self.encode(text),
            "pixel_values": torch.from_numpy(self.pixels(i % self.num_images, flipped)),
        }

    def encode(self, text: str) -> Any:
        """Return the ids of a caption, padded and cut to the tokenizer's length."""
        length = self.tokenizer.model_max_length
        options = {"padding": "max_length", "truncation": True, "max_length": length, "return_tensors": "pt"}
        return self.tokenizer(text, **options).input_ids[0]

    def pixels(self, picture: int, flipped: bool) -> np.ndarray:
        """Return a picture as `[3, size, size]` in [-1, 1], mirrored left to right if `flipped`."""
        image = images.read_rgb(self.pictures[picture].path)
        return images.pixels(self._frame(image.size).cut(image, self.interpolation), flipped)

    def placement(self, picture: int, flipped: bool) -> Placement:
        """Return where what `pixels` gives is in its picture."""
        size = self.pictures[picture].size
        return self._frame(size).placement(size, flipped=flipped)

    def _frame(self, size: tuple[int, int]) -> Frame:
        [frame] = Framing(self.size, "crop" if self.center_crop else "squash").frames(size)
        return frame
