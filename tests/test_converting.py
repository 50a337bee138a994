"""Conversions of folders: what is found, what becomes of each, and that a kill leaves nothing half."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from pseudoword import cli, formats
from pseudoword.commands.convert import DESCRIPTION
from pseudoword.concept import Concept
from pseudoword.converting import TARGETS, Outcome, convert, sources
from pseudoword.errors import FormatError, TokenError
from pseudoword.recipe import ConceptRecipe


def word(token: str = "<cat-toy>", width: int = 768, seed: int = 0) -> Concept:
    encoder = {768: "clip_l", 1024: "clip_h"}[width]
    rows = np.random.default_rng(seed).standard_normal((2, width), dtype=np.float32)
    return Concept(token, {encoder: rows}, steps=10)


def xl() -> Concept:
    return Concept("<xl>", {"clip_l": np.ones((2, 768)), "clip_g": np.ones((2, 1280))})


def names(paths: list[Path], folder: Path) -> list[str]:
    return [str(path.relative_to(folder)) for path in paths]


@pytest.fixture
def library(tmp_path: Path) -> Path:
    """Return a folder of words as people have them: files, a run, library folders, previews, and what is broken."""
    folder = tmp_path / "words"
    word("<loose>").save(folder / "loose.safetensors")
    run = word("<run>", seed=1).save(folder / "a-run")
    word("<early>").save(run / "learned_embeds-steps-5.safetensors")
    for inside in ("checkpoint-5", "exports", ".hidden", "earlier-1"):
        word("<early>").save(run / inside / "early.safetensors")
    (folder / "library" / "concept_images").mkdir(parents=True)
    word("<in a hidden folder>".replace(" ", "-")).save(folder / ".cache" / "x.safetensors")
    torch.save({"<old>": torch.ones(768)}, folder / "library" / "learned_embeds.bin")
    xl().save(folder / "xl")
    formats.write_file(word("<shown>", seed=2), folder / "shown.png", "webui")
    (folder / "preview.png").write_bytes((Path(__file__).parents[1] / "docs" / "demo.png").read_bytes())
    (folder / "broken.pt").write_bytes(b"PK\x03\x04nothing")
    (folder / "notes.txt").write_text("not a word")
    return folder


def test_a_folder_is_searched_for_words(library: Path):
    assert names(sources([library]), library) == [
        "broken.pt",
        "loose.safetensors",
        "shown.png",
        "a-run/learned_embeds.safetensors",
        "library/learned_embeds.bin",
        "xl/learned_embeds.safetensors",
    ]
    assert sources([library / "loose.safetensors", library / "loose.safetensors"]) == [library / "loose.safetensors"]
    (library / "nothing").mkdir()
    with pytest.raises(FormatError, match=r"The folder '.*nothing' holds no embedding file\.$"):
        sources([library / "nothing"])


def test_each_word_is_converted_and_what_fails_does_not_stop_the_others(library: Path, tmp_path: Path):
    found = list(convert(sources([library]), ["comfyui", "a1111"], tmp_path / "out"))
    assert [(one.source.name, one.target) for one in found if one.error] == [("broken.pt", "")]
    assert "is a damaged PyTorch file" in found[0].error
    written = sorted(names([path for one in found for path in one.written], tmp_path / "out"))
    tokens = ["loose-ti", "old-ti", "run-ti", "shown-ti", "xl-ti"]
    assert written == sorted(
        [f"comfyui/{t}.safetensors" for t in tokens]
        + [f"a1111/{t}.pt" for t in tokens[:-1]]
        + ["a1111/xl-ti.safetensors"]
    )
    again = list(convert(sources([library]), ["comfyui", "a1111"], tmp_path / "out"))
    assert all(one.was_there for one in again if one.written)


def test_what_is_beside_words_is_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    import safetensors.torch

    folder = tmp_path / "words"
    word("<cat>").save(folder / "cat.safetensors")
    safetensors.torch.save_file(
        {f"lora_unet_{i}.lora_up.weight": torch.ones(2, 2) for i in "ab"}, folder / "l.safetensors"
    )
    for step in (5, 40, 120):
        word("<on-the-way>", seed=step).save(folder / "stopped" / f"learned_embeds-steps-{step}.safetensors")
    assert names(sources([folder]), folder) == ["cat.safetensors", "stopped/learned_embeds-steps-120.safetensors"]
    word("<on-the-way>").save(folder / "stopped" / "learned_embeds-best.safetensors")
    for _ in range(3):  # the output is inside, and no source the next time
        assert cli.main(["convert", str(folder), "--to", "comfyui", "--output", str(folder / "converted")]) == 0
        assert capsys.readouterr().out.endswith("0 could not be converted.\n")
    assert len(list((folder / "converted").rglob("*.safetensors"))) == 2
    assert names(sources([folder], besides=folder / "converted"), folder)[1:] == [
        "stopped/learned_embeds-best.safetensors"
    ]


@pytest.mark.parametrize("token", ["<flora>", "lora_unet", "<lora:x:1>", "名" * 100, "*"])
def test_a_word_may_be_called_what_it_likes(tmp_path: Path, token: str):
    path = word(token).save(tmp_path / "word.safetensors")
    assert formats.read(path).token == token
    assert [one.error for one in convert([path], ["diffusers", "a1111", "comfyui"], tmp_path / "out")] == [""] * 3


def test_a_token_that_files_have_for_a_key_is_refused_before_anything_is_written(tmp_path: Path):
    for token in ("clip_l", "emb_params", "__metadata__", "bundle_emb.x", "t5_out"):
        with pytest.raises(FormatError, match=r"would have its token for a key of another format, but"):
            word(token).save(tmp_path / "out" / "word.safetensors")
        with pytest.raises(TokenError, match=rf"'{re.escape(token)}' is a name that files of words use; try '<"):
            ConceptRecipe(token=token, pictures="x", initializer="toy")
    assert list((tmp_path / "out").iterdir()) == []


def test_half_of_a_word_that_was_killed_is_completed(tmp_path: Path):
    path = xl().save(tmp_path / "xl.safetensors")
    [first] = convert([path], ["diffusers"], tmp_path / "out")
    first.written[1].unlink()
    [again] = convert([path], ["diffusers"], tmp_path / "out")
    assert (again.error, again.was_there) == ("", False)
    assert all(file.is_file() for file in first.written)


def test_the_help_names_every_tool():
    assert all(re.search(rf"\b{target}\b", DESCRIPTION) for target in TARGETS)


def test_the_same_tool_twice_is_once(tmp_path: Path):
    found = list(convert([word().save(tmp_path / "w.safetensors")], ["comfyui", "comfyui"], tmp_path / "out"))
    assert [one.error for one in found] == [""]


def test_a_word_on_the_hub_is_converted_and_inspected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    import huggingface_hub

    word("<from-the-hub>").save(tmp_path / "cache")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **more: str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    assert cli.main(["convert", "sd-concepts-library/cat", "--to", "comfyui", "--output", "out"]) == 0
    assert (tmp_path / "out" / "comfyui" / "from-the-hub.safetensors").is_file()
    assert cli.main(["inspect", "sd-concepts-library/cat"]) == 0
    assert "<from-the-hub>" in capsys.readouterr().out


def test_words_of_one_name_are_numbered_and_other_files_are_not_overwritten(tmp_path: Path):
    files = [word(seed=i).save(tmp_path / f"{i}.safetensors") for i in range(3)]
    found = list(convert(files, ["comfyui"], tmp_path / "out"))
    assert [one.written[0].name for one in found] == [f"cat-toy{end}.safetensors" for end in ("", "-2", "-3")]
    for one, file in zip(found, files, strict=True):
        assert np.array_equal(formats.read(one.written[0]).rows["clip_l"], formats.read(file).rows["clip_l"])
    [refused] = convert(files[1:2], ["comfyui"], tmp_path / "out")
    assert refused.error.endswith(
        "cat-toy.safetensors is there already, and holds something else; --overwrite replaces it."
    )
    [replaced] = convert(files[1:2], ["comfyui"], tmp_path / "out", overwrite=True)
    assert np.array_equal(formats.read(replaced.written[0]).rows["clip_l"], formats.read(files[1]).rows["clip_l"])


def test_a_word_is_renamed_and_several_cannot_be(tmp_path: Path, library: Path):
    [one] = convert([library / "loose.safetensors"], ["kohya"], tmp_path / "out", token="<new>")
    assert (one.written[0].name, formats.read(one.written[0]).token) == ("new-ti.safetensors", "<new>")
    with pytest.raises(FormatError, match=r"2 files are named, and their words cannot all be called '<x>'\.$"):
        list(convert([library / "loose.safetensors"] * 2, ["kohya"], tmp_path / "out", token="<x>"))
    values = {"string_to_param": {"a": torch.ones(1, 768), "b": torch.ones(1, 768)}, "string_to_token": {}}
    torch.save(values, tmp_path / "two.pt")
    [refused] = convert([tmp_path / "two.pt"], ["kohya"], tmp_path / "out", token="<new>")
    assert refused.error.endswith("two.pt holds 2 words, which cannot all be called '<new>'.")
    split = list(convert([tmp_path / "two.pt"], ["kohya"], tmp_path / "out"))
    assert [path.name for one in split for path in one.written] == ["a-ti.safetensors", "b-ti.safetensors"]


@pytest.mark.parametrize("token", ["../../evil", "/etc/evil", "..", "a\\b", "C:evil", "." * 50, "~"])
def test_a_words_name_leads_nowhere(tmp_path: Path, token: str):
    inside = tmp_path / "in" / "words"
    path = word(token).save(inside / "word.safetensors")
    found = list(convert([path], ["comfyui", "a1111", "a1111-picture", "diffusers"], inside / "out"))
    assert [one.error for one in found] == [""] * 4
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert all(path.is_relative_to(inside) for path in files)
    assert len(files) == 5


# The command


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = cli.main(["convert", *map(str, arguments)])
    out, err = capsys.readouterr()
    return code, out, err


def test_the_command_says_what_became_of_each(library: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    code, out, err = run(capsys, library, "--to", "comfyui, original", "--output", tmp_path / "out")
    assert code == 1
    line = "in prompts embedding:run-ti; it is called run-ti, which every tool reads in prompts\n"
    assert f"{tmp_path}/out/comfyui/run-ti.safetensors: {line}" in out
    setting = "set num_vectors_per_token in configs/stable-diffusion/v1-inference.yaml to 2"
    assert f"original/run-ti.pt: in prompts *; it does not hold token (<run>), steps (10); {setting}\n" in out
    assert (
        "error: the original can have no file of '<xl>', which is for clip_l, clip_g: it holds rows of one text" in err
    )
    assert out.endswith("9 written, 0 were there already, 2 could not be converted.\n")
    code, out, err = run(capsys, library / "loose.safetensors", "--to", "kohya", "--output", tmp_path / "out", "--json")
    assert code == 0
    assert json.loads(out)["trigger"] == "loose-ti"


def test_the_command_writes_one_file_under_a_given_name(
    library: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    loose, mine = library / "loose.safetensors", tmp_path / "deep" / "mine.safetensors"
    code, out, _ = run(capsys, loose, "--to", "comfyui", "--output", mine, "--dtype", "fp16")
    assert (code, mine.is_file()) == (0, True)
    assert "embedding:mine; it does not hold exactness (rows differ by up to" in out
    for arguments, message in [
        ((loose, "--to", "a1111", "--output", mine), "For a1111 '<loose>' becomes a .pt, not a .safetensors."),
        ((library, "--to", "kohya", "--output", mine), "is a damaged PyTorch file"),
        ((loose, loose.with_name("shown.png"), "--to", "kohya", "--output", mine), "but there are 2 and 1;"),
        ((loose, "--to", "kohya", "--output", loose), "is the word's own file; write to another."),
        ((loose, "--to", "fooocus"), "There is no tool 'fooocus' to convert to; the tools are diffusers, a1111,"),
        ((loose,), "Name tools with --to, such as --to comfyui,a1111, or a LoRA with --into; one of the two."),
        ((loose, "--to", "kohya", "--output", mine), "is there already, and holds something else;"),
        ((loose, "--to", "kohya", "--output", library / "notes.txt"), "notes.txt is a file; name a folder, or a file"),
        ((loose, "--to", ","), "--to names no tool; say --to comfyui, for example."),
        (
            (loose, "--into", "x.safetensors", "--output", mine, "--dtype", "fp16"),
            "--into has no --json and no --dtype",
        ),
        ((loose, "--into", mine, "--output", mine, "--overwrite"), "mine.safetensors is there already; name another"),
        ((loose, "--into", loose, "--output", tmp_path / "n.safetensors"), "Words are put into a LoRA's .safetensors"),
        (("--to", "kohya"), "Name at least one embedding file, or a folder of them."),
        ((loose, "--into", "x.safetensors"), "name the new file: --output NEW.safetensors."),
    ]:
        code, _, err = run(capsys, *arguments)
        assert code == 1
        assert message in err


def test_the_command_bundles_words_with_a_lora(tmp_path: Path, library: Path, capsys: pytest.CaptureFixture[str]):
    import safetensors.torch

    lora, new = tmp_path / "lora.safetensors", tmp_path / "new.safetensors"
    safetensors.torch.save_file({"lora_unet_x.lora_up.weight": torch.ones(2, 2)}, lora)
    code, out, _ = run(capsys, library / "loose.safetensors", library / "xl", "--into", lora, "--output", new)
    assert (code, out) == (0, f"{new} has <loose> as loose-ti, <xl> as xl-ti.\n")
    assert [concept.token for concept in formats.read_all(new)] == ["<loose>", "<xl>"]


def test_a_conversion_that_is_killed_leaves_whole_files_and_is_gone_on_with(tmp_path: Path):
    for i in range(300):
        word(f"<w{i}>", seed=i).save(tmp_path / "words" / f"{i}.safetensors")
    command = [sys.executable, "-m", "pseudoword.cli", "convert", str(tmp_path / "words"), "--to", "comfyui,a1111"]
    child = subprocess.Popen([*command, "--output", str(tmp_path / "out")], stdout=subprocess.DEVNULL)
    while len(list(tmp_path.glob("out/*/w*"))) < 20:
        time.sleep(0.01)
        assert child.poll() is None
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    left = [path for path in tmp_path.glob("out/*/*") if not path.name.startswith(".tmp-")]
    assert 20 <= len(left) < 600
    for path in left:
        assert formats.read(path).num_vectors == 2
    found: list[Outcome] = list(convert(sources([tmp_path / "words"]), ["comfyui", "a1111"], tmp_path / "out"))
    assert [one.error for one in found] == [""] * 600
    assert sum(one.was_there for one in found) == len(left)
    assert [path.name for path in tmp_path.glob("out/*/.tmp-*")] == [], "and nothing is left of the file on the way"


def test_whoever_reads_the_output_may_have_enough(library: Path, tmp_path: Path):
    command = [sys.executable, "-m", "pseudoword.cli", "convert", str(library / "loose.safetensors"), "--to", "kohya"]
    child = subprocess.Popen(
        [*command, "--output", str(tmp_path / "out")], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert child.stdout
    child.stdout.close()
    _, err = child.communicate(timeout=60)
    assert "Cannot write" not in err
    assert (tmp_path / "out" / "kohya" / "loose-ti.safetensors").is_file()
