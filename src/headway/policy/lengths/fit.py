"""Training of a length model, and what it is worth against the histogram (extra: ``learned``)."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from headway.errors import UserError
from headway.policy.learned import LearnedLengths, LengthModel, Trees, features_of
from headway.policy.lengths.histogram import ClassBucketHistogram
from headway.policy.lengths.served import Served
from headway.policy.predict import LengthDistribution
from headway.request import Request

LEVELS = (0.1, 0.25, 0.5, 0.75, 0.9, 0.95)

LEAST_ROWS = 200
"""Fewer outputs than this hold no upper quantile worth fitting."""

MOST_ROWS = 50_000
"""The newest ones are taken beyond this; more made no difference and takes minutes."""

HELD_OUT_SHARE = 0.2
"""The newest part of the log judges the model and takes no part in the one that is judged."""

Float = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Score:
    """How good a distribution was on requests it had not seen.

    Attributes:
        pinball_tokens: Mean pinball loss per level, in tokens; the lower the better.
        coverage: Share of the lengths at most the quantile, per level.
    """

    pinball_tokens: tuple[float, ...]
    coverage: tuple[float, ...]

    @property
    def mean_tokens(self) -> float:
        """The mean over the levels."""
        return float(np.mean(self.pinball_tokens))


def pinball_tokens(actual: Float, predicted: Float, p: float) -> float:
    """Return the mean pinball loss: p a token too short, 1 - p a token too long."""
    short = actual - predicted
    return float(np.mean(np.maximum(p * short, (p - 1.0) * short)))


def split(rows: Sequence[Served]) -> tuple[list[Served], list[Served]]:
    """Return the earlier whole requests and the held-out ones, by arrival.

    Raises:
        UserError: Too few requests ran to their end.
    """
    whole = [row for row in rows if row.is_whole]
    if len(whole) < LEAST_ROWS:
        raise UserError(
            f"The logs hold {len(whole)} requests that ran to their end; at least {LEAST_ROWS}"
            " are needed to train on."
        )
    cut = len(whole) - int(HELD_OUT_SHARE * len(whole))
    return whole[:cut], whole[cut:]


def fit(rows: Sequence[Served], seed: int = 0, levels: Sequence[float] = LEVELS) -> LengthModel:
    """Return boosted trees fitted to the newest of *rows*; same rows and seed, same model.

    One ensemble a level, on the logarithm of the length: quantiles of a logarithm are logarithms
    of the quantiles, and the tail does not rule the splits.

    Raises:
        UserError: scikit-learn is not installed.
    """
    try:
        from sklearn.ensemble import GradientBoostingRegressor
    except ImportError:
        raise UserError(
            "train-predictor needs scikit-learn: pip install 'headway[learned]'."
        ) from None
    rows = rows[-MOST_ROWS:]
    classes = tuple(sorted({row.request.slo.class_name for row in rows}))
    matrix = np.array([_features(classes, row.request) for row in rows])
    target = np.log([row.num_output_tokens for row in rows])
    grown = [
        GradientBoostingRegressor(
            loss="quantile",
            alpha=p,
            n_estimators=40,
            max_depth=3,
            learning_rate=0.2,
            min_samples_leaf=20,
            subsample=0.5,
            init="zero",
            random_state=seed,
        ).fit(matrix, target - np.quantile(target, p))
        for p in levels
    ]
    start = np.array([np.quantile(target, p) for p in levels])
    about = {"num_requests": len(rows), "seed": seed}
    return LengthModel(tuple(levels), classes, _exported(grown, start), about)


def _exported(grown: Sequence[object], start: Float) -> Trees:
    """Return scikit-learn's trees as arrays, their learning rate multiplied in."""
    parts: dict[str, list[npt.NDArray[np.generic]]] = {
        name: [] for name in ("feature", "threshold", "left", "right", "value")
    }
    roots, level_of, depth, first = [], [], 0, 0
    for level, model in enumerate(grown):
        for estimator in model.estimators_[:, 0]:  # type: ignore[attr-defined]
            tree = estimator.tree_
            own = np.arange(tree.node_count)
            is_leaf = tree.children_left < 0
            parts["feature"].append(np.where(is_leaf, 0, tree.feature))
            parts["threshold"].append(np.where(is_leaf, 0.0, tree.threshold))
            parts["left"].append(first + np.where(is_leaf, own, tree.children_left))
            parts["right"].append(first + np.where(is_leaf, own, tree.children_right))
            parts["value"].append(model.learning_rate * tree.value[:, 0, 0])  # type: ignore[attr-defined]
            roots.append(first)
            level_of.append(level)
            depth = max(depth, int(tree.max_depth))
            first += int(tree.node_count)
    joined = {name: np.concatenate(arrays) for name, arrays in parts.items()}
    return Trees(np.array(roots), np.array(level_of), depth, start=start, **joined)


def _features(classes: Sequence[str], request: Request) -> Float:
    return features_of(
        classes, request.slo.class_name, request.num_prompt_tokens, request.max_output_tokens
    )


def judge(
    lengths: LengthDistribution,
    rows: Sequence[Served],
    judged: Sequence[Served],
    levels: Sequence[float] = LEVELS,
) -> Score:
    """Return how well *lengths* predicts *judged* on arrival, living through all of *rows*.

    As in a server: it has learnt from those requests only that had left when one arrives, and
    from those that hung up too.
    """
    names = {id(row) for row in judged}
    predicted: list[list[int]] = []
    actual: list[int] = []
    running: list[tuple[float, int, Served]] = []
    for order, row in enumerate(rows):
        while running and running[0][0] <= row.arrived_at_s:
            done = heapq.heappop(running)[2]
            (lengths.learn if done.is_whole else lengths.learn_cut)(done.request)
        if id(row) in names:
            asked = row.request
            new = Request(
                asked.request_id,
                asked.slo,
                asked.arrived_at_s,
                asked.num_prompt_tokens,
                asked.max_output_tokens,
            )
            predicted.append([lengths.quantile(new, p) for p in levels])
            actual.append(row.num_output_tokens)
        heapq.heappush(running, (row.ended_at_s, order, row))
    guesses, truth = np.array(predicted, np.float64), np.array(actual, np.float64)
    return Score(
        tuple(pinball_tokens(truth, guesses[:, i], p) for i, p in enumerate(levels)),
        tuple(float(np.mean(truth <= guesses[:, i])) for i in range(len(levels))),
    )


def compare(rows: Sequence[Served], seed: int = 0) -> tuple[Score, Score]:
    """Return the scores of a model fitted to the earlier part of *rows*, and the histogram's.

    Raises:
        UserError: Too few requests, or scikit-learn is not installed.
    """
    earlier, held_out = split(rows)
    learned = LearnedLengths(fit(earlier, seed))
    return judge(learned, rows, held_out), judge(ClassBucketHistogram(), rows, held_out)
