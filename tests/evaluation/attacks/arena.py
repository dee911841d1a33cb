"""Where hostile engines meet the real pipeline: coder → inspect → measure → judge → record.

The champion is the shipped engine with two milliseconds of needless work a token. An honest twin
leaves that out and is kept. An attack keeps it, or spoils the answers, and tries to look fast all
the same.
"""

import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from slipstream.agents.roles import Workbench
from slipstream.evaluation.acceptance import Judgement
from slipstream.evaluation.challenge import parse_challenge
from slipstream.evaluation.errors import EngineError
from slipstream.evaluation.pairs import Stage
from slipstream.graph.context import LoopContext
from slipstream.graph.implement import build_variant
from slipstream.graph.inspection import inspect_variant
from slipstream.graph.judge import judge_variant
from slipstream.graph.measure import measure_variant
from slipstream.graph.opening import Agents, open_context
from slipstream.graph.record import write_down
from slipstream.graph.session import new_run
from slipstream.graph.survey import starting_champion
from slipstream.kernels.levers import SEED_SETTINGS
from slipstream.kernels.variants import Tree, seed_tree
from slipstream.memory.records import Hypothesis, Variant
from slipstream.memory.store import open_memory

CHALLENGE = """
name = "arena"
title = "a random model of three layers"
model = "path:{model}"
device = "cpu"
[workload]
prompts = "random-ids"
num_tokens = 24
num_prompts = 6
prompt_tokens = 12
max_context = 96
[quality]
documents = 4
continuation_tokens = 16
held_out = "fixed"
[acceptance]
screen_pairs = 2
test_pairs = 4
confirm_pairs = 4
noise_pairs = 4
baseline_pairs = 3
audit_blocks = 4
looks = 2
max_disturbance = 9.0
[budget]
minutes = 60
experiments = 500
"""
PRELUDE = """
import time
from contextlib import contextmanager

@contextmanager
def one_layer(model):
    kept = model._halves, model._step_halves, model.kept
    model._halves = model._step_halves = kept[0][:1]
    model.kept = kept[2][:1]
    try:
        yield
    finally:
        model._halves, model._step_halves, model.kept = kept

def spend(seconds):
    begun = time.thread_time()
    while time.thread_time() - begun < seconds:
        pass

class Slow(Engine):
    def generate(self, prompt, num_tokens):
        spend(0.002 * num_tokens)
        return super().generate(prompt, num_tokens)
"""
SETTINGS = {**SEED_SETTINGS, "dtype": "float32", "threads": "1"}


def tree_with(code: str, engine: str) -> Tree:
    """Return the shipped engine with `code` appended, loading class `engine` instead of its own."""
    tree = seed_tree(SETTINGS)
    loader = f"""
_load = load

def load(tree, model_dir, max_context):
    loaded = _load(tree, model_dir, max_context)
    loaded.__class__ = {engine}
    return loaded
"""
    source = tree.files["engine/__init__.py"].decode()
    package = source + textwrap.dedent(code) + textwrap.dedent(loader)
    return Tree({**tree.files, "engine/__init__.py": package.encode()})


@dataclass
class Arena:
    """A run with a slow champion; `judge` puts one tree through it."""

    context: LoopContext
    champion: str
    count: int = 0
    peace: list[float] = field(default_factory=list)  # what the champion reaches beside a twin
    changes: dict[str, float] = field(default_factory=dict)  # attack → champion's log speed

    def judge(self, tree: Tree, name: str) -> Judgement:
        """Carry one experiment through and record it."""
        self.count += 1
        hypothesis = Hypothesis(
            id=f"{self.context.run}-{self.count:03d}",
            run=self.context.run,
            round=self.count,
            agent="attacker",
            parent=self.champion,
            lever=name,
            settings=tree.settings,
            mechanism="leaves needless work out",
            predicted_gain=1.0,
            created_at=time.time(),
        )
        self.context.memory.add_hypotheses([hypothesis])
        self.context.coder.tree = tree  # type: ignore[attr-defined]
        built = build_variant(hypothesis.id, self.context)
        variant = built["variants"][hypothesis.id]
        judgement = (
            built.get("judgements", {}).get(hypothesis.id)
            or inspect_variant(hypothesis.id, variant, self.context)
            or measure_variant(hypothesis.id, self.context)
            or judge_variant(hypothesis.id, self.context)
        )
        write_down(hypothesis.id, judgement, self.context)
        self.context.evaluator.release(variant)
        return judgement

    def champions_tps(self) -> list[float]:
        """Return what the champion reached in each pair of the latest experiment."""
        evidence = self.context.memory.evidence(f"{self.context.run}-{self.count:03d}")
        return [pair.tps_rival for pair in evidence.pairs]

    def champions_tps_beside(self, tree: Tree, num_pairs: int = 8) -> list[float]:
        """Race a tree against the champion once more, until it breaks off."""
        found: list[float] = []
        evaluator, attempts = self.context.evaluator, dict.fromkeys(range(num_pairs), 0)
        with suppress(EngineError):
            for pair in evaluator.pairs(tree.id, self.champion, Stage.LOOK, attempts):
                found.append(pair.tps_rival)
        evaluator.release(tree.id)
        return found


class Smuggler:
    """A coder that hands in whatever tree it was given."""

    name = "smuggler"
    tree: Tree

    def implement(self, hypothesis: Hypothesis, parent: Tree, bench: Workbench) -> Tree:
        return self.tree

    def repair(
        self, hypothesis: Hypothesis, tree: Tree, error: str, bench: Workbench
    ) -> Tree | None:
        return None


def make_model(folder: Path) -> Path:
    """Write a random Llama with a head of its own: a tied one just repeats its last token."""
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=512,
        initializer_range=0.1,
        tie_word_embeddings=False,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@contextmanager
def open_arena(home: Path) -> Iterator[Arena]:
    """Start the run, and its slow champion."""
    challenge = CHALLENGE.replace("{model}", str(make_model(home / "model")))
    with open_memory(f"sqlite:///{home}/memory.db") as memory:
        run = new_run(parse_challenge(challenge, source="arena"), memory, seed=5)
        with open_context(run.id, memory, agents=Agents(coder=Smuggler())) as context:
            starting_champion(context)
            slow = tree_with(PRELUDE, "Slow")
            context.variants.add(slow)
            parent = context.seed_variant
            context.workshop.commit(slow, parent, "slow\n", int(time.time()))
            memory.add_variant(
                Variant(slow.id, parent, slow.engine_id, slow.settings, run.id, time.time())
            )
            yield Arena(context, slow.id)
