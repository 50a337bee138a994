"""Every snippet of docs/use-a-word.md runs as printed, on miniatures where it names real models."""

from __future__ import annotations

import dataclasses
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from diffusers import DiffusionPipeline

from pseudoword import Concept, cli, formats, generate
from pseudoword.families.sdxl import miniature

PAGE = (Path(__file__).parents[1] / "docs" / "use-a-word.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def word(token: str, *widths: int, seed: int = 0) -> Concept:
    numbers = np.random.default_rng(seed)
    encoders = zip(("clip_l", "clip_g"), widths, strict=False)
    return Concept(token, {encoder: numbers.standard_normal((2, width)) for encoder, width in encoders})


@pytest.fixture
def here(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files that the page names, in which real models are miniatures that take few steps."""
    monkeypatch.chdir(tmp_path)
    bases = {"stable-diffusion-v1-5/stable-diffusion-v1-5": base}
    bases["stabilityai/stable-diffusion-xl-base-1.0"] = miniature.write(tmp_path / "sdxl")
    word("<my-cat>", 32).save(tmp_path / "my-cat-run")
    for name in ("comic", "bad-hands"):
        formats.write_file(word(f"<{name}>", 32, seed=1), tmp_path / f"{name}.safetensors", "kohya")
    both = word("<my-cat>", *miniature.WIDTHS)
    both.save(tmp_path / "my-cat-sdxl-run")
    (tmp_path / "my-cat-sdxl-run" / "exports").mkdir()
    formats.write_file(both, tmp_path / "my-cat-sdxl-run" / "exports" / "my-cat.safetensors", "kohya")
    load = DiffusionPipeline.from_pretrained.__func__

    def from_pretrained(kind: Any, model: str, **options: Any) -> Any:
        options.pop("torch_dtype")  # half precision is for GPUs
        pipeline = load(kind, bases[model], **options)
        pipeline.safety_checker = None
        call = type(pipeline).__call__

        class Small(type(pipeline)):
            def __call__(self, *args: Any, **asked: Any) -> Any:
                asked["num_inference_steps"] = 4 if "image" in asked else 2
                size = {} if "image" in asked else {"height": 16, "width": 16}
                return call(self, *args, **{**asked, **size})

        Small.__name__ = type(pipeline).__name__
        pipeline.__class__ = Small
        pipeline.to = lambda device: pipeline
        return pipeline

    monkeypatch.setattr(DiffusionPipeline, "from_pretrained", classmethod(from_pretrained))
    word("<cat-toy>", 32).save(tmp_path / "textual_inversion_cat")
    load_any = generate.load

    def load_miniature(named: Any, engine: str) -> Any:
        return load_any(dataclasses.replace(named, model=str(bases.get(named.model, named.model))), engine)

    monkeypatch.setattr(generate, "load", load_miniature)
    return tmp_path


def test_the_python_of_the_page(here: Path, capsys: pytest.CaptureFixture[str]):
    names: dict[str, Any] = {}
    for code in blocks("python"):
        if "AutoPipelineForImage2Image" in code:
            code = code.replace("strength=0.6)", "strength=0.6, num_inference_steps=4)")
        exec(compile(code, "use-a-word.md", "exec"), names)
    assert "['<my-cat>', '<comic>']" in capsys.readouterr().out
    pictures = {path.name for path in here.glob("*.png")}
    assert pictures == {"beach.png", "comic.png", "pianist.png", "beach-xl.png", "painting.png", "cat-train.png"}
    words = ["my-cat-run", "comic.safetensors"]
    first, other = (names["request"](word, "a photo of <it>").tobytes() for word in words)
    assert names["first"].tobytes() == first != other


def test_the_command_of_the_page(here: Path, base: Path):
    [line] = blocks("bash")
    words = shlex.split(line.replace("\\\n", " "))[1:]
    words = [str(base) if "/stable-diffusion" in word else word for word in words]
    words = ["<comic>" if word == "comic" else word for word in words]
    assert cli.main([*words, "--num-inference-steps", "2", "--resolution", "16"]) == 0
    assert (here / "grid.png").is_file()
