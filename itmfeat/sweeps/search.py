"""A search over ranges instead of a grid: Optuna proposes, stacks of trials answer.

A trial is a value from each range. It trains all settings of its grid, as several seeds, and its score is the
mean of their best validation rSum; the test split has no say.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from itmfeat.errors import ItmfeatError, MissingPackageError, UsageError, reason_of
from itmfeat.runs import Run, make_place
from itmfeat.sweeps.document import Value
from itmfeat.sweeps.expand import Setting, distinct
from itmfeat.sweeps.plan import state
from itmfeat.sweeps.spec import Spec, choice_of
from itmfeat.sweeps.work import Tell

BATCH = 8  # trials that are proposed together
JOURNAL = "search-{digest}.journal"

Answer = Callable[[list[Setting]], None]
"""Trains what is left of some settings; those that diverge stay without a result."""


@dataclass(frozen=True)
class Best:
    """The trial that won."""

    number: int
    values: dict[str, Any]  # of each range
    val_rsum: float
    runs: list[Path]
    trials: int  # that were finished
    diverged: int


class Search:
    """A search for the ranges of a specification, kept in a journal in its runs folder."""

    def __init__(self, spec: Spec, seed: int = 0) -> None:
        self._optuna = _optuna()
        self._states = self._optuna.trial.TrialState
        if len(spec.grids) != 1:
            raise UsageError("a search takes one grid; write alternatives as `choices`, or search one by one")
        (self.grid,) = spec.grids
        if not self.grid.ranges:
            raise UsageError(
                f"{self.grid.place}: there is no range to search, as `loss.margin: {{low: 0.1, high: 0.5}}`"
            )
        if len(self.grid.axes.get("loss", ())) > 1:
            raise UsageError(
                f"{self.grid.axes['loss'][1].place}: a trial is the mean over its grid, and losses differ; "
                "write `loss: {choices: [...]}`, or search one by one"
            )
        self.runs, self._seed = spec.runs, seed
        self._spaces = {key: self._space(key, value) for key, value in self.grid.ranges.items()}
        self._first = {key: _ends(value)[0] for key, value in self.grid.ranges.items()}
        for key, value in self.grid.ranges.items():
            for end in _ends(value):
                self.of(self._first | {key: end})  # wrong values show at once

    def of(self, values: dict[str, Any]) -> list[Setting]:
        """The settings of a trial with these values of the ranges."""
        places = {key: value.place for key, value in self.grid.ranges.items()}
        chosen = {key: [choice_of(key, Value(value, places[key]))] for key, value in values.items()}
        grid = replace(self.grid, axes=self.grid.axes | chosen)
        return distinct(grid.points())

    def run(self, trials: int, answer: Answer, tell: Tell) -> Best:
        """Ask and answer until so many trials are finished, those of earlier calls among them."""
        if trials < 1:
            raise UsageError(f"--trials must be at least 1, not {trials}")
        study = self._study()
        while (left := trials - len(self._ended(study))) > 0:
            asked = self._ask(study, min(BATCH, left))
            settings = {number: self.of(values) for number, values in asked.items()}
            both = {each.config.digest: each for some in settings.values() for each in some}
            answer(list(both.values()))
            for number, some in settings.items():
                score = self._score(some)
                study.tell(number, score, state=self._states.FAIL if score is None else None)
                tell({"event": "trial", "trial": number, "values": asked[number], "val_rsum": score})
        return self._best(study)

    def _ask(self, study: Any, size: int) -> dict[int, dict[str, Any]]:
        """Values of a batch of trials; those that a killed search left come first, as their runs go on."""
        left = {trial.number: trial.params for trial in study.get_trials(states=(self._states.RUNNING,))}
        asked = {number: values for number, values in left.items() if values.keys() == self._spaces.keys()}
        for number in left.keys() - asked.keys():  # it was killed while it was asked
            study.tell(number, state=self._states.FAIL)
        # Seeded by what is there, so that a search that was killed asks what it would have asked.
        seed = self._seed + len(study.trials)
        study.sampler = self._optuna.samplers.TPESampler(seed=seed, constant_liar=True)
        for _ in range(size - len(asked)):
            trial = study.ask(self._spaces)
            asked[trial.number] = trial.params
        return asked

    def _score(self, settings: list[Setting]) -> float | None:
        """The mean of the best validation rSums; None if one diverged."""
        runs = [Run(self.runs / setting.config.name) for setting in settings]
        for run in runs:
            if state(run) == "open":
                raise ItmfeatError(f"{run.path} did not finish; repeat the command, the search goes on")
        if not all(run.finished for run in runs):
            return None
        return sum(float(run.read("manifest.json")["selection"]["rsum"]) for run in runs) / len(runs)

    def _best(self, study: Any) -> Best:
        done = [trial for trial in self._ended(study) if trial.value is not None]
        if not done:
            raise ItmfeatError("every trial diverged: its loss is no number any more; search lower rates")
        best = max(done, key=lambda trial: (trial.value, -trial.number))
        runs = [self.runs / setting.config.name for setting in self.of(best.params)]
        diverged = len(self._ended(study)) - len(done)
        return Best(best.number, best.params, best.value, runs, len(done), diverged)

    def _ended(self, study: Any) -> list[Any]:
        """Trials that were trained, whatever came of it."""
        ended = study.get_trials(states=(self._states.COMPLETE, self._states.FAIL))
        return [trial for trial in ended if trial.params.keys() == self._spaces.keys()]

    def _study(self) -> Any:
        """The study of these ranges and this grid: others have a journal of their own."""
        optuna = self._optuna
        settings = self.of(self._first)
        as_json = optuna.distributions.distribution_to_json
        spaces = {key: as_json(space) for key, space in self._spaces.items()}
        what = json.dumps([sorted(s.config.digest for s in settings), spaces, self._seed], sort_keys=True)
        digest = hashlib.sha256(what.encode()).hexdigest()[:8]
        make_place(self.runs)
        backend = optuna.storages.journal.JournalFileBackend(str(self.runs / JOURNAL.format(digest=digest)))
        storage = optuna.storages.JournalStorage(backend)
        return optuna.create_study(
            storage=storage, study_name=digest, direction="maximize", load_if_exists=True
        )

    def _space(self, key: str, value: Value) -> Any:
        """The range of a key as Optuna has it."""
        distributions = self._optuna.distributions
        held = {name: part.held for name, part in value.held.items()}
        if "choices" in held:
            held["choices"] = value.held["choices"].each()
        try:
            if "choices" in held:
                return distributions.CategoricalDistribution([part.held for part in held["choices"]])
            whole = all(isinstance(held[name], int) for name in ("low", "high"))
            kind = distributions.IntDistribution if whole else distributions.FloatDistribution
            return kind(**{name: _plain(part) for name, part in held.items()})
        except (TypeError, ValueError) as error:
            raise UsageError(f"{value.place}: the range of {key} cannot be: {reason_of(error)}") from None


def _plain(part: Any) -> Any:
    return float(part) if isinstance(part, str) else part


def _ends(value: Value) -> list[Any]:
    """The two ends of a range, or all choices."""
    if "choices" in value.held:
        return [item.held for item in value.held["choices"].each()]
    return [_plain(value.held[name].held) for name in ("low", "high")]


def _optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise MissingPackageError("--search optuna needs Optuna: pip install 'itmfeat[optuna]'") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna
