"""The build backend: scikit-build-core's, which also asks for torch where its headers are needed and not there yet.

torch is large. Where the environment that pip installs into has it, the build takes the headers from there (`find_torch.py`);
where there is no C++ compiler, there is nothing to compile and it isn't needed at all.
"""

import os
import shutil

from find_torch import torch_folder
from scikit_build_core import build as backend
from scikit_build_core.build import (
    build_editable,
    build_sdist,
    build_wheel,
    get_requires_for_build_sdist,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)

__all__ = [
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
    "prepare_metadata_for_build_editable",
    "prepare_metadata_for_build_wheel",
]

ConfigSettings = dict[str, str | list[str]]


def get_requires_for_build_wheel(config_settings: ConfigSettings | None = None) -> list[str]:
    """Return what a wheel needs: cmake and ninja if this machine lacks them, and maybe torch."""
    return [*backend.get_requires_for_build_wheel(config_settings), *_torch()]


def get_requires_for_build_editable(config_settings: ConfigSettings | None = None) -> list[str]:
    """Return what an editable installation needs: the same."""
    return [*backend.get_requires_for_build_editable(config_settings), *_torch()]


def _torch() -> list[str]:
    compilers = os.environ.get("CXX", "").split()[:1] or ["c++", "g++", "clang++"]
    can_compile = any(shutil.which(name) for name in compilers)
    return ["torch>=2.10"] if can_compile and torch_folder() is None else []
