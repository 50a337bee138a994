"""Measures by pretrained models, on small random models of the real classes, against values computed by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    BitImageProcessorPil,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPTokenizer,
    Dinov2Config,
    Dinov2Model,
    SiglipConfig,
    SiglipImageProcessorPil,
    SiglipModel,
    ViTConfig,
    ViTModel,
)

from pseudoword import toybox
from pseudoword.errors import RecipeError
from pseudoword.evaluate.prompts import Question
from pseudoword.evaluate.similarity import Pretrained, Similarity

SIDE = 28
SMALL = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
VISION = {**SMALL, "image_size": SIDE, "patch_size": 7}
WORDS = CLIPTokenizer.from_pretrained(toybox.BASES["toybox"] / "tokenizer")
TEXT = {
    **SMALL,
    "vocab_size": max(WORDS.get_vocab().values()) + 1,
    "max_position_embeddings": 16,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
}
QUESTIONS = (Question("a photo of a {}", plain=True), Question("a photo of a {} in the snow"))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small random model of each kind, and what prepares its input."""
    root = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    clip = CLIPModel(CLIPConfig(text_config=TEXT, vision_config=VISION, projection_dim=12))
    clip.save_pretrained(root / "clip")
    CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=SIDE).save_pretrained(root / "clip")
    siglip = SiglipModel(SiglipConfig(text_config=TEXT, vision_config=VISION))
    torch.nn.init.normal_(siglip.logit_bias)
    torch.nn.init.normal_(siglip.logit_scale)
    siglip.save_pretrained(root / "siglip")
    SiglipImageProcessorPil(size={"height": SIDE, "width": SIDE}).save_pretrained(root / "siglip")
    for name in ("clip", "siglip"):
        WORDS.save_pretrained(root / name)
    ViTModel(ViTConfig(**VISION), add_pooling_layer=False).save_pretrained(root / "dino")
    Dinov2Model(Dinov2Config(**{k: v for k, v in VISION.items() if k != "intermediate_size"})).save_pretrained(
        root / "dinov2"
    )
    BitImageProcessorPil(size={"shortest_edge": 32}, crop_size=SIDE).save_pretrained(root / "dinov2")
    return root


def picture(seed: int, width: int = 40, height: int = 30) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (height // 5, width // 5, 3), dtype=np.uint8)
    return Image.fromarray(values).resize((width, height), Image.Resampling.BICUBIC)


REAL = [picture(seed) for seed in (100, 101, 102)]
MADE = [[picture(0), picture(1)], [picture(2), picture(3)]]


def cosines(a: torch.Tensor, b: torch.Tensor) -> np.ndarray:
    return (torch.nn.functional.normalize(a, dim=1) @ torch.nn.functional.normalize(b, dim=1).T).detach().numpy()


def test_clip_i_is_the_mean_cosine_of_all_pairs_and_clip_t_that_with_the_class_word(models: Path):
    yardstick = Pretrained([Similarity("clip", str(models / "clip"))], REAL, "star")
    found = yardstick.measure(QUESTIONS, MADE)
    model = CLIPModel.from_pretrained(models / "clip")
    prepare = CLIPImageProcessorPil.from_pretrained(models / "clip")
    flat = [p for line in MADE for p in line]
    seen, real = (model.get_image_features(**prepare(p, return_tensors="pt")).pooler_output for p in (flat, REAL))
    np.testing.assert_allclose(found["clip-i"], cosines(seen, real).mean(axis=1).reshape(2, 2), rtol=1e-5)
    ids = WORDS(["a photo of a star in the snow"], padding="max_length", max_length=16, return_tensors="pt")
    said = model.get_text_features(**ids).pooler_output
    assert np.isnan(found["clip-t"][0]).all()
    np.testing.assert_allclose(found["clip-t"][1], cosines(seen[2:], said)[:, 0], rtol=1e-5)
    assert (yardstick.fidelity, yardstick.editability) == ("clip-i", "clip-t")
    assert any("'star'" in line for line in yardstick.told)


def test_dino_compares_class_tokens_of_pictures_prepared_as_stated(models: Path):
    found = Pretrained([Similarity("dino", str(models / "dino"))], REAL, "star").measure(QUESTIONS, MADE)
    model = ViTModel.from_pretrained(models / "dino", add_pooling_layer=False)

    def prepared(one: Image.Image) -> torch.Tensor:
        edge = SIDE * 8 // 7
        width, height = one.size
        small = one.resize((edge * width // height, edge), Image.Resampling.BICUBIC)
        left, top = (small.width - SIDE) // 2, (edge - SIDE) // 2
        values = np.asarray(small.crop((left, top, left + SIDE, top + SIDE)), dtype=np.float32) / 255
        return torch.from_numpy(((values - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]).transpose(2, 0, 1)).float()

    seen, real = (
        model(pixel_values=torch.stack([prepared(one) for one in some])).last_hidden_state[:, 0]
        for some in ([p for line in MADE for p in line], REAL)
    )
    np.testing.assert_allclose(found["dino"], cosines(seen, real).mean(axis=1).reshape(2, 2), rtol=1e-4)
    assert set(found) == {"dino"}


def test_dinov2_compares_class_tokens(models: Path):
    found = Pretrained([Similarity("dinov2", str(models / "dinov2"))], REAL[:1], "star").measure(QUESTIONS, MADE)
    model = Dinov2Model.from_pretrained(models / "dinov2")
    prepare = BitImageProcessorPil.from_pretrained(models / "dinov2")
    seen, real = (model(**prepare(p, return_tensors="pt")).last_hidden_state[:, 0] for p in (MADE[1], REAL[:1]))
    np.testing.assert_allclose(found["dinov2"][1], cosines(seen, real)[:, 0], rtol=1e-5)


def test_siglip_gives_the_models_own_probability(models: Path):
    yardstick = Pretrained([Similarity("siglip", str(models / "siglip"))], REAL, "star")
    found = yardstick.measure(QUESTIONS, MADE)
    model = SiglipModel.from_pretrained(models / "siglip")
    prepare = SiglipImageProcessorPil.from_pretrained(models / "siglip")
    ids = WORDS(["a photo of a star in the snow"], padding="max_length", max_length=16, return_tensors="pt")
    out = model(input_ids=ids["input_ids"], **prepare(MADE[1], return_tensors="pt"))
    np.testing.assert_allclose(found["siglip"][1], out.logits_per_image.sigmoid().detach().numpy()[:, 0], rtol=1e-4)
    assert (yardstick.fidelity, yardstick.editability) == ("", "siglip")


def test_a_picture_among_its_own_has_the_highest_similarity(models: Path):
    yardstick = Pretrained([Similarity("dino", str(models / "dino"))], [picture(2)], "star")
    found = yardstick.measure(QUESTIONS, MADE)["dino"]
    assert found[1, 0] == pytest.approx(1, abs=1e-5)
    assert found.max() == found[1, 0]


def test_what_cannot_measure_is_refused(models: Path, tmp_path: Path):
    with pytest.raises(RecipeError, match=r"clip is measured with a clip model, but '.*dino' is a vit model\."):
        Similarity("clip", str(models / "dino"))
    with pytest.raises(RecipeError, match=r"Cannot load '.*none' to measure dino with: .*leave the measure out\."):
        Similarity("dino", str(tmp_path / "none"))
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "config.json").write_text(json.dumps({"model_type": "vit"}), encoding="utf-8")
    with pytest.raises(RecipeError, match=r"Cannot load '.*half' to measure dino with"):
        Similarity("dino", str(tmp_path / "half"))
    (tmp_path / "bare").mkdir()
    ViTModel(ViTConfig(**VISION), add_pooling_layer=False).save_pretrained(tmp_path / "bare")
    weights = load_file(tmp_path / "bare" / "model.safetensors")
    del weights["layernorm.weight"]
    save_file(weights, tmp_path / "bare" / "model.safetensors", {"format": "pt"})
    with pytest.raises(RecipeError, match=r"it lacks 1 tensors .* such as 'layernorm.weight'"):
        Similarity("dino", str(tmp_path / "bare"))
