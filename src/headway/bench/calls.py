"""From workload to HTTP bodies: what is asked, what is promised, what is warmed up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from headway.bench.client import Call
from headway.errors import UserError
from headway.slo import Slo, SloBook
from headway.workloads import named
from headway.workloads.arrivals import Arrivals, with_arrivals
from headway.workloads.readers import read
from headway.workloads.reading import Reading
from headway.workloads.realtext import demo_workload, text_for
from headway.workloads.schema import WorkloadRequest, fields_of, slo_of

WARM_UP_REQUESTS = 8
WARM_UP_GAP_S = 0.2
WARM_UP_SEED = 1_000_003
"""Far from the seeds people use, so warm-up and measured texts differ."""

SendSlo = Literal["ms", "class", "no"]


@dataclass(frozen=True, slots=True)
class CallOptions:
    """How a workload is put on the wire.

    Attributes:
        model: Name the server knows the model by.
        is_vllm: Whether the server takes vLLM's own body fields; others get plain OpenAI ones.
        send_slo: Promises as explicit milliseconds, by class name, or not at all.
        priority_by_class: vLLM's ``priority`` field (lower goes first) for the named classes.
        asks_usage: Whether the server is asked to count the tokens of an answer at its end.
        tenant_header: Header that says who pays for a request; ``None`` for none.
    """

    model: str
    is_vllm: bool = True
    send_slo: SendSlo = "ms"
    priority_by_class: Mapping[str, int] = field(default_factory=dict)
    asks_usage: bool = True
    tenant_header: str | None = None


def workload_of(
    name: str,
    num_requests: int | None,
    arrivals: Arrivals,
    rate_rps: float | None,
    seed: int,
    trace: Reading | None = None,
) -> list[WorkloadRequest]:
    """Return the workload *name* (``demo``, a named one or a file) with its arrival times.

    Args:
        trace: The file, when it was read already.

    Raises:
        UserError: The file or the combination of options is wrong.
    """
    rng = np.random.default_rng([seed, 0xA221])
    if name == "demo":
        if arrivals.kind == "trace":
            raise UserError("The demo workload has no recorded times; use --arrivals poisson.")
        requests = demo_workload(num_requests or 100, seed)
    elif name in named.names():
        if rate_rps is None:
            raise UserError(f"The workload {name!r} has no recorded times; give --rate.")
        return named.make(name, num_requests or 100, rate_rps, seed, arrivals)
    else:
        requests = (trace or read(name)).requests[:num_requests]
    return with_arrivals(requests, arrivals, rate_rps, rng)


def calls_of(
    requests: Sequence[WorkloadRequest], book: SloBook, options: CallOptions
) -> list[Call]:
    """Return the calls of a workload, in its order.

    Raises:
        UserError: A request's class is not in *book*, a priority names an unknown class, or no
            request names the tenant that a header is to say.
    """
    slos = [slo_of(request, book) for request in requests]
    present = {slo.class_name for slo in slos}
    for name in options.priority_by_class:
        if name not in present:
            raise UserError(
                f"--priority-by-class names {name!r}, but the workload's classes are"
                f" {', '.join(sorted(present))}."
            )
    if options.tenant_header and not any(request.tenant for request in requests):
        raise UserError("--tenant-header is given, but no request of the workload has a tenant.")
    return [
        Call(
            id=request.id,
            arrived_at_s=request.arrived_at_s,
            slo=slo,
            body=body_of(request, slo, options, seed=index),
            num_prompt_tokens=request.num_prompt_tokens,
            headers=_headers_of(request, options),
        )
        for index, (request, slo) in enumerate(zip(requests, slos, strict=True))
    ]


def _headers_of(request: WorkloadRequest, options: CallOptions) -> dict[str, str]:
    if options.tenant_header is None or request.tenant is None:
        return {}
    return {options.tenant_header: request.tenant}


def body_of(
    request: WorkloadRequest, slo: Slo, options: CallOptions, seed: int = 0
) -> dict[str, Any]:
    """Return the JSON body of one greedy, streaming chat completion.

    A request with a text ends where the model ends it. One that has lengths only (a trace) gets
    a made-up text, which begins as others do where the trace says so, and, from vLLM, exactly its
    recorded number of output tokens.
    """
    has_text = request.prompt is not None
    body: dict[str, Any] = {
        "model": options.model,
        "messages": [{"role": "user", "content": text_for(request, seed)}],
        "max_tokens": request.max_output_tokens or request.num_output_tokens,
        "temperature": 0,
        "stream": True,
    }
    if options.asks_usage:
        body["stream_options"] = {"include_usage": True}
    if not options.is_vllm:
        return body
    body["return_token_ids"] = True
    if not has_text:
        body["ignore_eos"] = True
    if slo.class_name in options.priority_by_class:
        body["priority"] = options.priority_by_class[slo.class_name]
    promised = slo_fields(slo, options.send_slo)
    if promised:
        body["vllm_xargs"] = promised
    return body


def slo_fields(slo: Slo, send_slo: SendSlo) -> dict[str, str | float]:
    """Return the ``vllm_xargs`` that tell the server what was promised."""
    if send_slo == "no" or not slo.is_promise:
        return {}
    if send_slo == "class":
        return {"slo_class": slo.class_name}
    return fields_of(slo)


def warm_up_calls(book: SloBook, options: CallOptions) -> list[Call]:
    """Return a few calls like the demo's, the same for every contender and never counted.

    They arrive close together, so that one prompt, several prompts and a batch of decodes have
    each been computed once before the first promise is at stake.
    """
    requests = demo_workload(WARM_UP_REQUESTS, WARM_UP_SEED)
    plain = CallOptions(options.model, options.is_vllm, "no", asks_usage=options.asks_usage)
    calls = []
    for index, request in enumerate(requests):
        slo = book.classes.get(request.slo_class or "", Slo())
        calls.append(
            Call(
                id=f"warm-up-{index}",
                arrived_at_s=index * WARM_UP_GAP_S,
                slo=slo,
                body=body_of(request, slo, plain),
                num_prompt_tokens=request.num_prompt_tokens,
            )
        )
    return calls
