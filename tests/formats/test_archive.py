"""PyTorch files as we write them: read by torch, by us and by A1111's check, and made without torch."""

from __future__ import annotations

import io
import os
import re
import struct
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pseudoword import formats
from pseudoword.concept import Concept
from pseudoword.converting import DTYPES
from pseudoword.formats import archive
from tests.formats.a1111_check import RECORDS, Refused, checked_by_a1111
from tests.formats.test_readers import KINDS
from tests.formats.test_round_trips import TORCH, rounded, told

OLD_RECORDS = re.compile(r"([^/]+)/((data/\d+)|version|(data\.pkl))")
"""What A1111 allowed before 1.10, and its forks still do."""
WRITTEN = ["diffusers", "kohya", "webui", "original", "onetrainer"]


def random_word(seed: int, kind: str) -> Concept:
    """Return a word of few or many vectors whose token, base and notes are drawn as well."""
    draw = np.random.default_rng(seed)
    vectors = int(draw.integers(1, 12))
    letters = list("abcxyzäßкот猫🐱<>-_.'\\\"")
    token = "".join(draw.choice(letters, int(draw.integers(1, 20))))
    rows = {
        encoder: draw.standard_normal((vectors, width), dtype=np.float32) * 10 ** draw.uniform(-3, 2)
        for encoder, width in KINDS[kind].items()
    }
    return Concept(f"w{token}", rows, base="somebody/" + token, steps=int(draw.integers(1, 2**31)))


def loaded_by_torch(content: bytes) -> Any:
    with torch.serialization.safe_globals([torch.nn.ParameterDict]):
        return torch.load(io.BytesIO(content), weights_only=True)


def rows_in(loaded: Any) -> list[np.ndarray]:
    """Return the rows of what torch has loaded, in the file's order."""
    terms = loaded.get("string_to_param", loaded)
    return [rows.detach().float().numpy() for rows in terms.values() if torch.is_tensor(rows)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", WRITTEN)
def test_random_words_are_read_by_torch_by_us_and_by_a1111s_check(tmp_path: Path, name: str, kind: str, dtype: str):
    for seed in range(20):
        concept = random_word(seed, kind)
        if formats.FORMATS[name].refuses(concept):
            return
        for suffix in {".pt", ".bin"} & set(formats.FORMATS[name].SUFFIXES):
            path = tmp_path / f"word{suffix}"
            path.write_bytes(formats.to_bytes(concept, path.name, name, dtype=DTYPES[dtype]))
            checked_by_a1111(path)
            checked_by_a1111(path, OLD_RECORDS)
            expected = [rounded(rows, dtype) for rows in concept.rows.values()]
            loaded = loaded_by_torch(path.read_bytes())
            assert all(np.array_equal(one, other) for one, other in zip(rows_in(loaded), expected, strict=True))
            read = formats.read(path)
            assert all(np.array_equal(one, other) for one, other in zip(read.rows.values(), expected, strict=True))


def test_a_file_holds_a_pickle_a_version_and_numbers_alone(tmp_path: Path):
    path = formats.write_file(told(random_word(0, "sdxl")), tmp_path / "word.pt", "kohya")
    with zipfile.ZipFile(path) as file:
        names = [entry.filename for entry in file.infolist()]
        assert names == ["archive/data.pkl", "archive/version", "archive/data/0", "archive/data/1"]
        for entry in file.infolist():
            assert entry.compress_type == zipfile.ZIP_STORED
            lengths = path.read_bytes()[entry.header_offset + 26 : entry.header_offset + 30]
            begin = entry.header_offset + 30 + sum(struct.unpack("<HH", lengths))
            assert begin % archive.ALIGNMENT == 0, entry.filename
    assert torch.load(path, weights_only=True, mmap=True).keys() == {"clip_l", "clip_g"}


def test_a1111s_check_refuses_what_newer_torch_writes(tmp_path: Path):
    torch.save({"<t>": torch.ones(1, 768)}, tmp_path / "word.pt")
    with zipfile.ZipFile(tmp_path / "word.pt") as file:
        more = [name for name in file.namelist() if not RECORDS.fullmatch(name)]
    assert more, "torch has stopped writing records that A1111 does not know"
    with pytest.raises(Refused, match="bad file inside: word/"):
        checked_by_a1111(tmp_path / "word.pt")


def test_everything_that_a_value_can_be_is_what_torch_reads():
    values = {
        "none": None,
        "yes": True,
        "no": False,
        "small": -3,
        "large": 2**40,
        "negative": -(2**70),
        "number": 2.5,
        "text": "猫 \\ '\"\n",
        "nested": {"in": {"deep": "x"}, "empty": {}},
        "scalar": np.array(2.5, np.float32),
        "ids": np.arange(5),
        "cube": np.arange(24, dtype=np.float32).reshape(2, 3, 4),
        "nothing": np.zeros((0, 3), np.float32),
        "turned": np.arange(6, dtype=np.float32).reshape(2, 3).T,
    }
    loaded = loaded_by_torch(archive.to_bytes(values))
    for name, value in values.items():
        if isinstance(value, np.ndarray):
            assert np.array_equal(loaded[name].numpy(), value), name
            assert loaded[name].is_contiguous()
        else:
            assert loaded[name] == value, name


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_originals_parameter_dict_is_one(tmp_path: Path, dtype: str):
    concept = random_word(3, "sd1")
    loaded = loaded_by_torch(formats.to_bytes(concept, "word.pt", "original", dtype=DTYPES[dtype]))
    parameters = loaded["string_to_param"]
    assert type(parameters) is torch.nn.ParameterDict
    [(placeholder, rows)] = parameters.items()
    assert placeholder == "*"
    assert isinstance(parameters["*"], torch.nn.Parameter)
    assert (rows.dtype, rows.requires_grad, rows.is_leaf) == (TORCH[dtype], True, True)
    assert loaded["string_to_token"]["*"].item() == 265
    holder = torch.nn.Module()
    holder.string_to_param_dict = torch.nn.ParameterDict()
    holder.string_to_param_dict = parameters  # as the original takes it up, which a dict would not be let in
    assert [name for name, _ in holder.named_parameters()] == ["string_to_param_dict.*"]
    assert np.array_equal(holder.double().state_dict()["string_to_param_dict.*"].float(), rounded(rows.detach(), dtype))


def test_pytorch_files_are_written_without_torch(tmp_path: Path):
    folder = tmp_path / "made"
    code = """
        import sys
        sys.modules["torch"] = None
        import numpy as np
        from pathlib import Path
        from pseudoword import formats
        from pseudoword.concept import Concept
        concept = Concept("<t>", {"clip_l": np.arange(768, dtype=np.float32).reshape(1, 768)})
        folder = Path(sys.argv[1])
        concept.save(folder)
        formats.write_file(concept, folder / "webui.pt", "webui")
        formats.write_file(concept, folder / "original.pt", "original")
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(folder)]
    subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})
    assert sorted(path.name for path in folder.iterdir()) == [
        "learned_embeds.bin",
        "learned_embeds.safetensors",
        "original.pt",
        "token_identifier.txt",
        "type_of_concept.txt",
        "webui.pt",
    ]
    for name in ("learned_embeds.bin", "webui.pt", "original.pt"):
        [rows] = rows_in(loaded_by_torch((folder / name).read_bytes()))
        assert np.array_equal(rows, np.arange(768, dtype=np.float32).reshape(1, 768)), name
