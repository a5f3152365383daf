"""Mail comes in: how late watchers hear of it, and how many messages a second the server takes.

`after_250` is counted from the client's receipt of the final 250 to its receipt of the untagged EXISTS (below zero is
possible: a server may announce before it answers); `after_eod` from the moment the end of data was sent.
"""

from __future__ import annotations

import time

from .imap import Imap
from .loop import Loop
from .proc import Meter
from .smtp import Job, SmtpPool
from .util import median
from .watchers import Watcher, Watchers
from .work import U_FAN, U_PUSH, U_STEADY, U_THR, Work, spin


class Arrivals:
    """For each watcher the times of its first, second ... new message."""

    def __init__(self, watchers: Watchers) -> None:
        self.base = {w.number: w.exists for w in watchers.all}
        self.seen: dict[int, list[float]] = {number: [] for number in self.base}
        watchers.on_exists = self.told

    def told(self, watcher: Watcher, count: int, now: float) -> None:
        seen = self.seen[watcher.number]
        while len(seen) < count - self.base[watcher.number]:
            seen.append(now)

    def total(self) -> int:
        return sum(map(len, self.seen.values()))


def push(work: Work) -> None:
    """One watcher, deliveries at irregular intervals over one kept SMTP connection."""
    for key, n, isolated in (
        ("irregular", work.sizes["push_n"], False),
        ("isolated", work.sizes["push_isolated"], True),
    ):
        loop = Loop()
        watchers = Watchers(loop, work.target.imap, [work.target.login(U_PUSH + isolated)])
        watchers.open()
        arrivals = Arrivals(watchers)
        seen = arrivals.seen[0]
        pool = SmtpPool(work.target, loop, 1)
        jobs = []
        with Meter(work.target) as meter:
            for k in range(n):
                job = Job(work.target.address(U_PUSH + isolated), work.mail())
                jobs.append(job)
                pool.submit(job)
                pool.wait(30)
                if isolated:
                    end = time.time() + work.sizes["push_wait"] / 2
                    while len(seen) < k + 1 and time.time() < end:
                        loop.once(0.1)
                    spin(loop, work.rng.uniform(0.55, 0.85))
                else:
                    spin(loop, min(1.2, work.rng.expovariate(1 / work.sizes["push_gap"])))
            end = time.time() + work.sizes["push_wait"]
            while len(seen) < n and time.time() < end:
                loop.once(0.1)
        ok = [job for job in jobs if job.ok]
        work.check(len(ok) == n, f"{n - len(ok)} deliveries refused: {pool.first_error}")
        told = list(zip(seen, ok, strict=False))
        work.put_ms(f"push.{key}.after_250", [at - job.answered for at, job in told])
        work.put_ms(f"push.{key}.after_eod", [at - job.sent for at, job in told])
        work.put_ms(f"push.{key}.smtp_250_after_eod", [job.answered - job.sent for job in ok])
        work.put(f"push.{key}.lost", n - len(told))
        work.check(len(told) == n, f"{n - len(told)} notifications lost")
        work.put(f"push.{key}.server_cpu_ms_per_msg", meter.server * 1e3 / n)
        work.put(f"push.{key}.client_cpu_s", meter.client)
        pool.close()
        watchers.close()


class Told:
    """Who of all watchers has heard of one message, and when."""

    def __init__(self, watchers: Watchers) -> None:
        self.base = watchers.all[0].exists
        self.want = 0
        self.at: dict[int, float] = {}
        watchers.on_exists = self.told

    def expect(self, number: int) -> None:
        self.want = number
        self.at.clear()

    def told(self, watcher: Watcher, count: int, now: float) -> None:
        if count - self.base >= self.want and watcher.number not in self.at:
            self.at[watcher.number] = now


def fanout(work: Work) -> None:
    """n watchers of one mailbox; each delivery waits for all of them."""
    for n in work.sizes["fan"]:
        if n > work.target.max_idle:
            work.say(f"fanout {n}: above the target's limit, skipped")
            continue
        loop = Loop()
        watchers = Watchers(loop, work.target.imap, [work.target.login(U_FAN)] * n)
        work.put(f"fanout.{n}.open_s", watchers.open())
        told = Told(watchers)
        pool = SmtpPool(work.target, loop, 1)
        times: dict[str, list[float]] = {"first": [], "median": [], "last": []}
        lost = 0
        spin(loop, 1.0)
        with Meter(work.target) as meter:
            for k in range(work.sizes["fan_n"]):
                told.expect(k + 1)
                job = Job(work.target.address(U_FAN), work.mail())
                pool.submit(job)
                end = time.time() + 15
                while (len(told.at) < n or pool.pending) and time.time() < end:
                    loop.once(0.1)
                work.check(bool(job.ok), f"delivery refused: {job.reply!r}")
                at = sorted(told.at.values())
                lost += n - len(at)
                if at and job.ok:
                    times["first"].append(at[0] - job.answered)
                    times["median"].append(at[len(at) // 2] - job.answered)
                    times["last"].append(at[-1] - job.answered)
                spin(loop, work.rng.uniform(0.7, 0.9))
        for key, values in times.items():
            work.put(f"fanout.{n}.{key}.p50_ms", median(values) * 1e3)
        work.put(f"fanout.{n}.last.max_ms", max(times["last"], default=float("nan")) * 1e3)
        work.put(f"fanout.{n}.lost", lost)
        wrong = f"{lost} of {n * work.sizes['fan_n']} notifications lost, {watchers.dead} watchers died"
        work.check(lost == 0, f"{wrong} {watchers.errors[:1]}")
        work.put(f"fanout.{n}.server_cpu_ms_per_msg", meter.server * 1e3 / work.sizes["fan_n"])
        work.put(f"fanout.{n}.client_cpu_ms_per_msg", meter.client * 1e3 / work.sizes["fan_n"])
        pool.close()
        watchers.close()
        spin(loop, 0.5)


def _at_a_rate(
    work: Work, key: str, users: int, first_user: int, rate: float, seconds: float, connections: int
) -> None:
    """Deliveries at a fixed rate to random users, each of whom has one watcher."""
    target, loop = work.target, Loop()
    watchers = Watchers(loop, target.imap, [target.login(first_user + i) for i in range(users)])
    work.put(f"{key}.open_s", watchers.open())
    spin(loop, 1.0)
    arrivals = Arrivals(watchers)
    pool = SmtpPool(target, loop, connections)
    done: list[Job] = []
    pool.on_done = done.append
    n = int(rate * seconds)
    slip = 0.0
    with Meter(target) as meter:
        begun = time.perf_counter()
        for k in range(n):
            due = begun + k / rate
            while (left := due - time.perf_counter()) > 0:
                loop.once(left)
            slip = max(slip, -left)
            user = work.rng.randrange(users)
            pool.submit(Job(target.address(first_user + user), work.mail(), user))
        pool.wait(60)
        want = sum(1 for job in done if job.ok)
        end = time.time() + 15
        while arrivals.total() < want and time.time() < end:
            loop.once(0.05)
    ok = sorted((job for job in done if job.ok), key=lambda job: job.answered)
    work.check(len(ok) == n, f"{n - len(ok)} of {n} deliveries failed: {pool.first_error}")
    position: dict[int, int] = {}
    after_250, after_eod = [], []
    for job in ok:
        k = position.get(job.key, 0)
        position[job.key] = k + 1
        if k < len(arrivals.seen[job.key]):
            after_250.append(arrivals.seen[job.key][k] - job.answered)
            after_eod.append(arrivals.seen[job.key][k] - job.sent)
    work.put_ms(f"{key}.after_250", after_250)
    work.put_ms(f"{key}.after_eod", after_eod)
    work.put(f"{key}.lost", len(ok) - len(after_250))
    work.check(len(after_250) == len(ok), f"{len(ok) - len(after_250)} of {len(ok)} notifications lost")
    work.put(f"{key}.server_cpu_ms_per_msg", meter.server * 1e3 / n)
    work.put(f"{key}.server_cpu_s", meter.server)
    work.put(f"{key}.client_cpu_s", meter.client)
    work.put(f"{key}.client_slip_max_ms", slip * 1e3)
    pool.close()
    watchers.close()


def many(work: Work) -> None:
    """Many users with one watcher each, and mail for one of them at a time."""
    users = min(work.sizes["many_users"], work.target.max_idle)
    _at_a_rate(work, "many", users, 0, work.sizes["many_rate"], work.sizes["many_secs"], 10)


def steady(work: Work) -> None:
    """A thousand messages a minute to ten users who watch."""
    rate = work.sizes["steady_per_min"] / 60
    _at_a_rate(work, "steady", work.sizes["steady_watchers"], U_STEADY, rate, work.sizes["steady_secs"], 2)


def _visible(connections: list[Imap]) -> int:
    return sum(connection.status_messages() for connection in connections)


def throughput(work: Work) -> None:
    """As many messages a second as the server takes, until the last 250 and until all of them can be seen."""
    sizes = work.sizes
    runs = [(f"throughput.10k.c{k}", sizes["thr_n"], sizes["thr_size"], k) for k in sizes["thr_conns"]]
    runs.append(("throughput.1m.c10", sizes["thr_big_n"], sizes["thr_big_size"], 10))
    for number, (key, n, size, connections) in enumerate(runs):
        _throughput(work, key, n, size, connections, U_THR + number * sizes["thr_boxes"])


def _throughput(work: Work, key: str, n: int, size: int, connections: int, first: int) -> None:
    target, boxes = work.target, work.sizes["thr_boxes"]
    readers = [Imap(target.imap).login(*target.login(first + i)) for i in range(boxes)]
    base = _visible(readers)
    loop = Loop()
    pool = SmtpPool(target, loop, connections)
    messages = [work.mail(size) for _ in range(min(n, 2000))]  # ids repeat after 2000; bodies are shared anyway
    with Meter(target) as meter:
        begun = time.perf_counter()
        submitted, window = 0, 2 * connections
        while submitted < n or pool.pending:
            while submitted < n and pool.pending < window:
                address = target.address(first + submitted % boxes)
                pool.submit(Job(address, messages[submitted % len(messages)]))
                submitted += 1
            loop.once(1.0)
            if (submitted and not pool.all) or time.perf_counter() - begun > 300:
                break
        accepted = time.perf_counter()
        want = n - pool.failed
        end = time.time() + 120
        while (got := _visible(readers) - base) < want and time.time() < end:
            time.sleep(0.05)
        visible = time.perf_counter()
    work.check(pool.failed == 0 and not pool.pending, f"{key}: {pool.failed} refused: {pool.first_error}")
    work.check(got == want, f"{key}: {got} visible, {want} accepted")
    work.put(f"{key}.accepted_per_s", n / (accepted - begun))
    work.put(f"{key}.visible_per_s", n / (visible - begun))
    work.put(f"{key}.visible_after_last_250_ms", (visible - accepted) * 1e3)
    work.put(f"{key}.server_cpu_ms_per_msg", meter.server * 1e3 / n)
    work.put(f"{key}.client_cpu_ms_per_msg", meter.client * 1e3 / n)
    if size > 100000:
        work.put(f"{key}.visible_mbps", n * size / 1e6 / (visible - begun))
    pool.close()
    # The newest message of the first mailbox came through whole.
    reader = readers[0]
    reader.select()
    answers, _ = reader.cmd("FETCH * (BODY.PEEK[TEXT])")
    body = messages[0].split(b"\r\n\r\n", 1)[1]
    work.check(any(body in answer for answer in answers), f"{key}: body changed on its way")
    for one in readers:
        one.close()
