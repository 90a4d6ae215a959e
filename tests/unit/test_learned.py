"""Length models: trained from a log, kept as plain numbers, asked without scikit-learn."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from headway.cli.train_predictor import train_predictor
from headway.errors import UserError
from headway.policy.events import Arrived, Finished, StepDone
from headway.policy.learned import LearnedLengths, LengthModel, features_of, parse
from headway.policy.lengths import fit
from headway.policy.lengths.served import Served, served
from headway.policy.log import event_line
from headway.request import Request
from headway.slo import Slo


def rows_of(count: int, seed: int = 0) -> list[Served]:
    """Return served requests: drafts use half of what they may, chats what they like."""
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(count):
        name = "draft" if rng.random() < 0.5 else "chat"
        bound = int(rng.choice([200, 800, 3200]))
        scale = 0.5 * bound if name == "draft" else 120.0
        length = int(np.clip(scale * np.exp(0.3 * rng.standard_normal()), 1, bound))
        request = Request(
            f"r{i}", Slo(class_name=name), float(i), int(rng.integers(1, 4000)), bound
        )
        request.num_output_tokens = length
        rows.append(Served(request, float(i), i + 0.01 * length, is_whole=True))
    return rows


@pytest.fixture(scope="module")
def rows() -> list[Served]:
    return rows_of(800)


@pytest.fixture(scope="module")
def model(rows: list[Served]) -> LengthModel:
    pytest.importorskip("sklearn", reason="training needs the extra 'learned'")
    return fit.fit(rows[:500])


def ask(name: str, bound: int, prompt: int = 100, output: int = 0) -> Request:
    request = Request("r", Slo(class_name=name), 0.0, prompt, bound)
    request.num_output_tokens = output
    return request


def test_it_beats_the_histogram_where_the_bound_tells(rows: list[Served]) -> None:
    """On held-out requests the loss is a third lower, and the coverage right within 8 points."""
    pytest.importorskip("sklearn")
    learned, histogram = fit.compare(rows)
    assert learned.mean_tokens < 0.67 * histogram.mean_tokens
    assert learned.coverage == pytest.approx(fit.LEVELS, abs=0.08)


def test_plain_numbers_say_what_scikit_learn_says(rows: list[Served]) -> None:
    """The exported trees give scikit-learn's own predictions."""
    ensemble = pytest.importorskip("sklearn.ensemble")
    kept: list[Any] = []

    class Kept(ensemble.GradientBoostingRegressor):  # type: ignore[misc]
        def fit(self, *args: Any, **kwargs: Any) -> Any:
            kept.append(self)
            return super().fit(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ensemble, "GradientBoostingRegressor", Kept)
        model = fit.fit(rows[:400], levels=(0.5, 0.9))
    for row in rows[400:450]:
        asked = row.request
        features = features_of(
            model.classes,
            asked.slo.class_name,
            asked.num_prompt_tokens,
            asked.max_output_tokens,
        )
        expected = [one.predict(features[None])[0] for one in kept] + model.trees.start
        assert model.trees.predict(features) == pytest.approx(expected, abs=1e-9)


def test_quantiles_ascend_and_keep_to_the_bound(model: LengthModel) -> None:
    """Whatever is asked: monotone in p, ahead of what was generated, at most the bound."""
    lengths = LearnedLengths(model)
    rng = np.random.default_rng(5)
    for _ in range(60):
        bound = int(rng.integers(2, 5000))
        request = ask(
            str(rng.choice(["draft", "chat", "new"])),
            bound,
            int(rng.integers(1, 100_000)),
            int(rng.integers(0, bound)),
        )
        found = [lengths.quantile(request, p) for p in np.linspace(0, 1, 21)]
        assert found == sorted(found)
        assert request.num_output_tokens < found[0]
        assert found[-1] == bound
        curve = [lengths.survival(request, n) for n in np.linspace(0, bound, 40).astype(int)]
        assert curve == sorted(curve, reverse=True)
        for p, n in zip(np.linspace(0, 1, 21), found, strict=True):
            assert lengths.survival(request, n) <= 1 - p + 1e-5


def test_progress_moves_the_prediction(model: LengthModel) -> None:
    """Given 300 tokens, only longer lengths count; the survival is the ratio of two survivals."""
    lengths = LearnedLengths(model)
    new, running = ask("draft", 800), ask("draft", 800, output=300)
    assert lengths.quantile(running, 0.1) > 300
    assert lengths.quantile(running, 0.5) > lengths.quantile(new, 0.5)
    expected = lengths.survival(new, 500) / lengths.survival(new, 300)
    assert lengths.survival(running, 500) == pytest.approx(expected)
    assert lengths.predict(new) == lengths.quantile(new, 0.5) == pytest.approx(400, rel=0.1)


def test_the_file_is_the_model(model: LengthModel, tmp_path: Path) -> None:
    """Written and loaded, it predicts the same; loading and asking need no scikit-learn."""
    path = tmp_path / "model.json"
    path.write_text(model.to_json(), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "sklearn", None)
        loaded = parse(path.read_text(), str(path))
        assert loaded.to_json() == model.to_json()
        for bound in (100, 800, 5000):
            assert loaded.quantiles("chat", 50, bound) == model.quantiles("chat", 50, bound)
        patch.setitem(sys.modules, "sklearn.ensemble", None)
        with pytest.raises(UserError, match=r"pip install 'headway\[learned\]'"):
            fit.fit(rows_of(10))


def endless(row: dict[str, Any]) -> None:
    row["trees"]["left"][0] = 10**9


def crossed(row: dict[str, Any]) -> None:
    row["levels"] = [0.5] * len(row["levels"])


def short(row: dict[str, Any]) -> None:
    row["trees"]["value"].pop()


def lacking(row: dict[str, Any]) -> None:
    del row["trees"]["roots"]


def not_finite(row: dict[str, Any]) -> None:
    row["trees"]["value"][0] = float("nan")


def texts(row: dict[str, Any]) -> None:
    row["trees"]["feature"] = ["x"]


def deep(row: dict[str, Any]) -> None:
    row["trees"]["depth"] = 10**12


@pytest.mark.parametrize("spoil", [endless, crossed, short, lacking, not_finite, texts, deep])
def test_a_damaged_file_is_told_at_once(
    model: LengthModel, tmp_path: Path, spoil: Callable[[dict[str, Any]], None]
) -> None:
    """A file that could fail while serving is refused when it is loaded."""
    row = json.loads(model.to_json())
    spoil(row)
    path = tmp_path / "model.json"
    path.write_text(json.dumps(row), encoding="utf-8")
    with pytest.raises(UserError, match="is damaged; train it again"):
        parse(path.read_text(), str(path))


@pytest.mark.parametrize("text", ["{", "[]", '{"kind": "other"}', "[" * 100_000])
def test_another_file_is_no_model(tmp_path: Path, text: str) -> None:
    """One sentence, whatever the file holds."""
    path = tmp_path / "model.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=r"not JSON|no length model"):
        parse(path.read_text(), str(path))


# -- the command ------------------------------------------------------------------------------


def write_log(path: Path, count: int, seed: int = 0) -> None:
    """Write a recording: requests of :func:`rows_of`, every tenth of them aborted."""
    events: list[tuple[float, int, Any]] = []
    for i, row in enumerate(rows_of(count, seed)):
        request, end_s = row.request, row.ended_at_s
        name, length = request.request_id, row.num_output_tokens
        arrived = Arrived(
            row.arrived_at_s,
            name,
            row.arrived_at_s,
            request.num_prompt_tokens,
            request.max_output_tokens,
            request.slo,
        )
        reason = "aborted" if i % 10 == 9 else "stopped"
        events.append((row.arrived_at_s, 0, arrived))
        events.append((end_s, 1, StepDone(end_s, {name: length})))
        events.append((end_s, 2, Finished(end_s, name, reason)))
    lines = [event_line(event) for *_, event in sorted(events, key=lambda e: e[:2])]
    path.write_text("\n".join([*lines, '{"view": {}, "now_s": 0}', '{"plan": {}}']))


def run(*args: object) -> Result:
    return CliRunner().invoke(train_predictor, [str(arg) for arg in args])


def test_a_recording_says_who_was_served(tmp_path: Path) -> None:
    """Lengths, ends and who left early come out as they went in."""
    slo = Slo(class_name="chat")
    rows = served(
        [
            Arrived(1.0, "a", 0.5, 10, 100, slo),
            Arrived(1.0, "b", 0.6, 20, 100, slo),
            Arrived(1.0, "c", 0.7, 30, 100, slo),
            StepDone(2.0, {"a": 1, "b": 1, "gone": 1}),
            StepDone(3.0, {"a": 2, "b": 1}),
            Finished(3.0, "b", "aborted"),
            Finished(4.0, "a", "length"),
        ]
    )
    told = [(r.request.request_id, r.num_output_tokens, r.ended_at_s, r.is_whole) for r in rows]
    assert told == [("a", 3, 4.0, True), ("b", 2, 3.0, False)]


def test_train_predictor_end_to_end(tmp_path: Path) -> None:
    """Two logs in, a model out that loads; the scores are in the JSON and in the model."""
    pytest.importorskip("sklearn")
    write_log(tmp_path / "one.jsonl", 200)
    write_log(tmp_path / "two.jsonl", 200, seed=1)
    logs = [tmp_path / "one.jsonl", tmp_path / "two.jsonl"]
    result = run(*logs, "--out", tmp_path / "m.json", "--json", tmp_path / "s.json")
    assert result.exit_code == 0, result.output
    assert "trained on 360 outputs of 400 requests" in result.output
    assert "40 requests were refused, failed or hung up" in result.output
    assert "below the histogram's" in result.output
    scores = json.loads((tmp_path / "s.json").read_text())
    assert (scores["num_requests"], scores["num_cut"]) == (360, 40)
    learned, histogram = scores["learned"], scores["histogram"]
    assert sum(learned["pinball_tokens"]) < sum(histogram["pinball_tokens"])
    model = parse((tmp_path / "m.json").read_text(), "m.json")
    assert model.classes == ("chat", "draft")
    assert model.about["held_out"]["learned"] == learned


def test_the_same_rows_and_seed_give_the_same_model(rows: list[Served]) -> None:
    """Training is deterministic; another seed is another model."""
    pytest.importorskip("sklearn")
    one, same, other = (fit.fit(rows[:250], seed, levels=(0.5,)) for seed in (1, 1, 2))
    assert one.to_json() == same.to_json()
    assert one.trees.value.tolist() != other.trees.value.tolist()


def test_train_predictor_says_what_is_wrong(tmp_path: Path) -> None:
    """Each mistake is one sentence."""
    few, bad = tmp_path / "few.jsonl", tmp_path / "bad.jsonl"
    write_log(few, 50)
    bad.write_text('{"x": 1}\n')
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    out = tmp_path / "m.json"
    for args, sentence in (
        ((few, "--out", out), "hold 45 requests that ran to their end; at least 200"),
        ((bad, "--out", out), "line 1: expected a line of a recording"),
        ((empty, "--out", out), "holds no request that came to an end"),
        ((tmp_path / "no.jsonl", "--out", out), "Cannot read"),
        ((few, "--out", tmp_path / "m.pkl"), "--out must end in .json"),
        ((few, "--out", tmp_path / "no" / "m.json"), "The folder of"),
    ):
        result = run(*args)
        assert isinstance(result.exception, UserError)
        assert sentence in str(result.exception)
    assert not out.exists()
