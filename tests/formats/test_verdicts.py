"""What tools are said to load: words in a LoRA's file, how a file is stored, and a run by what it exports."""

from __future__ import annotations

import logging
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from pseudoword import cli, formats
from pseudoword.concept import Concept
from pseudoword.converting import convert
from pseudoword.inspection import inspect
from tests.formats import tools as emulators
from tests.formats.test_encoders import save, says
from tests.formats.test_foreign import block, is_word
from tests.formats.test_readers import KINDS, word

# Words in a LoRA's file


def keys_in(path: Path) -> set[str]:
    return {key for key in safetensors.torch.load_file(path) if key.startswith("bundle_emb.")}


@pytest.mark.parametrize(
    ("rows", "keys"),
    [
        ({"clip_l": 768}, {"clip_l"}),
        ({"clip_h": 1024}, {"clip_h"}),
        ({"clip_g": 1280}, {"clip_g"}),
        ({"clip_l": 768, "clip_g": 1280}, {"clip_l", "clip_g"}),
        ({"clip_l": 768, "t5": 4096}, {"clip_l", "t5xxl"}),
        ({"gemma2_2b": 2304}, {"gemma2_2b"}),
    ],
)
def test_a_bundled_word_has_the_keys_that_tools_look_for(
    tmp_path: Path, lora: Path, caplog: pytest.LogCaptureFixture, rows: dict[str, int], keys: set[str]
):
    concept = Concept("<x>", {encoder: block(2, width).numpy() for encoder, width in rows.items()})
    with caplog.at_level(logging.WARNING):
        path = formats.bundle_into(lora, [concept], tmp_path / "l.safetensors")
    assert keys_in(path) == {f"bundle_emb.x-ti.{key}" for key in keys}
    assert is_word(formats.read(path), "<x>", **{e: torch.tensor(np.array(r)) for e, r in concept.rows.items()})
    with pytest.raises(emulators.NotLoaded) if "t5" in rows else nullcontext():
        emulators.a1111_bundle(path)
    assert ("A1111 leaves out the whole LoRA" in caplog.text) == ("t5" in rows)
    alone = rows.keys() in ({"clip_g"}, {"gemma2_2b"})
    usual = "has no base with one text encoder" if alone else "loads words in a LoRA with"
    assert says(path, "a1111")[1].startswith("leaves out the whole LoRA" if "t5" in rows else usual)
    assert says(path, "comfyui")[0] == (rows.keys() != {"gemma2_2b"})
    assert says(path, "forge") == (
        False,
        "passes over words in a LoRA's file; pseudoword convert --to forge takes them out of it",
    )


def test_many_bundled_words_cost_forge_the_lora(tmp_path: Path, lora: Path, caplog: pytest.LogCaptureFixture):
    words = [Concept(f"<x{i}>", {"clip_l": block(1, seed=i).numpy()}) for i in range(13)]
    few = formats.bundle_into(lora, words[:12], tmp_path / "few.safetensors")
    assert "Forge leaves out" not in caplog.text
    assert emulators.forge_loads_lora(few)
    many = formats.bundle_into(few, words[12:], tmp_path / "many.safetensors")
    assert not emulators.forge_loads_lora(many), "with those that it had already"
    assert f"Forge leaves out the whole LoRA {many}, as its words are 13 tensors and it forgives 12" in caplog.text
    assert says(many, "forge")[1].startswith("leaves the whole LoRA out")


@pytest.mark.parametrize(
    ("parts", "loads"),
    [
        ({"clip_l": block()}, True),
        ({"string_to_param.*": block()}, True),
        ({"emb_params": block()}, False),
        ({"emp_params": block()}, False),
        ({"clip_l": block(2, 1024)}, False),
        ({"clip_h": block(2, 1024)}, True),
        ({"clip_l": block(), "t5": block(2, 4096)}, False),
        ({"clip_l": block(), "t5xxl": block(2, 4096)}, True),
    ],
)
def test_comfyui_finds_bundled_words_under_its_own_keys_alone(
    tmp_path: Path, lora: Path, parts: dict[str, torch.Tensor], loads: bool
):
    path = tmp_path / "l.safetensors"
    tensors = {f"bundle_emb.cat.{key}": rows for key, rows in parts.items()}
    safetensors.torch.save_file({**safetensors.torch.load_file(lora), **tensors}, path)
    assert says(path, "comfyui")[0] == loads
    [outcome] = convert([path], ["comfyui"], tmp_path / "out")
    assert says(outcome.written[0], "comfyui")[0], "taken out of the LoRA it is found"


# Verdicts


@pytest.mark.parametrize(("dtype", "kind", "vectors"), [("F32", "sd1", 3), ("F32", "sd2", 2), ("F32", "sd2", 4)])
def test_comfyui_reads_the_originals_numbers(tmp_path: Path, dtype: str, kind: str, vectors: int):
    concept = word(kind, vectors)
    path = tmp_path / "w.pt"
    path.write_bytes(formats.to_bytes(concept, path.name, "original", dtype=dtype))
    assert says(path, "comfyui")[0]
    [rows] = emulators.comfyui(path, {next(iter(concept.rows)): KINDS[kind][next(iter(concept.rows))]})[1].values()
    assert np.array_equal(rows, next(iter(concept.rows.values())))


@pytest.mark.parametrize(
    ("dtype", "kind", "vectors"),
    [("F16", "sd1", 1), ("F16", "sd1", 2), ("BF16", "sd1", 4), ("F16", "sd2", 4), ("F32", "sd2", 3), ("F32", "sd2", 6)],
)
def test_comfyui_would_read_other_numbers_of_the_originals_file(tmp_path: Path, dtype: str, kind: str, vectors: int):
    path = tmp_path / "w.pt"
    path.write_bytes(formats.to_bytes(word(kind, vectors), path.name, "original", dtype=dtype))
    loads, reason = says(path, "comfyui")
    assert not loads
    assert reason.startswith("would take the numbers of the zip for fp32 and rows of 768")
    [outcome] = convert([path], ["comfyui"], tmp_path / "out")
    assert says(outcome.written[0], "comfyui")[0]


def test_the_original_is_told_how_many_vectors_there_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for vectors in (1, 3):
        path = word("sd1", vectors).save(tmp_path / f"w{vectors}.safetensors")
        [outcome] = convert([path], ["original"], tmp_path / "out", overwrite=True)
        setting = "set num_vectors_per_token in configs/stable-diffusion/v1-inference.yaml to 3"
        assert outcome.needs == (setting if vectors > 1 else "")
    assert cli.main(["inspect", str(outcome.written[0])]) == 0
    assert f"ids of string_to_token); {setting}" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(("width", "reads"), [(768, "FLUX.1 and SD 3.5"), (1280, "SD 3.5 alone")])
def test_forge_takes_rows_of_any_base_of_their_width(tmp_path: Path, width: int, reads: str):
    path = save(tmp_path, **{"<x>": block(2, width)})
    loads, reason = says(path, "forge")
    assert loads
    assert reads in reason
    assert says(path, "a1111")[0] == (width == 768)


def test_a_run_is_judged_by_what_it_exports(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run = word("sd1").save(tmp_path / "run")
    before = inspect(run)[0]["tools"]
    assert not before["invokeai"]["loads"], "diffusers' file alone"
    (run / "exports").mkdir()
    formats.write_file(word("sd1"), run / "exports" / "cat-toy.safetensors", "kohya")
    [shown] = inspect(run)
    assert shown["tools"]["invokeai"]["loads"]
    assert shown["tools"]["invokeai"]["file"] == "exports/cat-toy.safetensors"
    assert shown["tools"]["diffusers"] == before["diffusers"], "it loads the run itself"
    assert shown["token"] == "<cat-toy>"
    assert cli.main(["inspect", str(run)]) == 0
    out = capsys.readouterr().out
    assert "yes, exports/cat-toy.safetensors as embedding:cat-toy (" in out
    alone = inspect(run / "learned_embeds.safetensors")[0]["tools"]
    assert not alone["invokeai"]["loads"], "the file that was named"
