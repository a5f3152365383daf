"""A process that verifies one password with a scheme computed in Python, so that no server process waits for it.

Argument: passlib's name of the scheme. Standard input: the length of the password in characters, a line end, the
password, the stored hash. Standard output: "yes" or "no", or "unusable" for a hash that is none.
"""

from __future__ import annotations

import sys

HANDLERS = ("sha512_crypt", "sha256_crypt", "md5_crypt", "des_crypt")


def main() -> int:
    import warnings

    warnings.simplefilter("ignore")
    import passlib.hash

    handler = sys.argv[1]
    length, _, rest = sys.stdin.buffer.read(65536).decode().partition("\n")
    password, stored = rest[: int(length)], rest[int(length) :]
    try:
        matches = handler in HANDLERS and getattr(passlib.hash, handler).verify(password, stored)
    except (ValueError, TypeError):
        sys.stdout.write("unusable")
        return 0
    sys.stdout.write("yes" if matches else "no")
    return 0


if __name__ == "__main__":
    sys.exit(main())
