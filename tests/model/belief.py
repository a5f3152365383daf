"""What one client must believe of its selected mailbox, made of nothing but what it was told.

Every untagged response is held against the rules of sequence numbers (RFC 3501 5.2, 5.5, 7.3, 7.4) and against the
ledger: it has to be something that can be true.
"""

from dataclasses import dataclass

from tests.model.ledger import FLAGS, told
from tests.model.responses import Fault

HEADER = "BODY[HEADER.FIELDS (X-MODEL)]"
DATA = {"EXISTS", "EXPUNGE", "RECENT", "FETCH", "FLAGS"}
ANSWERS = {"SEARCH": {"SEARCH", "UID SEARCH"}, "STATUS": {"STATUS"}}


@dataclass(eq=False)
class Entry:
    """A message of the view: what is not known yet is None."""

    uid: int | None = None
    token: str | None = None
    flags: frozenset | None = None
    recent: bool = False


@dataclass(frozen=True)
class Command:
    """What is in progress: its name, and whether its numbers must keep their meaning until it is done (R1)."""

    name: str
    by_number: bool = False


def flag_set(values):
    """(flags in lower case but \\Recent, whether that was among them)."""
    lowered = {one.decode().lower() if isinstance(one, bytes) else one.lower() for one in values}
    return frozenset(lowered - {"\\recent"}), "\\recent" in lowered


def token_of(header):
    """The token in the header fields that HEADER asks for."""
    _, _, text = header.partition(b":")
    return text.strip().decode() or None


class Belief:
    """`fresh`: when the client last asked for all that is new; what is older than that must be known to it."""

    def __init__(self, box, *, read_only, now):
        self.box, self.read_only = box, read_only
        self.entries = []
        self.fresh = now
        self.told_flags = set()
        self.recent = 0
        self.owed = []  # entries that were not answered for: they have to be told as expunged
        self.answered = set()  # ids of entries that the command in progress had FETCH responses for
        self.sizes = {}

    def seq(self, entry):
        return next((number for number, one in enumerate(self.entries, 1) if one is entry), None)

    def apply(self, response, command, now):
        """Take one untagged response into the picture. `command` None: none is in progress."""
        if command is None and response.kind != "BYE":
            raise Fault("unasked", f"{response.raw[:100]!r} with no command in progress (R4)")
        if response.kind == "EXISTS":
            if response.number < len(self.entries):
                raise Fault("exists-shrank", f"{response.number} EXISTS after {len(self.entries)} (R5)")
            self.entries += [Entry() for _ in range(response.number - len(self.entries))]
        elif response.kind == "EXPUNGE":
            self._expunge(response.number, command, now)
        elif response.kind == "FETCH":
            self._fetch(response, now)
        elif response.kind == "RECENT":
            if response.number > len(self.entries):
                raise Fault("recent", f"{response.number} RECENT of {len(self.entries)}")
            self.recent = response.number
        elif response.kind == "FLAGS":
            self.told_flags = flag_set(response.values)[0]
        elif response.kind in ANSWERS:
            if command.name not in ANSWERS[response.kind]:
                raise Fault("unasked", f"{response.raw[:100]!r} in {command.name}")
        elif response.kind not in ("OK", "LIST"):
            raise Fault("unexpected", f"{response.raw[:200]!r} in {command.name}")

    def _expunge(self, number, command, now):
        if command.by_number:
            raise Fault("expunge-in-numbers", f"{number} EXPUNGE in {command.name} by number (R1)")
        if not 1 <= number <= len(self.entries):
            raise Fault("expunge-number", f"{number} EXPUNGE of {len(self.entries)} (R3)")
        entry = self.entries.pop(number - 1)
        if entry.uid is not None:
            self.box.told_gone(entry.uid, now)

    def _fetch(self, response, now):
        if not 1 <= response.number <= len(self.entries):
            raise Fault("fetch-unknown", f"{response.number} FETCH of {len(self.entries)} (R5)")
        entry = self.entries[response.number - 1]
        self.answered.add(id(entry))
        items = response.items
        if "UID" in items:
            self._is(entry, response.number, int(items["UID"]))
        token = token_of(items[HEADER]) if HEADER in items else None
        if token is not None:
            if entry.token not in (None, token):
                raise Fault("identity", f"number {response.number} was {entry.token}, and is {token} (R2)")
            entry.token = token
        instance = None
        if entry.uid is not None:
            instance = self.box.saw(entry.uid, token, now)
            if instance.token is not None:
                if entry.token not in (None, instance.token):
                    raise Fault("uid-content", f"UID {entry.uid} was {instance.token}, and is {entry.token} (R7)")
                entry.token = instance.token
            if instance.gone < self.fresh:
                raise Fault("reappeared", f"UID {entry.uid} ({entry.token}) was gone")
        if "FLAGS" in items:
            self._flags(entry, instance, items["FLAGS"], now)

    def _is(self, entry, number, uid):
        if entry.uid not in (None, uid):
            raise Fault("identity", f"number {number} was UID {entry.uid}, and is {uid} (R2)")
        entry.uid = uid
        before = next((one.uid for one in reversed(self.entries[: number - 1]) if one.uid is not None), 0)
        after = next((one.uid for one in self.entries[number:] if one.uid is not None), uid + 1)
        if not before < uid < after:
            raise Fault("uid-order", f"UID {uid} of number {number} is between {before} and {after} (R7)")

    def _flags(self, entry, instance, values, now):
        flags, recent = flag_set(values)
        if strange := flags - FLAGS:
            raise Fault("flags", f"UID {entry.uid} has {sorted(strange)}, which nobody set")
        if strange := {flag for flag in flags if flag not in self.told_flags}:
            raise Fault("keyword", f"UID {entry.uid} has {sorted(strange)} before FLAGS told of them (R30)")
        if recent and self.read_only:
            raise Fault("recent", f"UID {entry.uid} is recent in EXAMINE (R12)")
        if entry.recent and not recent:
            raise Fault("recent", f"UID {entry.uid} was recent in this session, and is not (R12)")
        entry.flags, entry.recent = flags, recent
        if instance is None:
            return
        if recent and instance.recent_to not in (None, self):
            raise Fault("recent", f"UID {entry.uid} is recent to a second session (R12)")
        if recent:
            instance.recent_to = self
        if flag := instance.impossible(flags, self.fresh, now):
            raise Fault(
                "flags", f"UID {entry.uid} has {sorted(flags)}, asked at {self.fresh:.4f}, told at {now:.4f}, but "
                f"of {flag}: {told(instance)}"
            )  # fmt: skip

    def stored(self, entries, act):
        """A STORE .SILENT was answered: the client does by itself what it is not told of (R29)."""
        for entry in entries:
            if id(entry) not in self.answered and entry.flags is not None:
                if act.op == "=":
                    entry.flags = act.flags
                else:
                    entry.flags = entry.flags | act.flags if act.op == "+" else entry.flags - act.flags

    def looked(self, start, now):
        """NOOP was answered: what was acknowledged before is known now (R5, R6)."""
        self.fresh = start
        for entry in self.owed:
            if any(one is entry for one in self.entries):
                raise Fault("owed", f"UID {entry.uid} was not answered for, and is not expunged (R6)")
        self.owed = []
        for entry in self.entries:
            instance = self.box.instances.get(entry.uid)
            if (
                entry.flags is not None
                and instance is not None
                and (flag := instance.impossible(entry.flags, start, now))
            ):
                raise Fault(
                    "flags-untold", f"UID {entry.uid} is told as {sorted(entry.flags)}, but of {flag}: {told(instance)}"
                )
        least, most = self.box.bounds(start, now)
        if not least <= len(self.entries) <= most:
            raise Fault("count", f"{self.box.name}: {len(self.entries)} messages told, {least} to {most} there")
        gone = [one.uid for one in self.entries if one.uid in self.box.removed]
        gone += [
            one.uid for one in self.entries
            if one.uid in self.box.instances and self.box.instances[one.uid].gone < start
        ]  # fmt: skip
        if gone:
            raise Fault("expunge-untold", f"{self.box.name}: UIDs {gone} are gone, and were not told (R5)")

    def differs(self, truth):
        """What the picture has otherwise than `truth`, UID -> (token, flags), or ""."""
        uids = sorted(truth)
        if len(uids) != len(self.entries):
            return f"{len(self.entries)} messages told, {len(uids)} there"
        for number, (entry, uid) in enumerate(zip(self.entries, uids, strict=True), 1):
            token, flags = truth[uid]
            if entry.uid not in (None, uid) or entry.token not in (None, token):
                return f"number {number} is {entry.uid} {entry.token}, but {uid} {token} there"
            if entry.flags not in (None, flags):
                return f"UID {uid} is told as {sorted(entry.flags)}, and is {sorted(flags)}"
        return ""
