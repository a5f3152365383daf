"""The protocol around the commands: literals, strings, tags, order, errors, logins, ends, and garbage of any kind."""

import base64
import imaplib
import random
import re
import select
import socket
from contextlib import suppress

import gevent
import pytest

from mailsrv.imap.context import ImapSettings, Services
from mailsrv.imap.session import Session
from mailsrv.net.stream import Stream

PASSWORD = "correct horse"


def b64(text):
    return base64.b64encode(text.encode()).decode()


PLAIN = b64(f"\0ann@example.com\0{PASSWORD}")
PLAIN_AS_ANN = b64(f"ann@example.com\0ann@example.com\0{PASSWORD}")
PLAIN_AS_BO = b64(f"bo@example.com\0ann@example.com\0{PASSWORD}")


@pytest.fixture
def pair():
    """`pair(server, login_failures=2)`: a session with settings of its own over a socket pair; the client's socket."""
    made = []

    def start(server, tls_context=None, **settings):
        settings.setdefault("failure_delay_seconds", 0.0)
        settings.setdefault("allow_plaintext_login", True)
        ours, theirs = socket.socketpair()
        ours.settimeout(60)
        services = Services(
            server.accounts, server.server.passwords, server.server.mailboxes, "mx.example.com", tls_context,
            ImapSettings(**settings),
        )  # fmt: skip
        session = Session(Stream(theirs, "127.0.0.1"), services)
        made.append((ours, gevent.spawn(session.run)))
        return ours

    yield start
    for ours, running in made:
        ours.close()
        running.join(5)
        assert running.dead, "a session outlives its connection"


def read(sock, end=b"\r\n"):
    data = b""
    while not data.endswith(end):
        more = sock.recv(65536)
        if not more:
            break
        data += more
    return data


# ------------------------------------------------------------------ literals and strings


@pytest.mark.parametrize("plus", ["", "+"])
def test_r38_literals(serving, dial, plus):
    client = dial(serving)
    client.send(f"a LOGIN {{15{plus}}}\r\n")
    if not plus:
        assert client.response().startswith(b"+ ")
    client.send(f"ann@example.com {{13{plus}}}\r\n")
    if not plus:
        assert client.response().startswith(b"+ ")
    client.send(f"{PASSWORD}\r\n")
    assert client.response().startswith(b"a OK ")


def test_r38_no_continuation_for_what_needs_none(serving, dial):
    client = dial(serving, "ann")
    tag = client.begin("STATUS {5+}\r\nINBOX (MESSAGES)")
    assert client.finish(tag) == [b"* STATUS INBOX (MESSAGES 0)", b"OK STATUS completed"]
    tag = client.begin("CREATE {0+}\r\n")
    assert client.finish(tag)[-1].startswith(b"NO ")


@pytest.mark.parametrize("size", [5000, 10**6, 2**31, 2**32, 2**64, 10**19])
def test_r38_large_literal_before_login_is_refused_unread(serving, dial, size):
    client = dial(serving)
    client.send(f"a LOGIN {{{size}}}\r\n")
    assert client.response().startswith(b"a BAD ")  # instead of a continuation, so nothing is sent
    assert client.login()[-1].startswith(b"OK ")


def test_r38_large_literal_without_asking_is_drained_or_the_end(serving, dial):
    client = dial(serving)
    client.send(b"a LOGIN {100000+}\r\n" + b"x" * 100_000 + b" y\r\n")
    assert client.response().startswith(b"a BAD ")
    assert client.login()[-1].startswith(b"OK ")
    client.send(b"b SELECT {99999999999+}\r\n")
    assert client.rest().startswith(b"* BYE ")


@pytest.mark.parametrize("command", ["SELECT {9999999}", "SEARCH SUBJECT {2000000}", "CREATE {1048577}"])
def test_r38_literal_beyond_the_limit_of_a_command(serving, dial, command):
    client = dial(serving, "ann", select="INBOX")
    tag = client.begin(command)
    assert client.finish(tag)[-1].startswith(b"BAD ")
    client.ok("NOOP")


def test_r38_too_many_literals(serving, dial):
    client = dial(serving, "ann", select="INBOX")
    client.send(b"a SEARCH " + b"SUBJECT {1+}\r\nx " * 300 + b"ALL\r\n")
    rest = client.line()
    assert rest.startswith((b"* BYE ", b"a BAD "))
    dial(serving, "ann").ok("NOOP")


@pytest.mark.parametrize(
    ("command", "answer"),
    [
        (b'CREATE "a\\"b"', b"OK "), (b'CREATE "a\\\\b"', b"OK "), (b'CREATE "a\\nb"', b"BAD "),
        (b'CREATE "ab', b"BAD "),
        (b"CREATE a]b", b"OK "), (b"CREATE a b", b"BAD "), (b"CREATE a\x01b", b"BAD "), (b"CREATE a\xffb", b"BAD "),
        (b"CREATE a(b", b"BAD "), (b"CREATE a{b", b"BAD "), (b'CREATE "a\x00b"', b"BAD "), (b'CREATE "a\x01b"', b"NO "),
        (b"CREATE {3+}\r\na\x00b", b"BAD "), (b"CREATE ~{3+}\r\na\x00b", b"NO "), (b"CREATE {3+}\r\na\nb", b"NO "),
        (b"CREATE {3+}\r\na\rb", b"NO "), (b'CREATE ""', b"NO "), (b"CREATE {3}x", b"BAD "), (b"CREATE\tx", b"BAD "),
        (b"CREATE  x", b"BAD "), (b"CREATE x ", b"BAD "), (b" NOOP", b"BAD "), (b"NOOP ", b"BAD "),
        (b"NOOP x", b"BAD "),
    ],
)  # fmt: skip
def test_r39_strings(serving, dial, command, answer):
    client = dial(serving, "ann")
    *_, done = client.say(command)
    assert done.startswith((answer, b"BAD ") if answer == b"NO " else answer), done
    client.ok("NOOP")


def test_r39_append_with_nul(serving, dial, files):
    client = dial(serving, "ann")
    assert client.say("APPEND INBOX", b"Subject: x\r\n\r\na\0b\r\n")[-1].startswith(b"BAD ")
    assert files(serving) == []
    client.ok("NOOP")


@pytest.mark.parametrize("tag", ["a", "A.1", "-", "x" * 60, "a]b", "1:2", "!#$&'"])
def test_r39_tags_come_back(serving, dial, tag):
    client = dial(serving, "ann")
    client.send(f"{tag} NOOP\r\n")
    assert client.response() == f"{tag} OK NOOP completed".encode()


@pytest.mark.parametrize(
    "line", ["+ NOOP", "a+b NOOP", "* NOOP", "(a NOOP", '"a" NOOP', " NOOP", "", "a", "a ", "{5} NOOP"]
)
def test_r39_r40_what_has_no_tag_is_bad(serving, dial, line):
    client = dial(serving, "ann")
    client.send(line + "\r\n")
    answer = client.response()
    assert re.fullmatch(rb"(\*|a) BAD .+", answer), answer
    client.ok("NOOP")


# ------------------------------------------------------------------ BAD, NO, step


@pytest.mark.parametrize(
    ("command", "answer"),
    [
        ("NONSENSE", b"BAD "), ("UID NOOP", b"BAD "), ("UID", b"BAD "), ("LOGIN a", b"BAD "), ("SELECT", b"BAD "),
        ("SELECT Nowhere", b"NO "), ("EXPUNGE", b"BAD "), ("CLOSE", b"BAD "), ("LOGIN ann@example.com x", b"BAD "),
        ("STARTTLS", b"BAD "), ("FETCH 1 FLAGS", b"BAD "), ("ENABLE", b"BAD "), ("ID", b"BAD "), ("ID (\"a\")",
        b"BAD "),
        ("noop", b"OK "), ("nOoP", b"OK "), ("CHECK", b"BAD "), ("IDLE x", b"BAD "), ("RENAME a", b"BAD "),
    ],
)  # fmt: skip
def test_r40_bad_no_and_in_step(serving, dial, command, answer):
    client = dial(serving, "ann")
    client.send(f"x {command}\r\ny NOOP\r\n")
    first = client.response()
    assert first.startswith(b"x " + answer) and len(first) > len(answer) + 2  # resp-text is never empty
    assert client.response() == b"y OK NOOP completed"


def test_r40_endless_line(serving, dial):
    client = dial(serving)
    client.send(b"a " + b"x" * 200_000 + b"\r\n")
    assert b" BAD " in client.response()
    assert client.login()[-1].startswith(b"OK ")
    client.send(b"a " + b"x" * 300_000 + b"\r\n")
    assert b" BAD " in client.response()
    client.ok("NOOP")


def test_r40_line_without_end_is_cut_off(serving, dial):
    client = dial(serving, "ann")
    with suppress(OSError):
        for _ in range(400):
            client.send(b"x" * 65536)
    rest = client.rest()
    assert rest == b"" or b"BAD" in rest or b"BYE" in rest
    dial(serving, "bo").ok("NOOP")


def test_too_many_errors_end_a_session(serving, dial):
    client = dial(serving, "ann")
    for number in range(100):
        with suppress(OSError):
            client.send(f"a{number} NONSENSE\r\n")
    rest = client.rest()
    assert b"\r\n* BYE " in rest
    assert rest.count(b" BAD ") <= 30


@pytest.mark.parametrize("service", ["imap", "imaps"])
def test_the_farewell_reaches_a_client_that_reads_only_afterwards(serving, dial, service):
    for _ in range(10):
        client = dial(serving, service=service)
        client.send("x NONSENSE\r\n" * 9000)  # 100 KB
        rest = client.rest()
        assert b"\r\n* BYE Too many errors\r\n" in rest and rest.count(b" BAD ") <= 20
        client.close()


def test_r43_pipelined_commands_run_in_order(serving, dial):
    client = dial(serving, "ann")
    commands = [
        "SELECT INBOX", "APPEND INBOX {15+}\r\nSubject: 1\r\n\r\n1",
        "APPEND INBOX (\\Seen) {15+}\r\nSubject: 2\r\n\r\n2",
        "STORE 1 +FLAGS.SILENT (\\Deleted)", "EXPUNGE", "FETCH 1 (BODY.PEEK[HEADER.FIELDS (SUBJECT)])", "CREATE Work",
        "COPY 1 Work", "SELECT Work", "FETCH 1 (FLAGS)", "RENAME Work Play", "STATUS Play (MESSAGES)", "NONSENSE",
        "NOOP", "LOGOUT",
    ]  # fmt: skip
    client.send("".join(f"p{number} {command}\r\n" for number, command in enumerate(commands)))
    rest = client.rest()
    words = re.findall(rb"^p(\d+) (OK|NO|BAD)", rest, re.MULTILINE)
    assert [int(number) for number, _ in words] == list(range(len(commands)))
    assert [word for _, word in words] == [b"BAD" if command == "NONSENSE" else b"OK" for command in commands]
    assert b"* 1 FETCH (BODY[HEADER.FIELDS (SUBJECT)] {14}\r\nSubject: 2\r\n\r\n)" in rest
    assert b"* STATUS Play (MESSAGES 1)" in rest


# ------------------------------------------------------------------ the login


@pytest.mark.parametrize(
    "command",
    [f"AUTHENTICATE PLAIN {PLAIN}", f"authenticate plain {PLAIN}", f'LOGIN ann@example.com "{PASSWORD}"',
     f'LOGIN "ANN@Example.COM" "{PASSWORD}"', f"AUTHENTICATE PLAIN {PLAIN_AS_ANN}"],
)  # fmt: skip
def test_r47_f12_ways_to_log_in(serving, dial, command):
    client = dial(serving)
    done = client.say(command)[-1]
    assert done.startswith(b"OK [CAPABILITY IMAP4rev1 ")
    told = set(done[len(b"OK [CAPABILITY ") : done.index(b"]")].split())
    assert told == set(client.ok("CAPABILITY")[0].split()[2:])
    client.ok("SELECT INBOX")


def test_r47_authenticate_asks_for_the_response(serving, dial):
    client = dial(serving)
    tag = client.begin("AUTHENTICATE PLAIN")
    assert client.response() == b"+ "
    client.send(PLAIN + "\r\n")
    assert client.finish(tag)[-1].startswith(b"OK ")


def test_r47_authenticate_login(serving, dial):
    client = dial(serving)
    tag = client.begin("AUTHENTICATE LOGIN")
    assert client.response() == b"+ " + base64.b64encode(b"Username:")
    client.send(b64("ann@example.com") + "\r\n")
    assert client.response() == b"+ " + base64.b64encode(b"Password:")
    client.send(b64(PASSWORD) + "\r\n")
    assert client.finish(tag)[-1].startswith(b"OK ")


@pytest.mark.parametrize("mechanism", ["PLAIN", "LOGIN"])
@pytest.mark.parametrize("response", ["*", "", "=", "!!!", "x" * 10_000, b64("no nul"), "\xff"])
def test_r47_cancelled_or_broken_exchange(serving, pair, mechanism, response):
    sock = pair(serving)
    read(sock)
    sock.sendall(f"a AUTHENTICATE {mechanism}\r\n".encode())
    assert read(sock).startswith(b"+ ")
    sock.sendall(response.encode("latin-1") + b"\r\n")
    answer = read(sock)
    if answer.startswith(b"+ "):
        sock.sendall(b"*\r\n")
        answer = read(sock)
    assert answer.startswith((b"a BAD ", b"a NO ")), answer
    sock.sendall(b"b NOOP\r\n")
    assert read(sock) == b"b OK NOOP completed\r\n"


def test_r47_wrong_passwords_are_refused_alike_and_limited(serving, pair):
    sock = pair(serving, login_failures=4)
    read(sock)
    answers = set()
    wrong = ("ann@example.com wrong", "nobody@example.com wrong", 'bo@example.com ""')
    for command in wrong:
        sock.sendall(f"a LOGIN {command}\r\n".encode())
        answers.add(read(sock))
    assert len(answers) == 1 and answers.pop().startswith(b"a NO [AUTHENTICATIONFAILED] ")
    sock.sendall(b"b SELECT INBOX\r\n")
    assert read(sock).startswith(b"b BAD ")
    sock.sendall(b"c LOGIN ann@example.com again\r\n")
    assert b"* BYE " in read(sock, b"\0")


def test_r47_acting_as_another_user_is_refused(serving, pair):
    sock = pair(serving)
    read(sock)
    sock.sendall(f"a AUTHENTICATE PLAIN {PLAIN_AS_BO}\r\n".encode())
    assert read(sock).startswith(b"a NO [AUTHORIZATIONFAILED] ")
    sock.sendall(b"b SELECT INBOX\r\n")
    assert read(sock).startswith(b"b BAD ")


def test_r46_no_login_in_clear(serve, dial):
    server = serve(**{"imap.allow_plaintext_login": False})
    client = dial(server)
    words = client.ok("CAPABILITY")[0].split()
    assert b"LOGINDISABLED" in words and b"STARTTLS" in words and not [word for word in words if word[:5] == b"AUTH="]
    for command in (f'LOGIN ann@example.com "{PASSWORD}"', f"AUTHENTICATE PLAIN {PLAIN}", "AUTHENTICATE LOGIN"):
        assert client.say(command)[-1].startswith(b"NO [PRIVACYREQUIRED] ")
    client.ok("STARTTLS")
    client.sock = server.client_tls.wrap_socket(client.sock, server_hostname="localhost")
    words = client.ok("CAPABILITY")[0].split()
    assert b"LOGINDISABLED" not in words and b"STARTTLS" not in words and b"AUTH=PLAIN" in words
    assert client.login()[-1].startswith(b"OK ")


@pytest.mark.parametrize("injected", [b"a2 NOOP\r\n", b'a2 LOGIN ann@example.com "correct horse"\r\n', b"a2 "])
def test_r46_what_was_sent_before_tls_is_not_executed(serving, dial, injected):
    client = dial(serving)
    client.send(b"a1 STARTTLS\r\n" + injected)
    rest = b""
    with suppress(OSError):
        sock = client.sock
        while data := sock.recv(65536):
            rest += data
            if b"a1 OK" in rest:
                break
    assert b"a2" not in rest
    if b"a1 OK" in rest:
        client.sock = serving.client_tls.wrap_socket(client.sock, server_hostname="localhost")
        client.send(b"a3 CAPABILITY\r\n")
        assert client.response().startswith(b"* CAPABILITY")
    else:
        assert rest.startswith(b"* BYE ")


def test_r46_starttls_with_a_foreign_client(serving):
    client = imaplib.IMAP4("localhost", serving.ports["imap"])
    client.starttls(serving.client_tls)
    client.login("ann@example.com", PASSWORD)
    assert client.select() == ("OK", [b"0"])
    client.logout()


# ------------------------------------------------------------------ the end


def test_r45_logout(serving, dial):
    client = dial(serving, "ann", select="INBOX")
    client.send(b"x LOGOUT\r\ny NOOP\r\n")
    assert re.fullmatch(rb"\* BYE [^\r\n]+\r\nx OK [^\r\n]+\r\n", client.rest())


def test_r45_autologout_says_bye(serving, pair):
    sock = pair(serving, login_seconds=0.1)
    assert re.fullmatch(rb"\* OK [^\r\n]+\r\n\* BYE [^\r\n]+\r\n", read(sock, b"\0"))
    sock = pair(serving, idle_seconds=0.1)
    sock.sendall(f'a LOGIN ann@example.com "{PASSWORD}"\r\n'.encode())
    assert re.fullmatch(rb"\* OK [^\r\n]+\r\na OK [^\r\n]+\r\n\* BYE [^\r\n]+\r\n", read(sock, b"\0"))


def test_r45_nobody_is_logged_out_before_half_an_hour(serving):
    assert serving.settings["imap.idle_seconds"] >= 1800


def test_r45_slow_login_ends(serving, pair):
    """Octet by octet does not buy more time."""
    sock = pair(serving, login_seconds=0.3)
    read(sock)
    with suppress(OSError):
        for _ in range(500):
            sock.sendall(b"x")
            if select.select([sock], [], [], 0.02)[0]:
                break  # what is sent after it, and not read, would take the BYE along
    assert b"* BYE " in read(sock, b"\0")


def test_disabled_account_ends_its_sessions(serving, dial):
    client = dial(serving, "ann", select="INBOX")
    serving.accounts.set_enabled("ann@example.com", False)
    client.begin("NOOP")
    assert client.rest().startswith(b"* BYE ")


# ------------------------------------------------------------------ garbage

LINES = [
    b"a NOOP\r\n", b"a CAPABILITY\r\n", b"a SELECT INBOX\r\n", b"a EXAMINE Trash\r\n", b"a FETCH 1:* (UID FLAGS)\r\n",
    b"a FETCH 1 BODY[]\r\n", b"a UID FETCH 1:* (BODY.PEEK[1.2.3.MIME]<0.5>)\r\n", b"a STORE 1 +FLAGS (\\Seen x)\r\n",
    b"a UID STORE 1:* -FLAGS.SILENT (\\Seen)\r\n", b"a SEARCH OR (NOT SEEN) SUBJECT \"x\"\r\n", b"a IDLE\r\n",
    b"DONE\r\n",
    b"a COPY 1 Trash\r\n", b"a MOVE * Trash\r\n", b"a EXPUNGE\r\n", b"a UID EXPUNGE 1:*\r\n", b"a CLOSE\r\n",
    b"a CREATE x/y\r\n", b"a DELETE x/y\r\n", b"a RENAME x z\r\n", b'a LIST "" *\r\n', b'a LSUB "" %\r\n',
    b"a STATUS INBOX (MESSAGES UIDNEXT)\r\n", b"a APPEND INBOX {12+}\r\nSubject: x\r\n\r\n", b"a APPEND INBOX {5}\r\n",
    b"a SEARCH TEXT {3+}\r\nabc\r\n", b"a LOGIN {3+}\r\nabc {4+}\r\n1234\r\n", b"a AUTHENTICATE PLAIN\r\n", b"*\r\n",
    b"a ID (\"a\" NIL)\r\n", b"a SUBSCRIBE &AOQ-\r\n", b"a SELECT &-\r\n", b"a SELECT &AAA\r\n", b"a NAMESPACE\r\n",
    b"\r\n", b"\n", b"\r", b"\0\r\n", b"\xff\xfe\r\n", b"a \xc3\x28\r\n", b"((((((((((\r\n",
    b"a SEARCH " + b"(" * 300 + b"\r\n",
    b"a FETCH " + b"1," * 3000 + b"1 FLAGS\r\n", b"x" * 9000 + b"\r\n", b"{99999999999999999999}\r\n",
    b"a UNSELECT\r\n",
    b"a SELECT {9+}\r\n\xff\xff\xff\xff\xff\xff\xff\xff\xff\r\n", b"a CHECK\r\n", b"a ENABLE X Y\r\n",
]  # fmt: skip
RESPONSE = re.compile(rb"(?:[^\r\n{]|\{(?!\d+\}\r\n))*\r\n")


def mutated(random_, line):
    if random_.random() < 0.75:
        return line
    changed = bytearray(line)
    for _ in range(random_.randrange(1, 4)):
        changed[random_.randrange(len(changed))] = random_.randrange(256)
    return bytes(changed)


def well_formed(data):
    """Whether the octets are responses of IMAP, one after the other; the last may be cut off only by the end."""
    while data:
        line, _, rest = data.partition(b"\r\n")
        if not re.match(rb"(\* |\+ |\S+ (OK|NO|BAD) )", line):
            return False
        while found := re.search(rb"\{(\d+)\}$", line):
            rest = rest[int(found[1]) :]
            line, _, rest = rest.partition(b"\r\n")
        data = rest
    return True


def throw(client, random_, count):
    with suppress(OSError):
        for line in [mutated(random_, random_.choice(LINES)) for _ in range(count)]:
            client.send(line)
            if random_.random() < 0.3:
                gevent.idle()
        client.sock.shutdown(socket.SHUT_WR)
    assert well_formed(client.rest()), client.buffer


@pytest.mark.parametrize("seed", range(6))
def test_r40_garbage(serving, dial, events, seed):
    random_ = random.Random(seed)
    witness = dial(serving, "bo", select="INBOX")
    for _ in range(15):
        client = dial(serving, "ann", select="INBOX")
        client.append()
        throw(client, random_, 40)
    assert witness.ok("NOOP") == []
    assert not [event for event, _ in events if event == "session failed"], events


@pytest.mark.parametrize("seed", range(6))
def test_r40_garbage_before_login(serving, pair, client_of, events, seed):
    random_ = random.Random(seed)
    for _ in range(15):
        throw(client_of(pair(serving)), random_, 40)
    assert not [event for event, _ in events if event == "session failed"], events


@pytest.mark.parametrize("seed", range(4))
def test_r40_random_octets(serving, dial, events, seed):
    random_ = random.Random(seed)
    for _ in range(10):
        client = dial(serving, random_.choice(["", "ann"]))
        with suppress(OSError):
            client.send(random_.randbytes(random_.randrange(1, 20_000)))
            client.sock.shutdown(socket.SHUT_WR)
        assert well_formed(client.rest())
    assert not [event for event, _ in events if event == "session failed"]
    dial(serving, "bo").ok("NOOP")


@pytest.mark.parametrize(
    "piece",
    [b"a", b"a LOGIN {5}\r\n", b"a LOGIN {5+}\r\nabc", b"a APPEND INBOX {50+}\r\nSubject", b"a IDLE\r\n",
    b"a IDLE\r\nDO",
     b"a AUTHENTICATE PLAIN\r\n", b"a FETCH 1"],
)  # fmt: skip
@pytest.mark.parametrize("user", ["", "ann"])
def test_connection_that_ends_anywhere_leaves_nothing(serving, dial, events, eventually, piece, user):
    client = dial(serving, user)
    client.send(piece)
    gevent.idle()
    client.close()
    eventually(lambda: not any(listener.sessions for listener in serving.server.listeners))
    other = dial(serving, "ann", select="INBOX")
    assert other.flags() == {}
    assert not list((serving.maildir("ann") / "tmp").iterdir())
    assert not [event for event, _ in events if event == "session failed"]


# ------------------------------------------------------------------ what is not offered is not done


def test_r49_who_was_offered_no_qresync_is_told_expunge_and_never_vanished(serving, dial):
    client, other = dial(serving, "ann", select="INBOX"), dial(serving, "ann", select="INBOX")
    assert not {b"CONDSTORE", b"QRESYNC"} & set(client.ok("CAPABILITY")[0].split())
    assert client.ok("ENABLE QRESYNC CONDSTORE") == [b"* ENABLED"]
    assert client.say("SELECT INBOX (QRESYNC (1 1))")[-1].startswith(b"BAD ")
    client.ok("SELECT INBOX")
    for _ in range(2):
        other.append(how="(\\Deleted)")
    assert b"* 2 EXISTS" in client.ok("NOOP")
    other.ok("EXPUNGE")
    assert client.ok("NOOP") == [b"* 1 EXPUNGE", b"* 1 EXPUNGE"]
    assert client.say("UID FETCH 1:* (FLAGS) (CHANGEDSINCE 1 VANISHED)")[-1].startswith(b"BAD ")
    assert client.ok("NOOP") == []


def test_r50_a_saved_result_is_not_offered_and_no_search_is_taken_for_one(serving, dial):
    client = dial(serving, "ann", select="INBOX")
    assert not {b"ESEARCH", b"SEARCHRES"} & set(client.ok("CAPABILITY")[0].split())
    client.append()
    for command in ("SEARCH RETURN (SAVE) ALL", "UID SEARCH RETURN () ALL", "FETCH $ FLAGS", "SEARCH $",
                    "UID STORE $ +FLAGS (\\Deleted)", "COPY $ Archive"):  # fmt: skip
        assert client.say(command)[-1].startswith(b"BAD "), command
    assert client.ok("SEARCH ALL") == [b"* SEARCH 1"], "and in step"
    assert client.flags() == {1: set()}
