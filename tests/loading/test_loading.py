"""`pseudoword.load` and `lend`: words in diffusers' own pipelines, and the pipelines as they were afterwards."""

from __future__ import annotations

import copy
import gc
import logging
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from diffusers import (
    AutoPipelineForImage2Image,
    AutoPipelineForInpainting,
    ControlNetModel,
    StableDiffusionControlNetPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import pseudoword
from pseudoword import Concept
from pseudoword.errors import TokenError
from pseudoword.families import lending, tokenizers
from pseudoword.families.sdxl import miniature as xl
from pseudoword.families.sdxl.torch import StableDiffusionXL
from pseudoword.recipe import BaseModel
from pseudoword.vocabulary import encode_all, lent_words
from tests.loading.pipelines import made, picture, state, word
from tests.test_vocabulary import Words, prompts, scan

# What comes out is what it should be


@pytest.mark.parametrize("vectors", [1, 3])
def test_pictures_are_those_of_diffusers_own_loader(base: Path, sd: Any, tmp_path: Path, vectors: int):
    concept = word(vectors=vectors)
    theirs = made(StableDiffusionPipeline, base, safety_checker=None)
    theirs.load_textual_inversion(str(concept.save(tmp_path / "word")))
    prompts = ("a photo of <cat-toy>, red", {"negative_prompt": "a <cat-toy> in the style of"})
    plain = picture(sd, "a photo of a cat")
    with pseudoword.load(sd, tmp_path / "word"):
        assert picture(sd, prompts[0]) == picture(theirs, prompts[0])
        assert picture(sd, "a cat", **prompts[1]) == picture(theirs, "a cat", **prompts[1])
        assert picture(sd, "a photo of a cat") == plain, "prompts without the word are read as ever"
    assert picture(sd, "a photo of a cat") == plain


def test_stable_diffusion_xl_has_words_in_both_encoders_and_pools_at_the_end(xl_base: Path, sdxl: Any):
    concept = word(family="sdxl", vectors=3)
    asked = ["a photo of <cat-toy>", "<cat-toy> in the style of a red cat, <cat-toy>", "a dog"]
    family = StableDiffusionXL.load(BaseModel(str(xl_base)))
    with lent_words(family.vocabularies, [concept]) as rows, torch.no_grad():
        expected = family.condition(*family.ids_and_rows(encode_all(family.vocabularies, asked), rows))
    with pseudoword.load(sdxl, concept):
        hidden, negative, pooled, negative_pooled = sdxl.encode_prompt(asked, negative_prompt="a <cat-toy>")
        other = sdxl.encode_prompt(["a dog"] * 3, prompt_2=asked)
    torch.testing.assert_close(hidden, expected.hidden, rtol=0, atol=1e-6)
    torch.testing.assert_close(pooled, expected.pooled, rtol=0, atol=1e-6)
    torch.testing.assert_close(other[2], expected.pooled, rtol=0, atol=1e-6)
    width = xl.WIDTHS[0]
    torch.testing.assert_close(other[0][..., width:], expected.hidden[..., width:], rtol=0, atol=1e-6)
    assert (negative[0] - hidden[2]).abs().max() > 1e-3
    assert (negative_pooled[0] - pooled[2]).abs().max() > 1e-3


@pytest.mark.parametrize("eos", [2, 543])
def test_the_end_is_found_whatever_the_configuration_calls_it(tmp_path: Path, eos: int):
    pipeline = made(StableDiffusionXLPipeline, xl.write(tmp_path / "base", eos_token_id=eos), add_watermarker=False)
    rows = word(family="sdxl").rows["clip_g"]
    with pseudoword.load(pipeline, word(family="sdxl")):
        pooled = pipeline.encode_prompt("a <cat-toy>", do_classifier_free_guidance=False)[2]
    pipeline.text_encoder_2.get_input_embeddings().weight.data[[7, 8]] = torch.tensor(rows)
    [ids] = pipeline.tokenizer_2(["a"], padding="max_length", return_tensors="pt").input_ids
    ids = torch.cat([ids[:2], torch.tensor([7, 8]), ids[2:-2]])[None]
    torch.testing.assert_close(pooled, pipeline.text_encoder_2(ids).text_embeds, rtol=0, atol=1e-6)


@settings(max_examples=150, deadline=None)
@given(prompt=prompts(), seed=st.integers(0, 99), together=st.booleans())
def test_any_mixture_is_read_as_a_scanner_of_characters_reads_it(
    sd: Any, prompt: tuple[str, Words], seed: int, together: bool
):
    text, words = prompt
    order = random.Random(seed)  # not hypothesis' own, which may end an example while words are loaded
    order.shuffle(words := list(words))
    concepts = [word(token, vectors, seed=i) for i, (token, vectors) in enumerate(words)]
    loads = [concepts] if together else [[concept] for concept in concepts]
    loaded: list[Any] = []
    try:
        loaded.extend(pseudoword.load(sd, *some) for some in loads)
        body, _ = scan(text, words)
        tokenizer = sd.tokenizer
        found = tokenizer(text, padding="max_length", max_length=77, truncation=True, return_tensors="pt")
        end = [tokenizer.eos_token_id] + [tokenizer.pad_token_id] * (75 - len(body))
        assert found.input_ids[0].tolist() == [tokenizer.bos_token_id, *body[:75], *end[: 76 - len(body[:75])]]
        assert found.attention_mask.sum() == len(body[:75]) + 2
        assert tokenizer(text).input_ids == [tokenizer.bos_token_id, *body, tokenizer.eos_token_id]
        assert tokenizer(text, add_special_tokens=False).input_ids == body
    finally:
        order.shuffle(loaded)
        for one in loaded:
            one.unload()
    assert not isinstance(sd.tokenizer, tokenizers.LendingTokenizer)


def test_a_prompt_that_is_too_long_is_cut_as_ever_and_words_in_the_cut_are_named(
    sd: Any, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.WARNING)
    with pseudoword.load(sd, word(vectors=3)):
        whole, cut, gone = (f"{'a ' * count}<cat-toy>" for count in (72, 73, 80))
        embeds = [sd.encode_prompt(text, torch.device("cpu"), 1, False)[0] for text in (whole, cut, gone)]
    said = [record.message for record in caplog.records if record.name == "pseudoword.families.tokenizers"]
    assert said == [f"Cut off at 77 tokens: <cat-toy> in {text!r}" for text in (cut, gone)]
    assert all(embed.shape == (1, 77, 32) for embed in embeds)
    theirs = [record.message for record in caplog.records if "truncated" in record.message]
    assert any("<cat-toy>" in line for line in theirs), "diffusers' own warning can say which words are lost"


def test_strength_scales_the_rows(sd: Any):
    concept = word()
    half = Concept(concept.token, {"clip_l": concept.rows["clip_l"] * np.float32(0.5)})
    with pseudoword.load(sd, half):
        expected = picture(sd, "a <cat-toy>")
    with pseudoword.load(sd, concept, strength=0.5):
        assert picture(sd, "a <cat-toy>") == expected
    with pseudoword.load(sd, concept, word("<dog>", seed=1), strength={"<cat-toy>": 0.5}):
        assert picture(sd, "a <cat-toy>") == expected
    with pytest.raises(TokenError, match=r"^strength names <cat>, but the words are <cat-toy>\.$"):
        pseudoword.load(sd, concept, strength={"<cat>": 2.0})
    with pytest.raises(TokenError, match=r"^The strength of '<cat-toy>' must be a number, not nan\.$"):
        pseudoword.load(sd, concept, strength=float("nan"))


# Every kind of pipeline


def test_other_pipelines_of_the_same_parts_read_the_words(base: Path, sdxl: Any):
    image, mask = Image.new("RGB", (16, 16), "red"), Image.new("L", (16, 16), 255)
    sd = made(StableDiffusionPipeline, base, safety_checker=None)
    controlnet = ControlNetModel.from_unet(sd.unet, conditioning_embedding_out_channels=(8, 16))
    kinds = [
        (AutoPipelineForImage2Image.from_pipe(sd), "sd", {"image": image, "strength": 0.9}),
        (AutoPipelineForInpainting.from_pipe(sd), "sd", {"image": image, "mask_image": mask, "strength": 0.9}),
        (StableDiffusionControlNetPipeline(**sd.components, controlnet=controlnet), "sd", {"image": image}),
        (AutoPipelineForImage2Image.from_pipe(sdxl), "sdxl", {"image": image, "strength": 0.9}),
    ]
    for pipeline, family, more in kinds:
        pipeline.set_progress_bar_config(disable=True)
        options = {"num_inference_steps": 4, "height": None, "width": None, **more}
        options = {name: value for name, value in options.items() if value is not None}
        call = lambda prompt: pipeline(prompt, generator=torch.Generator().manual_seed(0), **options)  # noqa: B023, E731
        before, plain = state(pipeline), call("a cat").images[0].tobytes()
        with pseudoword.load(pipeline, word(family=family)):
            assert call("a <cat-toy>").images[0].tobytes() != plain, type(pipeline).__name__
            assert call("a cat").images[0].tobytes() == plain
        assert state(pipeline) == before, type(pipeline).__name__


def test_a_pipeline_that_is_offloaded_reads_the_words_too(base: Path):
    sd = made(StableDiffusionPipeline, base, safety_checker=None)
    with pseudoword.load(sd, word()):
        expected = picture(sd, "a <cat-toy>")
    for module in (sd.text_encoder, sd.text_encoder.get_input_embeddings()):
        add_hook_to_module(module, AlignDevicesHook(execution_device=torch.device("cpu"), io_same_device=True))
    with pseudoword.load(sd, word()):
        assert picture(sd, "a <cat-toy>") == expected


def test_half_precision_encoders_take_the_rows(base: Path):
    sd = made(StableDiffusionPipeline, base, safety_checker=None, torch_dtype=torch.bfloat16)
    with pseudoword.load(sd, word()):
        embeds = sd.encode_prompt("a <cat-toy>", torch.device("cpu"), 1, False)[0]
    assert embeds.dtype == torch.bfloat16
    assert embeds.isfinite().all()


# What is left behind


def test_while_words_are_loaded_modules_and_files_are_what_they_were(sdxl: Any, tmp_path: Path):
    before = {name: value for name, value in state(sdxl).items() if isinstance(value, str)}
    with pseudoword.load(sdxl, word(family="sdxl")):
        during = state(sdxl)
        assert {name: during[name] for name in before} == before
        sdxl.save_pretrained(tmp_path)
    saved = StableDiffusionXLPipeline.from_pretrained(tmp_path, add_watermarker=False)
    assert type(saved.tokenizer).__name__ == type(sdxl.tokenizer).__name__
    assert len(saved.tokenizer) == len(sdxl.tokenizer)


def test_a_hundred_words_come_and_go_without_a_trace(sdxl: Any):
    before = state(sdxl)
    picture(sdxl, "a cat")

    def once(i: int) -> None:
        with pseudoword.load(sdxl, word(f"<w{i}>", 1 + i % 3, seed=i, family="sdxl"), word(family="sdxl")) as loaded:
            sdxl.encode_prompt(f"a <w{i}> and <cat-toy>")
            assert loaded.tokens == [f"<w{i}>", "<cat-toy>"]

    for i in range(10):
        once(i)
    re.purge()  # which keeps the last patterns
    gc.collect()
    count, lenders = len(gc.get_objects()), len(lending._LENDERS)
    for i in range(10, 110):
        once(i)
    re.purge()
    gc.collect()
    assert len(gc.get_objects()) <= count + 50
    assert len(lending._LENDERS) <= lenders
    assert state(sdxl) == before


def test_words_are_given_back_when_loading_fails_half_way(sd: Any):
    before = state(sd)
    with pytest.raises(TokenError, match=r"^The token 'cat' is already in the vocabulary"):
        pseudoword.load(sd, word("<dog>"), word("cat"))
    assert state(sd) == before


def test_unloading_twice_or_in_any_order_does_no_harm(sd: Any):
    before = state(sd)
    first, second = pseudoword.load(sd, word("<a>")), pseudoword.load(sd, word("<b>", seed=1))
    with pytest.raises(TokenError, match=r"^The token '<a>' is already the name of a learned word here"):
        pseudoword.load(sd, word("<a>"))
    both = picture(sd, "<a> and <b>")
    first.unload()
    first.unload()
    assert picture(sd, "<a> and <b>") != both
    third = pseudoword.load(sd, word("<a>"))
    assert picture(sd, "<a> and <b>") == both, "freed rows are taken again"
    second.unload()
    third.unload()
    assert state(sd) == before


def test_a_text_encoder_that_was_compiled_before_is_noticed(base: Path):
    sd = made(StableDiffusionPipeline, base, safety_checker=None)
    sd.text_encoder.compile(backend="eager")
    picture(sd, "a cat")
    with pseudoword.load(sd, word()):
        try:
            found = picture(sd, "a <cat-toy>")
        except TokenError as error:
            assert "as one that was compiled does not; load words before" in str(error)  # noqa: PT017
        else:
            plain = made(StableDiffusionPipeline, base, safety_checker=None)
            with pseudoword.load(plain, word()):
                assert found == picture(plain, "a <cat-toy>"), "read right, or refused"


def test_what_is_given_back_meanwhile_does_not_trouble_prompts_under_way(base: Path):
    sd = made(StableDiffusionPipeline, base, safety_checker=None)
    encoder, concept = sd.text_encoder, word()
    loaded = pseudoword.load(sd, concept)
    [held] = loaded.held
    for ids in (torch.tensor([[1, 2, 3]]), torch.tensor([[1, *held.ids]])):
        (known,), _ = held.lender._before(encoder, (ids,), {})
        assert (known < held.lender.size).all()
        found = encoder.get_input_embeddings().weight.detach()[known]
        if ids[0, -1] >= held.lender.size:
            loaded.unload()
            rows = held.lender._looked_up(None, (known,), found)
            assert rows is not None
            np.testing.assert_array_equal(rows[0, 1:].numpy(), concept.rows["clip_l"])
        else:
            assert held.lender._looked_up(None, (known,), found) is None
        held.lender._after(encoder, (), None)


def test_pipelines_of_the_same_parts_do_not_share_what_they_learn(base: Path):
    sd = made(StableDiffusionPipeline, base, safety_checker=None)
    before = state(sd)
    first = pseudoword.load(sd, word("<a>"))
    other = AutoPipelineForImage2Image.from_pipe(sd)
    second = pseudoword.load(other, word("<b>", seed=1))
    assert sd.tokenizer.words.ids.keys() == {"<a>"}
    assert other.tokenizer.words.ids.keys() == {"<a>", "<b>"}
    first.unload()
    assert other.tokenizer("<a>").input_ids[1] >= 544, "what it began with, it keeps"
    second.unload()
    assert state(sd) == before
    assert copy.deepcopy(sd.text_encoder) is not sd.text_encoder
    with pseudoword.load(sd, word("<a>")):
        twin = copy.deepcopy(sd.text_encoder)
        ids = sd.tokenizer("a <a>", return_tensors="pt").input_ids
        torch.testing.assert_close(twin(ids).last_hidden_state, sd.text_encoder(ids).last_hidden_state)


def test_a_table_that_was_changed_meanwhile_is_noticed(base: Path):
    sd = made(StableDiffusionPipeline, base, safety_checker=None)
    loaded = pseudoword.load(sd, word())
    sd.text_encoder.resize_token_embeddings(600)
    with pytest.raises(TokenError, match=r"^The text encoder's table was changed while words are lent to it; unload"):
        picture(sd, "a <cat-toy>")
    loaded.unload()
    picture(sd, "a cat")


def test_other_libraries_find_the_words_in_the_tokenizer(base: Path):
    """As sd_embed and compel ask: by tokens, and back."""
    sd = made(StableDiffusionPipeline, base, safety_checker=None)
    plain = sd.tokenizer.tokenize("a cat")
    with pseudoword.load(sd, word(vectors=2)):
        ids = sd.tokenizer.convert_tokens_to_ids(["<cat-toy>", "<cat-toy>_1", plain[0]])
        assert ids == [*sd.tokenizer.words.ids["<cat-toy>"], sd.tokenizer.convert_tokens_to_ids(plain[0])]
        assert sd.tokenizer.convert_tokens_to_ids("<cat-toy>") == ids[0]
        assert sd.tokenizer.tokenize("a cat") == plain
        tokens = sd.tokenizer.tokenize("a <cat-toy>")
        assert tokens == [plain[0], "<cat-toy>", "<cat-toy>_1"]
        assert sd.tokenizer.convert_ids_to_tokens(sd.tokenizer.convert_tokens_to_ids(tokens)) == tokens
        assert sd.tokenizer.convert_ids_to_tokens(ids[0]) == "<cat-toy>"
        whole = sd.tokenizer("a <cat-toy>").input_ids
        assert whole[1:-1] == sd.tokenizer.convert_tokens_to_ids(tokens)


def test_a_word_that_is_taken_gives_all_rows_back(base: Path):
    sd = made(StableDiffusionPipeline, base, safety_checker=None)
    before = state(sd)
    with pytest.raises(TokenError, match="already the name of a learned word"):
        pseudoword.load(sd, word("<a>"), word("<b>"), word("<a>", seed=1), word("<c>"))
    assert state(sd) == before
    assert not sd.text_encoder._forward_pre_hooks
