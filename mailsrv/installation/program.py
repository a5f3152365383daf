"""Builds the program as a directory that can be put in place at once: a virtual environment with the package in it.

It is made beside its place and renamed, so that a failure leaves what was there, and the programs in it name the place
where it will be. Run by `mailsrv install`, and as `python3 -m mailsrv.installation.program STAGE FINAL` by package
builders, on a Python that has none of the libraries.

Imports: the standard library.
"""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

SOURCE = Path(__file__).parent.parent.parent
_PARTS = ("mailsrv", "setup.py", "setup.cfg", "README.md")
_NEEDED_TO_BUILD = ("pip", "setuptools")
_OLDEST = (3, 11)
# -I: neither the directory it is called in nor the caller's environment can bring other modules in.
_COMMAND = """#!{final}/bin/python -I
import sys

from mailsrv.__main__ import main

sys.exit(main())
"""
_SYSTEM_PYTHON = "/usr/bin/python3"


class BuildError(Exception):
    """The program could not be made; the text says why and what to do."""


def is_source(source: Path = SOURCE) -> bool:
    """Is this the source tree, not an installed package?"""
    return all((source / part).exists() for part in (*_PARTS, "etc"))


def interpreter() -> str:
    """The Python to build on: the system's if it is new enough, else the one that runs this. Every user must be able to
    run it, because the server is not root. BuildError if neither will do.
    """
    for path in (_SYSTEM_PYTHON, os.path.realpath(sys.executable)):
        if _suits(path):
            return path
    raise BuildError(
        f"no Python from {_OLDEST[0]}.{_OLDEST[1]} on that every user of this machine can run; "
        "as root: apt-get install python3 python3-venv"
    )


def _suits(path: str) -> bool:
    real = Path(os.path.realpath(path))
    if not all(below.exists() and below.stat().st_mode & stat.S_IXOTH for below in (real, *real.parents)):
        return False
    ask = f"import sys, venv, ensurepip; sys.exit(sys.version_info < {_OLDEST})"
    return subprocess.run([path, "-c", ask], capture_output=True, check=False, timeout=60).returncode == 0


def build(stage: Path, final: str, python: str) -> None:
    """Make the program in `stage`, which must not exist, for the place `final`. BuildError with pip's words."""
    made = stage.with_name(stage.name + ".new")
    shutil.rmtree(made, ignore_errors=True)
    made.parent.mkdir(parents=True, exist_ok=True)
    try:
        _run([python, "-m", "venv", str(made)])
        inside = str(made / "bin" / "python")
        with tempfile.TemporaryDirectory() as scratch:  # the tools of packaging leave files in the tree they build
            for part in _PARTS:
                copy = shutil.copytree if (SOURCE / part).is_dir() else shutil.copy2
                copy(SOURCE / part, Path(scratch) / part)
            pip = [inside, "-m", "pip", "--quiet", "--disable-pip-version-check"]
            _run([*pip, "install", "--no-compile", "--use-pep517", scratch])
            _run([*pip, "uninstall", "--yes", *_NEEDED_TO_BUILD])
        _settle(made, final)
        os.rename(made, stage)
    except OSError as failure:
        raise BuildError(f"{made}: {failure.strerror or failure}") from None
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _settle(made: Path, final: str) -> None:
    """Leave one command, which names the interpreter by the place where it will be; all of it readable by all."""
    for entry in (made / "bin").iterdir():
        if not entry.name.startswith("python"):
            entry.unlink()
    command = made / "bin" / "mailsrv"
    command.write_text(_COMMAND.format(final=final), encoding="utf-8")
    command.chmod(0o755)
    settings = made / "pyvenv.cfg"
    lines = settings.read_text(encoding="utf-8").splitlines()
    settings.write_text("\n".join(line for line in lines if not line.startswith("command")) + "\n", encoding="utf-8")
    for pattern in ("include", "share", "lib64"):
        left = made / pattern
        if left.is_symlink():
            left.unlink()
        else:
            shutil.rmtree(left, ignore_errors=True)
    for cache in list(made.rglob("__pycache__")):
        shutil.rmtree(cache)
    for path in made.rglob("*"):
        if not path.is_symlink():
            path.chmod(path.stat().st_mode & ~0o022 | 0o444 | (0o111 if path.is_dir() else 0))
    made.chmod(0o755)


def put(final: Path) -> None:
    """Let the program that `build` left in `<final>.next` take the place of the one that is there."""
    old, new = final.with_name(final.name + ".old"), final.with_name(final.name + ".next")
    shutil.rmtree(old, ignore_errors=True)
    if final.exists():
        os.rename(final, old)
    os.rename(new, final)
    shutil.rmtree(old, ignore_errors=True)


def compile_all(final: Path) -> None:
    """Byte code beside the modules: the server cannot write it itself."""
    _run([str(final / "bin" / "python"), "-m", "compileall", "-q", "-j", "0", str(final / "lib")])


def _run(command: list[str]) -> None:
    clean = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=1800, umask=0o022, env=clean, cwd="/"
    )
    if done.returncode != 0:
        words = (done.stderr or done.stdout).strip()
        raise BuildError(f"{' '.join(command[:4])} … failed:\n{words}")


def main() -> int:
    stage, final = sys.argv[1:]
    try:
        build(Path(stage), final, interpreter())
    except BuildError as failure:
        sys.stderr.write(f"{failure}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
