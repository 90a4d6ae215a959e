"""Profiles from steps, tables and data sheets: what is put in comes out again."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headway.cli.main import main
from headway.errors import UserError
from headway.latency import calibration, fit, model_shapes, profile
from headway.latency.model import StepShape
from headway.latency.profile import StepCost
from headway.latency.truth import Hiccups, Truth
from headway.policy.events import Arrived, Event, Finished, StepDone, StepScheduled
from headway.policy.log import event_line, question_line
from headway.policy.view import EngineView
from headway.slo import Slo
from headway.study.history import History

GPU = profile.load("llama-3.1-8b@h100")
STEPS = [step.shape for step in calibration.draw_steps(900, GPU.kv_capacity_tokens, seed=7)]


def off(cost: StepCost, true: StepCost = GPU.cost) -> np.ndarray:
    """Return the relative errors of *cost* on steps that no test fits to."""
    fresh = [s.shape for s in calibration.draw_steps(600, GPU.kv_capacity_tokens, seed=8)]
    return np.array([abs(cost.step_s(s) / true.step_s(s) - 1) for s in fresh])


def test_an_exact_cost_is_found_again() -> None:
    """From noiseless steps the fit finds the knee and every coefficient."""
    true = dataclasses.replace(GPU.cost, knee_tokens=384)
    found = fit.fit(STEPS, [true.step_s(s) for s in STEPS])
    assert found.knee_tokens == 384
    assert dataclasses.astuple(found) == pytest.approx(dataclasses.astuple(true), rel=2e-3)


def test_noise_and_hiccups_do_not_bend_the_fit() -> None:
    """With 10 % noise and one step in 50 hanging for a second, the fit is off by under 3 %."""
    truth = Truth(GPU, noise=0.1, hiccups=Hiccups(0.02, 1.0), seed=1)
    errors = off(fit.fit(STEPS, [truth(s) for s in STEPS]))
    assert np.median(errors) < 0.02
    assert errors.mean() < 0.03


def test_coefficients_are_never_negative() -> None:
    """Steps that get shorter as they grow are met with zeros, not with negative costs."""
    found = fit.fit(STEPS, [0.1 / (1 + s.num_prefill_tokens + s.num_decodes) for s in STEPS])
    assert all(value >= 0 for value in dataclasses.astuple(found))


def test_every_fifth_step_is_held_out() -> None:
    """What only held-out steps show is not learned, and it is they that are reported on."""
    prompts = [s for s in STEPS if not s.num_decodes]
    decodes = [s for s in STEPS if not s.num_prefills]
    mixed = [
        decodes[i // 5] if i % calibration.HOLD_OUT_EVERY == 0 else prompts[i] for i in range(250)
    ]
    cost, error = calibration.fit_steps(mixed, [GPU.step_s(s) for s in mixed])
    assert cost.per_context_s == cost.per_decode_s == 0.0
    assert error == fit.error_of(cost, decodes[:50], [GPU.step_s(s) for s in decodes[:50]])
    assert error.median > 0.05


def test_no_step_is_free() -> None:
    """A stream alone, slower as it grows, fits with nothing but a cost a context token."""
    alone = [StepShape(0, 0, 1, context, 0) for context in range(100, 160)]
    cost, _ = calibration.fit_steps(alone, [1e-4 * shape.sum_context_tokens for shape in alone])
    assert cost.fixed_s > 0.001
    assert cost.step_s(alone[0]) == pytest.approx(0.01, rel=0.15)


def test_drawn_steps_fit_the_machine() -> None:
    """Steps to fit on are of three kinds, within their bounds, and the same for the same seed."""
    drawn = calibration.draw_steps(600, 30_000, seed=3)
    assert (
        drawn
        == calibration.draw_steps(600, 30_000, seed=3)
        != calibration.draw_steps(600, 30_000, 4)
    )
    kinds = {(s.num_prefills > 0, s.num_decodes > 0) for s in drawn}
    assert kinds == {(False, True), (True, False), (True, True)}
    for step in drawn:
        shape = step.shape
        assert shape.num_prefill_tokens <= calibration.MOST_STEP_TOKENS + 8
        # The least context is 32 tokens, whatever the cache.
        assert shape.sum_context_tokens <= max(31_000, 33 * shape.num_decodes)


class Server:
    """Writes what a server would record: two requests at a time, each step by the truth."""

    def __init__(self, truth: Truth) -> None:
        self.truth = truth
        self.lines: list[str] = []
        self.ran: list[tuple[StepShape, float]] = []
        self.now_s = 100.0

    def tell(self, event: Event) -> None:
        self.lines.append(event_line(event))

    def step(self, shape: StepShape, tokens: dict[str, int], new: dict[str, int], **more: Any):  # type: ignore[no-untyped-def]
        self.tell(StepScheduled(self.now_s, tokens, **more))
        duration_s = self.truth(shape)
        self.now_s += duration_s
        self.ran.append((shape, duration_s))
        self.tell(StepDone(self.now_s, new))

    def serve(self, name: str, prompt: int, output: int, chunk: int, beside: int = 0) -> None:
        """Serve one request alone: its prompt in chunks, then its decodes; then a pause."""
        self.tell(Arrived(self.now_s, name, self.now_s, prompt, 500, Slo()))
        self.lines.append(question_line(EngineView(64, 64, 32, 8, 512, 0), self.now_s))
        for at in range(0, prompt, chunk):
            size = min(chunk, prompt - at)
            shape = StepShape().with_chunk(size, at)
            done = {name: 1} if at + size == prompt else {}
            self.step(shape, {name: size}, done, admitted={name: 0} if at == 0 else {})
        for i in range(output - 1):
            self.step(StepShape(0, 0, 1, prompt + 1 + i), {name: 1}, {name: 1})
        self.tell(Finished(self.now_s, name, "stopped"))
        self.now_s += 3.0


@pytest.fixture
def server() -> Server:
    server = Server(Truth(GPU, scale=20.0))
    rng = np.random.default_rng(0)
    for i in range(12):
        prompt, output = int(rng.integers(20, 900)), int(rng.integers(3, 30))
        server.serve(f"r{i}", prompt, output, int(rng.integers(64, 512)))
    return server


def test_a_recording_gives_its_steps(server: Server) -> None:
    """Shapes and durations come out of a recording as they went in; idle time is no step's."""
    history = History.of(("rec", json.loads(line)) for line in server.lines)
    listener = history.steps.listener
    assert listener.shapes == [shape for shape, _ in server.ran]
    assert listener.seconds == pytest.approx([duration_s for _, duration_s in server.ran])
    assert history.kv_tokens == 64 * 32


def run(*argv: str) -> int:
    with pytest.raises(SystemExit) as stop:
        main(["calibrate", *argv])
    assert isinstance(stop.value.code, int)
    return stop.value.code


def test_from_steps(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The command turns a recording into a profile that predicts the server's steps."""
    recording, out, summary = tmp_path / "rec.jsonl", tmp_path / "my.json", tmp_path / "s.json"
    # The server was killed while it wrote its last line.
    recording.write_text("\n".join([*server.lines, '{"event": "StepD']), encoding="utf-8")
    options = ("--from-steps", str(recording), "--gpu", "cpu", "--out", str(out))
    assert run(*options, "--json", str(summary), "--note", "A test.") == 0
    found = profile.load(out)
    assert found.name == "as-recorded@cpu"
    assert found.kv_capacity_tokens == 64 * 32
    assert (found.max_num_batched_tokens, found.max_num_seqs) == (512, 8)
    assert found.assumptions[-1] == "A test."
    for shape, duration_s in server.ran:
        assert found.step_s(shape) == pytest.approx(duration_s, rel=0.02)
    assert json.loads(summary.read_text())["error"]["num_steps"] > 20
    assert "held-out steps" in capsys.readouterr().out


OPT_CONFIG = {
    "model_type": "opt", "num_hidden_layers": 40, "hidden_size": 5120,
    "num_attention_heads": 40, "ffn_dim": 20_480, "vocab_size": 50_272,
}  # fmt: skip


def test_from_roofline_makes_the_shipped_profile(tmp_path: Path) -> None:
    """The command in the source of opt-13b@a100, with its notes, makes the same profile."""
    config, out = tmp_path / "config.json", tmp_path / "my.json"
    config.write_text(json.dumps(OPT_CONFIG), encoding="utf-8")
    shipped = profile.load("opt-13b@a100")
    command = shipped.source.partition("headway calibrate ")[2].replace("config.json", str(config))
    notes = [part for text in shipped.assumptions[-2:] for part in ("--note", text)]
    assert run(*command.split(), *notes, "--out", str(out)) == 0
    assert profile.load(out) == shipped


def mistakes(tmp_path: Path) -> Iterator[tuple[list[str], str]]:
    """Yield arguments and what their sentence must say."""
    notes, moe, few = tmp_path / "notes.txt", tmp_path / "moe.json", tmp_path / "few.jsonl"
    middle = tmp_path / "middle.jsonl"
    good = event_line(StepDone(1.0, {}))
    notes.write_text("hello\nworld\n", encoding="utf-8")
    few.write_text(good + "\n", encoding="utf-8")
    middle.write_text(f"{good}\n[3]\n{good}\n", encoding="utf-8")
    moe.write_text(json.dumps({**OPT_CONFIG, "num_experts": 8}), encoding="utf-8")
    out = ["--out", str(tmp_path / "out.json")]
    rates = ["--flops-per-s", "1e14", "--bytes-per-s", "1e12", "--memory-bytes", "80000000000"]
    yield out, "Give one of --from-aiconfigurator"
    yield ["--from-steps", "x", "--from-roofline", "y", *out], "and only one"
    yield ["--from-steps", str(few), "--out", "no/such/out.json"], "does not exist"
    yield ["--from-steps", str(few), "--out", str(tmp_path / "out.txt")], "must end in .json"
    yield ["--from-steps", str(tmp_path / "none"), *out], "No such file"
    yield ["--from-steps", str(notes), *out], "line 1: not valid JSON"
    yield ["--from-steps", str(moe), *out], "expected a line of a recording"
    yield ["--from-steps", str(middle), *out], "line 2: expected a JSON object"
    yield ["--from-steps", str(few), *out], "0 steps are too few"
    yield ["--from-aiconfigurator", "m", *out], "needs --gpu"
    yield ["--from-roofline", str(moe), *out], "needs --gpu"
    yield ["--from-roofline", str(moe), "--gpu", "x", *out], "needs --flops-per-s"
    yield (
        ["--from-roofline", str(moe), "--gpu", "x", *rates, "--flops-per-s", "nan", *out],
        "not nan",
    )
    yield ["--from-roofline", str(notes), "--gpu", "x", *rates, *out], "config.json"
    yield ["--from-roofline", str(moe), "--gpu", "x", *rates, *out], "only dense transformers"


def test_mistakes_get_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each mistake ends with code 2 and one sentence, and writes no profile."""
    for argv, says in mistakes(tmp_path):
        assert run(*argv) == 2, says
        sentence = capsys.readouterr().err.strip()
        assert says in sentence
        assert "\n" not in sentence
    assert not (tmp_path / "out.json").exists()


def test_a_model_too_large_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Weights that leave no room for KV are answered with the remedy."""
    config = tmp_path / "config.json"
    config.write_text(json.dumps(OPT_CONFIG), encoding="utf-8")
    rates = ("--flops-per-s", "1e14", "--bytes-per-s", "1e12", "--memory-bytes", "24000000000")
    options = ("--from-roofline", str(config), "--gpu", "l4", "--model", "opt-13b", *rates)
    assert run(*options, "--out", str(tmp_path / "out.json")) == 2
    assert "opt-13b does not fit on 1 x l4; raise --tp." in capsys.readouterr().err
    assert run(*options, "--tp", "2", "--out", str(tmp_path / "out.json")) == 0
    assert profile.load(tmp_path / "out.json").name == "opt-13b@l4x2"


def test_without_the_estimator_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing aiconfigurator-core is answered with what to install."""

    def missing(name: str) -> Any:
        raise ImportError(name=name)

    monkeypatch.setattr(calibration.importlib, "import_module", missing)
    with pytest.raises(UserError, match=r"aiconfigurator_core; .* 'headway\[profiles\]'"):
        calibration.aiconfigurator("meta-llama/Meta-Llama-3.1-8B", "h100_sxm", 1)


needs_tables = pytest.mark.skipif(
    importlib.util.find_spec("aiconfigurator_core") is None,
    reason="the extra profiles (aiconfigurator-core) is not installed",
)


@needs_tables
@pytest.mark.parametrize("name", ["llama-3.1-8b@h100", "llama-3.1-8b@a100", "qwen3-32b@h100x2"])
def test_the_shipped_profiles_can_be_made_again(name: str, tmp_path: Path) -> None:
    """The command in a profile's source makes the same profile, to the last digit."""
    shipped = profile.load(name)
    command = shipped.source.partition("headway calibrate ")[2].split()
    assert run(*command, "--out", str(tmp_path / "again.json")) == 0
    assert profile.load(tmp_path / "again.json") == shipped


@needs_tables
@pytest.mark.parametrize(
    ("model", "gpu", "num_gpus", "says"),
    [
        ("meta-llama/Meta-Llama-3.1-8B", "h9000", 1, "--gpu 'h9000' is not known; .*h100_sxm"),
        ("mine", "h100_sxm", 1, "The model 'mine' is not known"),
        ("meta-llama/Meta-Llama-3.1-8B", "h100_sxm", 7, "has no step times"),
    ],
)
def test_what_the_tables_lack(model: str, gpu: str, num_gpus: int, says: str) -> None:
    """A GPU, model or parallelism without tables is named, with what there is."""
    with pytest.raises(UserError, match=says):
        calibration.aiconfigurator(model, gpu, num_gpus)


def test_vllm_defaults_by_memory() -> None:
    """The class of a GPU follows from its memory, and the A100 is the exception."""
    assert model_shapes.batch_defaults(80 * 2**30, "h100_sxm") == (8192, 1024)
    assert model_shapes.batch_defaults(80 * 2**30, "A100_sxm") == (2048, 256)
    assert model_shapes.batch_defaults(24 * 2**30, "l4") == (2048, 256)
    assert model_shapes.batch_defaults(180 * 2**30, "b200_sxm") == (16_384, 1024)
