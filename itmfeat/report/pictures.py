"""Where the image files of a dataset lie below the folder that a user names."""

import os
from pathlib import Path


def below(root: Path, name: str) -> str:
    """The image file `name` as it is found from `root`: the dataset's folder, or that of its images."""
    return name if os.path.exists(root / name) else Path(name).name
