"""Image-text matching research on frozen features.

The functions that the commands call, loaded when they are first used so that `import itmfeat` is quick::

    import itmfeat

    cache = itmfeat.extract("flickr8k", root="data/flickr8k")
    run = itmfeat.train(cache=cache, loss="snll", noise=0.2)
    print(itmfeat.evaluate(run)["rsum"])
"""

from typing import Any

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    raise AttributeError(f"module 'itmfeat' has no attribute {name!r}")
