"""Dovecot 2.3 behind Postfix (LMTP over a unix socket), and variants:

dovecot            Postfix -> LMTP -> Dovecot, Maildir; a process for each IMAP connection (the default)
dovecot-lmtp       the client speaks LMTP straight to Dovecot (no queue)
dovecot-hibernate  as dovecot, with imap-hibernate after 5 s of IDLE
dovecot-shared     as dovecot, with up to 200 connections in each imap process

Sync settings are the shipped defaults (Dovecot mail_fsync=optimized, Postfix as it is). Dovecot's login processes run
in its documented high-performance mode. Both start as root only.
"""

from __future__ import annotations

import os
import pwd
import signal
import subprocess
import time

from benchlib import proc, util

from .base import DOMAIN, Target

UID = 20000
INOTIFY = "/proc/sys/fs/inotify/max_user_instances"
INOTIFY_INSTANCES = 8192  # one for each imap process, and all processes are one user's: the usual 128 are too few


def gone(pid: int, timeout: float) -> bool:
    end = time.time() + timeout
    while time.time() < end:
        try:
            with open(f"/proc/{pid}/stat") as file:
                if file.read().rsplit(")", 1)[1].split()[0] == "Z":
                    return True
        except OSError:
            return True
        time.sleep(0.02)
    return False


def said(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


class Dovecot(Target):
    fsync = "Postfix: the queue file before the 250; Dovecot: mail_fsync=optimized (fdatasync of each message)"

    def __init__(self, users: int = 1000, variant: str = "") -> None:
        super().__init__(users)
        self.variant = variant
        self.name = "dovecot" + (f"-{variant}" if variant else "")
        self.postfix = variant != "lmtp"
        self.version = f"Dovecot {said('dovecot', '--version').split()[0]}"
        self.dovecot: subprocess.Popen[bytes] | None = None
        self.postfix_pid: int | None = None
        self.inotify_before: str | None = None
        self.p_imap, self.p_imaps, self.p_lmtp, self.p_smtp = util.free_ports(4)
        self.imap, self.imaps = ("127.0.0.1", self.p_imap), ("127.0.0.1", self.p_imaps)
        if self.postfix:
            self.smtp = ("127.0.0.1", self.p_smtp)
            self.version += f" + Postfix {said('postconf', '-d', '-h', 'mail_version')}"
        else:
            self.smtp, self.smtp_proto = ("127.0.0.1", self.p_lmtp), "lmtp"
            self.fsync = "mail_fsync=optimized (fdatasync of each message) before the LMTP 250"
        os.makedirs(f"{self.dir}/mail")
        os.chown(f"{self.dir}/mail", UID, UID)
        with open(f"{self.dir}/users", "w") as file:
            for i in range(users):
                name, password = self.login(i)
                file.write(f"{name}:{{PLAIN}}{password}::::::\n")
        self._dovecot_conf()
        if self.postfix:
            self._postfix_conf()

    def maildir(self, i: int) -> tuple[str, int] | None:
        return f"{self.dir}/mail/{self.login(i)[0]}/Maildir", UID

    def _dovecot_conf(self) -> None:
        d = self.dir
        imap_extra = ""
        if self.variant == "hibernate":
            imap_extra = "  unix_listener imap-master {\n    user = dovecot\n  }\n"
        if self.variant == "shared":
            imap_extra = "  client_limit = 200\n  service_count = 0\n  process_min_avail = 2\n"
        conf = f"""
base_dir = {d}/run
state_dir = {d}/state
log_path = {d}/dovecot.log
protocols = imap lmtp
listen = 127.0.0.1
ssl = yes
ssl_cert = <{self.certificate}
ssl_key = <{self.key}
disable_plaintext_auth = no
auth_username_format = %Ln
mail_location = maildir:~/Maildir
mail_max_userip_connections = 20000
first_valid_uid = 1
postmaster_address = postmaster@{DOMAIN}
hostname = mx.{DOMAIN}
passdb {{
  driver = passwd-file
  args = scheme=PLAIN {d}/users
}}
userdb {{
  driver = static
  args = uid={UID} gid={UID} home={d}/mail/%u
}}
namespace inbox {{
  inbox = yes
}}
service imap-login {{
  service_count = 0
  process_min_avail = 2
  inet_listener imap {{
    port = {self.p_imap}
  }}
  inet_listener imaps {{
    port = {self.p_imaps}
    ssl = yes
  }}
}}
service imap {{
  process_limit = 8192
{imap_extra}}}
service imap-hibernate {{
  client_limit = 10000
  unix_listener imap-hibernate {{
    mode = 0666
  }}
}}
service lmtp {{
  unix_listener lmtp {{
    mode = 0666
  }}
  inet_listener lmtp {{
    port = {self.p_lmtp}
  }}
}}
service auth {{
  client_limit = 20000
}}
service anvil {{
  client_limit = 20000
}}
service stats {{
  client_limit = 20000
}}
"""
        if self.variant == "hibernate":
            conf += "imap_hibernate_timeout = 5s\n"
        with open(f"{d}/dovecot.conf", "w") as f:
            f.write(conf)

    def _postfix_conf(self) -> None:
        conf = f"{self.dir}/pc"
        for path in (conf, f"{self.dir}/pq", f"{self.dir}/pd"):
            os.makedirs(path)
        os.chown(f"{self.dir}/pd", pwd.getpwnam("postfix").pw_uid, -1)
        with open(f"{self.dir}/vmailbox", "w") as file:
            for i in range(self.users):
                file.write(f"{self.address(i)} x\n")
        with open(f"{conf}/main.cf", "w") as file:
            file.write(f"""compatibility_level = 3.6
queue_directory = {self.dir}/pq
data_directory = {self.dir}/pd
maillog_file_prefixes = {self.dir}
maillog_file = {self.dir}/postfix.log
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
myhostname = mx.{DOMAIN}
mydestination =
mynetworks = 127.0.0.0/8
alias_maps =
virtual_mailbox_domains = {DOMAIN}
virtual_mailbox_maps = texthash:{self.dir}/vmailbox
virtual_transport = lmtp:unix:{self.dir}/run/lmtp
""")
        with open(f"{conf}/master.cf", "w") as file:
            file.write(self._master_cf())

    def _master_cf(self) -> str:
        """The distribution's services, without chroot (the scratch tree has no etc/) and on our port."""
        lines = []
        with open(shipped_master_cf()) as file:
            for line in file:
                words = line.split()
                if not line[:1].strip() or line.startswith("#") or len(words) < 8 or words[7] == "pipe":
                    continue
                if words[:2] == ["smtp", "inet"]:
                    words[0] = f"127.0.0.1:{self.p_smtp}"
                if words[4] == "y":
                    words[4] = "n"
                lines.append(" ".join(words) + "\n")
        return "".join(lines)

    def start(self) -> None:
        self._raise_inotify()
        with open(f"{self.dir}/dovecot.out", "ab") as out:
            command = ["dovecot", "-F", "-c", f"{self.dir}/dovecot.conf"]
            self.dovecot = subprocess.Popen(command, stdout=out, stderr=out, stdin=subprocess.DEVNULL)
        util.wait_port(self.imap)
        if self.postfix:
            done = subprocess.run(["postfix", "-c", f"{self.dir}/pc", "start"], capture_output=True, text=True)
            if done.returncode:
                raise RuntimeError("postfix: " + done.stdout + done.stderr)
            with open(f"{self.dir}/pq/pid/master.pid") as file:
                self.postfix_pid = int(file.read())
        util.wait_port(self.smtp)

    def stop(self) -> None:
        if self.postfix_pid:
            children = [pid for pid in proc.tree([self.postfix_pid]) if pid != self.postfix_pid]
            send(self.postfix_pid, signal.SIGTERM)
            gone(self.postfix_pid, 20)
            for pid in children:
                gone(pid, 3)
            self.postfix_pid = None
        if self.dovecot:
            self.dovecot.terminate()
            try:
                self.dovecot.wait(30)
            except subprocess.TimeoutExpired:
                for pid in proc.tree([self.dovecot.pid]):
                    send(pid, signal.SIGKILL)
                self.dovecot.wait(10)
            self.dovecot = None
        if self.inotify_before:
            with open(INOTIFY, "w") as file:
                file.write(self.inotify_before)
            self.inotify_before = None

    def _raise_inotify(self) -> None:
        try:
            with open(INOTIFY) as file:
                before = file.read().strip()
            if int(before) < INOTIFY_INSTANCES:
                with open(INOTIFY, "w") as file:
                    file.write(str(INOTIFY_INSTANCES))
                self.inotify_before = before
                note = f"fs.inotify.max_user_instances is {INOTIFY_INSTANCES} instead of {before} while it runs"
        except OSError as error:
            note = f"fs.inotify.max_user_instances could not be raised: {error.strerror}"
        else:
            if self.inotify_before is None:
                return
        if note not in self.notes:
            self.notes.append(note)

    def roots(self) -> list[int]:
        return [pid for pid in (self.dovecot and self.dovecot.pid, self.postfix_pid) if pid]


def shipped_master_cf() -> str:
    daemons = said("postconf", "-d", "-h", "daemon_directory")
    share = os.path.join(os.path.dirname(os.path.dirname(daemons)), "..", "share", "postfix")
    for directory in (said("postconf", "-d", "-h", "meta_directory"), share):
        for name in ("master.cf.dist", "master.cf.proto"):
            if os.path.exists(f"{directory}/{name}"):
                return f"{directory}/{name}"
    raise RuntimeError("Postfix has no master.cf.dist or master.cf.proto")


def send(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except OSError:
        pass
