"""Writes tune_tpe.json: TPE's densities, splits and choices by Optuna 5.0.0.

    python3 -m venv venv && venv/bin/pip install optuna==5.0.0
    venv/bin/python tests/parity/tune_tpe.py

densities: for each parameter and number of observations: the observations, points, and the logarithm
of the density there (per unit of the logarithm, for a logarithmic number).
splits: for both directions: trials (state, value, reports) and the numbers of the good ones.
choices: observations of the good and the other trials, 24 candidates, and the one taken.

numpy's argsort is made stable: Optuna gives equal observations of different weights their widths in
the order in which it sorts them, and numpy's default leaves that order open.
"""

import functools
import json
import math
import pathlib
import warnings

import numpy as np
import optuna
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers._tpe.parzen_estimator import _ParzenEstimator, _ParzenEstimatorParameters
from optuna.samplers._tpe.sampler import _split_trials, default_gamma, default_weights

np.argsort = functools.partial(np.argsort, kind="stable")
warnings.simplefilter("ignore")
optuna.logging.set_verbosity(optuna.logging.WARNING)
settings = _ParzenEstimatorParameters(
    prior_weight=1.0,
    consider_magic_clip=True,
    consider_endpoints=False,
    weights=default_weights,
    multivariate=False,
)
parameters = {
    "uniform": FloatDistribution(-3.0, 5.0),
    "logUniform": FloatDistribution(1e-6, 10.0, log=True),
    "integer": IntDistribution(1, 31, step=3),
    "integerLog": IntDistribution(1, 64, log=True),
    "choice": CategoricalDistribution(["a", "b", "c"]),
}
rng = np.random.RandomState(0)


def draw(d, n):
    """n values, crowded toward the lower end."""
    u = np.minimum(rng.rand(n), rng.rand(n))
    if isinstance(d, CategoricalDistribution):
        return np.floor(u * len(d.choices))
    if d.log:
        x = np.exp(math.log(d.low) + u * (math.log(d.high) - math.log(d.low)))
    else:
        x = d.low + u * (d.high - d.low)
    return x if d.step is None else d.low + np.round((x - d.low) / d.step) * d.step


def estimator(d, x):
    return _ParzenEstimator({"x": np.asarray(x, dtype=float)}, {"x": d}, settings)


densities = []
for name, d in parameters.items():
    for n in (0, 1, 2, 3, 9, 26, 60):
        seen = draw(d, n)
        at = draw(d, 6)
        log_density = estimator(d, seen).log_pdf({"x": at})
        densities.append(
            {"parameter": name, "seen": seen.tolist(), "at": at.tolist(), "log": log_density.tolist()}
        )

splits = []
states = optuna.trial.TrialState
for direction in ("minimize", "maximize"):
    for complete in (30, 2):
        study = optuna.create_study(direction=direction)
        trials = []
        for i in range(40):
            running = i % 13 == 12
            done = not running and (i * 7 % 40) < complete
            reports = {s: round(rng.rand(), 3) for s in range(0 if i % 5 else 1, rng.randint(1, 5))}
            value = round(rng.rand(), 3) if done else None
            state = states.RUNNING if running else states.COMPLETE if done else states.PRUNED
            study.add_trial(
                optuna.trial.create_trial(state=state, value=value, intermediate_values=reports)
            )
            trials.append(
                {"state": state.name.lower(), "value": value, "reports": list(reports.items())}
            )
        n = sum(t["state"] != "running" for t in trials)
        below, _ = _split_trials(study, study.trials, default_gamma(n))
        below = sorted(t.number for t in below)
        splits.append({"direction": direction, "trials": trials, "below": below})

choices = []
for name, d in parameters.items():
    below, above = draw(d, 5), draw(d, 40)
    low, high = estimator(d, below), estimator(d, above)
    candidates = low.sample(rng, 24)
    gain = low.log_pdf(candidates) - high.log_pdf(candidates)
    choices.append(
        {
            "parameter": name,
            "below": below.tolist(),
            "above": above.tolist(),
            "candidates": candidates["x"].tolist(),
            "taken": candidates["x"][int(np.argmax(gain))],
        }
    )

path = pathlib.Path(__file__).with_suffix(".json")
golden = {"optuna": optuna.__version__, "densities": densities, "splits": splits, "choices": choices}
path.write_text(json.dumps(golden, separators=(",", ":")) + "\n")
