"""`pseudoword.lend`: requests side by side, each with words of its own."""

from __future__ import annotations

import copy
import gc
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

import pseudoword
from pseudoword import Concept
from pseudoword.families import lending, tokenizers
from pseudoword.families.sdxl.torch import StableDiffusionXL
from pseudoword.recipe import BaseModel
from pseudoword.vocabulary import encode_all, lent_words
from tests.loading.pipelines import picture, state, word


def test_four_threads_have_their_own_words_on_one_pipeline(sdxl: Any):
    concepts = [word("<it>", 1 + i, seed=i, family="sdxl") for i in range(4)]
    before = state(sdxl)

    def ask(concept: Concept, seed: int) -> bytes:
        own = pseudoword.lend(sdxl, concept)
        own.set_progress_bar_config(disable=True)
        return picture(own, "a photo of <it>", seed=seed, negative_prompt="a dog", num_inference_steps=3)

    alone = [[ask(concept, seed) for seed in range(3)] for concept in concepts]
    assert len({one for some in alone for one in some}) == 12
    start = threading.Barrier(4)

    def request(concept: Concept) -> list[bytes]:
        start.wait()
        return [ask(concept, seed) for seed in range(3)]

    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(request, concepts))
    assert together == alone
    gc.collect()
    tokenizers.drain()
    assert state(sdxl) == before, "the pipeline never knew"
    assert all(lender.is_over for lender in lending._LENDERS.values())


def test_a_request_knows_the_words_of_the_pipeline_too(sd: Any):
    with pseudoword.load(sd, word("<all>", seed=5)):
        own = pseudoword.lend(sd, word("<mine>"))
        own.set_progress_bar_config(disable=True)
        assert picture(own, "<all>") == picture(sd, "<all>")
        assert picture(own, "<mine>") != picture(sd, "<mine>")
        assert own.words == ["<mine>"]
        expected = picture(own, "<all>")
    with pseudoword.load(sd, word("<secret>", seed=9)):
        assert picture(own, "<all>") == expected, "though the pipeline has unloaded it and its place was taken"
        assert picture(sd, "<secret>") != expected


def test_a_request_that_is_collected_anywhere_waits_for_no_lock(sd: Any):
    own = pseudoword.lend(sd, word())
    own.__dict__["itself"] = own
    del own
    done = threading.Event()

    def collect() -> None:
        with lending._LOCK:
            gc.collect()
        done.set()

    threading.Thread(target=collect, daemon=True).start()
    assert done.wait(20)
    tokenizers.drain()
    assert lending._LENDERS[sd.text_encoder].is_over


def test_an_sdxl_refiner_takes_the_second_half(sdxl: Any):
    refiner = copy.copy(sdxl)
    refiner.__dict__ |= {"text_encoder": None, "tokenizer": None}
    with pseudoword.load(refiner, word(family="sdxl")):
        ids = refiner.tokenizer_2("a <cat-toy>").input_ids
        assert max(ids) >= refiner.text_encoder_2.config.vocab_size


@pytest.mark.parametrize("clip_skip", [None, 1])
def test_clip_skip_goes_on_working(sdxl: Any, xl_base: Path, clip_skip: int | None):
    concept = word(family="sdxl")
    family = StableDiffusionXL.load(BaseModel(str(xl_base), clip_skip=clip_skip))
    with lent_words(family.vocabularies, [concept]) as rows, torch.no_grad():
        ids = encode_all(family.vocabularies, ["a <cat-toy>"])
        expected = family.condition(*family.ids_and_rows(ids, rows))
    with pseudoword.load(sdxl, concept):
        found = sdxl.encode_prompt("a <cat-toy>", do_classifier_free_guidance=False, clip_skip=clip_skip)
    torch.testing.assert_close(found[0], expected.hidden, rtol=0, atol=1e-6)
