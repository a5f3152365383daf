"""What the world did to each message, and what follows of it: which flags may be told, which messages may be gone.

Every act has a span of time, from before it was asked for until after it was answered; it took effect somewhere
between. So acts of several sessions have many possible orders, and the ledger knows what holds in all of them:

- a flag may be told if some act gave it that value and no other act is sure to have changed it since;
- a message must be there if it was acknowledged before one looked and nobody could have removed it;
- a UID belongs to one message for ever, and is above all that were given before it was asked for (RFC 3501 2.3.1.1);
- a message is recent to one session (RFC 3501 2.3.2).

`token` is the text in a message's X-Model field and names it.
"""

import math
from dataclasses import dataclass, field

from tests.model.responses import Fault

SYSTEM = frozenset({"\\answered", "\\flagged", "\\deleted", "\\seen", "\\draft"})
KEYWORDS = frozenset({"work", "play", "$later"})
FLAGS = SYSTEM | KEYWORDS
BEFORE = -math.inf
NOT_YET = math.inf


@dataclass(eq=False)
class Act:
    """A change of flags: + adds, - removes, = replaces those in `scope`; `either`: flags whose value nobody knows."""

    op: str
    flags: frozenset
    start: float
    end: float = NOT_YET
    scope: frozenset = FLAGS
    either: frozenset = frozenset()
    sure: bool = True  # it took effect once it has ended

    def touches(self, flag):
        return flag in self.scope if self.op == "=" else flag in self.flags

    def gives(self, flag):
        if flag in self.either:
            return {True, False}
        return {self.op != "-" and flag in self.flags}


@dataclass(eq=False)
class Expunge:
    start: float
    uids: frozenset | None  # None: all that are marked
    end: float = NOT_YET


@dataclass(eq=False)
class Instance:
    """One message in one mailbox."""

    uid: int
    token: str | None
    born: float  # it may be there from here on
    sure: float  # it must be there from here on
    acts: list
    taken: float = NOT_YET  # somebody may have moved or removed it from here on
    gone: float = NOT_YET  # it is not there any more from here on, as who acted or saw it was told
    recent_to: object = None

    def may(self, flag, start, end):
        """The values a flag may have had at some time in the span."""
        found = set()
        acts = [act for act in self.acts if act.touches(flag) and act.start <= end]
        for act in acts:
            if not any(other.sure and other.start > act.end and other.end < start for other in acts):
                found |= act.gives(flag)
        return found

    def impossible(self, flags, start, end):
        """A flag that cannot have been told so, or ""."""
        if len(self.acts) == 1 and not self.acts[0].either:
            return next(iter(flags ^ self.acts[0].flags), "")
        return next((flag for flag in FLAGS if (flag in flags) not in self.may(flag, start, end)), "")


@dataclass(eq=False)
class Delivery:
    """A message that arrives without telling its UID."""

    token: str
    start: float
    end: float = NOT_YET
    uid: int | None = None
    taken: float = NOT_YET
    gone: float = NOT_YET
    acts: list = field(default_factory=list)


class Box:
    def __init__(self, name, uidvalidity):
        self.name, self.uidvalidity = name, uidvalidity
        self.instances = {}
        self.removed = {}  # UIDs of earlier phases: their tokens
        self.deliveries = {}
        self.expunges = []
        self.coming = []  # [start, end, how many] of APPEND, COPY and MOVE to here
        self._next_told = []  # (when, UIDNEXT)

    # -------------------------------------------------------------- arriving

    def delivery(self, token, now):
        self.deliveries[token] = Delivery(token, now)
        return self.deliveries[token]

    def saw(self, uid, token, now):
        """Somebody was shown a UID, and perhaps which message it is."""
        if uid in self.removed:
            raise Fault("uid-reused", f"{self.name}: UID {uid} was {self.removed[uid]}, and is {token}")
        instance = self.instances.get(uid)
        if instance is None:
            unknown = Act("=", frozenset(), BEFORE, BEFORE, either=FLAGS)
            instance = self.instances[uid] = Instance(uid, None, BEFORE, NOT_YET, [unknown])
        if token is not None and instance.token is None:
            instance.token = token
            delivery = self.deliveries.get(token)
            if delivery is not None and delivery.uid is None:
                delivery.uid = uid
                instance.born, instance.sure = delivery.start, delivery.end
                instance.acts = [Act("=", frozenset(), BEFORE, BEFORE), *delivery.acts, *instance.acts[1:]]
        elif token is not None and instance.token != token:
            raise Fault("uid-content", f"{self.name}: UID {uid} was {instance.token}, and is {token}")
        return instance

    def created(self, uid, token, start, end, flags=frozenset(), either=frozenset()):
        """An APPENDUID or COPYUID told the UID of a new message."""
        if uid <= (most := self.given_before(start)):
            raise Fault("uid-order", f"{self.name}: UID {uid} was given although {most} was before")
        instance = self.saw(uid, token, end)
        instance.born, instance.sure = start, end
        instance.acts[0] = Act("=", flags, BEFORE, BEFORE, either=either)
        return instance

    def given_before(self, time):
        """The highest UID that is sure to have been given, or promised to be free, before then."""
        given = [one.uid for one in self.instances.values() if one.sure < time]
        promised = [uidnext - 1 for at, uidnext in self._next_told if at < time]
        return max([*given, *promised, *self.removed], default=0)

    def next_told(self, uidnext, start, end):
        """UIDNEXT never falls, and is above what was given (R7)."""
        if uidnext <= (most := self.given_before(start)):
            raise Fault("uidnext", f"{self.name}: UIDNEXT {uidnext} after {most} was given or promised")
        self._next_told.append((end, uidnext))

    # -------------------------------------------------------------- going

    def may_be_gone(self, instance, now):
        """Whether anybody could have removed the message by then."""
        if instance.taken <= now or instance.gone <= now:
            return True
        return any(
            one.start <= now
            and (one.uids is None or instance.uid in one.uids)
            and True in instance.may("\\deleted", one.start, min(one.end, now))
            for one in self.expunges
        )

    def told_gone(self, uid, now):
        """A client was told of an EXPUNGE."""
        instance = self.instances.get(uid)
        if instance is not None:
            if not self.may_be_gone(instance, now):
                raise Fault("expunge-wrong", f"{self.name}: UID {uid} ({instance.token}) was removed by nobody")
            instance.gone = min(instance.gone, now)

    def expunged(self, one, end):
        """EXPUNGE, UID EXPUNGE or CLOSE was answered: what was marked all the time is gone."""
        one.end = end
        for instance in self.instances.values():
            if (
                (one.uids is None or instance.uid in one.uids)
                and instance.sure < one.start
                and instance.may("\\deleted", one.start, end) == {True}
            ):
                instance.gone = min(instance.gone, end)

    # -------------------------------------------------------------- counting

    def bounds(self, start, end):
        """(least, most) messages that one who looks between may find."""
        least = most = 0
        bound = {one.uid for one in self.deliveries.values() if one.uid is not None}
        for instance in self.instances.values():
            if instance.born <= end and instance.gone >= start:
                most += 1
            if instance.uid not in bound and instance.sure < start and not self.may_be_gone(instance, end):
                least += 1
        for delivery in self.deliveries.values():
            if delivery.uid is None:
                most += delivery.start <= end and delivery.gone >= start
                least += delivery.end < start and delivery.taken > end
            else:
                instance = self.instances[delivery.uid]
                least += delivery.end < start and not self.may_be_gone(instance, end)
        most += sum(count for begun, ended, count in self.coming if begun <= end and ended >= start)
        return least, most

    # -------------------------------------------------------------- at rest

    def rest(self, truth, now):
        """Nobody acts, and this is there: UID -> (token, flags). Raises for what cannot be, forgets the acts."""
        for uid, (token, flags) in truth.items():
            instance = self.saw(uid, token, now)
            if instance.gone < now:
                raise Fault("reappeared", f"{self.name}: UID {uid} ({token}) was gone")
            if flag := instance.impossible(frozenset(flags), now, now):
                raise Fault("flags", f"{self.name}: UID {uid} has {sorted(flags)}, but of {flag} {told(instance)}")
        for uid, instance in self.instances.items():
            if uid not in truth and not self.may_be_gone(instance, now):
                raise Fault("lost", f"{self.name}: UID {uid} ({instance.token}) is not there, and nobody removed it")
        delivered = {delivery.uid: delivery for delivery in self.deliveries.values() if delivery.uid is not None}
        for uid, instance in self.instances.items():
            if instance.sure == NOT_YET and uid not in delivered:
                raise Fault("duplicate", f"{self.name}: UID {uid} is {instance.token} once more, which nobody made")
        for delivery in self.deliveries.values():
            if delivery.uid is None and delivery.end < now and delivery.taken > now:
                raise Fault("lost", f"{self.name}: {delivery.token} was accepted and is not there")
        self._forget(truth, now)

    def _forget(self, truth, now):
        for uid in [uid for uid in self.instances if uid not in truth]:
            self.removed[uid] = self.instances.pop(uid).token
        for instance in self.instances.values():
            instance.acts = [Act("=", frozenset(truth[instance.uid][1]), BEFORE, BEFORE)]
            instance.taken = NOT_YET
            instance.sure = min(instance.sure, now)
        self.deliveries = {}
        self.expunges = []
        self.coming = []
        self._next_told = self._next_told and [(now, max(uidnext for _, uidnext in self._next_told))]


def told(instance):
    return "; ".join(f"{one.op}{sorted(one.flags)} {one.start:.4f}-{one.end:.4f}" for one in instance.acts)
