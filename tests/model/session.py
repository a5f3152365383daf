"""One IMAP client of the model: does its steps, and holds every answer against its belief."""

import time
from collections import deque

import gevent

from tests.conftest import DOMAIN, PASSWORD
from tests.model.belief import HEADER, Belief, Command
from tests.model.ledger import FLAGS, SYSTEM, Act, Expunge
from tests.model.responses import Fault, connect, numbers
from tests.model.steps import SHARED, WEIGHTS, stream, text_of

KEPT_LINES = 600
LOOK_SECONDS = 1.0  # after which another program's change is known, if nobody asks
ASKED = f"(UID FLAGS RFC822.SIZE {HEADER.replace('BODY[', 'BODY.PEEK[')})"
now = time.monotonic


class Said:
    """The answer to one command."""

    def __init__(self, lines, done, start, end):
        self.lines, self.done, self.start, self.end = lines, done, start, end

    @property
    def word(self):
        return self.done.kind

    def of(self, kind):
        return [line for line in self.lines if line.kind == kind]

    def coded(self, code):
        """The argument of a response code, wherever it stands; None if it does not."""
        return next((line.argument for line in [*self.lines, self.done] if line.code == code), None)


class Session:
    def __init__(self, world, name, mailbox="INBOX"):
        self.world, self.name = world, name
        self.steps = stream(world.seed, name, WEIGHTS)
        self.transcript = deque(maxlen=KEPT_LINES)
        self.belief = None
        self.number = 0
        self.appended = 0
        self.box = None  # the mailbox of our own: [name, messages, UIDVALIDITY, UIDNEXT]
        self.boxes = 0
        self.commands = 0
        self._log_in(mailbox)

    def _log_in(self, mailbox):
        self.wire = connect(self.world.port("imap"))
        self._read()
        self.ok(f'LOGIN {self.world.user}@{DOMAIN} "{PASSWORD}"')
        self.select(mailbox)

    # -------------------------------------------------------------- speaking

    def _note(self, direction, text):
        self.transcript.append(f"{now():.4f} {direction} {text!r}")

    def _read(self):
        response = self.wire.response()
        self._note("S", response.raw[:400])
        return response

    def ask(self, text, *literals, by_number=False, name=None, reads=True):
        """One command and all of its answer. `reads`: the untagged responses are of the selected mailbox."""
        if self.wire.waiting():
            raise Fault("unasked", f"{self._read().raw[:200]!r} with no command in progress (R4)")
        self.number += 1
        self.commands += 1
        tag = f"{self.name}-{self.number}"
        command = Command(name or text.split(" ", 1)[0], by_number)
        if self.belief is not None:
            self.belief.answered = set()
        start = now()
        self._note("C", f"{tag} {text}"[:400])
        lines = []
        if literals:
            self.wire.send(f"{tag} {text} {{{len(literals[0])}}}\r\n".encode())
            response = self._read()
            while response.kind != "+" and response.tag != tag:
                self._take(response, command, lines, reads)
                response = self._read()
            if response.tag == tag:
                return Said(lines, response, start, now())
            self.wire.send(literals[0] + b"\r\n")
        else:
            self.wire.send(f"{tag} {text}\r\n".encode())
        while True:
            response = self._read()
            if response.tag == tag:
                return Said(lines, response, start, now())
            self._take(response, command, lines, reads)

    def _take(self, response, command, lines, reads):
        if response.tag != "*":
            raise Fault("tag", f"{response.raw[:100]!r} in {command.name}")
        if response.kind == "BYE":
            raise Fault("bye", response.raw.decode("ascii", "replace"))
        lines.append(response)
        if reads and self.belief is not None:
            self.belief.apply(response, command, now())
            if response.kind == "FETCH":
                self._content(self.belief.entries[response.number - 1].token, response.items)

    def ok(self, text, *literals, **how):
        said = self.ask(text, *literals, **how)
        if said.word != "OK":
            raise Fault("refused", f"{text[:100]}: {said.done.raw!r}")
        return said

    # -------------------------------------------------------------- selecting

    def select(self, mailbox, *, examine=False):
        self.belief = None
        said = self.ok(f"{'EXAMINE' if examine else 'SELECT'} {mailbox}")
        uidvalidity, uidnext = int(said.coded("UIDVALIDITY")), int(said.coded("UIDNEXT"))
        box = self.world.box(mailbox)
        if box.uidvalidity != uidvalidity:
            raise Fault("uidvalidity", f"{mailbox} had {box.uidvalidity}, and has {uidvalidity}")
        exists, recent = said.of("EXISTS")[0], said.of("RECENT")[0]
        least, most = box.bounds(said.start, said.end)
        if not least <= exists.number <= most:
            raise Fault("count", f"{mailbox}: SELECT tells {exists.number} messages, {least} to {most} there")
        if recent.number > exists.number:
            raise Fault("recent", f"{mailbox}: {recent.number} RECENT of {exists.number}")
        if said.done.code != ("READ-ONLY" if examine else "READ-WRITE"):
            raise Fault("select", f"{said.done.raw!r}")
        box.next_told(uidnext, said.start, said.end)
        self.belief = Belief(box, read_only=examine, now=said.start)
        for line in said.lines:
            self.belief.apply(line, Command("SELECT"), said.end)
        self.learn()

    def learn(self):
        """Ask what is not known yet of the messages that were told, as a client does."""
        unknown = [seq for seq, entry in enumerate(self.belief.entries, 1) if entry.uid is None or entry.token is None]
        if unknown:
            self.fetch(self._text(unknown), [self.belief.entries[seq - 1] for seq in unknown], ASKED)

    # -------------------------------------------------------------- choosing

    @staticmethod
    def _text(listed):
        """A set, with runs as ranges."""
        parts, start = [], None
        for at, number in enumerate(listed):
            start = number if start is None else start
            if at + 1 == len(listed) or listed[at + 1] != number + 1:
                parts.append(str(number) if start == number else f"{start}:{number}")
                start = None
        return ",".join(parts)

    def choose(self, step, *, most=6):
        """(set as text, entries it means, whether by UID) of messages whose UID and token are known; or None."""
        entries = self.belief.entries
        known = [seq for seq, entry in enumerate(entries, 1) if entry.uid is not None and entry.token is not None]
        if not known:
            return None
        by_uid = step.chance(0.5, 0)
        first = step.below(len(known), 1)
        count = 1 + step.below(most, 2)
        if step.chance(0.3, 3):  # scattered, in any order
            seqs = list({known[(first + number * 7) % len(known)]: None for number in range(count)})
        else:
            seqs = known[first : first + count]
        chosen = [entries[seq - 1] for seq in seqs]
        names = [entry.uid for entry in chosen] if by_uid else seqs
        if seqs[-1] == len(entries) and step.chance(0.3, 4) and seqs == list(range(seqs[0], len(entries) + 1)):
            text = f"{names[0]}:*"
        elif by_uid and seqs == list(range(seqs[0], seqs[-1] + 1)) and step.chance(0.5, 4):
            text = f"{names[-1]}:{names[0]}"
        else:
            text = self._text(names)
        return text, chosen, by_uid

    def _instances(self, entries):
        return [self.belief.box.saw(entry.uid, entry.token, now()) for entry in entries]

    def _refused(self, said, entries, by_uid, what):
        """Whether a command on messages was refused, as it may be by number if one of them could be gone (R6)."""
        if said.word == "OK":
            return False
        box, end = self.belief.box, said.end
        uids = [entry.uid for entry in entries if entry.uid is not None]
        if said.done.code != "EXPUNGEISSUED" or by_uid:
            raise Fault("refused", f"{what}: {said.done.raw!r}")
        if len(uids) == len(entries) and not any(
            box.may_be_gone(box.instances[uid], end) for uid in uids if uid in box.instances
        ):
            raise Fault("refused", f"{what}: {said.done.raw!r}, and nobody removed one of {uids}")
        return True

    def _unanswered(self, said, entries, refused):
        """Every message asked for is answered for, or is told as expunged by the next look."""
        belief = self.belief
        silent = [entry for entry in entries if id(entry) not in belief.answered]
        still = [entry for entry in silent if any(one is entry for one in belief.entries)]
        if silent and not refused and said.word == "OK" and still:
            for entry in still:
                instance = belief.box.instances.get(entry.uid)
                if instance is not None and not belief.box.may_be_gone(instance, said.end):
                    raise Fault("unanswered", f"UID {entry.uid} ({entry.token}) was asked for, and is there")
        belief.owed += still

    # -------------------------------------------------------------- steps

    def do(self, step):
        getattr(self, f"do_{step.kind.replace('-', '_')}")(step)

    def look(self):
        """NOOP, and what is new asked for: from here on the client knows all."""
        said = self.ok("NOOP")
        self.belief.looked(said.start, said.end)
        self.learn()
        return said

    def do_noop(self, step):
        self.look()

    def do_check(self, step):
        self.look()
        if self.belief.entries:
            self.fetch("1:*", list(self.belief.entries), ASKED)

    def fetch(self, text, entries, asked, *, by_uid=False):
        name = "UID FETCH" if by_uid else "FETCH"
        said = self.ask(f"{name} {text} {asked}", by_number=not by_uid, name=name)
        refused = self._refused(said, entries, by_uid, f"{name} {text}")
        self._unanswered(said, entries, refused)
        return said

    def _content(self, token, items):
        """What never changes of a message (R7, R37)."""
        if not token:
            return
        if "RFC822.SIZE" in items:
            self.world.size_is(token, int(items["RFC822.SIZE"]))
        if "BODY[]" in items:
            text = items["BODY[]"]
            self.world.size_is(token, len(text))
            if f"X-Model: {token}\r\n".encode() not in text or not text.endswith(self.world.bodies[token]):
                raise Fault("content", f"{token} is {text[:300]!r}")

    def do_fetch(self, step):
        chosen = self.choose(step, most=20)
        if chosen is not None:
            text, entries, by_uid = chosen
            self.fetch(
                text,
                entries,
                step.one(("FLAGS", "(UID FLAGS)", "(FLAGS INTERNALDATE)", ASKED, "ENVELOPE"), 5),
                by_uid=by_uid,
            )

    def do_text(self, step):
        chosen = self.choose(step, most=3)
        if chosen is None:
            return
        text, entries, by_uid = chosen
        peek = step.chance(0.5, 5)
        acts = []
        if not peek and not self.belief.read_only:  # R31
            acts = self._acts(entries, "+", frozenset({"\\seen"}))
        said = self.fetch(text, entries, f"(UID BODY{'.PEEK' * peek}[])", by_uid=by_uid)
        # A FETCH does not look at the directory: what another program took away just now may be thought to be there.
        for act, instance in zip(acts, self._instances(entries) if acts else (), strict=True):
            act.end = said.end
            act.sure = not any(one.scope == SYSTEM and one.end > act.start - LOOK_SECONDS for one in instance.acts)

    def _acts(self, entries, op, flags):
        made = []
        for instance in self._instances(entries):
            made.append(Act(op, flags, now()))
            instance.acts.append(made[-1])
        return made

    def do_store(self, step):
        chosen = self.choose(step, most=8)
        if chosen is None:
            return
        text, entries, by_uid = chosen
        op, silent = step.one("++--=", 5), step.chance(0.4, 6)
        flags = frozenset(flag.lower() for flag in step.flags)
        words = (
            f"{'UID ' * by_uid}STORE {text} {op if op != '=' else ''}FLAGS{'.SILENT' * silent} ({' '.join(step.flags)})"
        )
        name = "UID STORE" if by_uid else "STORE"
        if self.belief.read_only:
            self._must_refuse(words, by_number=not by_uid, name=name)
            return
        acts = self._acts(entries, op, flags)
        said = self.ask(words, by_number=not by_uid, name=name)
        refused = self._refused(said, entries, by_uid, words)
        for act in acts:
            act.end = said.end
        if silent:
            self.belief.stored(entries, Act(op, flags, said.start))
        else:
            self._unanswered(said, entries, refused)

    def _must_refuse(self, words, **how):
        said = self.ask(words, **how)
        if said.word != "NO":
            raise Fault("read-only", f"{words}: {said.done.raw!r} after EXAMINE (R15)")

    def do_append(self, step):
        box = self.world.box(step.one(SHARED, 0))
        flags = step.flags if step.chance(0.5, 1) else ()
        self.appended += 1
        token = f"a{self.name}.{self.appended}e"
        header, body = text_of(token, int(20_000 * step.dice[2] ** 4))
        self.world.made(token, body, len(header) + len(body))
        coming = [now(), float("inf"), 1]
        box.coming.append(coming)
        said = self.ok(f"APPEND {box.name} ({' '.join(flags)})", (header + body).encode())
        coming[1] = said.end
        uidvalidity, uid = map(int, said.coded("APPENDUID").split())
        self._same(box, uidvalidity)
        box.created(uid, token, said.start, said.end, frozenset(flag.lower() for flag in flags))
        belief = self.belief
        if belief is not None and belief.box is box and not box.may_be_gone(box.instances[uid], said.end):
            known = [entry.uid for entry in belief.entries]
            if uid not in known and None not in known:
                raise Fault("append-untold", f"{box.name}: UID {uid} is appended, selected, and not told (R24)")

    def _same(self, box, uidvalidity):
        if uidvalidity != box.uidvalidity:
            raise Fault("uidvalidity", f"{box.name} had {box.uidvalidity}, and has {uidvalidity}")

    def do_copy(self, step):
        self._transfer(step, "COPY")

    def do_move(self, step):
        self._transfer(step, "MOVE")

    def _transfer(self, step, verb):
        chosen = self.choose(step, most=4)
        if chosen is None:
            return
        text, entries, by_uid = chosen
        source, target = self.belief.box, self.world.box(step.one(SHARED, 5))
        name = f"{'UID ' * by_uid}{verb}"
        if verb == "MOVE" and self.belief.read_only:
            self._must_refuse(f"{name} {text} {target.name}", name=name)
            return
        instances = {one.uid: one for one in self._instances(entries)}
        coming = [now(), float("inf"), len(entries)]
        target.coming.append(coming)
        if verb == "MOVE":
            for one in instances.values():
                one.taken = min(one.taken, now())
        said = self.ask(f"{name} {text} {target.name}", name=name)
        coming[1] = said.end
        told = said.coded("COPYUID")
        if said.word != "OK" or told is None:
            coming[2] = 0
            self._not_transferred(said, entries, by_uid, f"{name} {text}", told)
            return
        uidvalidity, olds, news = told.split()
        self._same(target, int(uidvalidity))
        old, new = numbers(olds), numbers(news)
        if len(old) != len(new) or not set(old) <= set(instances):
            raise Fault("copyuid", f"{name} {text}: {told}")
        for uid in set(instances) - set(old):
            if not by_uid or not source.may_be_gone(instances[uid], said.end):
                raise Fault("not-copied", f"{name} {text} left UID {uid} out, which nobody removed")
        if verb == "MOVE":
            kinds = [line.code or line.kind for line in said.lines if line.code == "COPYUID" or line.kind == "EXPUNGE"]
            if "EXPUNGE" in kinds[: kinds.index("COPYUID")] if "COPYUID" in kinds else True:
                raise Fault("copyuid", f"{name}: EXPUNGE before COPYUID, or none (R27): {kinds}")
        for one, another in zip(old, new, strict=True):
            flags, either = set(), set()
            for flag in FLAGS:
                may = instances[one].may(flag, said.start, said.end)
                (either if len(may) > 1 else flags if may == {True} else set()).add(flag)
            target.created(another, instances[one].token, said.start, said.end, frozenset(flags), frozenset(either))
            if verb == "MOVE":
                instances[one].gone = min(instances[one].gone, said.end)

    def _not_transferred(self, said, entries, by_uid, what, told):
        self._refused(said, entries, by_uid, what)
        if said.word != "OK" and told is not None:
            raise Fault("copyuid", f"{what}: {told}, and refused")
        if said.word == "OK":  # nothing was left of what was named
            box = self.belief.box
            there = [one.uid for one in entries if not box.may_be_gone(box.instances[one.uid], said.end)]
            if there or not by_uid:
                raise Fault("not-copied", f"{what} copied nothing, but nobody removed UIDs {there}")

    def do_expunge(self, step):
        if self.belief.read_only:
            self._must_refuse("EXPUNGE")
            return
        one = self._expunging(None)
        said = self.ok("EXPUNGE")
        self.belief.box.expunged(one, said.end)

    def _expunging(self, uids):
        one = Expunge(now(), uids)
        self.belief.box.expunges.append(one)
        return one

    def do_uid_expunge(self, step):
        chosen = self.choose(step, most=8)
        if chosen is None:
            return
        entries = chosen[1]
        uids = sorted(entry.uid for entry in entries)
        words = f"UID EXPUNGE {self._text(uids)}"
        if self.belief.read_only:
            self._must_refuse(words, name="UID EXPUNGE")
            return
        acts = self._acts(entries, "+", frozenset({"\\deleted"})) if step.chance(0.5, 5) else []
        if acts:
            said = self.ask(f"UID STORE {self._text(uids)} +FLAGS (\\Deleted)", name="UID STORE")
            self._refused(said, entries, True, "UID STORE")
            for act in acts:
                act.end = said.end
        one = self._expunging(frozenset(uids))
        said = self.ok(words, name="UID EXPUNGE")
        self.belief.box.expunged(one, said.end)

    def do_close(self, step):
        one = None if self.belief.read_only else self._expunging(None)
        box, said = self.belief.box, self.ask("CLOSE")
        if said.word != "OK" or said.of("EXPUNGE"):
            raise Fault("close", f"{[line.raw for line in said.lines]} {said.done.raw!r} (R16)")
        if one is not None:
            box.expunged(one, said.end)
        self.select(step.one(SHARED, 0))

    def do_unselect(self, step):
        self.ok("UNSELECT")
        self.select(step.one(SHARED, 0))

    def do_select(self, step):
        self.select(step.one(SHARED, 0))

    def do_examine(self, step):
        self.select(step.one(SHARED, 0), examine=True)

    def do_again(self, step):
        """A new connection in place of this one."""
        self.belief = None
        self.ask_bye()
        self._log_in(step.one(SHARED, 0))

    def ask_bye(self):
        self.wire.send(b"bye LOGOUT\r\n")
        self._note("C", "bye LOGOUT")
        while self._read().tag != "bye":
            pass
        self.wire.close()

    def do_beyond(self, step):
        """A number that no message has is BAD; a UID that no message has is nothing (R9)."""
        count = len(self.belief.entries)
        said = self.ask(f"FETCH {count + 1 + step.below(5, 0)} FLAGS", by_number=True)
        if said.word != "BAD":
            raise Fault("beyond", f"number beyond {count}: {said.done.raw!r} (R9)")
        said = self.ask("UID FETCH 4294967290 FLAGS", name="UID FETCH")
        if said.word != "OK":
            raise Fault("beyond", f"unknown UID: {said.done.raw!r} (R9)")

    def do_search(self, step):
        belief, by_uid = self.belief, step.chance(0.5, 0)
        entries = list(belief.entries)
        flag, kind = step.one(("seen", "flagged", "deleted", "answered", "draft"), 2), step.below(3, 1)
        token = step.one([entry.token for entry in entries] or [None], 3)
        key = "ALL" if kind == 0 or token is None else flag.upper() if kind == 1 else f"HEADER X-MODEL {token}"
        name = "UID SEARCH" if by_uid else "SEARCH"
        said = self.ok(f"{name} {key}", by_number=not by_uid, name=name)
        [found] = [line.values for line in said.of("SEARCH")]
        names = {entry.uid if by_uid else seq: entry for seq, entry in enumerate(entries, 1)}
        if by_uid and None in names:
            return
        if strange := set(found) - set(names):
            raise Fault("search", f"{name} {key} found {sorted(strange)}, told are {len(entries)}")
        for number, entry in names.items():
            self._found(said, f"{name} {key}", entry, number in found, flag if kind == 1 else None, token)

    def _found(self, said, what, entry, found, flag, token):
        """Whether the answer for one message can be."""
        box = self.belief.box
        instance = box.instances.get(entry.uid)
        if instance is None or instance.token is None or (not found and box.may_be_gone(instance, said.end)):
            return
        if what.endswith(" ALL"):
            right = found
        elif flag is not None:
            right = found in instance.may(f"\\{flag}", self.belief.fresh, said.end)
        else:
            right = found == (entry.token == token)
        if not right:
            raise Fault("search", f"{what}: {'' if found else 'not '}found was UID {entry.uid} ({entry.token})")

    def do_status(self, step):
        box = self.world.box(step.one(SHARED, 0))
        said = self.ok(f"STATUS {box.name} (MESSAGES UIDNEXT UIDVALIDITY UNSEEN RECENT)")
        [line] = said.of("STATUS")
        got = {key: int(value) for key, value in line.items.items()}
        least, most = box.bounds(said.start, said.end)
        if not least <= got["MESSAGES"] <= most:
            raise Fault("count", f"{box.name}: STATUS tells {got['MESSAGES']} messages, {least} to {most} there")
        if max(got["UNSEEN"], got["RECENT"]) > got["MESSAGES"]:
            raise Fault("count", f"{box.name}: {line.raw!r}")
        self._same(box, got["UIDVALIDITY"])
        box.next_told(got["UIDNEXT"], said.start, said.end)

    def do_box(self, step):
        """The next step in the life of a mailbox that is ours alone: nothing about it may vary."""
        if self.box is None:
            self.boxes += 1
            name = f"Own-{self.name}-{self.boxes % 3}"
            self.ok(f"CREATE {name}")
            self.box = [name, 0, 0, 1]
            self._own_status()
        elif step.chance(0.4, 0):
            header, body = text_of(f"own{self.name}", 100)
            said = self.ok(f"APPEND {self.box[0]}", (header + body).encode())
            uidvalidity, uid = map(int, said.coded("APPENDUID").split())
            if (uidvalidity, uid) != (self.box[2], self.box[3]):
                raise Fault("own", f"{self.box}: {said.done.raw!r}")
            self.box[1] += 1
            self.box[3] += 1
        elif step.chance(0.5, 1):
            self.boxes += 1
            old, new = self.box[0], f"Own-{self.name}-{self.boxes % 3}"
            if new != old:
                self.ok(f"RENAME {old} {new}")
                self.box[0] = new
                if self.ask(f"STATUS {old} (MESSAGES)").word != "NO":
                    raise Fault("own", f"{old} was renamed, and is there")
        elif step.chance(0.5, 2):
            self._own_status()
        else:
            self.ok(f"DELETE {self.box[0]}")
            if self.ask(f"STATUS {self.box[0]} (MESSAGES)").word != "NO":
                raise Fault("own", f"{self.box[0]} was deleted, and is there")
            self.world.last_validity[self.name] = self.box[2]
            self.box = None

    def _own_status(self):
        [line] = self.ok(f"STATUS {self.box[0]} (MESSAGES UIDVALIDITY UIDNEXT)").of("STATUS")
        messages, uidvalidity, uidnext = (int(line.items[key]) for key in ("MESSAGES", "UIDVALIDITY", "UIDNEXT"))
        if self.box[2] == 0:  # just created: above those before it (R8)
            if uidvalidity <= self.world.last_validity.get(self.name, 0):
                raise Fault("uidvalidity", f"{self.box}: {line.raw!r} after {self.world.last_validity[self.name]} (R8)")
            self.box[2] = uidvalidity
        if [messages, uidvalidity, uidnext] != self.box[1:]:
            raise Fault("own", f"{self.box}: {line.raw!r}")

    # -------------------------------------------------------------- waiting

    def do_idle(self, step):
        end = now() + step.dice[0] * 0.4
        self.idle(lambda: now() >= end)
        self.learn()

    def idle(self, ended):
        """IDLE until told to end; what comes meanwhile is taken in."""
        self.number += 1
        tag, command = f"{self.name}-{self.number}", Command("IDLE")
        self._note("C", f"{tag} IDLE")
        self.wire.send(f"{tag} IDLE\r\n".encode())
        response = self._read()
        while response.kind != "+":
            self._take(response, command, [], True)
            response = self._read()
        while not ended():
            if self.wire.waiting(0.02):
                self._take(self._read(), command, [], True)
        self._note("C", "DONE")
        self.wire.send(b"DONE\r\n")
        while (response := self._read()).tag != tag:
            self._take(response, command, [], True)
        if response.kind != "OK":
            raise Fault("idle", f"{response.raw!r}")

    # -------------------------------------------------------------- a phase

    def work(self, count):
        for _ in range(count):
            step = next(self.steps)
            self._note("#", f"{step.kind} {step.dice[0]:.3f}")
            self.do(step)
            gevent.sleep(0)

    def counted(self):
        """How many messages the client believes there are."""
        return len(self.belief.entries)
