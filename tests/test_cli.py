"""The command line as a user meets it: exit codes, one-line errors, JSON with stable fields."""

import getpass
import json
import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from slipstream.evaluation.projection import find_machine

ROOT = Path(__file__).resolve().parent.parent
RECORDED = ROOT / "notebooks/data/first-run.db"


def cli(*arguments: str, home: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "slipstream.cli", *arguments],
        env={**os.environ, "SLIPSTREAM_HOME": str(home), **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.fixture
def recorded(tmp_path: Path) -> str:
    """The URL of a copy of the recorded memory."""
    shutil.copy(RECORDED, tmp_path / "recorded.db")
    return f"sqlite:///{tmp_path}/recorded.db"


def assert_one_line_error(done: subprocess.CompletedProcess[str], *parts: str) -> None:
    assert done.returncode == 1, done.stdout + done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    for part in parts:
        assert part in lines[0]


def test_unknown_challenge(tmp_path: Path) -> None:
    done = cli("run", "gemma9", home=tmp_path)
    assert_one_line_error(done, "unknown challenge 'gemma9'", "smollm2-cpu")


def test_unreadable_toml(tmp_path: Path) -> None:
    (tmp_path / "x.toml").write_text("name = [")
    assert_one_line_error(
        cli("run", str(tmp_path / "x.toml"), home=tmp_path), "not readable as TOML"
    )


def test_model_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "x.toml").write_text("name='x'\ntitle='x'\nmodel='path:/none'\ndevice='cpu'\n")
    done = cli("run", str(tmp_path / "x.toml"), home=tmp_path)
    assert_one_line_error(done, "model 'path:/none': no such folder or .gguf file")


@pytest.mark.skipif(shutil.which("nvidia-smi") is not None, reason="there is a GPU here")
def test_gpu_challenge_without_a_gpu(tmp_path: Path) -> None:
    assert_one_line_error(cli("run", "gemma4-e4b-a10g", home=tmp_path), "needs a GPU (A10G)")


def test_unknown_run(tmp_path: Path) -> None:
    assert_one_line_error(cli("resume", "r9", home=tmp_path), "unknown run 'r9'", "none yet")
    assert_one_line_error(cli("report", "r9", home=tmp_path), "unknown run 'r9'")


def test_unknown_id(tmp_path: Path) -> None:
    assert_one_line_error(cli("show", "zzz", home=tmp_path), "unknown id 'zzz'")


def test_memory_of_a_newer_schema(tmp_path: Path, recorded: str) -> None:
    with sqlite3.connect(recorded.removeprefix("sqlite:///")) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    done = cli("runs", "--memory", recorded, home=tmp_path)
    assert_one_line_error(done, "its schema is 9999", "upgrade slipstream")


def test_no_write_permission(tmp_path: Path) -> None:
    done = cli("runs", home=Path("/proc/slipstream"))
    assert_one_line_error(done, "can't create /proc/slipstream", "SLIPSTREAM_HOME")


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_disk_full(tmp_path: Path) -> None:
    home = tmp_path / "small"
    home.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(home)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("can't mount a tmpfs here")
    try:
        (home / "ballast").write_bytes(b"x" * 120_000)
        done = cli("runs", home=home)
        assert_one_line_error(done, "full")
        done = cli("model", "fetch", "random:tiny-llama", "--json", home=home)
        assert_one_line_error(done, "No space left")
    finally:
        subprocess.run(["umount", str(home)], check=True)


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    done = cli("--debug", "run", "gemma9", home=tmp_path)
    assert done.returncode == 1
    assert "Traceback" in done.stderr


def test_python_too_old(tmp_path: Path) -> None:
    """The Makefile says so before pip can confuse anybody."""
    fake = tmp_path / "python3.9"
    fake.write_text(
        f'#!/bin/sh\nexec {sys.executable} -c "import sys; sys.version_info = (3, 9); '
        'sys.version = \'3.9.1 (old)\'; exec(sys.argv[1])" "$2"\n'
    )
    fake.chmod(0o755)
    done = subprocess.run(
        ["make", "-s", "run", f"PYTHON={fake}", f"VENV={tmp_path}/venv"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0
    assert "slipstream needs Python 3.11 or newer" in done.stderr
    assert "is 3.9.1" in done.stderr


LEADERBOARD_FIELDS = {
    "variant",
    "tier",
    "tps",
    "speedup",
    "speedup_low",
    "speedup_high",
    "baseline",
    "ppl_rise",
    "kl",
    "top1",
    "verdict",
    "experiments",
    "parent",
}


def test_runs_and_leaderboard_as_json(tmp_path: Path, recorded: str) -> None:
    (row,) = json.loads(cli("runs", "--json", "--memory", recorded, home=tmp_path).stdout)
    assert {"run", "challenge", "state", "experiments", "kept", "minutes"} <= row.keys()
    assert row["state"] == "finished"
    with sqlite3.connect(recorded.removeprefix("sqlite:///")) as connection:
        from slipstream.evaluation.hardware import detect_hardware

        for table in ("runs", "standings"):  # as if it had been recorded here
            connection.execute(f"UPDATE {table} SET machine = ?", (detect_hardware().id,))
    done = cli("leaderboard", "--json", "--memory", recorded, home=tmp_path)
    standings = json.loads(done.stdout)
    assert all(standing.keys() >= LEADERBOARD_FIELDS for standing in standings)
    champion = standings[0]
    assert champion["verdict"] == "kept"
    assert champion["speedup_low"] < champion["speedup"] < champion["speedup_high"]
    assert {s["cause"] for s in standings} >= {"gain", "quality", "no-gain", "start"}
    shown = cli("leaderboard", "--memory", recorded, home=tmp_path, COLUMNS="200").stdout
    assert champion["variant"] in shown


def test_show_speaks_of_experiments_variants_and_runs(tmp_path: Path, recorded: str) -> None:
    (row,) = json.loads(cli("runs", "--json", "--memory", recorded, home=tmp_path).stdout)

    def show(item: str) -> dict[str, object]:
        done = cli("show", item, "--json", "--memory", recorded, home=tmp_path)
        details: dict[str, object] = json.loads(done.stdout)
        return details

    experiment = show(f"{row['run']}-001")
    assert experiment["pairs"]
    assert experiment["reason"]
    assert show(str(experiment["variant"]))["settings"]
    assert len(show(row["run"])["experiments"]) > 2  # type: ignore[arg-type]
    plain = cli("show", f"{row['run']}-001", "--memory", recorded, home=tmp_path)
    assert "predicted_gain" in plain.stdout


def test_report_says_where_it_lies(tmp_path: Path, recorded: str) -> None:
    (row,) = json.loads(cli("runs", "--json", "--memory", recorded, home=tmp_path).stdout)
    done = cli("report", row["run"], "--json", "--memory", recorded, home=tmp_path)
    written = json.loads(done.stdout)
    assert Path(written["report"]).read_text().startswith("# smollm2-cpu")
    assert Path(written["chart"]).read_text().startswith("<svg")


def test_model_fetch_as_json(tmp_path: Path) -> None:
    done = cli("model", "fetch", "random:tiny-llama", "--json", home=tmp_path)
    assert Path(json.loads(done.stdout)["path"], "model.safetensors").exists()


def test_doctor_looks_at_everything(tmp_path: Path) -> None:
    checks = json.loads(cli("doctor", "--json", home=tmp_path, OPENAI_API_KEY="sk-x").stdout)
    found = {check["name"]: check for check in checks}
    assert {"machine", "gpu", "memory bandwidth", "timing noise", "sandbox"} <= found.keys()
    assert found["OPENAI_API_KEY"]["found"] == "set"
    assert "sk-x" not in json.dumps(checks)
    assert cli("doctor", home=tmp_path).returncode == 0


def test_hardware_is_what_a_projection_takes(tmp_path: Path) -> None:
    written = tmp_path / "here.json"
    written.write_text(cli("hardware", "--device", "cpu", "--json", home=tmp_path).stdout)
    found = json.loads(written.read_text())
    assert found["gbps"] > 0
    assert found["features"] == []
    assert find_machine(str(written)).gbps == found["gbps"]
    refused = cli("hardware", "--device", "tpu", home=tmp_path)
    assert refused.returncode != 0
    assert "--device tpu is neither cpu nor cuda" in refused.stderr
    shown = cli("profile", "seed", "--on", "a11g", home=tmp_path)
    assert shown.returncode != 0
    assert "a11g is no machine known: name one of a10g" in shown.stderr


def test_help_is_quick_and_lists_every_command(tmp_path: Path) -> None:
    shown = cli("--help", home=tmp_path).stdout
    for command in (
        "run",
        "resume",
        "leaderboard",
        "show",
        "diff",
        "bench",
        "runs",
        "report",
        "profile",
    ):
        assert command in shown


def told(*arguments: str, memory: str, home: Path) -> Any:
    """What a command prints as JSON."""
    done = cli(*arguments, "--json", "--memory", memory, home=home)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_ledger_says_what_is_known_of_each_lever(tmp_path: Path, recorded: str) -> None:
    rows = told("levers", memory=recorded, home=tmp_path)
    found = {f"{row['lever']}={row['value']}": row for row in rows}
    assert found["weights=int4-g32"]["status"] == "works"
    assert found["weights=int4-g64"]["status"] == "costs quality"
    best = found["weights=int4-g32"]
    assert best["best_low"] < best["best_gain"] < best["best_high"]
    assert best["evidence"] == [best["best_experiment"]]
    assert [r["lever"] for r in told("levers", "head", memory=recorded, home=tmp_path)] != []
    people = cli("levers", "--memory", recorded, home=tmp_path).stdout
    assert "costs quality" in people
    assert told("calibration", memory=recorded, home=tmp_path)[0]["agent"] == "offline-planner"


def test_pulse_has_figures(tmp_path: Path, recorded: str) -> None:
    found = told("pulse", memory=recorded, home=tmp_path)
    assert set(found) == {"stagnation", "monoculture", "lineages"}
    assert found["stagnation"] >= 0
    assert (
        "variants since the latest gain" in cli("pulse", "--memory", recorded, home=tmp_path).stdout
    )


def test_findings_are_searched(tmp_path: Path, recorded: str) -> None:
    rows = told("findings", "int4 g64", memory=recorded, home=tmp_path)
    assert {row["value"] for row in rows} == {"int4-g64"}
    kept = told("findings", "--verdict", "kept", memory=recorded, home=tmp_path)
    assert kept
    assert all(row["verdict"] == "kept" and row["gain"] > 0 for row in kept)
    assert told("findings", "--since", "1d", memory=recorded, home=tmp_path) is not None
    done = cli("findings", "--since", "soon", "--memory", recorded, home=tmp_path)
    assert_one_line_error(done, "--since 'soon': write 30m, 12h, 7d, or a date")


def test_board_stamps_the_user(tmp_path: Path) -> None:
    memory = f"sqlite:///{tmp_path}/m.db"
    said = told("post", "anybody at @nobody here?", "--channel", "x", memory=memory, home=tmp_path)
    answer = told("post", "yes", "--reply-to", said["id"], memory=memory, home=tmp_path)
    assert said["author"] == answer["author"] == getpass.getuser()
    board = told("board", memory=memory, home=tmp_path)
    assert [post["id"] for post in board] == [answer["id"], said["id"]]
    assert len(told("board", "--channel", "x", memory=memory, home=tmp_path)) == 1
    assert len(told("board", "--thread", said["id"], memory=memory, home=tmp_path)) == 2
    assert [p["id"] for p in told("inbox", memory=memory, home=tmp_path)] == [answer["id"]]
    digest = told("digest", "--since", "1h", memory=memory, home=tmp_path)
    assert (len(digest["posts"]), digest["verdicts"]) == (2, {})
    assert told("claims", memory=memory, home=tmp_path) == []
    done = cli("post", "", "--memory", memory, home=tmp_path)
    assert_one_line_error(done, "a post of 0 characters")


def test_memory_travels(tmp_path: Path, recorded: str) -> None:
    new = f"sqlite:///{tmp_path}/new.db"
    file = str(tmp_path / "all.jsonl")
    rows = told("memory", "export", file, memory=recorded, home=tmp_path)["rows"]
    joined = told("memory", "import", file, memory=new, home=tmp_path)
    assert joined["seen"] == rows == sum(joined["rows"].values())
    assert told("memory", "import", file, memory=new, home=tmp_path)["rows"] == {}
    assert told("memory", "merge", recorded, memory=new, home=tmp_path)["rows"] == {}
    same = ("levers", "--limit", "99")
    assert told(*same, memory=new, home=tmp_path) == told(*same, memory=recorded, home=tmp_path)
    assert told("memory", "check", memory=new, home=tmp_path) == []
    with sqlite3.connect(tmp_path / "new.db") as connection:
        connection.execute("UPDATE ledger SET kept = 99 WHERE value = 'int4-g64'")
    done = cli("memory", "check", "--memory", new, home=tmp_path)
    assert done.returncode == 1
    assert "ledger weights/int4-g64" in done.stdout
    assert cli("memory", "check", "--repair", "--memory", new, home=tmp_path).returncode == 0
    gone = told("memory", "prune", "--keep", "champions", memory=new, home=tmp_path)
    assert (gone["trees"], gone["logs"]) == ([], [])
    done = cli("memory", "prune", "--keep", "some", "--memory", new, home=tmp_path)
    assert_one_line_error(done, "--keep some: one of all, kept, champions")
    done = cli("memory", "import", str(tmp_path / "none"), "--memory", new, home=tmp_path)
    assert_one_line_error(done, "No such file")


def test_a_dry_run_shows_jobs_cost_and_time_without_a_token(home: Path) -> None:
    asked = ("run", "gemma4-e4b-a10g", "--executor", "hf-jobs", "--dry-run", "--json")
    done = cli(*asked, home=home)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["flavor"], found["jobs"], found["usd"]) == ("a10g-small", 42, 84.0)
    assert found["job"]["timeoutSeconds"] == 7200
    assert [v["mountPath"] for v in found["job"]["volumes"]] == ["/errand", "/results", "/model"]
    levers = {row["lever"].partition(",")[0]: row["ceiling_tps"] for row in found["levers"]}
    assert 50 < levers["none"] < 60
    assert levers["weights=int4-g128"] > 2 * levers["none"]
    assert_one_line_error(cli("run", "--dry-run", home=home), "executor local submits nothing")
