"""Pictures from prompts with learned words in them, and the command that makes them."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pseudoword import Concept, cli
from pseudoword.data import images
from pseudoword.data.framing import Framing
from pseudoword.errors import TokenError
from pseudoword.families import FAMILIES, part
from pseudoword.families.sd.torch import StableDiffusion
from pseudoword.generate import Redraw, Sampling, generate, load
from pseudoword.recipe import BaseModel
from pseudoword.sheets import grid
from pseudoword.toybox import suite
from pseudoword.vocabulary import encode_all
from tests.miniatures import TOKEN, hashes

FAST = Sampling(steps=2)


@pytest.fixture(scope="module")
def family(base: Path) -> StableDiffusion:
    loaded = load(BaseModel(str(base)))
    assert isinstance(loaded, StableDiffusion)
    return loaded


@pytest.fixture
def word() -> Concept:
    return Concept(TOKEN, {"clip_l": np.random.default_rng(0).standard_normal((2, 32)) * 3})


@pytest.fixture
def saved(word: Concept, tmp_path: Path) -> Iterator[Path]:
    return word.save(tmp_path / "word.safetensors")


def test_a_seed_gives_a_picture_whatever_the_batch(family: StableDiffusion, word: Concept) -> None:
    prompts = [f"a {TOKEN}", "a toy", f"a red {TOKEN}"]
    together = generate(family, [word], prompts, sampling=FAST, batch_size=3)
    alone = generate(family, [word], prompts, sampling=FAST)
    for one, other in zip(together, alone, strict=True):
        assert np.abs(np.asarray(one, dtype=int) - np.asarray(other, dtype=int)).max() <= 1
    second = generate(family, [word], prompts[1:2], sampling=Sampling(seed=1, steps=2))
    assert second[0].tobytes() == alone[1].tobytes(), "the second picture has the second seed"


def test_the_unet_may_be_in_half_precision(base: Path, word: Concept, family: StableDiffusion) -> None:
    half = StableDiffusion.load(BaseModel(str(base)))
    half.to("cpu", torch.bfloat16)
    [picture] = generate(half, [word], [f"a {TOKEN}"], sampling=FAST)
    [wanted] = generate(family, [word], [f"a {TOKEN}"], sampling=FAST)
    assert np.abs(np.asarray(picture, dtype=int) - np.asarray(wanted, dtype=int)).mean() < 4


def test_words_work_in_prompts_and_in_the_negative_prompt(family: StableDiffusion, word: Concept) -> None:
    before = hashes(family)
    [plain] = generate(family, [], ["a toy"], sampling=FAST)
    [positive] = generate(family, [word], [f"a {TOKEN}"], sampling=FAST)
    [negative] = generate(family, [word], ["a toy"], negative_prompt=TOKEN, sampling=FAST)
    assert len({plain.tobytes(), positive.tobytes(), negative.tobytes()}) == 3
    assert hashes(family) == before


def test_several_words_in_one_prompt(family: StableDiffusion, word: Concept) -> None:
    other = Concept("<other>", {"clip_l": -word.rows["clip_l"][:1]})
    [both] = generate(family, [word, other], [f"a {TOKEN} and a <other>"], sampling=FAST)
    [one] = generate(family, [word], [f"a {TOKEN} and a <other>"], sampling=FAST)
    assert both.tobytes() != one.tobytes()


def test_a_word_of_another_base_is_refused(family: StableDiffusion) -> None:
    foreign = Concept(TOKEN, {"clip_l": np.ones((1, 768))}, base="stable-diffusion-v1-5/stable-diffusion-v1-5")
    with pytest.raises(TokenError, match=r"width 768; this base wants clip_l of width 32.*trained on 'stable-diff"):
        generate(family, [foreign], ["a toy"], sampling=FAST)
    assert family.vocabularies["clip_l"].rows_lent == 0


def test_a_word_that_is_cut_off_is_said(
    family: StableDiffusion, word: Concept, caplog: pytest.LogCaptureFixture
) -> None:
    generate(family, [word], ["photo " * 75 + TOKEN], sampling=FAST)
    assert "Cut off at 77 tokens: <cat-toy>" in caplog.text


def test_a_grid_has_all_pictures() -> None:
    colours = ["red", "green", "blue"]
    sheet = grid([Image.new("RGB", (8, 8), colour) for colour in colours], columns=2, gap=2)
    assert sheet.size == (18, 18)
    seen = [sheet.getpixel(at) for at in ((4, 4), (14, 4), (4, 14), (14, 14))]
    assert seen == [(255, 0, 0), (0, 128, 0), (0, 0, 255), (255, 255, 255)]


# The command


def command(*words: str) -> int:
    return cli.main(["generate", "--num-inference-steps", "2", *words])


def test_one_picture_says_how_it_was_made(
    base: Path, saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "deep" / "picture.png"
    options = ["--prompt", f"a {TOKEN}", "--negative-prompt", "a dog", "--seed", "3"]
    assert command("--model", str(base), "--embeds", str(saved), "--output", str(output), *options) == 0
    assert capsys.readouterr().out.strip() == str(output)
    with Image.open(output) as picture:
        assert picture.size == (16, 16)
        assert picture.info["prompt"] == f"a {TOKEN}"
        assert picture.info["negative_prompt"] == "a dog"
        assert picture.info["seed"] == "3"
        assert picture.info["sampler"] == "dpm++, 2 steps, guidance 7.5"
        digest = hashlib.sha256(saved.read_bytes()).hexdigest()[:16]
        assert picture.info["embeds"] == f"{saved} (sha256 {digest})"


def test_prompts_come_from_a_file_too(base: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a dog\n\n  a fish  \n", encoding="utf-8-sig")
    options = ["--prompt", "a toy", "--prompt-file", str(tmp_path / "prompts.txt"), "--output", str(tmp_path / "out")]
    assert command("--model", str(base), *options) == 0
    told = [Image.open(tmp_path / "out" / f"{i}.png").info["prompt"] for i in range(3)]
    assert told == ["a toy", "a dog", "a fish"]


def test_a_word_that_no_prompt_has_is_told(
    base: Path, saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    logging.getLogger("pseudoword").handlers = []
    options = ["--embeds", str(saved), "--prompt", "a <cat-Toy>", "--output", str(tmp_path / "p.png")]
    assert command("--model", str(base), *options) == 0
    assert f"{TOKEN} is in none of the prompts." in capsys.readouterr().err


def test_words_have_strengths(base: Path, saved: Path, word: Concept, tmp_path: Path) -> None:
    half = Concept("<half>", {"clip_l": word.rows["clip_l"] * np.float32(0.5)}).save(tmp_path / "half.safetensors")
    made = {}
    for name, files, token, strength in (
        ("own", [half], "<half>", []),
        ("scaled", [saved], TOKEN, ["--strength", "0.5"]),
        ("each", [saved, half], TOKEN, ["--strength", "0.5", "2"]),
    ):
        embeds, output = ["--embeds", *map(str, files)], str(tmp_path / f"{name}.png")
        assert command("--model", str(base), *embeds, "--prompt", f"a {token}", "--output", output, *strength) == 0
        made[name] = Image.open(output).tobytes()
    assert made["own"] == made["scaled"] == made["each"]


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_a_picture_may_be_drawn_anew(name: str, tmp_path: Path) -> None:
    own = str(part(name, "miniature").write(tmp_path / "base"))
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (24, 40, 3), dtype=np.uint8)).save(tmp_path / "in.png")
    made = {}
    for strength in ("0.5", "1.0"):
        output = str(tmp_path / f"{strength}.png")
        options = ["--image", str(tmp_path / "in.png"), "--image-strength", strength, "--output", output]
        assert command("--model", own, "--prompt", "a toy", *options) == 0
        with Image.open(output) as picture:
            assert picture.size == (16, 16)
            assert picture.info["image"] == f"in.png, {float(strength):g} drawn anew"
            made[strength] = np.asarray(picture.convert("RGB"), dtype=float)
    family = load(BaseModel(own))
    kept = generate(family, [], ["a toy"], sampling=FAST, redraw=Redraw(Image.open(tmp_path / "in.png"), 0.5))[0]
    assert np.array_equal(np.asarray(kept), made["0.5"])
    [plain] = generate(family, [], ["a toy"], sampling=FAST)
    pixels = images.pixels(Framing(16).frames((40, 24))[0].cut(Image.open(tmp_path / "in.png")), False)
    mean = torch.from_numpy(family.encode_images(pixels[None])[0])
    [through] = family.decode(family.latents(mean, torch.zeros_like(mean), mean))
    distance = {strength: np.abs(np.asarray(through, dtype=float) - own).mean() for strength, own in made.items()}
    assert distance["0.5"] < distance["1.0"], "less drawn anew is nearer to the picture"
    assert np.abs(np.asarray(plain, dtype=float) - made["0.5"]).mean() > 1


@pytest.mark.parametrize("engine", ["torch", "jax"])
@pytest.mark.parametrize("name", ["sd", "sdxl"])
def test_what_is_drawn_anew_begins_from_latents_as_the_denoiser_knows_them(tmp_path: Path, name: str, engine: str):
    """Far from zero, noise and prediction do not matter, so that the start shows."""
    family = load(BaseModel(str(part(name, "miniature").write(tmp_path))), engine)
    mean = 1000 * np.random.default_rng(0).standard_normal((1, 4, 8, 8), np.float32)
    ids = encode_all(family.vocabularies, ["a toy"])
    how: dict[str, Any] = {"seeds": [0], "sampler": "dpm++", "steps": 10, "guidance_scale": 1.0, "side": 16}
    made = np.asarray(family.sample(ids, ids, None, **how, start=(mean, 0.3)))
    assert np.abs(made - 0.18215 * mean).max() < 0.02 * np.abs(0.18215 * mean).max()


def test_a_picture_may_be_drawn_anew_in_latents_of_any_number_of_channels() -> None:
    family = load(BaseModel("toybox"))
    redraw = Redraw(suite.pictures(suite.NAMED["gold-ring"])[0], 0.4)
    several = generate(family, [], ["a ring", "a star"], sampling=Sampling(steps=5), redraw=redraw, batch_size=2)
    [alone] = generate(family, [], ["a ring"], sampling=Sampling(steps=5), redraw=redraw)
    distance = [np.abs(np.asarray(p, dtype=float) - np.asarray(redraw.image, dtype=float)).mean() for p in several]
    assert max(distance) < 60
    assert np.abs(np.asarray(alone, dtype=int) - np.asarray(several[0], dtype=int)).max() <= 1


def test_several_pictures_are_numbered_or_laid_out(base: Path, tmp_path: Path) -> None:
    two = ["--model", str(base), "--prompt", "a toy", "a cat", "--num-images", "2"]
    assert command(*two, "--output", str(tmp_path / "p.png")) == 0
    assert sorted(p.name for p in tmp_path.glob("*.png")) == [f"p-{i}.png" for i in range(4)]
    assert command(*two, "--output", str(tmp_path / "folder")) == 0
    assert sorted(p.name for p in (tmp_path / "folder").iterdir()) == [f"{i}.png" for i in range(4)]
    assert command(*two, "--output", str(tmp_path / "grid.png"), "--grid") == 0
    with Image.open(tmp_path / "grid.png") as sheet:
        assert sheet.size == (36, 36)


def test_a_resolution_of_ones_own(base: Path, tmp_path: Path) -> None:
    output = tmp_path / "large.png"
    assert command("--model", str(base), "--prompt", "a toy", "--resolution", "32", "--output", str(output)) == 0
    with Image.open(output) as picture:
        assert picture.size == (32, 32)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--num-images", "0"], "--num-images must be at least 1, but is 0"),
        (["--num-inference-steps", "0"], "--num-inference-steps must be at least 1, but is 0"),
        (["--seed", "-1"], "--seed must be between"),
        (["--resolution", "-8"], "--resolution must be pixels"),
        (["--output", "picture.jpeg"], "--output must be a .png or a folder, not 'picture.jpeg'"),
        (["--resolution", "17"], "resolution must be a multiple of 8 for this base, but is 17"),
        (["--embeds", "missing.safetensors"], "There is no file 'missing.safetensors'"),
        (["--strength", "1", "2"], "--strength needs one number, or one for each of the 0 --embeds."),
        (["--output", "/proc/x.png"], "Cannot write pictures to '/proc'"),
        (["--strength", "nan"], "--strength must be a number, not nan"),
        (["--prompt-file", "gone.txt"], "Cannot read the prompts in 'gone.txt'"),
        (["--image", "gone.png"], "Cannot read the picture 'gone.png'"),
        (["--image", "IMAGE", "--image-strength", "0.3"], "The strength with which a picture is drawn anew must be ab"),
    ],
)
def test_what_cannot_be_is_refused_in_one_sentence(
    base: Path, pictures: Path, capsys: pytest.CaptureFixture[str], options: list[str], sentence: str
) -> None:
    given = [str(pictures / "0.png") if word == "IMAGE" else word for word in options]
    assert command("--model", str(base), "--prompt", "a toy", *given) == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"error: {sentence}")


def test_a_folder_may_have_a_dot(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("there.png").mkdir()
    for folder in ("beach-0.3", "there.png"):
        words = ["--prompt", "a toy", "--num-inference-steps", "1", "--output", folder]
        assert cli.main(["generate", "--model", str(base), *words]) == 0
        assert [path.name for path in Path(folder).iterdir()] == ["0.png"]
