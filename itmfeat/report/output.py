"""A page or table as a file."""

from pathlib import Path

from itmfeat.errors import UsageError


def check_folder(path: Path) -> None:
    """A UsageError unless the folder that `path` is to be written into is there."""
    if not path.absolute().parent.is_dir():
        raise UsageError(f"there is no folder {path.parent} for {path.name}; make it, or name another -o")


def put(path: Path, text: str) -> None:
    """Write a file in one step, so that nothing half-written stands under its name."""
    part = path.with_name(f"{path.name}.part")
    try:
        part.write_text(text, encoding="utf-8")
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
