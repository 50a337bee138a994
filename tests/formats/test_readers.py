"""What we write, read by diffusers itself and by the other tools' rules; what they write, read here.

The rules are restated in `tools.py`. The table of rules in the package is compared with them, file by file.
"""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

from pseudoword import formats
from pseudoword.concept import Concept
from pseudoword.converting import TARGETS, convert
from pseudoword.formats import archive
from pseudoword.formats.tools import TOOLS
from tests.formats import tools
from tests.formats.a1111_check import RECORDS
from tests.formats.tools import EMULATORS, NotLoaded

SUFFIXES = [".safetensors", ".bin", ".pt"]
KINDS = {
    "sd1": {"clip_l": 768},
    "sd2": {"clip_h": 1024},
    "sdxl": {"clip_l": 768, "clip_g": 1280},
    "sd3": {"clip_l": 768, "clip_g": 1280, "t5": 4096},
    "flux": {"clip_l": 768, "t5": 4096},
}
MORE_KINDS = {
    "hidream": {"clip_l": 768, "clip_g": 1280, "t5": 4096, "llama": 4096},
    "hunyuan-video": {"clip_l": 768, "llama": 4096},
    "sana": {"gemma2_2b": 2304},
    "z-image": {"qwen3_4b": 2560},
    "flux2": {"mistral3_24b": 5120},
    "qwen-image": {"qwen25_7b": 3584},
}
LOADED_AS = {"embedding": "clip_g", "embedding_2": "clip_l", "t5xxl": "t5", "gemma": "gemma2_2b"}
"""What tools call rows for an encoder, where it is not its name."""


LOADED_BY = {
    "comfyui": ("hidream", "hunyuan-video", "z-image", "flux2"),
    "onetrainer": ("hidream", "hunyuan-video", "sana"),
    "diffusers": tuple(MORE_KINDS),
}
"""Of these more, which kinds a tool has a base of; diffusers takes every tensor."""


def word(kind: str, vectors: int = 2, token: str = "<cat-toy>") -> Concept:
    draw = np.random.default_rng(vectors)
    widths = {**KINDS, **MORE_KINDS}[kind]
    return Concept(token, {e: draw.standard_normal((vectors, w), dtype=np.float32) for e, w in widths.items()})


def loaded_as(concept: Concept, rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the rows that a tool has loaded by the names of encoders."""
    if len(concept.rows) == 1:
        block, *others = rows.values()  # rows without a key are taken by every text encoder that is as wide
        assert all(np.array_equal(block, other) for other in others)
        return dict.fromkeys(concept.rows, block)
    return {LOADED_AS.get(name, name): block for name, block in rows.items()}


# What we write


@pytest.mark.parametrize("vectors", [1, 3, 75])
@pytest.mark.parametrize("kind", [*KINDS, *MORE_KINDS])
@pytest.mark.parametrize("target", TARGETS)
def test_every_tool_loads_what_is_converted_for_it(tmp_path: Path, target: str, kind: str, vectors: int):
    concept = word(kind, vectors)
    [outcome] = convert([concept.save(tmp_path / "word.safetensors")], [target], tmp_path)
    if not outcome.written:
        assert outcome.error.startswith((TOOLS[TARGETS[target].tool].title, "A picture cannot hold a word"))
        no_text_encoder = kind in MORE_KINDS and kind not in LOADED_BY.get(target, ())
        assert no_text_encoder or kind in ("sd3", "flux") or (target, kind) == ("original", "sdxl")
        return
    rows: dict[str, np.ndarray] = {}
    for path, encoder in zip(outcome.written, concept.rows, strict=False):
        trigger, own = EMULATORS[TARGETS[target].tool](path)
        rows |= {encoder: own[""]} if len(outcome.written) > 1 else own
        assert trigger in ("", outcome.trigger), "OneTrainer asks for the placeholder"
    read = loaded_as(concept, rows)
    assert read.keys() == concept.rows.keys()
    assert all(np.array_equal(block, concept.rows[encoder]) for encoder, block in read.items())


@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
def test_a_picture_is_read_by_the_published_scheme_without_its_text(tmp_path: Path, kind: str):
    concept = word(kind, 8)
    [outcome] = convert([concept.save(tmp_path / "word.safetensors")], ["a1111-picture"], tmp_path)
    [path] = outcome.written
    plain = tmp_path / "copied.png"
    image = Image.open(path).convert("RGB")
    image.info = {}
    image.save(plain)
    assert not getattr(Image.open(plain), "text", {})
    data = tools.pixels(Image.open(plain))
    terms = data if kind == "sdxl" else {"clip_l": data["string_to_param"]["*"]}
    assert all(np.array_equal(tools.numpy(v), concept.rows[k]) for k, v in terms.items())
    read = formats.read(plain)
    assert all(np.array_equal(rows, concept.rows[encoder]) for encoder, rows in read.rows.items())
    assert read.token == ("<cat-toy>" if kind == "sd1" else "copied")


@pytest.mark.parametrize("token", ["<cat-toy>", "<a/b>", "[x]", "*", "my:word", "<日本>", "a,b", "(x:1.2)", "v1.0"])
@pytest.mark.parametrize("target", ["comfyui", "a1111", "invokeai", "kohya"])
def test_the_name_of_a_file_can_be_written_in_every_tools_prompt(tmp_path: Path, target: str, token: str):
    concept = word("sd1", token=token)
    [outcome] = convert([concept.save(tmp_path / "word.safetensors")], [target], tmp_path)
    trigger, [rows] = (lambda found: (found[0], found[1].values()))(EMULATORS[target](outcome.written[0]))
    assert trigger == outcome.trigger
    assert np.array_equal(rows, concept.rows["clip_l"])


# diffusers: the real loader on a pipeline of the miniature


@pytest.fixture
def pipeline(base: Path) -> StableDiffusionPipeline:
    return StableDiffusionPipeline.from_pretrained(base)


def lent_to(pipeline: StableDiffusionPipeline, concept: Concept) -> np.ndarray:
    """Return the rows that the pipeline has for the concept's tokens."""
    tokenizer: Any = pipeline.tokenizer
    added = tokenizer.get_added_vocab()
    ids = [added[token] for token in concept.tokens]
    return pipeline.text_encoder.get_input_embeddings().weight[ids].detach().numpy()


def small(vectors: int) -> Concept:
    return Concept("<cat-toy>", {"clip_l": np.random.default_rng(0).standard_normal((vectors, 32))})


@pytest.mark.parametrize("present", [["safetensors", "bin"], ["safetensors"], ["bin"]])
@pytest.mark.parametrize("vectors", [1, 3])
def test_diffusers_loads_a_folder_with_no_further_argument(
    pipeline: StableDiffusionPipeline, tmp_path: Path, present: list[str], vectors: int
):
    concept = small(vectors)
    concept.save(tmp_path / "word")
    for suffix in {"safetensors", "bin"} - set(present):
        (tmp_path / "word" / f"learned_embeds.{suffix}").unlink()
    pipeline.load_textual_inversion(str(tmp_path / "word"))
    assert np.array_equal(lent_to(pipeline, concept), concept.rows["clip_l"])
    prompt = pipeline.maybe_convert_prompt("a <cat-toy>.", pipeline.tokenizer)
    assert prompt == f"a {' '.join(concept.tokens)}."


@pytest.mark.parametrize(
    ("format_", "name", "token"),
    [
        ("diffusers", "word.safetensors", None),
        ("diffusers", "word.bin", None),
        ("diffusers", "word.pt", None),
        ("webui", "word.pt", None),
        ("kohya", "cat-toy.safetensors", "<cat-toy>"),
        ("onetrainer", "cat-toy.safetensors", "<cat-toy>"),
    ],
)
def test_diffusers_loads_a_single_file(
    pipeline: StableDiffusionPipeline, tmp_path: Path, format_: str, name: str, token: str | None
):
    concept = small(2)
    path = formats.write_file(concept, tmp_path / name, format_)
    pipeline.load_textual_inversion(str(path), **({"token": token} if token else {}))
    assert np.array_equal(lent_to(pipeline, concept), concept.rows["clip_l"])


@pytest.mark.parametrize("format_", ["original", "bundle"])
def test_diffusers_refuses_what_the_table_says_that_it_refuses(
    pipeline: StableDiffusionPipeline, lora: Path, tmp_path: Path, format_: str
):
    path = tmp_path / ("word.pt" if format_ == "original" else "lora.safetensors")
    if format_ == "original":
        formats.write_file(small(2), path, format_)
    else:
        formats.bundle_into(lora, [small(2)], path)
    assert not TOOLS["diffusers"].verdict(formats.open_file(path), path.name).loads
    with (
        pytest.raises((ValueError, OSError, KeyError)),
        torch.serialization.safe_globals([torch.nn.ParameterDict, set]),
    ):
        pipeline.load_textual_inversion(str(path), token="<cat-toy>")


# The table of rules


def corpus(folder: Path, lora: Path) -> list[Path]:
    """Return files as tools write them, and as people rename and half convert them."""
    one, many = torch.randn(1, 768), torch.randn(8, 768)
    clip_g, t5 = torch.randn(8, 1280), torch.randn(8, 4096)
    a1111: dict[str, Any] = {"string_to_token": {"*": 265}, "string_to_param": {"*": many}, "name": "x", "step": 5}
    original: dict[str, Any] = {
        "string_to_token": {"*": torch.tensor(265)},
        "string_to_param": torch.nn.ParameterDict({"*": torch.nn.Parameter(many)}),
    }
    tensors = {
        "diffusers": {"<t>": many},
        "diffusers-one": {"<t>": one},
        "flat": {"<t>": one[0]},
        "flat-xl": {"<t>": clip_g[0]},
        "sd2": {"<t>": torch.randn(2, 1024)},
        "as-many-as-wide": {"<t>": torch.randn(768, 768)},
        "emb_params": {"emb_params": many},
        "emp_params": {"emp_params": many},
        "emp_params-out": {"emp_params": many, "emp_params_out": many + 1},
        "xl": {"clip_l": many, "clip_g": clip_g},
        "xl-out": {"clip_l": many, "clip_g": clip_g, "clip_g_out": clip_g + 1},
        "sd3": {"clip_l": many, "clip_g": clip_g, "t5": t5},
        "sd3-comfyui": {"clip_l": many, "clip_g": clip_g, "t5xxl": t5},
        "flux": {"clip_l": many, "t5": t5},
        "flux-comfyui": {"clip_l": many, "t5xxl": t5},
        "clip_g-alone": {"clip_g": clip_g},
        "clip_l-alone": {"clip_l": many},
        "uneven": {"clip_l": many[:2], "clip_g": clip_g},
        "uneven-flux": {"clip_l": many[:2], "t5": t5},
        "miscalled": {"clip_g": many, "t5": t5},
        "miscalled-comfyui": {"clip_l": clip_g, "clip_g": many},
        "sana": {"gemma": torch.randn(2, 2304)},
        "llama": {"clip_l": many, "llama": t5},
        "qwen3": {"qwen3_06b": torch.randn(2, 1024)},
        "qwen25": {"qwen25_7b": torch.randn(2, 3584)},
        "two-words": {"<a>": many, "<b>": one},
        "pivotal": {"text_encoders_0": many, "text_encoders_1": clip_g},
    }
    made = []
    for name, values in tensors.items():
        for suffix in (".safetensors", ".pt", ".bin"):
            save = safetensors.torch.save_file if suffix == ".safetensors" else torch.save
            save(values, folder / f"{name}{suffix}")
            made.append(folder / f"{name}{suffix}")
    for name, own in (("a1111", a1111), ("original", original)):
        torch.save(own, folder / f"{name}-of-newer-torch.pt")
        (folder / f"{name}.pt").write_bytes(without_new_records(folder / f"{name}-of-newer-torch.pt"))
        made += [folder / f"{name}.pt", folder / f"{name}-of-newer-torch.pt"]
    torch.save(many, folder / "bare.pt")
    pti = {"<s1>": one[0], "unet:0:up": torch.ones(4, 4), "unet:0:down": torch.ones(4, 4)}
    made.append(folder / "lora_pti.safetensors")
    safetensors.torch.save_file(pti, made[-1], {"<s1>": "<embed>"})
    for name, of in (("xl", ".bin"), ("bare", ".pt"), ("a1111", ".pt")):
        made.append(folder / f"misnamed-{name}.safetensors")
        made[-1].write_bytes((folder / f"{name}{of}").read_bytes())
    for name in ("<t>", "a b", "x,y"):
        made.append(folder / f"{name}.safetensors")
        made[-1].write_bytes((folder / "emb_params.safetensors").read_bytes())
    made.append(folder / "emb_params.ckpt")
    made[-1].write_bytes((folder / "emb_params.pt").read_bytes())
    made += checked_and_bundled(folder, lora)
    made += [
        folder / "bare.pt",
        formats.bundle_into(lora, [word("sd1")], folder / "lora.safetensors"),
        formats.write_file(word("sd1"), folder / "picture.png", "webui"),
        formats.write_file(word("sdxl"), folder / "picture-xl.png", "kohya"),
    ]
    return made


def checked_and_bundled(folder: Path, lora: Path) -> list[Path]:
    """Return PyTorch files that A1111's check is about, and LoRAs whose words not every tool finds."""
    paths, many = list[Path](), torch.randn(8, 768)
    torch.save({"emb_params": many.to(torch.float8_e4m3fn)}, folder / "fp8.pt")
    several = {"*": many.numpy(), "<dog>": many[:1].numpy()}
    for name, content in (
        ("fp8-of-an-older-torch.pt", without_new_records(folder / "fp8.pt")),
        ("a1111-sd2.pt", formats.to_bytes(word("sd2"), "a1111-sd2.pt", "webui")),
        ("original-fp16.pt", formats.to_bytes(word("sd1"), "original-fp16.pt", "original", dtype="F16")),
        ("original-sd2-3.pt", formats.to_bytes(word("sd2", 3), "original-sd2-3.pt", "original")),
        ("several.pt", archive.to_bytes({"string_to_param": several, "string_to_token": {"*": 265}})),
    ):
        paths.append(folder / name)
        paths[-1].write_bytes(content)
    sd2 = {**safetensors.torch.load_file(lora), "bundle_emb.cat.clip_l": torch.randn(2, 1024)}
    paths.append(folder / "lora-sd2-of-onetrainer.safetensors")
    safetensors.torch.save_file(sd2, paths[-1])
    for name, words in (
        ("flux", [word("flux")]),
        ("sd2", [word("sd2")]),
        ("thirteen-words", [word("sd1", token=f"<cat-{i}>") for i in range(13)]),
    ):
        paths.append(formats.bundle_into(lora, words, folder / f"lora-{name}.safetensors"))
    return paths


def without_new_records(path: Path) -> bytes:
    """Return a file of torch's without the records that it has begun to write since A1111's check was made."""
    out = io.BytesIO()
    with zipfile.ZipFile(path) as file, zipfile.ZipFile(out, "w") as smaller:
        for name in file.namelist():
            if RECORDS.fullmatch(name):
                smaller.writestr(name, file.read(name))
    return out.getvalue()


@pytest.mark.parametrize("tool", TOOLS)
def test_the_table_says_what_the_rules_say(tmp_path: Path, lora: Path, tool: str):
    for path in corpus(tmp_path, lora):
        verdict = TOOLS[tool].verdict(formats.open_file(path), path.name)
        found = loaded_by(tool, path)
        if isinstance(found, NotLoaded):
            assert not verdict.loads, f"{path.name}: {tool} refuses it ({found}), the table says {verdict}"
            continue
        trigger, rows = found
        if not _all_rows(path, rows):
            continue  # half of a word: whether that is loading is a matter of words
        assert verdict.loads, f"{path.name}: {tool} has it under {trigger!r}, the table says {verdict}"
        if tool not in ("onetrainer", "diffusers"):
            assert verdict.trigger == trigger


def loaded_by(tool: str, path: Path) -> tools.Loaded | NotLoaded:
    """Return what a tool has of a file, or why it has nothing."""
    try:
        return EMULATORS[tool](path)
    except NotLoaded as refused:
        return refused


def _all_rows(path: Path, rows: dict[str, np.ndarray]) -> bool:
    """Whether a tool has taken the whole word of a file."""
    concepts, taken = formats.read_all(path), {block.shape for block in rows.values()}
    shapes = [block.shape for concept in concepts for block in concept.rows.values()]
    return set(shapes) <= taken


def test_every_rule_decides_about_some_file(tmp_path: Path, lora: Path):
    files = corpus(tmp_path, lora)
    contents = {path: formats.open_file(path) for path in files}
    for name, tool in TOOLS.items():
        said = {tool.verdict(contents[path], path.name).says for path in files}
        unheard = [rule.says for rule in tool.rules if rule.says not in said]
        assert unheard in ([], [tool.rules[-1].says]), name
