"""Batches for given draws: from latents cached once, or loaded and encoded at every step."""

from __future__ import annotations

import importlib.util
import logging
import random
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Float, Int

from pseudoword import schedules
from pseudoword.batch import Batch, Draw
from pseudoword.data import items
from pseudoword.data.captions import Captions
from pseudoword.data.dataset import Dataset, TextualInversionDataset
from pseudoword.data.framing import Placement
from pseudoword.data.items import Ids, ReadItem
from pseudoword.data.pictures import Augmented, FramedPictures
from pseudoword.errors import CaptionError, RecipeError
from pseudoword.vocabulary import Words

log = logging.getLogger(__name__)

Moments = tuple[Float[np.ndarray, "batch channels height width"], Float[np.ndarray, "batch channels height width"]]
EncodeImages = Callable[[Float[np.ndarray, "batch 3 pixels_high pixels_wide"]], Moments]
CaptionOf = Callable[[Draw, int], Ids]
"""The caption of a draw's i-th picture."""
REMEMBERED = 10_000
"""Captions whose ids are kept; shuffled tags make more of them than a run sees twice."""

VARIANTS = 8
"""Augmented variants of each picture that are encoded, unless the recipe says otherwise."""

T = TypeVar("T")


@dataclass(frozen=True)
class View:
    """One frame of a picture, mirrored or not, encoded once."""

    mean: Float[np.ndarray, "1 channels height width"]
    std: Float[np.ndarray, "1 channels height width"]
    placement: Placement
    weight: Float[np.ndarray, "height width"] | None = None
    """How much each place counts, if the picture has a mask."""

    @property
    def shape(self) -> schedules.Shape:
        """Channels, height and width of its latents."""
        return self.mean.shape[1], self.mean.shape[2], self.mean.shape[3]


Views = Sequence[Sequence[Mapping[bool, View]]]
"""By picture, frame and mirroring."""


class Cached:
    """Every view of every picture that a run uses, by frame and mirroring, and captions as a draw chooses them.

    The frames of a picture have one shape; those of different pictures may differ. Where pictures are augmented, a step
    sees one of their `variants`, the fixed draws the plain views.
    """

    def __init__(
        self,
        views: Views,
        ids: CaptionOf,
        flip_p: float,
        variants: Sequence[Views] = (),
        seed: tuple[int, int] = (0, 0),
    ) -> None:
        self.flip_p = flip_p
        self._variants, self._seed = variants, seed
        self.latent_shapes: list[schedules.Shape] = [next(iter(frames[0].values())).shape for frames in views]
        """Of each picture."""
        self.views = views
        self._ids = ids
        self._masked = any(view.weight is not None for frames in views for frame in frames for view in frame.values())

    def batches(self, draws: Iterable[Draw]) -> Iterator[tuple[Batch, Draw]]:
        """Yield the batch that each draw chooses."""
        for draw in draws:
            pictures, count = draw.picture.tolist(), range(len(draw.picture))
            frames = [_choice(self._seen(draw, i)[picture], draw.crop[i]) for i, picture in enumerate(pictures)]
            views = [frames[i][bool(draw.flip[i])] for i in count]
            ids = [self._ids(draw, i) for i in count]
            mean, std = (np.concatenate(part) for part in zip(*((v.mean, v.std) for v in views), strict=True))
            concept, placement = np.zeros(len(views), dtype=np.int64), np.asarray([v.placement for v in views])
            yield Batch(_stack(ids), mean, std, concept, placement, _weights(views) if self._masked else None), draw

    def _seen(self, draw: Draw, i: int) -> Views:
        """Return the views that a draw's i-th picture is one of."""
        if not self._variants or draw.step >= schedules.FIXED:
            return self.views
        rng = schedules.stream(*self._seed, draw.step, int(draw.index[i]), schedules.Purpose.VARIANT)
        return self._variants[int(rng.integers(len(self._variants)))]


def _weights(views: Sequence[View]) -> Float[np.ndarray, "batch height width"]:
    """Return the weights of views, ones where a picture has no mask."""
    own = [np.ones(view.shape[1:], dtype=np.float32) if view.weight is None else view.weight for view in views]
    return np.stack(own)


def _choice(several: Sequence[T], number: float) -> T:
    """Return the one of several that a number in [0, 1) chooses."""
    return several[int(number * len(several))]


class Fresh:
    """Pictures that are augmented and encoded anew at every step; the fixed draws see them as they are."""

    def __init__(
        self, frames: FramedPictures, ids: CaptionOf, plain: Cached, encode_images: EncodeImages, seed: tuple[int, int]
    ) -> None:
        self.flip_p, self.latent_shapes = plain.flip_p, plain.latent_shapes
        self._frames, self._ids, self._plain, self._encode, self._seed = frames, ids, plain, encode_images, seed

    def batches(self, draws: Iterable[Draw]) -> Iterator[tuple[Batch, Draw]]:
        """Yield the batch that each draw chooses."""
        for draw in draws:
            if draw.step >= schedules.FIXED:
                yield from self._plain.batches([draw])
                continue
            views = [self._view(draw, i) for i in range(len(draw.picture))]
            ids = [self._ids(draw, i) for i in range(len(views))]
            mean, std = (np.concatenate(part) for part in zip(*((v.mean, v.std) for v in views), strict=True))
            concept, placement = np.zeros(len(views), dtype=np.int64), np.asarray([v.placement for v in views])
            masked = any(mask is not None for mask in self._frames.own.masks)
            yield Batch(_stack(ids), mean, std, concept, placement, _weights(views) if masked else None), draw

    def _view(self, draw: Draw, i: int) -> View:
        picture, flipped = int(draw.picture[i]), bool(draw.flip[i])
        rng = schedules.stream(*self._seed, draw.step, int(draw.index[i]), schedules.Purpose.AUGMENT)
        frame = int(draw.crop[i] * len(self._frames.frames[picture]))
        return _augmented(
            self._frames.augmented(self._frames.image(picture), picture, frame, rng), flipped, self._encode
        )


class Streamed:
    """Items of a dataset that differ each time, loaded for each draw with the item's own seed, then encoded."""

    def __init__(
        self, dataset: Dataset, read: ReadItem, encode_images: EncodeImages, seed: tuple[int, int], workers: int
    ) -> None:
        self.flip_p = 0.0  # the dataset's own business
        self._items = _SeededItems(dataset, seed)
        self._read, self._encode, self._workers = read, encode_images, workers
        mean, _ = encode_images(read(self._items[0, 0, 0]).pixels[None])
        self.latent_shapes: list[schedules.Shape] = [(mean.shape[1], mean.shape[2], mean.shape[3])] * len(dataset)

    def batches(self, draws: Iterable[Draw]) -> Iterator[tuple[Batch, Draw]]:
        """Yield the batch that each draw chooses, loading ahead in worker processes if there are any."""
        ahead: deque[Draw] = deque()

        def keys() -> Iterator[list[tuple[int, int, int]]]:
            for draw in draws:
                ahead.append(draw)
                yield [(draw.step, i, p) for i, p in zip(draw.index.tolist(), draw.picture.tolist(), strict=True)]

        for loaded in self._loaded(keys()):
            read = [self._read(item) for item in loaded]
            mean, std = self._encode(np.stack([item.pixels for item in read]))
            ids, placement = _stack([item.ids for item in read]), np.asarray([item.placement for item in read])
            yield Batch(ids, mean, std, np.zeros(len(read), dtype=np.int64), placement), ahead.popleft()

    def _loaded(self, keys: Iterable[list[tuple[int, int, int]]]) -> Iterable[list[dict[str, Any]]]:
        """Yield items as they are loaded: here, or ahead by worker processes, which are PyTorch's."""
        if not self._workers:
            return ([self._items[key] for key in several] for several in keys)
        try:
            from torch.utils.data import DataLoader
        except ModuleNotFoundError as error:
            raise RecipeError("workers load ahead with PyTorch, which is not installed; leave workers at 0.") from error
        return DataLoader(self._items, batch_sampler=keys, num_workers=self._workers, collate_fn=list)  # pyright: ignore[reportArgumentType]


Source = Cached | Streamed | Fresh
"""Where a concept's batches come from."""


def prepare(
    dataset: Dataset | FramedPictures,
    vocabularies: Mapping[str, Words],
    tokens: Sequence[str],
    encode_images: EncodeImages,
    *,
    seed: int,
    workers: int,
) -> Source:
    """Return the examples of a dataset: cached if it allows, else streamed. CaptionError if the word is not in them."""
    if not len(dataset):
        raise CaptionError("The dataset is empty; it needs at least one picture.")
    if isinstance(dataset, FramedPictures):
        ids = captions_of(dataset.own.captions, vocabularies)
        plain = _cached(dataset, len(dataset.frames), ids, dataset.own.data.flip_p, encode_images)
        if not dataset.own.data.augment:
            return plain
        return _augmenting(dataset, ids, plain, encode_images, (seed, schedules.concept_key(tokens[0])))
    if (
        isinstance(dataset, TextualInversionDataset)
        and type(dataset).__getitem__ is TextualInversionDataset.__getitem__
        and dataset.cacheable
    ):
        count = dataset.num_images
        texts = [template.format(dataset.placeholder_token) for template in dataset.templates]
        ids = captions_of(Captions(tokens[0], [texts] * count, ["templates"] * count), vocabularies)
        return _cached(_WholePictures(dataset), count, ids, dataset.flip_p, encode_images)
    read = items.reader(dataset, vocabularies, tokens)
    if getattr(dataset, "cacheable", False):
        log.info("Encoding %d items once", len(dataset))
        own = [read(dataset[i]) for i in range(len(dataset))]
        views = [[{False: View(*encode_images(item.pixels[None]), item.placement)}] for item in own]
        return Cached(views, lambda draw, i: own[draw.picture[i]].ids, flip_p=0.0)
    return Streamed(dataset, read, encode_images, (seed, schedules.concept_key(tokens[0])), workers)


class _WholePictures:
    """The pictures of a dataset as frames, one each."""

    def __init__(self, dataset: TextualInversionDataset) -> None:
        self.dataset = dataset

    def pixels(self, picture: int, flipped: bool) -> list[np.ndarray]:
        return [self.dataset.pixels(picture, flipped)]

    def placement(self, picture: int, frame: int, flipped: bool) -> Placement:
        del frame
        return self.dataset.placement(picture, flipped)

    def weights(self, picture: int, frame: int, flipped: bool, shape: tuple[int, int]) -> None:
        del picture, frame, flipped, shape


def _cached(
    frames: FramedPictures | _WholePictures, count: int, ids: CaptionOf, flip_p: float, encode_images: EncodeImages
) -> Cached:
    """Encode the frames of so many pictures, mirrored where a run uses that."""
    sides = _sides(flip_p)
    log.info("Encoding %d pictures once%s", count, " and mirrored" if len(sides) > 1 else "")

    def encoded(picture: int, flipped: bool) -> Iterator[View]:
        for frame, pixels in enumerate(frames.pixels(picture, flipped)):
            mean, std = encode_images(pixels[None])
            placement = frames.placement(picture, frame, flipped)
            yield View(mean, std, placement, frames.weights(picture, frame, flipped, (mean.shape[2], mean.shape[3])))

    views = []
    for picture in range(count):
        by_side = {flipped: list(encoded(picture, flipped)) for flipped in sides}
        views.append([dict(zip(by_side, frame, strict=True)) for frame in zip(*by_side.values(), strict=True)])
    return Cached(views, ids, flip_p)


def _sides(flip_p: float) -> list[bool]:
    """Return whether pictures are seen mirrored, unmirrored, or both."""
    return [side for side, used in ((False, flip_p < 1), (True, flip_p > 0)) if used]


def _augmenting(
    frames: FramedPictures, ids: CaptionOf, plain: Cached, encode_images: EncodeImages, seed: tuple[int, int]
) -> Cached | Fresh:
    """Return examples whose steps see augmented pictures: of variants encoded once, or each one new."""
    data = frames.own.data
    count = VARIANTS if data.augment_variants is None else data.augment_variants
    named = " and ".join(data.augment or ())
    if not count:
        log.info("Every step augments (%s) and encodes its pictures anew, which is slower", named)
        return Fresh(frames, ids, plain, encode_images, seed)
    log.info("Encoding %d augmented variants (%s) of each picture; augment_variants says how many", count, named)
    variants = []
    for variant in range(count):
        views = []
        for picture in range(len(frames.frames)):
            image, of_picture = frames.image(picture), []
            for frame in range(len(frames.frames[picture])):
                rng = schedules.stream(*seed, variant, picture, schedules.Purpose.AUGMENT)
                seen = frames.augmented(image, picture, frame, rng)
                of_picture.append({side: _augmented(seen, side, encode_images) for side in _sides(data.flip_p)})
            views.append(of_picture)
        variants.append(views)
    return Cached(plain.views, ids, data.flip_p, variants, seed)


def _augmented(seen: Augmented, flipped: bool, encode_images: EncodeImages) -> View:
    mean, std = encode_images(seen.pixels(flipped)[None])
    return View(mean, std, seen.placement(flipped), seen.weights(flipped, (mean.shape[2], mean.shape[3])))


def captions_of(captions: Captions, vocabularies: Mapping[str, Words]) -> CaptionOf:
    """Return how a draw's captions are read; CaptionError if one of them, in any order of its tags, loses the word."""
    for name, text in captions.hardest():
        caption_ids(text, vocabularies, captions.token, name)

    @lru_cache(REMEMBERED)
    def ids(text: str) -> Ids:
        return caption_ids(text, vocabularies, captions.token)

    def of(draw: Draw, i: int) -> Ids:
        return ids(captions.text(int(draw.picture[i]), draw.template[i], int(draw.tags[i]), draw.drop[i]))

    return of


def caption_ids(text: str, vocabularies: Mapping[str, Words], token: str, name: str = "") -> Ids:
    """Return a caption's ids for each text encoder; CaptionError, saying where it is from, unless it holds the word."""
    caption = f"The caption {text!r}{name and f' ({name})'}"
    ids = {}
    for encoder, vocabulary in vocabularies.items():
        encoded = vocabulary.encode(text)
        if token in encoded.cut:
            raise CaptionError(
                f"{caption} is longer than the {vocabulary.model_max_length} tokens that the text encoder "
                f"reads, and the cut falls into {token!r}; use fewer vectors or a shorter caption."
            )
        if token not in encoded.words:
            raise CaptionError(
                f"{caption} does not hold {token!r}, so nothing could be learned from it; letters, digits and _ must "
                f"not touch it, and a TextualInversionDataset of your own needs placeholder_token={token!r}."
            )
        ids[encoder] = encoded.ids
    return ids


def take(batches: Iterator[tuple[Batch, Draw]], pictures: int) -> list[tuple[Batch, Draw]]:
    """Return the next batches that hold so many pictures together; there are more of them where shapes differ."""
    taken: list[tuple[Batch, Draw]] = []
    while pictures > 0:
        taken.append(next(batches))
        pictures -= len(taken[-1][0].concept)
    return taken


def _stack(ids: Sequence[Ids]) -> dict[str, Int[np.ndarray, "batch tokens"]]:
    return {encoder: np.stack([own[encoder] for own in ids]) for encoder in ids[0]}


class _SeededItems:
    """A dataset read by (step, index, picture), each item under a seed of its own so that resuming repeats it."""

    def __init__(self, dataset: Dataset, seed: tuple[int, int]) -> None:
        self.dataset, self.seed = dataset, seed

    def __getitem__(self, key: tuple[int, int, int]) -> dict[str, Any]:
        step, index, picture = key
        item_seed = int(schedules.stream(*self.seed, step, index, schedules.Purpose.ITEM).integers(2**32))
        torch: Any = importlib.import_module("torch") if importlib.util.find_spec("torch") else None
        before = random.getstate(), np.random.get_state(), torch and torch.get_rng_state()
        random.seed(item_seed)
        np.random.seed(item_seed)
        if torch:
            torch.manual_seed(item_seed)
        try:
            return self.dataset[picture]
        finally:
            random.setstate(before[0])
            np.random.set_state(before[1])
            if torch:
                torch.set_rng_state(before[2])
