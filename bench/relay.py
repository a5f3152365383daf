"""How fast a relay hands messages over: `smtp-sink 127.0.0.1:2525 500 &`, then

    python bench/relay.py --port 2525 --messages 5000 --at-once 20 --octets 2000

Prints messages per second and CPU per message of this process alone. Nothing is queued, nothing is synced.
"""

from gevent import monkey

monkey.patch_all()

import argparse  # noqa: E402
import os  # noqa: E402
import tempfile  # noqa: E402
import time  # noqa: E402

from gevent.pool import Pool  # noqa: E402

from mailsrv.net.resolver import Resolver, ResolverSettings  # noqa: E402
from mailsrv.smtp.relay import Relay, RelaySettings  # noqa: E402
from mailsrv.smtp.routes import Route, Tls  # noqa: E402
from mailsrv.store.files import offload  # noqa: E402
from mailsrv.values import Address, Disposition, Envelope, Job, RecipientOptions  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser()
    for name, default in (("port", 2525), ("messages", 5000), ("at-once", 20), ("octets", 2000)):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    route = Route("127.0.0.1", args.port, tls=Tls.NONE)
    relay = Relay(RelaySettings("bench.example", routes=(route,)), Resolver(ResolverSettings(("127.0.0.1",))), offload)
    text = b"From: a@b.example\r\nSubject: bench\r\n\r\n" + (b"x" * 70 + b"\r\n") * (args.octets // 72)
    with tempfile.TemporaryDirectory() as directory:
        path = f"{directory}/message.eml"
        with open(path, "wb") as file:
            file.write(text)

        def send(number: int) -> None:
            recipients = ((Address("c", "d.example"), RecipientOptions()),)
            [outcome] = relay(Job(str(number), Envelope(Address("a", "b.example")), recipients, path, len(text)))
            if outcome.disposition is not Disposition.SENT:
                print(outcome)
                os._exit(1)

        send(0)
        pool, begun, cpu = Pool(args.at_once), time.monotonic(), time.process_time()
        for number in range(args.messages):
            pool.spawn(send, number)
        pool.join()
        seconds, cpu = time.monotonic() - begun, time.process_time() - cpu
    relay.close()
    print(f"{args.messages / seconds:.0f} messages/s, {cpu / args.messages * 1e6:.0f} us CPU each")


if __name__ == "__main__":
    main()
