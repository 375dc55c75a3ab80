"""Image-text matching research on frozen features.

The functions that the commands call, loaded when they are first used so that `import itmfeat` is quick::

    import itmfeat

    cache = itmfeat.extract("flickr8k", root="data/flickr8k")
    run = itmfeat.train("snll", noise=0.2, cache=cache)
    print(itmfeat.evaluate(run)["rsum"])
"""

import importlib
from typing import Any

__version__ = "0.1.0"

_WHERE = {
    "extract": "itmfeat_extract.extraction",
    "train": "itmfeat.api",
    "evaluate": "itmfeat.api",
    "compare": "itmfeat.comparison",
    "search": "itmfeat.queries",
    "open_cache": "itmfeat.cache",
}


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'itmfeat' has no attribute {name!r}")
    return getattr(importlib.import_module(_WHERE[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_WHERE])
