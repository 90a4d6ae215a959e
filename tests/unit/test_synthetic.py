"""Made-up workloads have the statistics they claim, and the same seed makes the same one."""

from __future__ import annotations

import math

import numpy as np
import pytest

from headway.errors import UserError
from headway.slo import Slo
from headway.workloads import named, synthetic
from headway.workloads.arrivals import Arrivals
from headway.workloads.length_distribution import LengthDistribution, lognormal
from headway.workloads.schema import slo_of

PUBLISHED = {
    "sharegpt": ((2340, 1730, 6563, 7434), (439, 415, 920, 998)),
    "azure-code": ((2048, 1469, 7303, 7436), (28, 13, 90, 251)),
    "azure-chat": ((1155, 1020, None, None), (211, 129, None, None)),
    "reasoning": ((1268, 208, 6714, 23423), (1527, 792, 5701, 12607)),
    "summary": ((2588, 2730, 3813, 3933), (291, 167, 736, 3271)),
    "writing": ((1067, 1037, 1584, 1800), (1613, 1601, 2342, 2533)),
    "alpaca": ((19.31, None, None, None), (58.45, None, None, None)),
    "sharegpt-turn": ((161.31, None, None, None), (337.99, None, None, None)),
}
"""Kind → mean, p50, p95, p99 of prompt and output, where published."""


@pytest.mark.parametrize("kind", PUBLISHED)
def test_sampled_lengths_have_the_published_statistics(kind: str) -> None:
    """Over 40,000 requests the mean is within 7 % and p50, p95, p99 within 6 % (or one token)."""
    made = synthetic.make(kind, 40_000, seed=1)
    drawn = ([r.num_prompt_tokens for r in made], [r.num_output_tokens for r in made])
    for lengths, (mean, *quantiles) in zip(drawn, PUBLISHED[kind], strict=True):
        assert np.mean(lengths) == pytest.approx(mean, rel=0.07)
        for probability, tokens in zip((0.5, 0.95, 0.99), quantiles, strict=True):
            if tokens is not None:
                found = np.quantile(lengths, probability)
                assert found == pytest.approx(tokens, rel=0.06, abs=1)


@pytest.mark.parametrize("kind", synthetic.KINDS)
def test_prompt_length_does_not_predict_output_length(kind: str) -> None:
    """The two are drawn independently: the ranks' correlation is within five standard errors."""
    made = synthetic.make(kind, 10_000, seed=2)
    ranks = [
        np.argsort(np.argsort(lengths))
        for lengths in (
            [r.num_prompt_tokens for r in made],
            [r.num_output_tokens for r in made],
        )
    ]
    assert abs(np.corrcoef(*ranks)[0, 1]) < 5 / math.sqrt(10_000)


def test_ranges_that_are_published_hold() -> None:
    """BookCorpus prompts of 4k to 100k with at most 2,048 out; documents of 10k to 30k."""
    book = synthetic.make("bookcorpus", 5_000, 0)
    assert 4_000 <= min(r.num_prompt_tokens for r in book) < 4_100
    assert 95_000 < max(r.num_prompt_tokens for r in book) <= 100_000
    assert max(r.num_output_tokens for r in book) <= 2_048
    documents = [r.num_prompt_tokens for r in synthetic.make("longdoc", 5_000, 0)]
    assert 10_000 <= min(documents) < max(documents) <= 30_000


def test_the_mean_of_a_shape_is_the_mean_of_its_sample() -> None:
    """The closed form agrees with a million draws."""
    shape = LengthDistribution(((0.0, 10), (0.5, 100), (0.8, 100), (1.0, 5_000)))
    drawn = shape.sample(np.random.default_rng(3), 1_000_000)
    assert drawn.mean() == pytest.approx(shape.mean_tokens, rel=0.005)
    assert np.quantile(drawn, [0.65, 0.25]) == pytest.approx([100, math.sqrt(10 * 100)], rel=0.05)


def test_a_lognormal_shape_has_its_mean_and_spread() -> None:
    """The mean is exact; one deviation above the median is a factor e to the sigma."""
    shape = lognormal(200.0, 0.8)
    assert shape.mean_tokens == pytest.approx(200.0)
    tokens = dict(shape.knots)
    assert tokens[0.9] / tokens[0.5] == pytest.approx(math.exp(0.8 * 1.2816), rel=1e-3)


@pytest.mark.parametrize(
    "knots",
    [((0.0, 5.0), (0.9, 9.0)), ((0.0, 5.0), (1.0, 4.0)), ((0.0, 0.0), (1.0, 4.0))],
)
def test_impossible_quantiles_are_refused(knots: tuple[tuple[float, float], ...]) -> None:
    """Knots that do not reach 1, fall, or start below one token are a programming error."""
    with pytest.raises(ValueError, match=r"knots|one token"):
        LengthDistribution(knots)


@pytest.mark.parametrize("name", named.names())
def test_the_same_seed_makes_the_same_workload(name: str) -> None:
    """Equal arguments, equal requests; another seed, others; ids are unique, times in order."""
    made = named.make(name, 60, 2.0, 5)
    assert made == named.make(name, 60, 2.0, 5)
    assert made != named.make(name, 60, 2.0, 6)
    assert len({r.id for r in made}) == 60
    times_s = [r.arrived_at_s for r in made]
    assert times_s == sorted(times_s)


@pytest.mark.parametrize("name", named.names())
def test_every_class_of_a_named_workload_has_a_promise(name: str) -> None:
    """The shipped SLO file knows each request's class."""
    book = named.book(name)
    for request in named.make(name, 20, 1.0, 0):
        assert slo_of(request, book).is_promise


def test_a_sweep_over_rates_asks_the_same_requests() -> None:
    """Twice the rate is the same requests in half the time."""
    slow, fast = (named.make("mixed", 50, rate, 3) for rate in (1.0, 2.0))
    assert [r.num_prompt_tokens for r in slow] == [r.num_prompt_tokens for r in fast]
    assert [r.arrived_at_s / 2 for r in slow] == pytest.approx(
        [r.arrived_at_s for r in fast], abs=1e-6
    )


def test_mixes_have_their_shares() -> None:
    """60, 25 and 15 of 100 chat, code, summary; 35 % of AccelGen's mix are book chapters."""
    classes = [r.slo_class for r in named.make("mixed", 100, 1.0, 0)]
    assert [classes.count(c) for c in ("chat", "code", "summary")] == [60, 25, 15]
    kinds = [r.id.split("/")[0] for r in named.make("accelgen", 200, 1.0, 0)]
    assert kinds.count("bookcorpus") == 70


def test_accelgen_for_13b_fits_its_cache() -> None:
    """No request needs more than the 15k tokens that 12 GB hold."""
    made = named.make("accelgen-13b", 4_000, 1.0, 0)
    assert max(r.num_prompt_tokens + r.num_output_tokens for r in made) <= 15_000


@pytest.mark.parametrize(("name", "count"), [("nope", 5), ("mixed", 0)])
def test_a_workload_that_cannot_be_made_is_refused(name: str, count: int) -> None:
    """Unknown names list the known ones; no request is no workload."""
    with pytest.raises(UserError, match=r"known are sharegpt|at least one request"):
        named.make(name, count, 1.0, 0)


def test_named_workloads_have_no_recorded_times() -> None:
    """``trace`` arrivals need a trace."""
    with pytest.raises(UserError, match="no recorded times"):
        named.make("mixed", 5, 1.0, 0, Arrivals("trace"))


def test_the_shipped_promises_are_read() -> None:
    """The default class of the named workloads is chat."""
    assert named.book("mixed").resolve(None) == Slo(1.0, 0.1, class_name="chat")


def test_an_unknown_kind_is_refused() -> None:
    """The sentence lists the kinds."""
    with pytest.raises(UserError, match="known are sharegpt"):
        synthetic.make("nope", 1, 0)
