"""Output lengths from a model trained on the server's own log (``headway train-predictor``).

The file holds plain numbers: boosted trees for the logarithm of a few quantiles of the length.
Nothing but numpy is needed to ask it. The model does not learn while it serves; wrapped in
:class:`~headway.papers.cacheopt.c1_lengths.AdaptiveConformal` it stays honest when traffic drifts.
"""

from __future__ import annotations

import bisect
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from headway.errors import UserError
from headway.policy.predict import LengthDistribution, Predictor, is_beyond, within
from headway.request import Request

SCHEMA = 1
KIND = "output-length-quantiles"

MOST_NODES = 10_000_000
"""A larger file is no model that this program wrote."""

Float = npt.NDArray[np.float64]
Int = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Trees:
    """Boosted regression trees, all of them one behind the other.

    A node sends a row to ``left`` when its feature is at most the threshold, else to ``right``; a
    leaf points at itself, so that *depth* moves end in a leaf from every root.

    Attributes:
        roots, level_of: One entry a tree: its first node, and the quantile it adds to.
        feature, threshold, left, right, value: One entry a node.
        start: What each quantile starts from before its trees add to it.
    """

    roots: Int
    level_of: Int
    depth: int
    feature: Int
    threshold: Float
    left: Int
    right: Int
    value: Float
    start: Float

    def predict(self, row: Float) -> Float:
        """Return one value a quantile for one row of features; shapes (features,), (levels,)."""
        # The trees were grown on 32-bit features: near a threshold the rounding decides.
        features = row.astype(np.float32).astype(np.float64)
        at = self.roots
        for _ in range(self.depth):
            stays = features[self.feature[at]] <= self.threshold[at]
            at = np.where(stays, self.left[at], self.right[at])
        added = np.bincount(self.level_of, self.value[at], minlength=len(self.start))
        total: Float = self.start + added
        return total


@dataclass(frozen=True, slots=True)
class LengthModel:
    """Quantiles of the output length given what is known on arrival.

    Attributes:
        levels: Probabilities of the quantiles, ascending, between 0 and 1.
        classes: Class names that were trained on; any other one is a row of zeros.
        about: How it was trained and what it was worth, for people.
    """

    levels: tuple[float, ...]
    classes: tuple[str, ...]
    trees: Trees
    about: dict[str, Any]

    def quantiles(
        self, class_name: str, num_prompt_tokens: int, max_output_tokens: int
    ) -> list[float]:
        """Return the length in tokens at each of the levels, ascending.

        Quantiles fitted one by one can cross; sorted they are no worse (Chernozhukov,
        Fernández-Val and Galichon 2010).
        """
        row = features_of(self.classes, class_name, num_prompt_tokens, max_output_tokens)
        lengths = np.exp(np.clip(self.trees.predict(row), 0.0, 50.0))
        return sorted(np.minimum(lengths, max_output_tokens).tolist())

    def to_json(self) -> str:
        """Return the text of the model's file."""
        row = {"schema": SCHEMA, "kind": KIND, **asdict(self)}
        return json.dumps(row, default=np.ndarray.tolist)


def features_of(
    classes: Sequence[str], class_name: str, num_prompt_tokens: int, max_output_tokens: int
) -> Float:
    """Return what is known of a request on arrival as a row; shape ``(2 + len(classes),)``."""
    row = np.zeros(2 + len(classes))
    row[:2] = num_prompt_tokens, max_output_tokens
    if class_name in classes:
        row[2 + classes.index(class_name)] = 1.0
    return row


def parse(text: str, where: str) -> LengthModel:
    """Return the model in a file that ``headway train-predictor`` wrote.

    Args:
        text: The file's contents; *where* names it in errors. The core opens no file itself.

    Raises:
        UserError: It is no such model.
    """
    try:
        row = json.loads(text)
    except (ValueError, RecursionError):
        raise UserError(f"The length model {where} is not JSON.") from None
    if not isinstance(row, dict) or row.get("kind") != KIND or row.get("schema") != SCHEMA:
        raise UserError(
            f"{where} is no length model of this version; headway train-predictor makes one."
        )
    try:
        model = _parsed(row)
    except (KeyError, TypeError, ValueError, OverflowError):
        model = None
    if model is None or not _is_sound(model):
        raise UserError(f"The length model {where} is damaged; train it again.")
    return model


def _parsed(row: dict[str, Any]) -> LengthModel:
    trees = row["trees"]
    return LengthModel(
        levels=tuple(float(p) for p in row["levels"]),
        classes=tuple(str(name) for name in row["classes"]),
        trees=Trees(
            roots=np.array(trees["roots"], np.int64),
            level_of=np.array(trees["level_of"], np.int64),
            depth=int(trees["depth"]),
            feature=np.array(trees["feature"], np.int64),
            threshold=np.array(trees["threshold"], np.float64),
            left=np.array(trees["left"], np.int64),
            right=np.array(trees["right"], np.int64),
            value=np.array(trees["value"], np.float64),
            start=np.array(trees["start"], np.float64),
        ),
        about=dict(row["about"]),
    )


def _is_sound(model: LengthModel) -> bool:
    """Return whether every index is in range and every number finite: asking cannot fail."""
    trees, levels = model.trees, model.levels
    nodes, num_trees = len(trees.feature), len(trees.roots)

    def indices(array: Int, count: int, below: int) -> bool:
        return array.shape == (count,) and bool(((array >= 0) & (array < below)).all())

    return (
        0 < nodes <= MOST_NODES
        and 0 <= trees.depth <= 64
        and len(levels) > 0
        and all(a < b for a, b in pairwise((0.0, *levels, 1.0)))
        and indices(trees.feature, nodes, 2 + len(model.classes))
        and indices(trees.left, nodes, nodes)
        and indices(trees.right, nodes, nodes)
        and indices(trees.roots, num_trees, nodes)
        and indices(trees.level_of, num_trees, len(levels))
        and trees.threshold.shape == trees.value.shape == (nodes,)
        and trees.start.shape == (len(levels),)
        and all(np.isfinite(a).all() for a in (trees.threshold, trees.value, trees.start))
    )


class LearnedLengths(Predictor, LengthDistribution):
    """A trained model as a distribution: its quantiles joined by lines in the logarithm.

    Below the lowest quantile the line begins at one token, above the highest it ends at the
    client's bound. Given the tokens generated so far the same curve is cut off below them.

    Args:
        p: Quantile that :meth:`predict` answers with.
    """

    def __init__(self, model: LengthModel, p: float = 0.5) -> None:
        self._model = model
        self._p = p
        # A request is asked about again as it runs; its features do not change.
        self._knots = lru_cache(maxsize=8192)(self._knots_of)

    @property
    def coverage_target(self) -> float:
        """See :class:`~headway.policy.predict.Predictor`."""
        return self._p

    def predict(self, request: Request) -> int:
        """Return the quantile it was built with."""
        return self.quantile(request, self._p)

    def quantile(self, request: Request, p: float) -> int:
        """See :class:`~headway.policy.predict.LengthDistribution`."""
        if p >= 1.0:
            return within(request, request.max_output_tokens)
        shares, logs = self._knots_for(request)
        passed = _share_at(shares, logs, request.num_output_tokens)
        level = passed + p * (1.0 - passed)
        right = min(max(bisect.bisect_left(shares, level), 1), len(shares) - 1)
        width = shares[right] - shares[right - 1]
        along = (level - shares[right - 1]) / width
        length = math.exp(logs[right - 1] + along * (logs[right] - logs[right - 1]))
        return within(request, math.ceil(length - 1e-6))

    def survival(self, request: Request, num_tokens: int) -> float:
        """See :class:`~headway.policy.predict.LengthDistribution`."""
        known = is_beyond(request, num_tokens)
        if known is not None:
            return known
        shares, logs = self._knots_for(request)
        passed = _share_at(shares, logs, request.num_output_tokens)
        return (1.0 - _share_at(shares, logs, num_tokens)) / (1.0 - passed)

    def learn(self, request: Request) -> None:
        """Nothing: the model was trained before."""

    def learn_cut(self, request: Request) -> None:
        """Nothing."""

    def _knots_for(self, request: Request) -> tuple[list[float], list[float]]:
        bound = max(request.max_output_tokens, request.num_output_tokens + 1)
        return self._knots(request.slo.class_name, request.num_prompt_tokens, bound)

    def _knots_of(
        self, class_name: str, num_prompt_tokens: int, bound_tokens: int
    ) -> tuple[list[float], list[float]]:
        """Return probabilities and the logarithms of the lengths they belong to."""
        lengths = self._model.quantiles(class_name, num_prompt_tokens, bound_tokens)
        shares = [0.0, *self._model.levels, 1.0]
        return shares, [math.log(n) for n in (1.0, *(max(n, 1.0) for n in lengths), bound_tokens)]


def _share_at(shares: list[float], logs: list[float], num_tokens: int) -> float:
    """Return P(length <= *num_tokens*); below 1 for anything below the bound."""
    if num_tokens < 1:
        return 0.0
    here = math.log(num_tokens)
    right = bisect.bisect_right(logs, here)
    if right >= len(logs):
        return math.nextafter(1.0, 0.0)
    along = (here - logs[right - 1]) / (logs[right] - logs[right - 1])
    return shares[right - 1] + along * (shares[right] - shares[right - 1])
