"""What `pseudoword.load` refuses, and how words are named and found."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
from huggingface_hub.errors import EntryNotFoundError, RepositoryNotFoundError

import pseudoword
from pseudoword import Concept, families, formats
from pseudoword.errors import FormatError, TokenError
from tests.loading.pipelines import picture, word

NOT_FOUND: Any = SimpleNamespace(status_code=404, headers={}, request=None, url="")


def test_a_word_for_another_base_is_refused_saying_which(sd: Any, sdxl: Any):
    real = {"clip_l": np.ones((1, 768)), "clip_g": np.ones((1, 1280))}
    with pytest.raises(
        TokenError,
        match=r"^'<t>' is a word for Stable Diffusion XL \(clip_l of width 768, clip_g of width 1280\), learned on "
        r"'some/base', but this pipeline is Stable Diffusion 1\.x \(clip_l of width 32\); load the base that",
    ):
        pseudoword.load(sd, Concept("<t>", real, base="some/base"))
    with pytest.raises(TokenError, match=r"^'<t>' is a word for Stable Diffusion 2\.x \(clip_h of width 1024\), but"):
        pseudoword.load(sdxl, Concept("<t>", {"clip_h": np.ones((1, 1024))}))
    with pytest.raises(TokenError, match=r"but this pipeline is Stable Diffusion XL \(clip_l of width 32, clip_g of"):
        pseudoword.load(sdxl, word())
    assert families.of_word(["clip_l", "t5"]) is None


def test_a_pipeline_that_reads_prompts_otherwise_is_refused(sd: Any):
    class T5EncoderModel:
        config = type("Config", (), {"model_type": "t5"})

    class Other:
        tokenizer, text_encoder = sd.tokenizer, sd.text_encoder
        tokenizer_2, text_encoder_2 = sd.tokenizer, T5EncoderModel()

    with pytest.raises(TokenError, match=r"^This pipeline reads prompts with a T5EncoderModel too, which words cannot"):
        pseudoword.load(Other(), word())
    with pytest.raises(TokenError, match=r"^This object has no tokenizer and text encoder to lend words to; load it"):
        pseudoword.load(object(), word())


def test_files_are_named_by_paths_and_may_be_given_tokens(sd: Any, tmp_path: Path):
    path = formats.write_file(word("<a>"), tmp_path / "bad-hands.safetensors", "kohya")
    with pseudoword.load(sd, {"<mine>": path, "<other>": word("<b>", seed=1)}, str(path)) as loaded:
        assert loaded.tokens == ["<mine>", "<other>", "<a>"]
        assert picture(sd, "a <mine>") == picture(sd, "a <a>")
    with pytest.raises(FormatError, match=r"^There is no file '.*gone\.safetensors'\.$"):
        pseudoword.load(sd, tmp_path / "gone.safetensors")


def test_options_that_know_no_words_are_refused_where_there_are_words(sd: Any):
    with pseudoword.load(sd, word()):
        assert sd.tokenizer("a cat", return_offsets_mapping=True).offset_mapping
        with pytest.raises(TokenError, match=r"^Prompts with learned words are read without return_offsets_mapping;"):
            sd.tokenizer("a <cat-toy>", return_offsets_mapping=True)
        ids = sd.tokenizer("a <cat-toy> red").input_ids
        read = sd.tokenizer.decode(ids, skip_special_tokens=True)
        assert read.replace("</w>", "") == "a <cat-toy> <cat-toy>_1 red"
        assert sd.tokenizer.batch_decode(torch.tensor([ids[2:3], ids[3:4]])) == ["<cat-toy>", "<cat-toy>_1"]


def test_a_word_on_the_hub_is_fetched(sd: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    word("<hub>").save(tmp_path / "cache")
    asked: list[tuple[str, ...]] = []

    def snapshot(repository: str, allow_patterns: list[str]) -> str:
        asked.append((repository, *allow_patterns))
        return str(tmp_path / "cache")

    def one(repository: str, name: str) -> str:
        asked.append((repository, name))
        return str(tmp_path / "cache" / "learned_embeds.bin")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", one)
    with pseudoword.load(sd, "sd-concepts-library/cat-toy", {"<other>": "owner/name/sub/learned_embeds.bin"}) as loaded:
        assert loaded.tokens == ["<hub>", "<other>"]
    assert [call[:1] for call in asked] == [("sd-concepts-library/cat-toy",), ("owner/name",), ("owner/name",)]
    assert [call[1] for call in asked[1:]] == ["sub/learned_embeds.bin", "sub/learned_embeds_2.bin"]
    assert not any("safetensors" in name and "learned" not in name for name in asked[0]), "no weights of a base"

    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner").mkdir()
    word("<here>").save(tmp_path / "owner" / "name")
    with pseudoword.load(sd, "owner/name") as loaded:
        assert loaded.tokens == ["<here>"], "what is on this machine comes first"


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (RepositoryNotFoundError("x", response=NOT_FOUND), "nor a repository 'owner/name' on the Hub; check the"),
        (EntryNotFoundError("x"), "The repository 'owner/name' on the Hub has no file 'x.pt'."),
        (ConnectionError("x"), "the Hub cannot be asked for it (ConnectionError); check the path, or the connection."),
    ],
)
def test_a_hub_that_has_it_not_or_cannot_be_asked_is_said(error: Exception, told: str, monkeypatch: pytest.MonkeyPatch):
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)
    with pytest.raises(FormatError) as refused:
        formats.fetched("owner/name/x.pt")
    assert told in str(refused.value)


def test_misuse_ends_in_one_sentence(sd: Any, sdxl: Any):
    with pytest.raises(TokenError, match=r"^A word is a Concept, a path, a Hub id, or a mapping from tokens to"):
        pseudoword.load(sd, ["a", "b"])  # type: ignore[arg-type]
    with pytest.raises(TokenError, match=r"^This object has no tokenizer and text encoder"):
        pseudoword.lend(object(), word())
    with pytest.raises(TokenError, match=r"^The strength of '<cat-toy>' must be a number, not '0\.5'\.$"):
        pseudoword.load(sd, word(), strength="0.5")  # type: ignore[arg-type]


def test_requests_cannot_share_a_vae_that_is_cast_back_and_forth(sdxl: Any):
    own = copy.copy(sdxl)
    own.__dict__["vae"] = copy.deepcopy(sdxl.vae).to(torch.float16)
    with pytest.raises(TokenError, match=r"^This VAE overflows in fp16, so diffusers casts it to fp32 and back"):
        pseudoword.lend(own, word(family="sdxl"))
    own.vae.register_to_config(force_upcast=False)
    pseudoword.lend(own, word(family="sdxl"))


def test_every_way_to_read_a_text_reads_words_or_says_so(sd: Any):
    with pseudoword.load(sd, word()):
        ids = sd.tokenizer("a <cat-toy>").input_ids
        assert sd.tokenizer.encode("a <cat-toy>") == ids
        assert max(ids) >= 544
        long = "a " * 90 + "<cat-toy>"
        assert len(sd.tokenizer(long, truncation="do_not_truncate").input_ids) == 94
        assert len(sd.tokenizer(long, truncation="longest_first").input_ids) == 77
        with pytest.raises(TokenError, match=r"are read without argument 2; leave"):
            sd.tokenizer("a <cat-toy>", "another")


def test_tokens_cannot_be_added_meanwhile(sd: Any, tmp_path: Path):
    word("<theirs>").save(tmp_path / "theirs")
    with pseudoword.load(sd, word()):
        for add in (
            lambda: sd.tokenizer.add_tokens("<new>"),
            lambda: sd.load_textual_inversion(str(tmp_path / "theirs")),
        ):
            with pytest.raises(TokenError, match=r"^Words are loaded into this tokenizer; unload them before you add"):
                add()
    assert len(sd.tokenizer) == 544


def test_copies_of_a_pipeline_know_no_words(sd: Any):
    plain = sd.tokenizer("a <cat-toy>").input_ids
    with pseudoword.load(sd, word()):
        other = copy.deepcopy(sd.tokenizer)
        assert pickle.loads(pickle.dumps(sd.tokenizer))("a <cat-toy>").input_ids == plain
    assert type(other) is type(sd.tokenizer)
    assert other("a <cat-toy>").input_ids == plain


def test_a_mapping_is_from_tokens_to_words(sd: Any):
    for wrong in ({5: "f"}, {"<n>": None}):
        with pytest.raises(TokenError, match=r"^A mapping of words is from tokens to Concepts, paths or Hub ids, not"):
            pseudoword.load(sd, wrong)  # type: ignore[arg-type]
