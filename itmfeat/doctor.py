"""What `itmfeat doctor` looks at: versions, devices, FAISS, disk."""

import importlib
import os
import platform
import shutil
from importlib import metadata
from typing import Any

PACKAGES = (
    "itmfeat",
    "torch",
    "numpy",
    "h5py",
    "transformers",
    "scikit-learn",
    "safetensors",
    "pillow",
    "rich",
    "typer",
)


def examine() -> dict[str, Any]:
    """Facts about this machine and installation, as plain values; what is broken is named, not raised."""
    usage = shutil.disk_usage(".")
    found: dict[str, Any] = {"python": platform.python_version(), "platform": platform.platform()}
    found |= {name: _version(name) for name in PACKAGES}
    found |= _torch()
    found["faiss"] = _faiss()
    found["torchvision"] = _torchvision()
    found["disk here"] = f"{usage.free / 1e9:.1f} GB free of {usage.total / 1e9:.1f} GB"
    return found


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "TROUBLE: not installed"


def _torch() -> dict[str, str]:
    """The build of torch and the devices that it sees."""
    try:
        import torch
    except Exception as error:
        return {"torch build": f"TROUBLE: torch does not load ({error})"}
    devices = [
        f"cuda:{index} {torch.cuda.get_device_name(index)}" for index in range(torch.cuda.device_count())
    ]
    devices += ["mps"] if torch.backends.mps.is_available() else []
    return {
        "torch build": f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU only",
        "devices": ", ".join([*devices, "cpu"]),
        "cores": f"{os.cpu_count()}, torch uses {torch.get_num_threads()}",
    }


def _faiss() -> str:
    """Which distribution owns `faiss`, and whether two do: the last one installed then wins."""
    owners = sorted(set(metadata.packages_distributions().get("faiss", [])))
    if not owners:
        return "not installed: search uses torch; `pip install 'itmfeat[cpu]'` or 'itmfeat[gpu]'"
    if len(owners) > 1:
        return f"TROUBLE: {' and '.join(owners)} overwrite each other; uninstall both, install one"
    from itmfeat.retrieval import faiss_library

    faiss = faiss_library()
    if faiss is None:
        return f"{owners[0]} {metadata.version(owners[0])} does not load: search uses torch"
    gpus = faiss.get_num_gpus() if hasattr(faiss, "get_num_gpus") else 0
    return f"{owners[0]} {metadata.version(owners[0])}, {gpus} GPUs"


def _torchvision() -> str:
    """A torchvision built for another torch breaks transformers' CLIP on import."""
    try:
        found = metadata.version("torchvision")
    except metadata.PackageNotFoundError:
        return "not installed (not needed)"
    try:
        importlib.import_module("torchvision")
    except Exception as error:
        return f"TROUBLE: {found} does not fit this torch ({error}); uninstall it"
    return found
