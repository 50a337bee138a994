"""A1111's check of PyTorch files, restated: what it looks at before torch may load one (modules/safe.py)."""

from __future__ import annotations

import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import torch


class Refused(Exception):
    """What A1111 does not let torch load."""


RECORDS = re.compile(r"([^/]+)/((data/\d+)|version|byteorder|(data\.pkl))")
"""What a zip may have besides nothing (`check_zip_filenames`); before 1.10 not even `byteorder`."""
GLOBALS = {
    "collections": {"OrderedDict"},
    "torch._utils": {"_rebuild_tensor_v2", "_rebuild_parameter", "_rebuild_device_tensor_from_numpy"},
    "torch": {
        "FloatStorage",
        "HalfStorage",
        "IntStorage",
        "LongStorage",
        "DoubleStorage",
        "ByteStorage",
        "float32",
        "BFloat16Storage",
    },
    "torch.nn.modules.container": {"ParameterDict"},
    "__builtin__": {"set"},
}
"""What a pickle may name (`RestrictedUnpickler.find_class`), without NumPy's and Lightning's."""


class RestrictedUnpickler(pickle.Unpickler):
    """A1111's, in modules/safe.py: the file is unpickled with it, every storage empty, before torch gets it."""

    def persistent_load(self, pid: Any) -> Any:
        assert pid[0] == "storage"
        return torch.storage.TypedStorage(_internal=True)

    def find_class(self, module_name: str, global_name: str) -> Any:
        if global_name not in GLOBALS.get(module_name, ()):
            raise Refused(f"global '{module_name}/{global_name}' is forbidden")
        return super().find_class(module_name, global_name)


def checked_by_a1111(path: Path, records: re.Pattern[str] = RECORDS) -> None:
    """Raise Refused where `check_pt` would not have torch load a file; `records` are what a zip may have."""
    try:
        with zipfile.ZipFile(path) as file:
            for name in file.namelist():
                if not records.fullmatch(name):
                    raise Refused(f"bad file inside: {name}")
            [description] = [name for name in file.namelist() if re.fullmatch(r"[^/]+/data\.pkl", name)]
            with file.open(description) as pickled:
                RestrictedUnpickler(pickled).load()
    except zipfile.BadZipFile:
        with path.open("rb") as pickled:
            for _ in range(5):
                RestrictedUnpickler(pickled).load()
