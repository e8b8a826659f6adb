"""CriterionSearch: a Hydra sweeper that asks Optuna which settings to try next. Hydra looks for it here alone."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from retriever.errors import InputError, require_positive

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.samplers import BaseSampler

log = logging.getLogger(__name__)


class CriterionSearch(Sweeper):
    """Search for the settings with the lowest value that the application returns.

    (The plugin hydra-optuna-sweeper 1.3.0 wants an Optuna below 3.) Nothing is stored: the sampler is seeded, so a
    search that is started again in its folder asks for the same runs, and the finished ones answer at once.

    Args:
        sampler: Optuna's, with a seed.
        n_trials: runs in all.
        n_jobs: runs that are started together, by launchers that can; the sampler knows of them only afterwards.
        params: setting → sweep, as on the command line, which wins: ``interval(a, b)``, ``tag(log, interval(a, b))``,
            ``int(interval(a, b))``, or values to choose from.
    """

    def __init__(
        self, sampler: BaseSampler, n_trials: int, n_jobs: int = 1, params: Mapping[str, Any] | None = None
    ) -> None:
        require_positive(n_trials=n_trials, n_jobs=n_jobs)
        self.sampler = sampler
        self.n_trials = n_trials
        self.n_jobs = n_jobs
        self.params = dict(params or {})

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Take the launcher that the configuration names."""
        self.config, self.hydra_context = config, hydra_context
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        """Run the search; ``best.yaml`` in the sweep's folder holds the criterion's best value, and its settings."""
        import optuna  # the extra 'sweep'

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        fixed, space = self._space(arguments)
        folder = Path(self.config.hydra.sweep.dir)
        folder.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(self.config, folder / "multirun.yaml")
        study = optuna.create_study(sampler=self.sampler, direction="minimize")
        while len(study.trials) < self.n_trials:
            first = len(study.trials)
            trials = [study.ask(space) for _ in range(min(self.n_jobs, self.n_trials - first))]
            jobs = [[*fixed, *(f"{key}={value}" for key, value in trial.params.items())] for trial in trials]
            for trial, job in zip(trials, self.launcher.launch(jobs, initial_job_idx=first), strict=True):
                failed = job.return_value is None  # where the job raised, this raises, too
                study.tell(trial, job.return_value, state=optuna.trial.TrialState.FAIL if failed else None)
        if any(trial.value is not None for trial in study.trials):
            log.info("Best of %d runs: %s", self.n_trials, study.best_params)
            # the application negates a criterion of which more is better
            value = -study.best_value if job.cfg.criterion_mode == "max" else study.best_value
            OmegaConf.save({"value": value, "settings": study.best_params}, folder / "best.yaml")

    def _space(self, arguments: list[str]) -> tuple[list[str], dict[str, BaseDistribution]]:
        """The overrides that every run has, and setting → distribution."""
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        given = parser.parse_overrides([*(f"{key}={value}" for key, value in self.params.items()), *arguments])
        by_key = {override.get_key_element(): override for override in given}
        fixed = [override.input_line for override in by_key.values() if not override.is_sweep_override()]
        space = {key: _distribution(override) for key, override in by_key.items() if override.is_sweep_override()}
        if not space:
            raise InputError("A search needs a space: name one in hydra.sweeper.params, or key='interval(a, b)'.")
        return fixed, space


def _distribution(override: Override) -> BaseDistribution:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    value = override.value()
    if not isinstance(value, IntervalSweep):
        return CategoricalDistribution(list(override.sweep_string_iterator()))
    whole = isinstance(value.start, int) and isinstance(value.end, int)
    return (IntDistribution if whole else FloatDistribution)(value.start, value.end, log="log" in value.tags)
