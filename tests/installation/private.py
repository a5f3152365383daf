"""A whole system of one's own for a test: this machine's files under a layer that is thrown away, in namespaces where
nothing else runs and every port is free. What a test does there as root, it does to nothing.
"""

import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent

# The first process: ends nothing, and takes care of orphans. It says when the root is there.
_INIT = """
import os, signal
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
os.write(1, b"ready\\n")
os.close(1)
signal.pause()
"""
_MOUNT = """
set -e
layer=$(mktemp -d)
mount -t tmpfs -o mode=0755 private "$layer"
mkdir "$layer/upper" "$layer/work" "$layer/root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$layer/upper,workdir=$layer/work" "$layer/root"
cd "$layer/root"
mount -t proc proc proc
mount --rbind /dev dev
mount -t tmpfs -o mode=0755 run run
mkdir -p "run/lock" ".$1"
mount --bind -o ro "$1" ".$1"
ip link set lo up
rmdir "$layer" 2>/dev/null || true
exec chroot . "$2" -c "$3"
"""


def environment() -> dict[str, str]:
    """What an administrator who just logged in has, and how this machine reaches packages."""
    env = {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": "/root",
        "LANG": "C.UTF-8",
    }
    return env | {
        name: value for name, value in os.environ.items() if name.startswith(("PIP_", "http", "HTTP", "SSL_"))
    }


class PrivateRoot:
    """Use with `with`. `run` gives what a command did."""

    def __enter__(self) -> "PrivateRoot":
        self._unshare = subprocess.Popen(
            ["unshare", "--mount", "--net", "--pid", "--ipc", "--uts", "--fork", "--kill-child", "--",
             "sh", "-c", _MOUNT, "sh", str(ROOT), "/usr/bin/python3", _INIT],
            stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, umask=0o022,  # whatever a test left in this process
        )  # fmt: skip
        assert self._unshare.stdout is not None
        assert self._unshare.stdout.readline() == b"ready\n", "no private root could be made (root and overlayfs?)"
        self._unshare.stdout.close()
        children = Path(f"/proc/{self._unshare.pid}/task/{self._unshare.pid}/children").read_text().split()
        self._pid = children[0]
        return self

    def __exit__(self, *failure: object) -> None:
        self._unshare.kill()  # its child, and with that all of the namespace, is killed by the kernel
        self._unshare.wait()

    def command(self, *words: str, outside_net: bool = False) -> list[str]:
        net = [] if outside_net else ["--net"]
        return [
            "nsenter",
            "--target",
            self._pid,
            "--mount",
            "--pid",
            "--ipc",
            "--uts",
            "--root",
            "--wd",
            *net,
            *words,
        ]

    def run(
        self, *words: str, code: int = 0, text: str = "", outside_net: bool = False, timeout: float = 240
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in it; `outside_net` where packages are to be fetched. It must end with `code`."""
        done = subprocess.run(
            self.command(*words, outside_net=outside_net), input=text, capture_output=True, text=True,
            env=environment(), timeout=timeout, check=False, umask=0o022,
        )  # fmt: skip
        assert done.returncode == code, f"{words}: code {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def shell(self, script: str, code: int = 0) -> str:
        return self.run("sh", "-c", script, code=code).stdout
