"""What was measured of the levers, a line each, and the table that it is summed up in."""

import json
import math
import statistics
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lever_clock import NUM_TOKENS, Settings
from lever_space import DATA, SUMMARY, TABLE, Key, Row, write_table

from slipstream.evaluation.challenge import load_challenge
from slipstream.evaluation.gates import DocumentScore, report
from slipstream.evaluation.gates import refusal as gate_refusal
from slipstream.kernels.levers import SEED_SETTINGS

PROMPTS = {"chat-why-sea-is-salty": "short", "extraction-catering-order-email": "long"}
LEAST_CONTROL = 0.75  # of its usual speed; what was timed beside a slower control doesn't count
DOUBTFUL = 0.25  # log ratio; no draft setting is worth as much here
RAW = DATA / "lever_table.raw.jsonl"
Rows = list[dict[str, Any]]


def key_of(settings: Settings) -> Key:
    """Return the name of a combination as `combinations` gives it."""
    return tuple(settings[name] for name in SEED_SETTINGS)


class Record:
    """What was measured so far, a JSON line each."""

    def __init__(self, path: Path = RAW) -> None:
        self._path = path
        lines = path.read_text().splitlines() if path.exists() else []
        self.rows: Rows = [json.loads(line) for line in lines if line.endswith("}")]

    def add(self, kind: str, settings: Settings, **values: Any) -> None:
        row = {"kind": kind, "settings": settings, **values}
        self.rows.append(row)
        with self._path.open("a") as file:
            file.write(json.dumps(row) + "\n")

    def of(self, kind: str) -> Rows:
        """Return the rows of a kind; speeds only where the control says that the machine ran."""
        rows = [row for row in self.rows if row["kind"] == kind]
        if kind == "speed" and rows:
            least = LEAST_CONTROL * statistics.median(row["control"] for row in rows)
            rows = [row for row in rows if row["control"] >= least]
        return rows

    def log_speeds(self) -> dict[Key, list[dict[str, float]]]:
        """Return each combination's log tokens/s by workload, one for each time it was timed."""
        rows = self.of("speed")
        usual = statistics.median(row["control"] for row in rows)
        found: dict[Key, list[dict[str, float]]] = defaultdict(list)
        for row in sorted(rows, key=lambda row: row["pass"]):
            logs = {kind: math.log(row["tps"][name]) for name, kind in PROMPTS.items()}
            drift = math.log(row["control"] / usual)
            found[key_of(row["settings"])].append({k: log - drift for k, log in logs.items()})
        return found

    def doubtful(self) -> set[Key]:
        """Return what strayed, when first timed, from the same engine with other drafts."""
        alike: dict[Key, dict[Key, dict[str, float]]] = defaultdict(dict)
        draft = list(SEED_SETTINGS).index("draft")
        for key, logs in self.log_speeds().items():
            alike[key[:draft] + key[draft + 1 :]][key] = logs[0]
        found = set()
        for group in alike.values():
            for workload in dict.fromkeys(PROMPTS.values()):
                middle = statistics.median(logs[workload] for logs in group.values())
                found |= {k for k, v in group.items() if abs(v[workload] - middle) > DOUBTFUL}
        return found

    def done(self, kind: str, number: int = 0) -> set[Key]:
        rows = [row for row in self.of(kind) if row.get("pass", 0) == number]
        return {key_of(row["settings"]) for row in rows}


def summarise(record: Record, machine: str, fixed: Settings) -> dict[str, Any]:
    """Write the table and what belongs to it; return the figures to be printed."""
    rows, between = [], []
    for key, timed in record.log_speeds().items():
        middle = {name: statistics.median(logs[name] for logs in timed) for name in timed[0]}
        tps = {name: math.exp(log) for name, log in middle.items()}
        rows.append(Row(dict(zip(SEED_SETTINGS, key, strict=True)), tps, len(timed)))
        if len(timed) > 1:  # the latest two: the first one may have been what was doubtful
            between.append(timed[-2]["short"] - timed[-1]["short"])
    write_table(sorted(rows, key=lambda row: -row.tps["short"]), DATA / TABLE)
    ratios = [ratio for row in record.of("noise") for ratio in row["log_ratios"]]
    figures = {
        "machine": machine,
        "combinations": len(rows),
        "fixed": fixed,
        "num_tokens": NUM_TOKENS,
        "prompts": PROMPTS,
        "pair_deviation": round(statistics.pstdev(ratios), 5) if ratios else None,
        "repeat_deviation": round(statistics.pstdev(between), 5) if between else None,
        "bandwidth_gbps": round(record.of("bandwidth")[0]["gbps"], 2),
    }
    quality = [(row["settings"], row["scores"]) for row in record.of("quality")]
    (DATA / SUMMARY).write_text(
        _json({**figures, "aa_pairs": ratios, "quality": _quality(quality)})
    )
    return figures


def _quality(measured: Sequence[tuple[Settings, dict[str, Rows]]]) -> Rows:
    """Return the bounds of each rounding for people, and the sums of each document."""
    tier = load_challenge("smollm2-cpu").tier
    found = []
    for settings, scores in measured:
        entry: dict[str, Any] = {k: settings[k] for k in ("weights", "head", "activations")}
        for split, rows in scores.items():
            documents = [DocumentScore(**row) for row in rows]
            quality = report(documents)
            entry[split] = {
                **{
                    name: round(getattr(quality, name), 5)
                    for name in ("ppl_rise", "ppl_rise_high", "kl", "kl_high", "top1", "top1_low")
                },
                "refused": gate_refusal(quality, tier),
                "documents": [
                    [d.document, d.num_tokens, *(round(x, 4) for x in (d.nll, d.nll_reference)),
                     round(d.kl, 5), d.top1_matches]
                    for d in documents
                ],
            }  # fmt: skip
        found.append(entry)
    return found


def _json(figures: dict[str, Any]) -> str:
    """Return figures with one line a document and one line for short lists."""
    quality = figures.pop("quality")
    lines = json.dumps(figures, indent=1)[:-2]
    rows = ",\n".join("  " + json.dumps(entry) for entry in quality)
    return f'{lines},\n "quality": [\n{rows}\n ]\n}}\n'
