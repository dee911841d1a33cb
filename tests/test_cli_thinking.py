"""Thinking agents from the command line: real processes, a real small engine, a scripted model."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from model_server import Fail, ModelServer
from thinking import Script, comment, edit_idea, lever_idea
from tiny_challenge import write_tiny

from slipstream.evaluation import sandbox


@pytest.fixture
def environment(tmp_path: Path, tiny_llama: Path) -> dict[str, str]:
    """A home of its own with the model already in its cache."""
    shared = tiny_llama
    while shared.name != "shared-home" and not shared.name.startswith("shared-home"):
        shared = shared.parent
    return {
        **os.environ,
        "SLIPSTREAM_HOME": str(shared),
        "SLIPSTREAM_MEMORY": f"sqlite:///{tmp_path}/memory.db",
        "SLIPSTREAM_API_KEY": "sk-cli-0123456789abcdefghij",
        "LC_ALL": "C.UTF-8",
    }


def slipstream(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "slipstream.cli", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )


@pytest.mark.slow
def test_run_costs_steer_and_replay(environment: dict[str, str], tmp_path: Path) -> None:
    if reason := sandbox.problem():
        pytest.skip(reason)
    ideas = [[lever_idea(fuse="qkv")], [edit_idea("engine/norm.py")]]
    with ModelServer(Script(ideas, [comment(1)])) as server:
        model = f"anthropic:m@{server.url}"
        program = tmp_path / "mine.md"
        program.write_text("Small steps, please.")
        done = slipstream(
            environment,
            *("run", str(write_tiny(tmp_path)), "--experiments", "2", "--seed", "3", "--json"),
            *("--planner", model, "--coder", model, "--benchmarker", model),
            *("--program", str(program)),
        )
        assert done.returncode == 0, done.stderr
        assert not server.errors
        plans = [r.messages[1].text for r in server.requests if "propose" in r.tools]
        assert all("Small steps, please." in text for text in plans)
        assert "Where a token's time goes" in plans[0]
        asked = len(server.requests)
    summary = json.loads(done.stdout.splitlines()[-1])
    assert summary["experiments"] == 2
    run = summary["run"]

    bill = json.loads(slipstream(environment, "costs", run, "--json").stdout)
    assert bill["total"]["calls"] == asked == sum(c["role"] != "measuring" for c in bill["calls"])
    assert {row["name"] for row in bill["by_role"]} == {
        *("planner", "coder", "benchmarker", "measuring")
    }
    table = slipstream(environment, "costs", run).stdout
    assert f"for {asked} calls" in table

    shown = json.loads(slipstream(environment, "show", f"{run}-002", "--json").stdout)
    assert shown["hypothesis"]["falsifier"]
    assert shown["hypothesis"]["agent"] == model

    said = slipstream(environment, "steer", run, "bolder", "--json")
    assert json.loads(said.stdout)["text"] == "bolder"
    late = slipstream(environment, "approve", f"{run}-001")
    assert late.returncode == 1
    assert "judged already" in late.stderr

    again = slipstream(environment, "run", "--replay", run, "--json")
    assert again.returncode == 0, again.stderr + again.stdout
    found = json.loads(again.stdout)
    assert found["difference"] == ""
    assert found["experiments"] == 2
    assert found["calls"] == found["calls_on_tape"]


@pytest.mark.slow
def test_approval_in_another_shell(environment: dict[str, str], tmp_path: Path) -> None:
    with ModelServer(Script([[lever_idea(fuse="qkv")]])) as server:
        command = [sys.executable, "-m", "slipstream.cli", "run", str(write_tiny(tmp_path))]
        command += ["--experiments", "1", "--planner", f"openai:m@{server.url}/v1", "--approve"]
        with subprocess.Popen(
            [*command, "--json"],
            env=environment,
            stdout=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            text=True,
        ) as child:
            assert child.stdout is not None
            waits = next(e for e in map(json.loads, child.stdout) if "waits" in e.get("text", ""))
            name = waits["text"].split()[0]
            time.sleep(1.0)
            assert child.poll() is None
            said = slipstream(environment, "approve", name, "--refuse", "--text", "not today")
            assert said.returncode == 0, said.stderr
            lines = [json.loads(line) for line in child.stdout]
            assert child.wait(120) == 0
        assert lines[-1]["experiments"] == 1
        assert any("not today" in line.get("text", "") for line in lines)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--planner", "gpt-5"), "model 'gpt-5': write one of offline, anthropic:NAME"),
        (("--planner", "anthropic:claude-haiku-4-5"), "no key; export ANTHROPIC_API_KEY="),
        (("--coder", "cmd:no-such-agent -p"), "no such program"),
        (("--planner", "openai:new@http://models.example/v1", "--usd", "1"), "no price is known"),
        (("--program", "/no/such/file.md"), "--program /no/such/file.md"),
        (("--replay", "r000000"), "unknown run 'r000000'"),
    ],
)
def test_what_is_missing_is_said_in_one_line(
    environment: dict[str, str], tmp_path: Path, arguments: tuple[str, ...], said: str
) -> None:
    environment.pop("ANTHROPIC_API_KEY", None)
    done = slipstream(environment, "run", str(write_tiny(tmp_path)), *arguments)
    assert done.returncode == 1
    assert said in done.stderr.replace("\n", " ")
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_refused_key_ends_the_session_and_loses_nothing(
    environment: dict[str, str], tmp_path: Path
) -> None:
    with ModelServer(lambda _: Fail(401)) as server:
        model = f"openai:m@{server.url}/v1"
        done = slipstream(environment, "run", str(write_tiny(tmp_path)), "--planner", model)
    assert done.returncode == 1
    assert "the key was refused (401); check SLIPSTREAM_API_KEY" in done.stderr.replace("\n", " ")
    (run,) = json.loads(slipstream(environment, "runs", "--json").stdout)
    assert run["state"] == "interrupted"
    assert "sk-cli" not in done.stderr + done.stdout
