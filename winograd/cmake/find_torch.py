"""Where the torch is that this installation of winograd will run with: its folder, without importing it.

Run as a program it prints the folder, or nothing. A build in isolation sees none of the packages around it; but pip runs it
with the interpreter of the environment that it installs into, and asked for its folders that one tells the truth.
"""

import sysconfig
from importlib.util import find_spec
from pathlib import Path

HEADER = Path("include/torch/csrc/stable/library.h")


def torch_folder() -> Path | None:
    """Return the folder of the torch package: the build's own, else that of the environment; None if there is none."""
    spec = find_spec("torch")
    importable = [Path(folder) for folder in (spec.submodule_search_locations or ())] if spec else []
    installed = [Path(sysconfig.get_path(name)) / "torch" for name in ("platlib", "purelib")]
    return next((folder for folder in (*importable, *installed) if (folder / HEADER).is_file()), None)


if __name__ == "__main__":
    print(torch_folder() or "")
