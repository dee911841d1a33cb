"""Makes the three roles' backends of what they were asked for."""

from collections.abc import Callable, Iterable, Sequence

from slipstream.kernels.variants import Tree
from slipstream.memory import tracks
from slipstream.memory.records import Hypothesis
from slipstream.memory.store import Memory

from .bandit import Track, choose
from .chat import Chat
from .model_benchmarker import ModelBenchmarker
from .model_coder import ModelCoder
from .model_planner import ModelPlanner
from .offline_benchmarker import OfflineBenchmarker
from .offline_coder import OfflineCoder
from .offline_planner import OfflinePlanner
from .outside_coder import OutsideCoder
from .roles import Benchmarker, Briefing, Coder, Planner, Proposal, Workbench
from .session import Session
from .specs import COMMAND, AgentSpecs, parse_models

_MAX_TOKENS = {"planner": 8000, "coder": 12_000, "benchmarker": 2000}
_SOME_EXPERIMENTS = 10  # a coder isn't told how many more there will be
TracksOf = Callable[[str, Sequence[str]], list[Track]]


def make_agents(
    specs: AgentSpecs, session: Session, memory: Memory
) -> tuple[Planner, Coder, Benchmarker]:
    """Return planner, coder and benchmarker.

    Raises:
        SlipstreamError: no such model or command, no key, or no price where dollars are limited.
    """

    def chats(role: str) -> list[Chat]:
        models = parse_models(getattr(specs, role))
        return [Chat(model, role, session, max_tokens=_MAX_TOKENS[role]) for model in models]

    def tracks_of(role: str, names: Sequence[str]) -> list[Track]:
        return [
            Track(name, tracks.gains(memory, role, name), tracks.usd(memory, role, name))
            for name in names
        ]

    planners = [ModelPlanner(chat) for chat in chats("planner")]
    planner: Planner = OfflinePlanner()
    if planners:
        planner = planners[0] if len(planners) == 1 else PlannerPool(planners, session, tracks_of)
    benchmarkers = [ModelBenchmarker(chat) for chat in chats("benchmarker")]
    return (
        planner,
        _coder(specs, session, chats, tracks_of),
        benchmarkers[0] if benchmarkers else OfflineBenchmarker(),
    )


def _coder(
    specs: AgentSpecs,
    session: Session,
    chats: Callable[[str], list[Chat]],
    tracks_of: TracksOf,
) -> Coder:
    if specs.coder.startswith(COMMAND):
        return OutsideCoder(
            specs.coder.removeprefix(COMMAND),
            session,
            environment=specs.coder_environment,
            limit_s=60 * specs.coder_minutes,
        )
    coders = [ModelCoder(chat) for chat in chats("coder")]
    if not coders:
        return OfflineCoder()
    return coders[0] if len(coders) == 1 else CoderPool(coders, session, tracks_of)


class PlannerPool:
    """Several planners; each plan comes from the one that pays best. Satisfies `Planner`."""

    name = "planners"

    def __init__(self, planners: Sequence[Planner], session: Session, tracks_of: TracksOf) -> None:
        self._planners = {planner.name: planner for planner in planners}
        self._session, self._tracks_of = session, tracks_of

    def plan(self, briefing: Briefing, count: int) -> list[Proposal]:
        """Return the chosen planner's proposals."""
        place = f"round {briefing.round} after {len(briefing.planned)}"
        experiments = briefing.left.experiments
        chosen = _drawn(
            "planner", self._planners, place, experiments, self._session, self._tracks_of
        )
        self._session.say("planner", f"{chosen} plans", False)
        return self._planners[chosen].plan(briefing, count)


class CoderPool:
    """Several coders; each hypothesis goes to the one that pays best. Satisfies `Coder`."""

    name = "coders"

    def __init__(self, coders: Sequence[Coder], session: Session, tracks_of: TracksOf) -> None:
        self._coders = {coder.name: coder for coder in coders}
        self._session, self._tracks_of = session, tracks_of

    def implement(self, hypothesis: Hypothesis, parent: Tree, bench: Workbench) -> Tree:
        """Let the chosen coder write the variant."""
        chosen = self._writer_of(hypothesis)
        self._session.say("coder", f"{hypothesis.id}: {chosen} writes", False)
        return self._coders[chosen].implement(hypothesis, parent, bench)

    def repair(
        self, hypothesis: Hypothesis, tree: Tree, error: str, bench: Workbench
    ) -> Tree | None:
        """Let whoever wrote it repair it."""
        return self._coders[self._writer_of(hypothesis)].repair(hypothesis, tree, error, bench)

    def _writer_of(self, hypothesis: Hypothesis) -> str:
        names, place = self._coders, hypothesis.id
        return _drawn("coder", names, place, _SOME_EXPERIMENTS, self._session, self._tracks_of)


def _drawn(
    role: str,
    names: Iterable[str],
    place: str,
    experiments: int,
    session: Session,
    tracks_of: TracksOf,
) -> str:
    """Return who has a role in some place; drawn once, as later costs would draw another."""

    def draw() -> str:
        tracks = tracks_of(role, list(names))
        seed = f"{session.seed} {role} {place}"
        limit = session.purse.limit
        return choose(tracks, seed=seed, experiments=experiments, budget_usd=limit)

    return str(session.cassette.observe(f"{role} of {place}", draw))
