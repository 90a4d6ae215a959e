"""experiments/gpu_steps without a GPU: a tiny decoder's steps, and how steps are judged."""

from __future__ import annotations

import contextlib
import importlib
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

from headway.latency import profile as profiles
from headway.latency.model import StepShape
from headway.latency.truth import Drift, Truth

FOLDER = Path(__file__).parents[2] / "experiments" / "gpu_steps"
torch = pytest.importorskip("torch")


@pytest.fixture(scope="module")
def scripts() -> Any:
    """Return the folder's modules, found as a user finds them: beside each other."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(FOLDER)
        names = ("traffic", "decoder", "measure", "judge")
        yield SimpleNamespace(**{name: importlib.import_module(name) for name in names})


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    """Steps this small take longer on two threads than on one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def tiny_decoder(scripts: Any, num_slots: int) -> Any:
    torch.manual_seed(0)
    made = scripts.decoder.Decoder(scripts.decoder.TINY, torch.device("cpu"), torch.float32, 256)
    made.allocate(num_slots)
    return made


def test_each_request_is_computed_once_and_in_order(scripts: Any) -> None:
    """A slot's parts follow on each other; prompts keep to the step's tokens; each kind occurs."""
    traffic, at, kinds = scripts.traffic.Traffic(8, 1024, seed=3), {}, set()
    for _ in range(600):
        parts = traffic.next_step(1)
        assert len({part.slot for part in parts}) == len(parts) > 0
        for part in parts:
            assert part.start in (0, at.get(part.slot, 0))
            assert not (part.is_decode and part.start == 0)
            at[part.slot] = part.start + part.num_tokens
        shape = StepShape(**scripts.traffic.shape_of(parts))
        assert shape.num_tokens <= max(traffic.step_tokens, shape.num_decodes + 1)
        kinds.add((shape.num_prefills > 0, shape.num_decodes > 0))
    assert max(at.values()) <= 1024
    assert kinds == {(True, False), (True, True), (False, True)}


def test_batched_chunked_and_padded_gives_what_one_whole_prompt_gives(scripts: Any) -> None:
    """The next token after chunks, decodes and padding is that of the same tokens at once."""
    part, made = scripts.traffic.Part, tiny_decoder(scripts, 3)
    with torch.inference_mode():
        whole = made.forward(made.batch_of([part(1, 0, 40, False)]), slow=False)
        for cache in made.cache:
            for tensor in cache:
                tensor[1].zero_()
        made.forward(made.batch_of([part(0, 0, 9, False), part(1, 0, 30, False)]), slow=False)
        made.forward(made.batch_of([part(0, 9, 1, True), part(1, 30, 9, False)]), slow=False)
        decodes = made.batch_of([part(0, 10, 1, True), part(1, 39, 1, True)], 4, 64)
        assert decodes.tokens.shape == (4,)
        assert made.forward(decodes, slow=False)[1] == whole[0]


def test_a_slow_machine_runs_half_of_its_layers_twice(scripts: Any) -> None:
    """Two layers attend twice, and three times where the clock seems to be lower."""
    made, calls = tiny_decoder(scripts, 1), []
    made.attention = lambda *given: (calls.append(given), scripts.decoder.padded(*given))[1]
    batch = made.batch_of([scripts.traffic.Part(0, 0, 5, False)])
    with torch.inference_mode():
        for slow in (False, True):
            made.forward(batch, slow)
    assert len(calls) == 2 + 3


def slow_paged(q: Any, keys: Any, values: Any, starts: Any, *_: Any, **given: Any) -> Any:
    """Attend as torch's varlen_attn documents it, a query at a time: the twin of its kernel."""
    assert given["window_size"] == (-1, 0)
    out = torch.empty_like(q)
    for i, (begin, end) in enumerate(zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True)):
        pages, used = given["block_table"][i].long(), int(given["seqused_k"][i])
        k, v = (cache[pages].flatten(0, 1)[:used] for cache in (keys, values))
        for at in range(begin, end):
            seen = used - (end - 1 - at)
            shared = q.shape[1] // k.shape[1]
            for head in range(q.shape[1]):
                weights = (k[:seen, head // shared] @ q[at, head] / q.shape[2] ** 0.5).softmax(0)
                out[at, head] = weights @ v[:seen, head // shared]
    return out


def test_paged_attention_is_used_where_it_is_right(
    scripts: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the documented kernel it is; by one that reads the wrong pages, or none, KV is padded."""
    kernel = ModuleType("torch.nn.attention.varlen")
    monkeypatch.setitem(sys.modules, kernel.__name__, kernel)
    wrong = lambda *given, **named: slow_paged(*given, **named).flip(0)  # noqa: E731
    for attend, expected in ((slow_paged, "paged"), (wrong, "padded"), (None, "padded")):
        if attend is None:
            del kernel.varlen_attn  # type: ignore[attr-defined]
        else:
            kernel.varlen_attn = attend  # type: ignore[attr-defined]
        made = tiny_decoder(scripts, 2)
        with torch.inference_mode():
            scripts.measure.attend_paged_if_right(made)
        assert made.attention.__name__ == expected
    err = capsys.readouterr().err
    assert "is off by" in err
    assert "No paged attention here" in err


class OnePass:
    """Stands for a CUDA graph: what was computed while it was captured is computed again."""

    captured: OnePass | None = None
    num_replays = 0

    def replay(self) -> None:
        OnePass.num_replays += 1
        self.out.copy_(self.forward(*self.given))


def test_captured_steps_give_what_steps_without_graphs_give(
    scripts: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps of decodes alone run in a graph of at least their size, slow ones in a slow one."""

    @contextlib.contextmanager
    def capture(graph: OnePass, pool: Any) -> Iterator[None]:
        OnePass.captured = graph
        yield
        OnePass.captured = None

    for name, stand_in in (
        ("CUDAGraph", OnePass),
        ("graph", capture),
        ("graph_pool_handle", lambda: None),
        ("Stream", lambda: SimpleNamespace(wait_stream=lambda stream: None)),
        ("stream", lambda stream: contextlib.nullcontext()),
        ("current_stream", lambda: SimpleNamespace(wait_stream=lambda stream: None)),
    ):
        monkeypatch.setattr(torch.cuda, name, stand_in)
    monkeypatch.setattr(scripts.measure, "LEAST_LENGTH", 64)
    made = tiny_decoder(scripts, 6)
    forward = made.forward

    def noted(batch: Any, slow: bool) -> Any:
        out = forward(batch, slow)
        if (graph := OnePass.captured) is not None:
            graph.forward, graph.given, graph.out = forward, (batch, slow), out
        return out

    made.forward = noted
    with torch.inference_mode():
        graphs, eager = (scripts.measure.Machine(made, with_graphs=each) for each in (True, False))
        assert graphs.num_graphs == 2 * len((1, 2, 4, 6)) * len((64, 128, 256))
        traffic, num_alone = scripts.traffic.Traffic(6, 256, seed=5), 0
        for number in range(90):
            parts, slow = traffic.next_step(1), number >= 45
            assert eager.run(parts, slow) == graphs.run(parts, slow)
            num_alone += all(part.is_decode for part in parts)
    assert OnePass.num_replays == num_alone > 10


def test_a_tiny_run_is_written_and_judged(scripts: Any, tmp_path: Path) -> None:
    """Every phase has its rows, judge.py reads them, and the profile is one that loads."""
    steps, fitted = tmp_path / "steps.jsonl", tmp_path / "cpu.json"
    sizes = ["--tiny-on-cpu", "--steps", "34", "--max-context", "256"]
    scripts.measure.main([*sizes, "--out", str(steps)])
    head, *rows = [json.loads(line) for line in steps.read_text().splitlines()]
    assert head["device"] == "cpu"
    assert [row["phase"] for row in rows[::34]] == [name for name, *_ in scripts.measure.PHASES]
    assert all(row["seconds"] > 0 for row in rows)
    result = CliRunner().invoke(scripts.judge.main, [str(steps), "--profile", str(fitted)])
    assert result.exit_code == 0, result.output
    assert "| slow | 34 |" in result.output
    assert profiles.load(fitted).kv_capacity_tokens == head["kv_tokens"]


def test_a_jump_is_noticed_and_the_machine_is_found_again(scripts: Any) -> None:
    """On a shipped profile's steps, with noise and a jump, the model promises what it should."""
    traffic = scripts.traffic.Traffic(64, 4096, seed=1)
    truth = Truth(profiles.load("llama-3.1-8b@h100"), noise=0.05, drift=Drift("jump", 0.5, 700))
    steps = []
    for number in range(1400):
        shape = StepShape(**scripts.traffic.shape_of(traffic.next_step(1)))
        steps.append(scripts.judge.Step(shape, truth(shape), "slow" if number >= 700 else "fast"))
    head = {
        "schema": 1, "device": "a GPU", "memory_bytes": 80 << 30, "torch": "none",
        "attention": "no", "num_graphs": 0, "config": asdict(scripts.decoder.Sizes()),
        "value_bytes": 2, "kv_bytes_per_token": 131072, "kv_tokens": 262144, "num_slots": 64,
    }  # fmt: skip
    before, after = scripts.judge.judge(head, steps)
    for row in (before, after):
        assert row.median_error < 0.06
        assert row.longer < 0.03
        assert row.recovered_after < 200
    assert after.longer_before > before.longer
    found, error = scripts.judge.calibrated(head, steps)
    assert error.num_steps == 350
    assert error.median < 0.05
    assert found.max_num_batched_tokens == 8192


def test_other_files_and_impossible_options_are_refused_in_a_sentence(
    scripts: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 2, and what is wrong."""
    (tmp_path / "other.jsonl").write_text('{"start": {}}\n')
    for name, why in (("other.jsonl", "is not a file that measure.py wrote"), ("none", "No such")):
        result = CliRunner().invoke(scripts.judge.main, [str(tmp_path / name)])
        assert (result.exit_code, why in result.output) == (2, True)
    with pytest.raises(SystemExit) as stop:
        scripts.measure.main(["--tiny-on-cpu", "--max-context", "300"])
    assert stop.value.code == 2
    assert "multiple of 256" in capsys.readouterr().err
