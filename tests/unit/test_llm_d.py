"""The configuration for llm-d's router, by what is published of its schema.

By llm-d-router's sources of August 2026: ``apix/config/v1alpha1`` and the parameters of the two
plugins (``core-metrics-extractor``, ``endpoint-attribute-scorer``). It decodes strictly: a key that
it does not know ends the start, so here every key must be one of theirs. Nothing ran it.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

import headway
from headway.metrics.catalogue import METRICS

FILE = Path(headway.__file__).parent / "ops" / "llm-d-scorer.yml"

FIELDS = {
    "": {"apiVersion", "kind", "featureGates", "plugins", "schedulingProfiles", "dataLayer",
         "flowControl", "requestHandler", "saturationDetector", "parser"},
    "plugins": {"name", "type", "parameters"},
    "schedulingProfiles": {"name", "plugins"},
    "schedulingProfiles.plugins": {"pluginRef", "weight"},
    "core-metrics-extractor": {"engineLabelKey", "defaultEngine", "engineConfigs"},
    "core-metrics-extractor.engineConfigs": {
        "name", "queuedRequestsSpec", "runningRequestsSpec", "kvUsageSpec", "loraSpec",
        "cacheInfoSpec", "cacheBlockSizeLabelName", "cacheNumBlocksLabelName",
        "cacheBlockSizeSpec", "cacheNumBlocksSpec", "customMetrics"},
    "core-metrics-extractor.engineConfigs.customMetrics": {"attributeKey", "metricSpec"},
    "endpoint-attribute-scorer": {"attributeKey", "producer", "algorithm"},
    "endpoint-attribute-scorer.algorithm": {"type", "normalization"},
    "endpoint-attribute-scorer.algorithm.normalization": {"fixedRange", "adaptiveRange"},
    "endpoint-attribute-scorer.algorithm.normalization.fixedRange": {"min", "max"},
}  # fmt: skip
"""The keys of each object, by where it is: in the document, or in a plugin's parameters."""

TYPES = {"core-metrics-extractor", "endpoint-attribute-scorer", "prefix-cache-scorer",
         "max-score-picker", "single-profile-handler"}  # fmt: skip

VLLMS = {
    "queuedRequestsSpec": "vllm:num_requests_waiting",
    "runningRequestsSpec": "vllm:num_requests_running",
    "kvUsageSpec": "vllm:kv_cache_usage_perc",
    "loraSpec": "vllm:lora_requests_info",
    "cacheInfoSpec": "vllm:cache_config_info",
}
"""What the router reads of vLLM by itself; a configuration of that name replaces it whole."""


def known(value: Any, where: str) -> None:
    """Assert that every key below *where* is one of the schema's."""
    if isinstance(value, list):
        for entry in value:
            known(entry, where)
    elif isinstance(value, dict):
        assert set(value) <= FIELDS[where], where
        for key, below in value.items():
            if key != "parameters":
                known(below, f"{where}.{key}".lstrip("."))


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    return loaded


def parameters(document: dict[str, Any], kind: str) -> dict[str, Any]:
    """The parameters of the one plugin of a type."""
    (found,) = [p for p in document["plugins"] if p["type"] == kind]
    given: dict[str, Any] = found["parameters"]
    return given


def test_every_key_is_one_of_the_schemas(document: dict[str, Any]) -> None:
    """In the document and in the parameters of each plugin; the two first lines are as they must
    be."""
    assert (document["apiVersion"], document["kind"]) == (
        "llm-d.ai/v1alpha1",
        "EndpointPickerConfig",
    )
    known(document, "")
    for plugin in document["plugins"]:
        assert plugin["type"] in TYPES
        known(plugin.get("parameters"), plugin["type"])


def test_profiles_refer_to_plugins_there_are(document: dict[str, Any]) -> None:
    """By name, or by type where there is none; names are unique, and the load's scorer is used."""
    names = [p.get("name", p["type"]) for p in document["plugins"]]
    assert len(names) == len(set(names))
    (profile,) = document["schedulingProfiles"]
    rows = {row["pluginRef"]: row.get("weight", 1.0) for row in profile["plugins"]}
    assert set(rows) <= set(names)
    assert rows["headway-pressure-scorer"] > 0
    assert "max-score-picker" in rows


def test_the_scorer_reads_what_the_extractor_publishes(document: dict[str, Any]) -> None:
    """An attribute that nobody publishes scores 0 everywhere, and nothing says so."""
    (engine,) = parameters(document, "core-metrics-extractor")["engineConfigs"]
    custom = {row["attributeKey"]: row["metricSpec"] for row in engine["customMetrics"]}
    scorer = parameters(document, "endpoint-attribute-scorer")
    assert custom[scorer["attributeKey"]] == "headway_pressure"
    assert "/" not in scorer["attributeKey"], "the router takes that for a producer's name"
    assert scorer["algorithm"]["type"] == "linear_lower_is_better"
    (fixed,) = scorer["algorithm"]["normalization"].values()
    assert fixed["min"] < fixed["max"]
    gauges = {m.name for m in METRICS if m.kind == "gauge" and not m.labels}
    assert set(custom.values()) <= gauges, "one sample a server"


def test_vllms_own_metrics_are_still_read(document: dict[str, Any]) -> None:
    """Every one that the router reads without a configuration."""
    (engine,) = parameters(document, "core-metrics-extractor")["engineConfigs"]
    assert engine["name"] == "vllm"
    assert {name: engine[name] for name in VLLMS} == VLLMS
    specs = [*VLLMS.values(), *(row["metricSpec"] for row in engine["customMetrics"])]
    assert all(re.fullmatch(r"[a-zA-Z_:][a-zA-Z0-9_:]*", spec) for spec in specs)
