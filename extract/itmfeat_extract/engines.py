"""Where the ranges are made: here, in a process for each device, or on a cluster."""

import os
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch

from itmfeat.errors import UsageError, unknown
from itmfeat.ray_connection import connection
from itmfeat_extract.backbones import Kind
from itmfeat_extract.backbones.placement import place
from itmfeat_extract.filling import Engine, Here
from itmfeat_extract.launch import Launch, launched
from itmfeat_extract.makers import Recipe

ENGINES = ("local", "ray")


@dataclass(frozen=True)
class Site:
    """What a command may use: its engine, its devices, and its part of a launch."""

    name: str  # of the engine
    devices: list[str]  # a process each
    threads: int  # that decode, in each process
    at_once: int | None  # tasks of a cluster
    launch: Launch

    @classmethod
    def of(cls, engine: str, device: str, workers: int | None) -> "Site":
        """From the command line and the environment.

        The devices `auto` and `cuda` are all GPUs there are: at most `workers` of them, and one for each copy
        of a launched command. `workers` of one device, or of devices that are named with commas, are threads
        that decode.
        """
        launch = launched()
        if engine not in ENGINES:
            raise unknown("engine", engine, list(ENGINES))
        if workers is not None and workers < 1:
            raise UsageError(f"--workers must be at least 1, not {workers}")
        if engine == "ray" and (launch.world > 1 or "," in device):
            raise UsageError("--engine ray finds its devices: leave out torchrun, srun and a list of them")
        devices = device.split(",")
        gpus = torch.cuda.device_count() if device in ("auto", "cuda") else 0
        if launch.world > 1:
            if len(devices) > 1:
                raise UsageError(f"a copy of a launched command takes one --device, not {device}")
            if gpus > 1:
                devices = [f"cuda:{launch.local % gpus}"]
        elif gpus > 1 and engine == "local":
            devices, workers = [f"cuda:{index}" for index in range(min(workers or gpus, gpus))], None
        return cls(engine, devices, workers or default_workers(len(devices)), workers, launch)

    def connection(self) -> AbstractContextManager[object]:
        """What an extraction of both sides shares: to a cluster one connection."""
        return connection() if self.name == "ray" else nullcontext()

    def engine(self, kind: Kind, name: str, loaded: Any, **given: Any) -> Engine:
        """What makes the ranges with a backbone that was loaded here by that name; see `Recipe.of`."""
        if self.name == "local" and len(self.devices) == 1:
            return Here(self.threads)
        recipes = [Recipe.of(kind, name, loaded, device, **given) for device in self.devices]
        if self.name == "local":
            from itmfeat_extract.workers import Processes

            return Processes(recipes, self.threads)
        from itmfeat_extract.ray_engine import Cluster

        device, root = place(recipes[0].device, None).device.type, os.path.abspath(recipes[0].root)
        return Cluster(replace(recipes[0], device=device, root=root), self.at_once)


def default_workers(processes: int = 1) -> int:
    """Decoding threads a process: one a core, at most eight; Pillow lets other threads run meanwhile."""
    return max(1, min(8, (os.cpu_count() or 1) // processes))
