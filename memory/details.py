"""Everything about one thing, for `slipstream show`."""

from dataclasses import asdict
from typing import Any

from slipstream.evaluation.errors import SlipstreamError

from .jobs import Jobs
from .store import Memory


def look_up(memory: Memory, item: str) -> dict[str, Any]:
    """Return what memory knows of an experiment, a run or a variant, whichever `item` names.

    Raises:
        SlipstreamError: nothing has that name.
    """
    experiment = memory.experiment(item)
    if experiment is not None:
        evidence = memory.evidence(item)
        details = asdict(experiment)
        if experiment.hypothesis:
            details["hypothesis"] = asdict(memory.hypothesis(experiment.hypothesis))
        details["pairs"] = [asdict(p) | {"log_ratio": p.log_ratio} for p in evidence.pairs]
        details["observations"] = [asdict(one) for one in memory.observations(item)]
        details["rungs"] = [asdict(rung) for rung in memory.rungs(item)]
        for rung in details["rungs"]:
            if rung["usd"] is not None:  # when it was climbed its jobs weren't settled yet
                rung["usd"] = Jobs(memory.database).usd(item)
        details["audits"] = [asdict(audit) for audit in evidence.audits]
        details["scores"] = [
            {"split": split, **asdict(score)}
            for split, scores in evidence.scores.items()
            for score in scores
        ]
        return details
    if (one := memory.find_run(item)) is not None:
        races = [asdict(e) for e in memory.experiments(run=item)]
        return {**asdict(one), "experiments": races}
    try:
        variant = memory.variant(item)
    except SlipstreamError as error:
        raise SlipstreamError(
            f"unknown id {item!r}: no variant, experiment or run has it; `slipstream leaderboard` "
            "and `slipstream runs` list them"
        ) from error
    races = [asdict(e) for e in memory.experiments(variant=variant.id)]
    return {**asdict(variant), "experiments": races}
