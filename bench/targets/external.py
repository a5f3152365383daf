"""Any server, described by a JSON file (mailsrv's own: mailsrv.json).

Keys ({braces} are filled in: dir, host, imap_port, imaps_port, smtp_port, cert, key, domain, users, users_file, and
here, the directory of the JSON file):
  name                    shown in tables
  host, imap_port, imaps_port, smtp_port     fixed ports; 0 = pick a free one (needs "command");
                          without imaps_port nothing is measured with TLS
  smtp_proto              "smtp" (default) or "lmtp"
  prepare                 list of argv lists run once before the first start (create users, config ...)
  files                   {"path": "content", ...} written before "prepare" (path relative to {dir})
  command                 argv to start the server in the foreground; absent = it is already running
  env, cwd
  pids                    list of root pids, or pid_file: file to read them from (server already running,
                          or a command that daemonises); otherwise the command's own process tree
  login_pattern, password_pattern, address_pattern     with {i}; default u{i} / pw{i} / u{i}@bench.test
  maildir_pattern         with {i}; only if messages may be dropped into cur/ behind the server's back
  maildir_uid
  max_idle                highest number of idle connections to try (default 5000)
  stop_signal             default TERM;  stop_timeout seconds (default 20)
  fsync, version, notes   text for the report

{users_file} is "name:password" per line, for {users} users.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from typing import Any

from benchlib import proc, util

from .base import DOMAIN, Target


class External(Target):
    def __init__(self, path: str, users: int = 1000) -> None:
        super().__init__(users)
        with open(path) as file:
            self.settings: dict[str, Any] = json.load(file)
        settings = self.settings
        self.name = settings.get("name", os.path.basename(path))
        host = settings.get("host", "127.0.0.1")
        self.values: dict[str, object] = {
            "dir": self.dir,
            "host": host,
            "cert": self.certificate,
            "key": self.key,
            "domain": DOMAIN,
            "users": users,
            "users_file": os.path.join(self.dir, "bench-users"),
            "here": os.path.dirname(os.path.abspath(path)),
        }
        for name in ("imap_port", "imaps_port", "smtp_port"):
            if name in settings:
                self.values[name] = int(settings[name]) or util.free_ports(1)[0]
        self.imap = (host, int(str(self.values["imap_port"])))
        self.smtp = (host, int(str(self.values["smtp_port"])))
        self.imaps = (host, int(str(self.values["imaps_port"]))) if "imaps_port" in self.values else None
        self.smtp_proto = settings.get("smtp_proto", "smtp")
        self.fsync, self.version = settings.get("fsync", "?"), settings.get("version", "?")
        self.max_idle = settings.get("max_idle", 5000)
        self.notes = list(settings.get("notes", []))
        self.can_restart = "command" in settings
        self.process: subprocess.Popen[bytes] | None = None
        self.prepared = False
        self.log = os.path.join(self.dir, "server.log")
        with open(str(self.values["users_file"]), "w") as file:
            for i in range(users):
                file.write(":".join(self.login(i)) + "\n")
        self.write_files()

    def write_files(self, workers: str = "1") -> None:
        """The server's files; with `workers` in the place of the number in a line `workers: 1`."""
        for name, content in self.settings.get("files", {}).items():
            path = os.path.join(self.dir, self.fill(name))
            os.makedirs(os.path.dirname(path), exist_ok=True)
            text = self.fill("\n".join(content) + "\n" if isinstance(content, list) else content)
            with open(path, "w") as file:
                file.write(text.replace("workers: 1\n", f"workers: {workers}\n"))

    def fill(self, text: str) -> str:
        for name, value in self.values.items():
            text = text.replace("{" + name + "}", str(value))
        return text

    def environment(self) -> dict[str, str]:
        return {**os.environ, **{k: self.fill(v) for k, v in self.settings.get("env", {}).items()}}

    def directory(self) -> str | None:
        return self.fill(self.settings["cwd"]) if "cwd" in self.settings else None

    def pattern(self, key: str, default: str, i: int) -> str:
        return str(self.settings.get(key, default)).replace("{i}", str(i % self.users))

    def login(self, i: int) -> tuple[str, str]:
        return self.pattern("login_pattern", "u{i}", i), self.pattern("password_pattern", "pw{i}", i)

    def address(self, i: int) -> str:
        return self.pattern("address_pattern", "u{i}@" + DOMAIN, i)

    def maildir(self, i: int) -> tuple[str, int] | None:
        path = self.settings.get("maildir_pattern")
        if not path:
            return None
        return self.fill(path).replace("{i}", str(i % self.users)), self.settings.get("maildir_uid", os.getuid())

    def prepare(self) -> None:
        if self.prepared:
            return
        with open(self.log, "ab") as out:
            for argv in self.settings.get("prepare", []):
                command = [self.fill(word) for word in argv]
                environment, directory = self.environment(), self.directory()
                subprocess.run(command, check=True, stdout=out, stderr=out, env=environment, cwd=directory)
        self.prepared = True

    def start(self) -> None:
        self.prepare()
        environment, directory = self.environment(), self.directory()
        with open(self.log, "ab") as out:
            if "command" in self.settings and not self.process:
                command = [self.fill(word) for word in self.settings["command"]]
                self.process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=out,
                    start_new_session=True,
                    env=environment,
                    cwd=directory,
                )
        try:
            util.wait_port(self.imap, self.settings.get("start_timeout", 20))
            util.wait_port(self.smtp)
        except RuntimeError as error:
            with open(self.log, "rb") as file:
                tail = file.read()[-1500:].decode(errors="replace")
            raise RuntimeError(f"{error}\n{tail}") from None

    def stop(self) -> None:
        if not self.process:
            return
        tree = list(proc.tree(self.roots()))
        for pid in self.roots():
            self.signal(pid, getattr(signal, "SIG" + self.settings.get("stop_signal", "TERM")))
        try:
            self.process.wait(self.settings.get("stop_timeout", 20))
        except subprocess.TimeoutExpired:
            self.notes.append("had to be killed")
        time.sleep(0.05)
        for pid in set(proc.tree(tree)) & set(tree):
            self.signal(pid, signal.SIGKILL)
        self.process.wait(10)
        self.process = None

    @staticmethod
    def signal(pid: int, number: int) -> None:
        try:
            os.kill(pid, number)
        except OSError:
            pass

    def roots(self) -> list[int]:
        pids = [int(pid) for pid in self.settings.get("pids", [])]
        if "pid_file" in self.settings:
            try:
                with open(self.fill(self.settings["pid_file"])) as file:
                    pids += [int(pid) for pid in file.read().split()]
            except OSError:
                pass
        if self.process and self.process.poll() is None:
            pids.append(self.process.pid)
        return pids
