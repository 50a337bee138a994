"""A dry run says what training does: with each file, with each caption, and with what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pseudoword import Recipe, checking, cli, methods, train
from pseudoword.checking import check
from pseudoword.contracts import Sizes
from pseudoword.engines.torch_engine import TorchEngine
from pseudoword.errors import PseudowordError
from pseudoword.families import FAMILIES, part
from pseudoword.families.sd.sizes import sizes
from pseudoword.families.sd.torch import StableDiffusion
from pseudoword.recipe import BaseModel, EngineRecipe
from tests.miniatures import TOKEN, MakeRecipe, one_batch


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Pictures of several kinds, a mask, and a file that is none."""
    made = tmp_path / "mixed"
    made.mkdir()
    for i, (name, size) in enumerate({"a.png": (40, 20), "b.png": (12, 30), "c.png": (16, 16)}.items()):
        values = np.random.default_rng(i).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(values).resize(size).save(made / name)
    Image.open(made / "c.png").save(made / "d.bmp")
    Image.new("L", (40, 20), 255).save(made / "a-mask.png")
    (made / "notes.md").write_text("a cat")
    return made


def by_file(told: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {row["file"]: row for row in told["pictures"]}


def test_every_file_has_its_verdict(make_recipe: MakeRecipe, folder: Path):
    rows = by_file(check(make_recipe(pictures=str(folder))))
    assert {name: row["verdict"] for name, row in rows.items()} == {
        "a.png": "used",
        "b.png": "skipped",
        "c.png": "used",
        "d.bmp": "used",
        "notes.md": "skipped",
    }
    assert rows["notes.md"]["reason"] == "not a picture"
    assert rows["b.png"]["reason"] == "12 x 30 pixels, under 16"
    assert (rows["a.png"]["trained_at"], rows["a.png"]["left_out"], rows["a.png"]["mask"]) == ([16, 16], 0.5, True)
    assert (rows["c.png"]["same_as"], rows["c.png"]["left_out"], rows["c.png"]["mask"]) == (["d.bmp"], 0, False)
    assert not rows["a.png"]["enlarged"]


def test_crops_buckets_and_enlarging_are_told(make_recipe: MakeRecipe, folder: Path):
    crops = by_file(check(make_recipe(pictures=str(folder), crops=3)))
    assert (crops["a.png"]["frames"], crops["c.png"]["frames"]) == (3, 1)
    buckets = by_file(check(make_recipe(pictures=str(folder), fit="bucket", resolution=24)))
    assert (buckets["a.png"]["trained_at"], buckets["c.png"]["trained_at"]) == ([32, 16], [24, 24])
    assert (buckets["a.png"]["left_out"], buckets["c.png"]["enlarged"]) == (0, True)


def test_captions_are_those_of_training_with_their_tokens(make_recipe: MakeRecipe, folder: Path):
    for name in ("a", "c", "d"):
        (folder / f"{name}.txt").write_text("a red {}")
    told = check(make_recipe(pictures=str(folder), captions="files", num_vectors=2))
    assert told["captions"][0] == {
        "from": "a.png from a.txt",
        "text": f"a red {TOKEN}",
        "encoder": "clip_l",
        "tokens": ["<|startoftext|>", "a", "red", TOKEN, f"{TOKEN}_1", "<|endoftext|>"],
        "count": 6,
        "limit": 77,
        "cut": False,
    }
    (folder / "a.txt").write_text("{}" + " cat" * 90)
    cut = check(make_recipe(pictures=str(folder), captions="files"))["captions"][0]
    assert (cut["count"], cut["cut"], len(cut["tokens"])) == (93, True, 77)


def test_what_diffusers_reads_differently_is_tried(make_recipe: MakeRecipe, folder: Path):
    for name in ("a", "c", "d"):
        (folder / f"{name}.txt").write_text("a cat {}")
    plain = check(make_recipe(pictures=str(folder), captions="files"))["diffusers"]
    assert f"{TOKEN!r} inside other words, as in 'a{TOKEN}b'" in plain
    assert not any("caption" in difference for difference in plain)
    (folder / "c.txt").write_text("a zz and azzb")
    differences = check(make_recipe(pictures=str(folder), captions="files", token="zz"))["diffusers"]
    assert "the caption 'a zz and azzb'" in differences
    assert "the caption 'a cat zz'" not in differences


REFUSED: dict[str, Callable[[Path], dict[str, Any]]] = {
    "no folder": lambda folder: {"pictures": str(folder / "nowhere")},
    "no caption": lambda folder: {"captions": "files"},
    "no templates": lambda folder: {"templates": str(folder / "own.txt")},
    "known token": lambda folder: {"token": "cat"},
    "no such base": lambda folder: {"model": str(folder)},
    "initializer": lambda folder: {"initializer": "nothing.pt"},
    "resolution": lambda folder: {"resolution": 17},
    "bucket": lambda folder: {"resolution": 18, "fit": "bucket"},
    "vectors": lambda folder: {"num_vectors": 80},
    "alpha": lambda folder: {"masks": "alpha"},
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_training_refuses_is_refused_with_its_very_sentence(make_recipe: MakeRecipe, folder: Path, case: str):
    recipe = make_recipe(**{"pictures": str(folder), **REFUSED[case](folder)})
    with pytest.raises(PseudowordError) as error:
        list(train(recipe))
    told = check(recipe)
    assert (told["starts"], told["refused"]) == (False, str(error.value))


def test_what_starts_trains_and_checking_leaves_no_trace(make_recipe: MakeRecipe, folder: Path):
    recipe = make_recipe(pictures=str(folder))
    assert check(recipe)["starts"]
    assert not Path(recipe.output.folder).exists()
    assert list(train(recipe))


# Memory and time


@pytest.mark.parametrize("family", FAMILIES)
def test_sizes_without_weights_are_those_of_the_loaded_base(tmp_path: Path, family: str):
    base = BaseModel(str(part(family, "miniature").write(tmp_path)))
    told: Sizes = part(family, "sizes").sizes(base)
    loaded = part(family, "torch").FAMILY.load(base)
    for name in ("resolution", "latent_factor", "bucket_multiple"):
        assert getattr(told, name) == getattr(loaded, name)


def test_memory_counts_every_weight_and_what_a_step_keeps(make_recipe: MakeRecipe, base: Path):
    memory = check(make_recipe())["memory"]
    family = StableDiffusion.load(BaseModel(str(base)))
    held = {name: sum(p.nbytes for p in module.parameters()) for name, module in family.modules.items()}
    del held["vae"]  # which leaves the device before the first step
    assert memory["weights"] == held
    assert memory["total"] == sum(held.values()) + memory["kept_for_gradient"]
    half = check(make_recipe(mixed_precision="bf16"))["memory"]
    assert half["weights"]["unet"] == held["unet"] / 2
    assert half["kept_for_gradient"] < memory["kept_for_gradient"]
    low, lowest = (check(make_recipe(memory=name))["memory"] for name in ("low", "lowest"))
    assert low["weights"] == half["weights"]
    assert low["kept_for_gradient"] < half["kept_for_gradient"]
    assert lowest["weights"]["text_encoder"] == held["text_encoder"] / 2
    assert low["weights"]["unet"] / 2 < lowest["weights"]["unet"] < 0.6 * low["weights"]["unet"]
    family.bring("cpu", torch.bfloat16, eight_bits=True)
    tensors = [*family.unet.parameters(), *family.unet.buffers()]
    assert lowest["weights"]["unet"] == sum(tensor.nbytes for tensor in tensors)


@pytest.mark.parametrize("recomputed", [False, True])
@pytest.mark.parametrize("name", FAMILIES)
def test_what_a_step_keeps_is_what_it_keeps_when_it_runs(
    make_recipe: MakeRecipe, tmp_path: Path, name: str, recomputed: bool
):
    base = BaseModel(str(part(name, "miniature").write(tmp_path / "base")))
    recipe, family = make_recipe(), part(name, "torch").FAMILY.load(base)
    for vocabulary in family.vocabularies.values():
        vocabulary.lend(TOKEN, 1)
    rows = {encoder: vocabulary.initial_rows("toy", 1)[0] for encoder, vocabulary in family.vocabularies.items()}
    engine = TorchEngine(EngineRecipe(gradient_checkpointing=recomputed))
    engine.prepare(family)
    engine.start(family, methods.build(recipe.method), {TOKEN: rows})
    frozen = {p.untyped_storage().data_ptr() for module in family.modules.values() for p in module.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in frozen:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    leaves = [{name: p.requires_grad_() for name, p in own.items()} for own in engine.params]
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        engine._loss(leaves, *one_batch(family), counts=[2])
    measured = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    counted = part(name, "costs").kept_for_gradient(base, (16, 16), 2, recomputed=recomputed)
    if recomputed:  # saved hooks do not see what a block computes again; its share is counted on top
        whole = part(name, "costs").kept_for_gradient(base, (16, 16), 2)
        assert measured < counted < whole
    else:
        assert counted == pytest.approx(measured, rel=0.1)


def test_time_is_that_of_a_few_steps(make_recipe: MakeRecipe):
    recipe = make_recipe(steps="50")
    told = check(recipe, time=True)
    assert told["starts"]
    assert told["time"]["steps"] == 50
    assert told["time"]["seconds"] == pytest.approx(50 * told["time"]["seconds_per_step"])
    assert not Path(recipe.output.folder).exists()


def test_a_configuration_that_cannot_be_read_is_named(tmp_path: Path, base: Path):
    with pytest.raises(PseudowordError, match=r"has no unet/config\.json that can be read"):
        sizes(BaseModel(str(tmp_path)))
    for name in ("unet", "vae"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
    with pytest.raises(PseudowordError, match=r"do not tell its sizes \('block_out_channels'\)"):
        sizes(BaseModel(str(tmp_path)))


# The command


def words(recipe: Recipe, folder: Path, *more: str) -> list[str]:
    own = ["--model", recipe.base.model, "--token", TOKEN, "--pictures", str(folder), "--initializer", "toy"]
    return ["check", *own, *more]


def test_the_command_prints_tables(make_recipe: MakeRecipe, folder: Path, capsys: pytest.CaptureFixture[str]):
    assert cli.main(words(make_recipe(), folder)) == 0
    said = capsys.readouterr().out
    for part_of in (
        "skipped: not a picture",
        "50% cut off, masked",
        "the same picture as d.bmp",
        "of 27)",
        "MiB",
    ):
        assert part_of in said, part_of
    assert f"diffusers' own loader reads differently: {TOKEN!r} inside other words" in said
    assert said.rstrip().endswith("Training would start, with 1 warning.")


def test_the_command_prints_json_and_its_exit_code_tells(
    make_recipe: MakeRecipe, folder: Path, capsys: pytest.CaptureFixture[str]
):
    assert cli.main(words(make_recipe(), folder, "--json")) == 0
    assert json.loads(capsys.readouterr().out)["starts"]
    assert cli.main(words(make_recipe(), folder, "--json", "--captions", "files")) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["refused"].startswith("There is no caption for a.png")
    assert [row["file"] for row in told["pictures"]] == ["a.png", "c.png", "d.bmp", "b.png", "notes.md"]
    assert cli.main(words(make_recipe(), folder, "--captions", "files")) == 1
    said = capsys.readouterr()
    assert said.err.splitlines()[-1].startswith("error: There is no caption for a.png")
    assert "skipped: not a picture" in said.out


def test_it_takes_a_recipe_file(make_recipe: MakeRecipe, capsys: pytest.CaptureFixture[str], tmp_path: Path):
    import tomli_w

    (tmp_path / "recipe.toml").write_text(tomli_w.dumps(make_recipe().to_dict()))
    assert cli.main(["check", "--recipe", str(tmp_path / "recipe.toml"), "--crops", "2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["pictures"][0]["frames"] == 2


def test_it_is_silent_about_memory_without_torch(make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch):
    def missing(family: str, name: str) -> Any:
        if name == "costs":
            raise ImportError(name)
        return part(family, name)

    monkeypatch.setattr(checking.families, "part", missing)
    assert check(make_recipe())["memory"] is None
