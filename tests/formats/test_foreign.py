"""Files as other tools write them, made here with torch and safetensors alone, are read bit for bit."""

from __future__ import annotations

import base64
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image, PngImagePlugin

from pseudoword import formats
from pseudoword.concept import Concept
from pseudoword.errors import FormatError
from pseudoword.formats import pickles, webui


def block(vectors: int = 2, width: int = 768, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((vectors, width), dtype=np.float32))


def a1111(rows: torch.Tensor, **changes: Any) -> dict[str, Any]:
    return {
        "string_to_token": {"*": 265},
        "string_to_param": {"*": rows.requires_grad_()},
        "name": "my cat",
        "step": 1500,
        "sd_checkpoint": "81761151",
        "sd_checkpoint_name": "v1-5-pruned-emaonly",
        **changes,
    }


def is_word(concept: Concept, token: str, **rows: torch.Tensor) -> bool:
    same = concept.rows.keys() == rows.keys()
    return same and concept.token == token and all(np.array_equal(concept.rows[k], v.numpy()) for k, v in rows.items())


@pytest.mark.parametrize("legacy", [True, False])
def test_a1111s_own_file(tmp_path: Path, legacy: bool):
    path = tmp_path / "renamed.pt"
    torch.save(a1111(block()), path, _use_new_zipfile_serialization=not legacy)
    concept = formats.read(path)
    assert is_word(concept, "my-cat", clip_l=block())
    assert (concept.steps, concept.base) == (1500, "v1-5-pruned-emaonly")
    torch.save(a1111(block(), name="", step=None, sd_checkpoint_name=None), path)
    concept = formats.read(path)
    assert is_word(concept, "renamed", clip_l=block()), "called as its file, where it does not say"
    assert (concept.steps, concept.base) == (0, "")


@pytest.mark.parametrize("hidden", [True, False])
@pytest.mark.parametrize("suffix", [".png", ".webp"])
def test_a1111s_picture(tmp_path: Path, hidden: bool, suffix: str):
    if suffix == ".webp" and not hidden:
        pytest.skip("WebP has no text chunks")
    concept = Concept("<x>", {"clip_l": block().numpy()})
    own = Image.open(formats.write_file(concept, tmp_path / "made.png", "webui")).convert("RGB")
    info = PngImagePlugin.PngInfo()
    if not hidden:
        own = Image.new("RGB", (64, 64), "green")
        values = {"string_to_param": {"*": {"TORCHTENSOR": block().tolist()}}, "name": "my cat", "step": 7}
        info.add_text("sd-ti-embedding", base64.b64encode(json.dumps(values).encode()).decode())
    path = tmp_path / f"picture{suffix}"
    own.save(path, **({"pnginfo": info} if suffix == ".png" else {"lossless": True}))
    assert is_word(formats.read(path), "<x>" if hidden else "my-cat", clip_l=block())


@pytest.mark.parametrize("legacy", [True, False])
def test_the_originals_parameter_dict(tmp_path: Path, legacy: bool):
    terms = {"*": torch.nn.Parameter(block()), "<dog>": torch.nn.Parameter(block(1, seed=1))}
    values = {
        "string_to_token": dict.fromkeys(terms, torch.tensor(265)),
        "string_to_param": torch.nn.ParameterDict(terms),
    }
    torch.save(values, tmp_path / "embeddings_gs-6099.pt", _use_new_zipfile_serialization=not legacy)
    star, dog = formats.read_all(tmp_path / "embeddings_gs-6099.pt")
    assert is_word(star, "embeddings_gs-6099", clip_l=block())
    assert is_word(dog, "<dog>", clip_l=block(1, seed=1))
    assert is_word(formats.read(tmp_path / "embeddings_gs-6099.pt", token="<dog>"), "<dog>", clip_l=block(1, seed=1))
    with pytest.raises(FormatError, match=r"several words \(embeddings_gs-6099, <dog>\); say which, or make"):
        formats.read(tmp_path / "embeddings_gs-6099.pt")


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_onetrainers_keys_and_its_rows_for_outputs(tmp_path: Path, suffix: str, caplog: pytest.LogCaptureFixture):
    save: Any = safetensors.torch.save_file if suffix == ".safetensors" else torch.save
    path = tmp_path / f"cat{suffix}"
    save({"emp_params": block(3, 1024), "emp_params_out": block(3, 1024, 1)}, path)
    with caplog.at_level(logging.WARNING):
        assert is_word(formats.read(path), "cat", clip_h=block(3, 1024))
    assert "emp_params_out act on what text encoders give out, which a word here has no place for" in caplog.text
    everything = {"clip_l": block(), "clip_g": block(2, 1280), "t5": block(2, 4096)}
    save({**everything, "t5_out": block(2, 4096, 1)}, path)
    assert is_word(formats.read(path), "cat", **everything)
    save({"clip_l_out": block()}, path)
    with pytest.raises(FormatError, match=r"clip_l_out act on what text encoders give out, and there is no word"):
        formats.read(path)


def test_t5_under_either_name(tmp_path: Path):
    path, values = tmp_path / "cat.safetensors", {"clip_l": block(), "t5xxl": block(2, 4096)}
    safetensors.torch.save_file(values, path)
    assert is_word(formats.read(path), "cat", clip_l=block(), t5=block(2, 4096))
    safetensors.torch.save_file({**values, "t5": block(2, 4096)}, path)
    assert is_word(formats.read(path), "cat", clip_l=block(), t5=block(2, 4096))
    safetensors.torch.save_file({**values, "t5": block(2, 4096, 1)}, path)
    with pytest.raises(FormatError, match=r"cat\.safetensors: rows for t5 and for t5xxl differ, though both"):
        formats.read(path)


def test_pivotal_tunings_keys(tmp_path: Path):
    values = {"text_encoders_0": block(2), "text_encoders_1": block(2, 1280)}
    safetensors.torch.save_file(values, tmp_path / "embeddings.pti")
    assert is_word(formats.read(tmp_path / "embeddings.pti"), "embeddings", clip_l=block(2), clip_g=block(2, 1280))


@pytest.mark.parametrize("inner", ["string_to_param.*", "emb_params", "clip_l", "emp_params"])
def test_words_bundled_with_a_lora(tmp_path: Path, lora: Path, inner: str):
    values = {**safetensors.torch.load_file(lora), f"bundle_emb.my.cat.{inner}": block()}
    safetensors.torch.save_file(values, tmp_path / "l.safetensors", {"ss_base_model_version": "sd_v1"})
    concept = formats.read(tmp_path / "l.safetensors")
    assert is_word(concept, "my.cat", clip_l=block())
    assert concept.metadata == {}, "what the LoRA's file says is about the LoRA"


def test_several_bundled_words_and_those_of_lora_pti(tmp_path: Path):
    values = {
        "bundle_emb.one.clip_l": block(),
        "bundle_emb.one.clip_g": block(2, 1280),
        "bundle_emb.one.clip_g_out": block(2, 1280, 1),
        "bundle_emb.two.clip_l": block(1, seed=2),
        "unet:0:up": block(4, 8),
        "<s1>": block(1, seed=3)[0],
    }
    safetensors.torch.save_file(values, tmp_path / "l.safetensors", {"<s1>": "<embed>"})
    pti, one, two = formats.read_all(tmp_path / "l.safetensors")
    assert is_word(pti, "<s1>", clip_l=block(1, seed=3))
    assert is_word(one, "one", clip_l=block(), clip_g=block(2, 1280))
    assert is_word(two, "two", clip_l=block(1, seed=2))


def test_a_lora_without_words_says_so(lora: Path):
    with pytest.raises(FormatError, match=r"style-lora\.safetensors is a LoRA, and no word is bundled with it\.$"):
        formats.read(lora)


def test_words_are_put_into_loras_alone(tmp_path: Path, lora: Path):
    concept = Concept("<x>", {"clip_l": block().numpy()})
    word = concept.save(tmp_path / "word.safetensors")
    for wrong in (word, tmp_path / "none.safetensors"):
        with pytest.raises(FormatError, match=r"Words are put into a LoRA's \.safetensors file, but '.*' is none\.$"):
            formats.bundle_into(wrong, [concept], tmp_path / "new.safetensors")
    with pytest.raises(FormatError, match=r"Two words would be called 'x-ti' in .*new\.safetensors; rename one"):
        formats.bundle_into(lora, [concept, Concept("[x]", concept.rows)], tmp_path / "new.safetensors")
    assert not (tmp_path / "new.safetensors").exists()


def test_a_library_folder(tmp_path: Path):
    torch.save({"<cat-toy>": block(1)[0]}, tmp_path / "learned_embeds.bin")
    (tmp_path / "token_identifier.txt").write_text("<cat-toy>")
    (tmp_path / "type_of_concept.txt").write_text("style")
    concept = formats.read(tmp_path)
    assert is_word(concept, "<cat-toy>", clip_l=block(1))
    assert concept.property == "style"


@pytest.mark.parametrize("legacy", [True, False])
def test_pickles_are_read_as_torch_reads_them(tmp_path: Path, legacy: bool):
    whole = block(8)
    values = {
        "a view": whole[2:5, 10:20],
        "turned": whole.T,
        "spread": whole[0, :3].expand(2, 3),
        "none": torch.zeros(0, 3),
        "one number": torch.tensor(2.5),
        "half": whole.half(),
        "bfloat": whole.bfloat16(),
        "double": whole.double(),
        "ids": torch.arange(5),
        "nested": {"in": [whole[0], (whole[1], "text", 3, 2.5, None, True)]},
    }
    torch.save(values, tmp_path / "v.pt", _use_new_zipfile_serialization=not legacy)
    read, dtypes = pickles.load((tmp_path / "v.pt").read_bytes())
    for name, value in values.items():
        if torch.is_tensor(value):
            assert np.array_equal(read[name], value.float().numpy()), name
    assert np.array_equal(read["nested"]["in"][1][0], whole[1])
    assert read["nested"]["in"][1][1:] == ["text", 3, 2.5, None, True]
    assert (dtypes["half"], dtypes["bfloat"], dtypes["nested.in.0"]) == ("F16", "BF16", "F32")


# What A1111 leaves to train on from


def optimizer(rows: torch.Tensor, steps: int = 3) -> dict[str, Any]:
    """Return what A1111 saves of torch's AdamW after some steps on rows, which it moves."""
    leaf = rows.clone().requires_grad_()
    adam = torch.optim.AdamW([leaf], lr=5e-3, weight_decay=0.0)
    for i in range(steps):
        leaf.grad = block(*rows.shape, seed=10 + i)
        adam.step()
    rows.data.copy_(leaf.detach())
    return {"hash": webui.checksum(rows.numpy()), "optimizer_state_dict": adam.state_dict()}


def test_the_checksum_is_a1111s():
    value = 0
    for number in block().reshape(-1) * 100:
        value = (value * 281 ^ int(number) * 997) & 0xFFFFFFFF
    assert webui.checksum(block().numpy()) == f"{value & 0xFFFF:04x}"


def test_the_optimizers_state_is_found_beside_its_rows_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    rows, path = block(), tmp_path / "cat.pt"
    assert webui.optimizer_beside(path, rows.numpy()) is None
    saved = optimizer(rows)
    torch.save(saved, tmp_path / "cat.pt.optim")
    found = webui.optimizer_beside(path, rows.numpy())
    assert found is not None
    assert found[2] == 3
    assert np.array_equal(found[0], saved["optimizer_state_dict"]["state"][0]["exp_avg"])
    assert webui.optimizer_beside(path, rows.numpy() + 1) is None
    assert "cat.pt.optim is for other rows than those of" in caplog.text
    torch.save({"hash": "0"}, tmp_path / "cat.pt.optim")
    assert webui.optimizer_beside(path, rows.numpy()) is None
    assert "cat.pt.optim holds no state of AdamW" in caplog.text
