"""The benchmark: its report says what was measured, and a server with a wrong answer scores nothing."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "bench"))

from benchlib import __main__ as command  # noqa: E402
from benchlib import goals, plan, report, results, rows  # noqa: E402


@pytest.fixture(scope="module")
def toys() -> dict[tuple[str, str], dict]:
    """What the toy servers came to. In a process of its own: the benchmark's client uses epoll, threads and signals."""
    command = [sys.executable, str(ROOT / "bench" / "selftest.py")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    outcomes = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0, done.stdout + done.stderr
    return {(one["mode"], one["workload"]): result({"mailsrv": {one["workload"]: [one]}}) for one in outcomes}


def result(runs: dict) -> dict:
    entries = {
        name: {"info": {"name": name, "version": "1", "fsync": "all", "notes": []}, "runs": of_it}
        for name, of_it in runs.items()
    }
    machine = {"cores": 2, "cpu": "a processor", "memory_gb": 4, "kernel": "6.1", "python": "3.11", "load": 0.1}
    return {
        "machine": machine, "began": "2026-11-27 12:00:00", "command": "bench/run --quick", "quick": True,
        "sizes": plan.QUICK, "seconds": 90.0, "targets": entries,
    }  # fmt: skip


def run(errors=(), **metrics: float) -> dict:
    metrics = {name.replace("__", "."): value for name, value in metrics.items()}
    return {"metrics": metrics, "samples": {}, "errors": list(errors), "seconds": 1.0}


def table_row(text: str, title: str) -> list[str]:
    [line] = [line for line in text.splitlines() if line.startswith(f"| {title} |")]
    return [cell.strip() for cell in line.strip("|").split("|")][1:]


LOGIN = "login__plain__per_s"


def test_a_figure_is_the_median_with_the_least_and_the_most_and_the_ratio():
    ours = [run(**{LOGIN: rate}) for rate in (900, 1000, 1200)]
    text = report.markdown(result({"mailsrv": {"login": ours}, "dovecot": {"login": [run(**{LOGIN: 250})]}}))
    assert table_row(text, "without TLS") == ["1,000/s (900 to 1,200)", "250/s", "4.00x"]
    assert "mailsrv with `workers: auto`" in text
    assert "2026-11-27" in text and "`bench/run --quick`" in text and "a processor" in text


def test_less_time_is_better():
    ours, theirs = run(mailbox__warm__select__wall_s=0.01), run(mailbox__warm__select__wall_s=0.05)
    text = report.markdown(result({"mailsrv": {"mailbox": [ours]}, "dovecot": {"mailbox": [theirs]}}))
    assert table_row(text, "SELECT, warm")[2] == "5.00x"


def test_processor_time_in_a_second_is_a_cost():
    ours, theirs = run(idlecpu__server_cpu_ms_per_s=4.0), run(idlecpu__server_cpu_ms_per_s=1.0)
    text = report.markdown(result({"mailsrv-1": {"idlecpu": [ours]}, "dovecot": {"idlecpu": [theirs]}}))
    assert table_row(text, "200 connections in IDLE: server CPU") == ["4.00 ms/s", "1.00 ms/s", "0.25x"]


def test_goals_are_held_against_a_full_run_with_the_limits_of_the_machine():
    ours = {"push": [run(push__irregular__after_250__p50_ms=0.2, push__irregular__smtp_250_after_eod__p50_ms=2.0)],
            "throughput": [run(throughput__10k__c1__visible_per_s=700.0)]}  # fmt: skip
    theirs = {"throughput": [run(throughput__10k__c1__visible_per_s=400.0)]}
    best = {"throughput": [run(throughput__10k__c1__visible_per_s=500.0)]}
    found = result({"mailsrv": ours, "dovecot": theirs, "dovecot-lmtp": best})
    assert "## The goals" not in report.markdown(found), "a quick run is of another size"
    found |= {"quick": False, "sizes": plan.FULL, "floor": {"disk.fsync 10k file+dir, 1 thread [/s]": 800.0}}
    text = report.markdown(found)
    assert "1 of 3 are met in this run." in text
    assert table_row(text, "250 -> EXISTS, median")[:2] + table_row(text, "250 -> EXISTS, median")[-1:] == [
        "at most 0.3 ms", "0.2 ms", "met",
    ]  # fmt: skip
    goal = table_row(text.partition("## Push")[0], "end of data -> 250, median")
    assert goal == ["at most 1.50 ms", "2.00 ms", "", "1.25 ms", f"needs {goals.SYNCED}"]
    goal = table_row(text, "10 KB mails visible, 1 connection")
    assert goal[:4] == ["at least 750/s (1.5x the best)", "700/s", "500/s", "800/s"]


def test_every_goal_is_a_figure_of_the_report():
    """By its name, or the table would stay empty without anybody noticing."""
    names = {row.name for group in rows.groups(plan.FULL) for row in group.rows}
    assert {goal.name for goal in goals.GOALS} <= names


def test_one_wrong_answer_in_any_round_fails_the_workload():
    runs = [run(**{LOGIN: 900}), run(["19 of 20 done"], **{LOGIN: 90000})]
    found = result({"mailsrv": {"login": runs}, "dovecot": {"login": [run(**{LOGIN: 250})]}})
    assert table_row(report.markdown(found), "without TLS") == ["FAILED", "250/s", ""]
    assert "- mailsrv, login: 19 of 20 done" in report.markdown(found)
    assert results.failures(found) == [("mailsrv", "login", "19 of 20 done")]
    assert "90,000" not in report.short_table(found)


def test_memory_is_of_one_worker_and_says_so():
    metrics = {"memory__plain__1000__pss_mb": 40.0}
    text = report.markdown(result({"mailsrv-1": {"memory": [run(**metrics)]}}))
    assert "mailsrv with `workers: 1`" in text
    assert table_row(text, "1,000 idle connections without TLS") == ["40.0 MB"]


def test_the_readme_gets_the_table_between_its_marks():
    readme = f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n"
    table = report.short_table(result({"mailsrv": {"login": [run(**{LOGIN: 900})]}}))
    text = report.into_readme(readme, table)
    assert text.startswith("before\n") and text.endswith("\nafter\n") and "old" not in text and "900/s" in text
    with pytest.raises(ValueError):
        report.into_readme("no marks", table)


def test_results_of_two_runs_are_one():
    parts = [result({"mailsrv": {"login": [run(**{LOGIN: rate})]}}) for rate in (100, 300)]
    figure = results.outcome(results.merged(parts), "mailsrv", "login")["login.plain.per_s"]
    assert (figure.median, figure.least, figure.most, figure.rounds) == (200, 100, 300, 2)


def test_every_row_is_of_a_workload_that_is_run():
    for group in rows.groups(plan.FULL):
        assert group.ours in plan.WORKLOADS[group.workload].targets


def test_the_limits_of_the_machine_stand_in_the_report():
    text = report.markdown(result({}) | {"floor": {"disk.fsync 10k file+dir, 1 thread [/s]": 1234.5}})
    assert table_row(text, "disk.fsync 10k file+dir, 1 thread [/s]") == ["1,234"]


@pytest.mark.parametrize(("errors", "status"), [((), 0), (("lost",), 1)])
def test_the_command_says_by_its_status_whether_an_answer_was_wrong(errors, status, tmp_path, monkeypatch):
    monkeypatch.setitem(
        sys.modules, "benchlib.picture", SimpleNamespace(draw=lambda *_: None)
    )  # no matplotlib in tests
    stored = tmp_path / "stored.json"
    stored.write_text(json.dumps(result({"mailsrv": {"login": [run(errors, **{LOGIN: 900})]}})))
    assert command.main(["--from", str(stored), "--output", str(tmp_path)]) == status
    assert table_row((tmp_path / "benchmark.md").read_text(), "without TLS") == ["FAILED" if status else "900/s"]


def test_what_is_missing_is_named_before_anything_runs(monkeypatch, capsys):
    monkeypatch.setattr(command.shutil, "which", lambda _: None)
    monkeypatch.setattr(command.os, "geteuid", lambda: 1000)
    assert command.main(["--quick"]) == 2
    said = capsys.readouterr().err
    assert "apt-get install dovecot-imapd dovecot-lmtpd postfix" in said and "root" in said
    assert command.missing(["mailsrv"]) == []


def test_a_quick_run_has_every_workload_and_both_servers():
    pairs = plan.chosen(None, list(plan.ALL), quick=True)
    assert {name for name, _ in pairs} == set(plan.WORKLOADS) - set(plan.OPTIONAL)
    assert {target for _, target in pairs} == {"mailsrv", "mailsrv-1", "dovecot", "dovecot-lmtp"}
    assert plan.chosen(["search"], ["mailsrv"], quick=True) == [("mailbox", "mailsrv")]


def test_a_server_that_does_all_is_measured(toys):
    found = toys["good", "push"]
    assert results.failures(found) == []
    assert table_row(report.markdown(found), "end of data -> EXISTS, median")[0].endswith(" ms")
    assert len(results.samples(found, "mailsrv", "push", "push.irregular.after_eod")) == 3
    assert table_row(report.markdown(toys["good", "login"]), "without TLS")[0].endswith("/s")


def test_a_server_that_announces_nothing_has_failed(toys):
    found = toys["mute", "push"]
    assert table_row(report.markdown(found), "end of data -> EXISTS, median") == ["FAILED"]
    assert ("mailsrv", "push", "3 notifications lost") in results.failures(found)
    assert results.samples(found, "mailsrv", "push", "push.irregular.smtp_250_after_eod") == []


def test_a_server_that_leaves_out_an_answer_has_failed(toys):
    assert table_row(report.markdown(toys["lazy", "login"]), "without TLS") == ["FAILED"]


def test_a_workload_that_does_not_end_has_failed(toys):
    [(_, _, error)] = results.failures(toys["slow", "push"])
    assert error.startswith("OutOfTime")
