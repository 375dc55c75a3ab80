"""Many machines: groups of ranges as tasks of a Ray cluster.

Each task fills its ranges in place, so all machines must see the cache folder and the dataset under the same
path. Ray gives a task to another worker when a worker or its machine dies; the bytes are the same whoever
makes them. The command logs and seals.
"""

import errno
import os
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import cache
from itertools import count, islice
from typing import Any

from itmfeat.cache.journal import Sums
from itmfeat.cache.ranges import Slot
from itmfeat.errors import DataError, ItmfeatError, reason_of
from itmfeat.ray_connection import connection
from itmfeat_extract.makers import Recipe
from itmfeat_extract.stages import Done, Maker, Task, Times, run

GROUP = 4  # ranges a task at most: decoding ahead works within one
RETRIES = 5  # a task that a machine's death took back with it counts too

Answer = tuple[list[tuple[int, Sums]], Times] | ItmfeatError


class Cluster:
    """An engine: tasks on the Ray cluster that is running, or on this machine alone if there is none.

    `at_once` limits the tasks that run at the same time; by default one a GPU, on CPUs one a core.
    """

    def __init__(self, recipe: Recipe, at_once: int | None) -> None:
        self._recipe, self._at_once = recipe, at_once
        self._resource = "CPU" if recipe.device == "cpu" else "GPU"

    def __call__(self, tasks: Iterable[Task], maker: Maker, done: Done) -> Times:
        """Have all ranges made; `maker`, that of this process, is not used."""
        with connection() as ray:
            return self._work(ray, tasks, done)

    def _work(self, ray: Any, tasks: Iterable[Task], done: Done) -> Times:
        there = int(ray.cluster_resources().get(self._resource, 0))
        if not there:
            raise ItmfeatError(
                f"the Ray cluster has no {self._resource}; "
                "add machines with `ray start`, or take --device cpu"
            )
        at_once, times = min(self._at_once or there, there), Times()
        resources = {"num_cpus": 1} if self._resource == "CPU" else {"num_cpus": 1, "num_gpus": 1}
        remote = ray.remote(max_retries=RETRIES, **resources)(make_group)
        groups = _groups(tasks, at_once)
        recipe = ray.put(self._recipe)  # once: that of shards is large
        running: dict[Any, list[Task]] = {}
        try:
            while True:
                for group in islice(groups, at_once + 1 - len(running)):
                    running[remote.remote(recipe, group)] = group
                if not running:
                    return times
                ready, _ = ray.wait(list(running), num_returns=1)
                times += _logged(ray, ready[0], running.pop(ready[0]), done)
        finally:
            for left in running:
                ray.cancel(left, force=True)


def _logged(ray: Any, reference: Any, group: list[Task], done: Done) -> Times:
    """What a task took; its ranges are told to `done`."""
    first, last = group[0].slot, group[-1].slot
    try:
        answer: Answer = ray.get(reference)
    except ray.exceptions.RayError as error:
        reason = reason_of(error)
        raise ItmfeatError(
            f"Ray gave up items {first.items.start} to {last.items.stop - 1} of {first.path} ({reason}); "
            "what is done is kept: repeat the command"
        ) from error
    if isinstance(answer, ItmfeatError):
        raise answer
    slots = {task.slot.index: task.slot for task in group}
    for index, sums in answer[0]:
        done(slots[index], sums)
    return answer[1]


def make_group(recipe: Recipe, tasks: list[Task]) -> Answer:
    """The task: fill ranges in place and return their checksums. Errors a user can cause are returned."""
    logged: list[tuple[int, Sums]] = []
    try:
        if recipe.root and not os.path.isdir(recipe.root):
            raise FileNotFoundError(errno.ENOENT, "no such folder", recipe.root)
        maker = _maker(recipe)
        times = run(tasks, maker, 2, lambda slot, sums: logged.append((slot.index, sums)))
    except ItmfeatError as error:
        return error
    except FileNotFoundError as error:
        import platform

        return DataError(
            f"{platform.node()} does not see {error.filename}: with --engine ray the cache and "
            "the dataset must lie on storage that all machines share, under one path"
        )
    return logged, times


@cache
def _maker(recipe: Recipe) -> Maker:
    """Once for each process of Ray, which lives for many tasks."""
    return recipe.maker()


def _groups(tasks: Iterable[Task], at_once: int) -> Iterator[list[Task]]:
    """Small ones first, so that of a small dataset all machines get some."""
    source, sizes = iter(tasks), (min(GROUP, 1 + number // at_once) for number in count())
    while group := list(islice(source, next(sizes))):
        yield [Task(_absolute(task.slot), task.items) for task in group]


def _absolute(slot: Slot) -> Slot:
    """Tasks run in folders of their own."""
    return replace(slot, path=slot.path.absolute(), part=slot.part.absolute())
