"""The soak in short: its clients, kills, reloads, samples, ledger and report. What grows is judged by bin/run-soak."""

import os
import signal

import pytest

from tests.daemon.conftest import until
from tests.model.serving import Served
from tests.soak.report import written
from tests.soak.run import Soak

SECONDS = 20


@pytest.mark.timeout(300)
def test_nothing_is_lost_while_workers_are_killed_and_settings_reloaded(
    tmp_path, certificate, authority_file, password_hash
):
    limits = {"limits.connections_per_address": 1000, "limits.connections_per_user": 1000}
    server = Served(tmp_path, certificate, authority_file, password_hash, **{"server.workers": 2, **limits})
    server.program = ("tests.soak.watched",)
    try:
        server.start()
        soak = Soak(server, 1, SECONDS)
        soak.run()
        assert soak.ledger.problems() == []
        assert len(soak.ledger.accepted) > 50 and soak.ledger.counts["connections lost"] > 0
        assert len(soak.killed) == 3 and soak.reloads == 10
        steady = [figures for (name, _), figures in soak.sampler.series.items() if name == "worker-0"]
        assert len(steady) == 1 and all(len(samples) > 2 for samples in steady[0].values())
        assert sum(soak.sampler.delays[:-1]) > 0
        text = written(soak, "bin/run-soak --minutes 0.3")
        assert "0 lost" in text and "| worker-0 (" in text and text.count(" s: too short to judge |") == 3
        # So short a run has shown nothing, of any role, and says so.
        unproven = {role for role, *_ in soak.unproven()}
        assert unproven == {"supervisor", "worker-0", "worker-1", "queue"}
        assert any("nothing is shown of worker-1: all its processes were too short" in one for one in soak.failed())
        # A level figure, had it been sampled for longer, is flat; a leak is called one, and by the process's name.
        longer = range(400)
        for (name, pid), figures in soak.sampler.series.items():
            for samples in figures.values():
                if pid not in soak.killed and (samples or name != "supervisor"):
                    samples[:] = [(float(at), 30e6 + at % 3) for at in longer]
        assert soak.failed() == [] and "**Result: nothing grows, nothing is lost.**" in written(soak, "")
        steady[0]["memory"][:] = [(float(at), 30e6 + at * 1e5 + at % 3) for at in longer]
        [leak] = soak.failed()
        assert leak.startswith("memory of worker-0 (")
        steady[0]["memory"][:] = [(float(at), 30e6 + at % 3) for at in longer]
        # Clients went over from one worker to the other, a few at a time: the sum tells that nothing was left open.
        [other] = [
            figures for (name, pid), figures in soak.sampler.series.items()
            if name == "worker-1" and pid not in soak.killed
        ]  # fmt: skip
        steady[0]["descriptors"][:] = [(float(at), 40 + (at // 20) % 9 + at // 45) for at in longer]
        other["descriptors"][:] = [(float(at), 80 - (at // 20) % 9 - at // 45) for at in longer]
        assert soak.failed() == []
        other["descriptors"][:] = [(float(at), 80 - (at // 20) % 9 - at // 45 + at // 10) for at in longer]
        assert any(one.startswith("descriptors of all workers grows") for one in soak.failed())
        for figures in (steady[0], other):
            figures["descriptors"][:] = [(float(at), 60) for at in longer]
        # What wavers too much to be decided has not been shown to be flat.
        steady[0]["memory"][:] = [(float(at), 30e6 + 8e6 * (at > 380)) for at in longer]
        [undecided] = soak.failed()
        assert undecided == "nothing is shown of worker-0: a longer run has to decide: memory"
        # A process that nobody killed and that had to be started again is a fault of its own.
        [queue] = [pid for pid, name in soak.sampler.pids().items() if name == "queue"]
        os.kill(queue, signal.SIGKILL)

        def noticed():
            soak.sampler.ask()
            return soak.sampler.restarts["queue"]

        until(noticed, "the queue runs again")
        assert soak.failed() == [undecided, "queue ended by itself, 1 times"]
        assert server.stop() == 0
    finally:
        server.close()
