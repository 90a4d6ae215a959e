"""A run on Headway's own simulator by a policy that knows the future, and is passed by nobody.

The oracle is no preset of the registry: it is built for one load, with the true length of each
output and the profile's own step times. It plays many ways to serve exactly this load on exactly
this machine, and then serves in the one that kept the most promises:

1. every preset as it is: so no preset keeps more than the oracle, on any load, by construction;
2. an order that was searched on a fast model of the server (AccelGen's oracle);
3. the default policy told all lengths and step times, which gives up whom it is told to: those
   that the presets and the order lost, those that the bound's linear program gives up, and what
   a local search makes of the best of these.

Plays have the noise of the run itself, the same every time. So the oracle chooses knowing what
noise will do to each way, but no way is told the noise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from headway import registry
from headway.engines.virtual import VirtualCall
from headway.errors import UserError
from headway.latency.profile import Profile
from headway.latency.truth import Truth
from headway.oracle.bound import BoundChoice, best_choice, scaled
from headway.oracle.fast_model import StepModel
from headway.oracle.search import SearchResult, search
from headway.oracle.simulated import Instance, SimulatedPlayer
from headway.oracle.told_policy import IMPROVE_PLAYS, ToldPlayer, improve
from headway.policy.scheduler import Scheduler
from headway.slo import Slo, SloBook
from headway.study.on_sim import engine_of, serve_alone
from headway.study.run_outcome import RunOutcome
from headway.study.spec import RunSpec
from headway.workloads.schema import WorkloadRequest

ORACLE = "oracle"
"""The policy's name in a run's spec."""

ORDER_PLAYS = 100
"""Orders tried in the fast model; the best is then played in the simulator."""

SLOWER = (1.0, 1.04, 1.08, 1.15)
"""The bound's program is asked whom it gives up on a machine this many times as slow: it knows
no fixed cost of short steps, so on the machine itself it serves some too many."""

PRESETS_CONTINUED = 3
"""Presets that kept the most: the told policy starts from what each of them kept."""


@dataclass(frozen=True, slots=True)
class Effort:
    """How much is tried. Every preset is played whatever the effort."""

    order_plays: int = ORDER_PLAYS
    slower: Sequence[float] = SLOWER
    improve_plays: int = IMPROVE_PLAYS


EFFORT = Effort()


@dataclass(frozen=True, slots=True)
class Way:
    """A way to serve the load, and what it kept when it was played.

    Attributes:
        name: A preset's, ``"order"`` or ``"told"``.
        kept: Ids of those whose promise was kept.
        policy: Returns its policy core, new.
    """

    name: str
    kept: frozenset[str]
    policy: Callable[[], Scheduler]


def check_oracle(spec: RunSpec) -> None:
    """Check that the oracle can serve *spec*.

    Raises:
        UserError: Its engine or machine is not one whose future is known.
    """
    machine = spec.machine
    if spec.engine != "sim":
        raise UserError(f"Policy {ORACLE!r} knows the future: it runs on --engine sim only.")
    if len(machine.gpus) != 1:
        raise UserError(
            f"Policy {ORACLE!r} plans one server; leave out --replicas and --replica-gpu."
        )
    if machine.drift:
        raise UserError(
            f"Policy {ORACLE!r} is told the profile's step times; leave out --drift,"
            " which makes them others."
        )
    if spec.options:
        raise UserError(f"Policy {ORACLE!r} takes no options, not {sorted(spec.options)}.")


def serve(
    spec: RunSpec,
    profile: Profile,
    truth_of: Callable[[], Truth],
    requests: Sequence[WorkloadRequest],
    calls: Sequence[VirtualCall],
    slos: Mapping[str, Slo],
    book: SloBook,
    keep_steps: bool,
) -> RunOutcome:
    """Find the best way to serve exactly these requests, and serve them so.

    Args:
        truth_of: Returns what steps really take, the same sequence every time.

    Raises:
        UserError: See :func:`check_oracle`.
    """
    check_oracle(spec)
    machine = spec.machine
    scale = 1.0 + machine.step_time_band
    told = Truth(profile, scale=scale)
    engine, cost = engine_of(machine, profile), scaled(profile.cost, scale)
    instance = Instance(
        requests, calls, slos, engine, cost, told, truth_of, book, overload=spec.overload
    )
    is_bounded = machine.noise == 0 and not machine.prefix_caching
    way = best_way(instance, spec.load.seed, is_bounded=is_bounded)
    return serve_alone(engine, truth_of(), way.policy(), calls, book, keep_steps)


def best_way(
    instance: Instance, seed: int, *, is_bounded: bool, effort: Effort | None = None
) -> Way:
    """Return the way that kept the most, of equals the first played.

    Args:
        seed: Of the searches.
        is_bounded: The bound holds for such runs: nothing more is tried where a way reaches it.
        effort: By default :data:`EFFORT`.
    """
    effort = EFFORT if effort is None else effort
    choices = list(_choices(instance, effort.slower))
    most = len(instance.requests)
    if is_bounded and choices:
        most = choices[0].most
    ways: list[Way] = []
    for way in _ways(instance, seed, choices, most, effort):
        ways.append(way)
        if len(way.kept) >= most:
            return way
    return max(ways, key=lambda way: len(way.kept))


def _choices(instance: Instance, slower: Sequence[float]) -> Iterator[BoundChoice]:
    """Yield whom the bound's program serves, on the machine itself first; nothing if too large."""
    one = instance.server
    for scale in slower:
        sizes = (one.cost, one.kv_tokens, one.max_step_tokens)
        try:
            yield best_choice(instance.requests, instance.slos, *sizes, scale=scale)
        except UserError:
            return


def _ways(
    instance: Instance, seed: int, choices: Sequence[BoundChoice], most: int, effort: Effort
) -> Iterator[Way]:
    """Yield ways to serve, played: the presets, the default first; an order; the told policy."""
    presets = []
    for name in sorted(registry.names(), key=lambda name: name != registry.DEFAULT):

        def policy(name: str = name) -> Scheduler:
            return registry.build(name, overload=instance.overload)

        presets.append(Way(name, instance.kept_by(policy()), policy))
        yield presets[-1]
    presets.sort(key=lambda way: -len(way.kept))
    fast = StepModel(instance.requests, instance.slos, instance.server)
    order = search(fast, seed=seed, max_plays=effort.order_plays)
    yield _way_of("order", SimulatedPlayer(instance), order)
    player = ToldPlayer(instance)
    index = {name: i for i, name in enumerate(player.names)}
    starts: list[frozenset[str]] = [
        frozenset(index),
        *(choice.served for choice in choices),
        *(way.kept for way in presets[:PRESETS_CONTINUED]),
        frozenset(order.rank),
    ]
    found = improve(
        player,
        [[index[name] for name in served] for served in starts],
        seed=seed,
        max_plays=effort.improve_plays,
        most=most,
    )
    yield _way_of("told", player, found)


def _way_of(name: str, player: SimulatedPlayer, found: SearchResult) -> Way:
    """Return what was found as a way to serve, played."""
    kept = player.instance.kept_by(player.scheduler(found))
    return Way(name, kept, lambda: player.scheduler(found))
