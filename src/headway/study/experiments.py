"""What the two papers measured, as far as it is known, in the sizes they give.

OPT-13B on an A100 with 12 GB of KV is 14,648 tokens at 819,200 bytes each; its context is 2,048
tokens, so clients' limits are 1,024 for chat and 256 for instructions [I]. Host memory of 80,000
tokens (61 GiB) over 25 GiB/s is there for whoever can swap, which stock vLLM cannot. Rates are
chosen so that the best baseline goes from keeping nearly everything to keeping little.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from headway.study.claims import PaperClaim, Tables, Verdict, verdicts
from headway.study.drawn import DrawnMix
from headway.study.paper_grid import NamedPolicy, Traffic, variants
from headway.study.published import ACCELGEN_CLAIMS, CACHEOPT_CLAIMS
from headway.study.spec import STOCK_WAYS, Machine


@dataclass(frozen=True, slots=True)
class Table:
    """Who is run on what, under which loads; *overload* as in ``headway simulate``."""

    machine: Machine
    contenders: tuple[NamedPolicy, ...]
    traffic: tuple[Traffic, ...]
    overload: str = "demote"


@dataclass(frozen=True, slots=True)
class Experiment:
    """One paper's experiment: its tables, and what was claimed.

    Attributes:
        of_their_day: Policies that are what the paper compared with; no table has to play all.
        of_today: vLLM as it is now, in its settings; the best of them at each load is its best.
    """

    name: str
    ours: str
    machine: Machine
    traffic: tuple[Traffic, ...]
    contenders: tuple[NamedPolicy, ...]
    baselines: tuple[str, ...]
    ablation: tuple[NamedPolicy, ...] = ()
    sensitivity: tuple[NamedPolicy, ...] = ()
    pressed: tuple[Traffic, ...] = ()
    more: Mapping[str, Table] = field(default_factory=dict)
    claims: tuple[PaperClaim, ...] = ()
    of_their_day: tuple[str, ...] = ()
    of_today: tuple[str, ...] = ()

    def tables(self) -> dict[str, Table]:
        """Return every table by name.

        What a component or an option is worth is asked where it matters, under ``pressed``.
        """
        pressed = self.pressed or self.traffic
        return {
            "main": Table(self.machine, self.contenders, self.traffic),
            "ablation": Table(self.machine, self.ablation, pressed),
            "sensitivity": Table(self.machine, self.sensitivity, pressed),
            **self.more,
        }

    def claimed_figures(self, table: str) -> set[str]:
        """Return the labels of the figures that claims compare in *table*."""
        readings = [reading for claim in self.claims for reading in claim.readings]
        return {r.figure.label for r in readings if r.figure is not None and r.table == table}

    def verdicts(self, tables: Tables) -> list[Verdict]:
        """Return a verdict on each claim, for the paper's own policy and for the default."""
        policies = dict.fromkeys((self.ours, "headway"))
        return verdicts(self.claims, tables, list(policies), self.of_their_day, self.of_today)


OPT_13B = Machine("opt-13b@a100", kv_tokens=14_648, host_tokens=80_000, noise=0.05)

STOCK = tuple(NamedPolicy(name, name) for name in STOCK_WAYS)

VLLM_V0 = NamedPolicy("vllm_v0", "vllm_v0")
"""vLLM as both papers had it; the engine's step is what it gave OPT-13B, 2,048 tokens."""

VLLM_V0_SWAP = NamedPolicy("vllm_v0 swap", "vllm_v0", {"preemption_mode": "swap"})
"""The same where the machine has host memory."""

_CACHEOPT = NamedPolicy("cacheopt", "cacheopt")
_HEADWAY = NamedPolicy("headway", "headway")
_OPTIONS: dict[str, tuple[float, ...]] = {
    "alpha": (0.5, 0.8),
    "beta": (0.01, 0.1),
    "chunk_tokens": (256, 512),
    "reserve_blocks": (0, 32, 64),
    "look_ahead_steps": (1, 4, 8),
    "buffer_tokens": (0, 64),
    "gap_bucket_s": (0.2,),
    "remaining_bucket_tokens": (16, 256),
}
"""One at a time, beside the defaults."""

_COMPONENTS = ("C1", "C2", "C3", "C4", "C5", "B")

CACHEOPT = Experiment(
    name="cacheopt",
    ours="cacheopt",
    machine=OPT_13B,
    traffic=(
        Traffic("sharegpt-turn", (2.0, 3.0, 4.5, 7.0), max_output_tokens=1024),
        Traffic("alpaca", (50.0, 80.0, 110.0, 150.0), times=6, max_output_tokens=256),
    ),
    contenders=(
        _CACHEOPT,
        *variants(_CACHEOPT, {"cacheopt, 512 tokens a step": {"chunk_tokens": 512}}),
        _HEADWAY,
        *STOCK,
        VLLM_V0,
        VLLM_V0_SWAP,
        *(NamedPolicy(n, n) for n in ("sarathi", "s3", "rlp", "orca", "pastfuture")),
    ),
    baselines=("stock", "stock-static", "sarathi", "s3", "rlp"),
    ablation=(
        _CACHEOPT,
        *variants(
            _CACHEOPT,
            {
                f"without {name}": {"components": ",".join(c for c in _COMPONENTS if c != name)}
                for name in _COMPONENTS
            },
        ),
        *variants(_CACHEOPT, {f"{name} alone": {"components": name} for name in _COMPONENTS}),
        _HEADWAY,
        replace(
            _HEADWAY, policy="slack", label="headway, fixed median", options={"swap": "cheaper"}
        ),
        *variants(_HEADWAY, {"headway without C5": {"swap": "recompute"}}),
    ),
    sensitivity=(
        *variants(
            _CACHEOPT,
            {
                f"{name} {value:g}": {name: value}
                for name, values in _OPTIONS.items()
                for value in values
            },
        ),
        *variants(
            _CACHEOPT,
            {
                "urgency queue": {"urgency": "queue"},
                "urgency queue, chunk_tokens 512": {"urgency": "queue", "chunk_tokens": 512},
            },
        ),
        *(
            replace(_CACHEOPT, label=f"lengths known, error {spread:g}", length_error=spread)
            for spread in (0.0, 0.3, 1.0)
        ),
    ),
    pressed=(
        Traffic("sharegpt-turn", (4.5,), max_output_tokens=1024),
        Traffic("alpaca", (110.0,), times=6, max_output_tokens=256),
    ),
    claims=CACHEOPT_CLAIMS,
    of_their_day=(VLLM_V0.label, VLLM_V0_SWAP.label, "sarathi", "s3", "rlp"),
    of_today=STOCK_WAYS,
)

_ACCELGEN = NamedPolicy("accelgen", "accelgen")
_BASELINES = ("orca", "fastgen", "sarathi", "fastserve")
_RIVALS = ("qoserve", "xllm", "sliding", "pastfuture")
_FEW = (
    _ACCELGEN,
    _HEADWAY,
    STOCK[0],
    STOCK[2],
    VLLM_V0,
    *(NamedPolicy(n, n) for n in ("sarathi", "fastserve", "qoserve")),
)
"""Where what matters is how the figures move with the load."""

# 12 GB hold 14,648 tokens of a 13B model: 100k tokens x 0.12 and 2,048 out fit.
_DRAWN_13B = DrawnMix(reference_rps=0.3, prompt_scale=0.12)
_ONE_LOAD = Traffic("accelgen-13b", (1.2,), drawn=_DRAWN_13B)


_70B = Machine("llama-3.1-70b@a100x4", kv_tokens=411_984, noise=0.05)
"""135 GB of KV on four GPUs, 327,680 bytes a token."""

_70B_TRAFFIC = Traffic("accelgen-70b", (0.1, 0.2), drawn=DrawnMix(0.1))


def _dropping(machine: Machine, traffic: Traffic) -> Table:
    """Return who may refuse what is hopeless, beside the baselines, which serve everybody."""
    contenders = (_ACCELGEN, _HEADWAY, STOCK[0], STOCK[2], VLLM_V0)
    swapping = (VLLM_V0_SWAP,) if machine.host_tokens else ()
    baselines = tuple(NamedPolicy(n, n) for n in _BASELINES)
    return Table(machine, (*contenders, *swapping, *baselines), (traffic,), overload="refuse")


def _at_one_load(drawn: Mapping[str, DrawnMix]) -> Table:
    """Return the main experiment's machine at one load, with what is drawn by name."""
    traffic = tuple(replace(_ONE_LOAD, source=name, drawn=how) for name, how in drawn.items())
    return Table(OPT_13B, _FEW, traffic)


ACCELGEN = Experiment(
    name="accelgen",
    ours="accelgen",
    machine=OPT_13B,
    traffic=(replace(_ONE_LOAD, rates_rps=(0.3, 0.6, 1.2, 2.4)),),
    contenders=(
        _ACCELGEN,
        _HEADWAY,
        *STOCK,
        VLLM_V0,
        VLLM_V0_SWAP,
        *(NamedPolicy(n, n) for n in (*_BASELINES, *_RIVALS, "oracle")),
    ),
    baselines=("stock", *_BASELINES),
    ablation=(
        _ACCELGEN,
        *variants(
            _ACCELGEN,
            {
                **{f"without {n}": {n: False} for n in ("chunking", "ordering", "packing")},
                "step bounded by its own time": {"exact_chunk": True},
            },
        ),
        _HEADWAY,
    ),
    sensitivity=tuple(
        variants(
            _ACCELGEN,
            {
                **{f"gamma {value:g} s": {"gamma_s": value} for value in (0.1, 0.3, 1.5, 3.0)},
                **{f"packer {name}": {"packer": name} for name in ("aligned", "exact")},
            },
        )
    ),
    pressed=(_ONE_LOAD,),
    more={
        "documents": _at_one_load(
            {f"documents-{x:.0%}": replace(_DRAWN_13B, document_share=x) for x in (0.15, 0.55)}
        ),
        "slo-scale": _at_one_load(
            {f"slo-x{x:g}": replace(_DRAWN_13B, slo_scale=x) for x in (0.5, 2.0)}
        ),
        # Llama-3.1-8B beside 12 GB: 91,552 tokens, so prompts x 0.8.
        "8b": Table(
            Machine("llama-3.1-8b@a100", kv_tokens=91_552, noise=0.05),
            _FEW,
            (Traffic("accelgen-8b", (0.3, 0.6), drawn=DrawnMix(0.3, prompt_scale=0.8)),),
        ),
        "70b": Table(_70B, _FEW, (_70B_TRAFFIC,)),
        # The longest prompts that fit 12 GB, and whole ones, at loads beyond what can be kept.
        "throughput": _dropping(OPT_13B, replace(_ONE_LOAD, rates_rps=(1.2, 4.8))),
        "throughput-70b": _dropping(_70B, replace(_70B_TRAFFIC, rates_rps=(0.2, 0.8))),
    },
    claims=ACCELGEN_CLAIMS,
    of_their_day=(VLLM_V0.label, VLLM_V0_SWAP.label, *_BASELINES),
    of_today=STOCK_WAYS,
)
