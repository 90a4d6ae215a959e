"""Presets by name, settings, and what a user is told about a wrong one."""

from __future__ import annotations

from pathlib import Path

import pytest

from headway import registry
from headway.config import Settings
from headway.errors import UserError
from headway.policy.scheduler import Scheduler


@pytest.mark.parametrize("name", registry.names())
@pytest.mark.parametrize("overload", registry.OVERLOADS)
def test_every_preset_builds(name: str, overload: str) -> None:
    """Each named policy is a working scheduler in both modes, with books of its own."""
    one, two = (registry.build(name, overload=overload) for _ in range(2))
    assert isinstance(one, Scheduler)
    assert one.name == name
    assert one.live is not two.live
    assert one.known.lengths is not two.known.lengths
    one.validate()


def test_the_default_is_one_of_them() -> None:
    """A server that names no policy gets the default."""
    assert registry.DEFAULT in registry.names()
    assert registry.build().name == registry.DEFAULT
    assert Settings.parse(None).build().name == registry.DEFAULT


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"policy": "best"}, ["best", "fcfs", "slack"]),
        ({"policy": 5}, ["5"]),
        ({"policy": ["slack"]}, ["slack"]),
        ({"overload": "panic"}, ["panic", "demote", "refuse"]),
        ({"options": {"patience": 3}}, ["patience", "max_wait_s"]),
        ({"policy": "sarathi", "options": {"max_wait_s": 3}}, ["max_wait_s", "chunk_tokens"]),
        ({"options": [1]}, ["options"]),
        ({"polcy": "slack"}, ["polcy", "policy"]),
        ("slack", ["slack"]),
        ({"slo_file": "no-such-file.toml"}, ["no-such-file.toml"]),
    ],
)
def test_a_wrong_setting_is_one_clear_sentence(given: object, words: list[str]) -> None:
    """It names the mistake and what is allowed."""
    with pytest.raises(UserError) as caught:
        Settings.parse(given).book()  # type: ignore[arg-type]
    for word in words:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "options",
    [
        {"max_wait_s": "long"},
        {"max_wait_s": -1},
        {"max_wait_s": 0},
        {"max_wait_s": None},
        {"max_wait_s": float("nan")},
    ],
)
def test_a_wrong_option_value_is_refused_at_the_start(options: dict[str, object]) -> None:
    """A value that cannot work fails when settings are read, not in the middle of a step."""
    with pytest.raises(UserError, match="max_wait_s"):
        Settings.parse({"options": options})


@pytest.mark.parametrize("chunk_tokens", [0, -5, "many", 2.5])
def test_a_wrong_chunk_is_refused_at_the_start(chunk_tokens: object) -> None:
    """A budget must be a positive whole number of tokens."""
    with pytest.raises(UserError, match="chunk_tokens"):
        Settings.parse({"policy": "sarathi", "options": {"chunk_tokens": chunk_tokens}})


def test_settings_reach_the_policy(tmp_path: Path) -> None:
    """Options are the preset's arguments; the SLO file is the server's book."""
    path = tmp_path / "slo.toml"
    path.write_text("[classes.fast]\nttft_s = 0.5\n")
    settings = Settings.parse({"options": {"max_wait_s": 20}, "slo_file": str(path)})
    assert settings.build().known.max_wait_s == 20
    assert settings.book().resolve({"slo_class": "fast"}).ttft_s == 0.5
