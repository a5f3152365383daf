"""One target in this process, for libFuzzer's options: python -m fuzz.one NAME [-option=value…] [directory…]"""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["mailsrv", "http"]):
    from fuzz.targets import run


def main() -> None:
    name = sys.argv.pop(1)
    atheris.Setup(sys.argv, lambda data: run(name, data))
    atheris.Fuzz()


if __name__ == "__main__":
    main()
