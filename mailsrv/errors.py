"""The failures of the mail model, in its own words. Each protocol gives them its codes in one table.

`smtp.replies` and `imap.responses` map every subclass of MailError; a test walks them.

Imports: nothing.
"""

from __future__ import annotations


class MailError(Exception):
    """A request the mail model refuses; `str()` is a sentence for the user, never a secret."""


class MailboxNotFound(MailError):
    """There is no mailbox of that name, or it was deleted."""


class MailboxExists(MailError):
    """The name is taken."""


class MailboxNameInvalid(MailError):
    """The name cannot be a mailbox: empty part, control character, too long, too deep."""


class MailboxReserved(MailError):
    """INBOX cannot be deleted, or a mailbox with children cannot be what was asked."""


class MailboxReadOnly(MailError):
    """The mailbox was opened with EXAMINE."""


class MessageGone(MailError):
    """The message was expunged by somebody else."""


class KeywordRefused(MailError):
    """The keyword cannot be kept: the mailbox has MAX_KEYWORDS already, or the name is not valid."""


class MessageTooLarge(MailError):
    """The message is over the size limit."""


class OverQuota(MailError):
    """The account's quota would be exceeded."""


class RecipientUnknown(MailError):
    """No such user, alias or catch-all in a domain of ours."""


class RelayDenied(MailError):
    """The recipient's domain is not ours."""


class SenderRefused(MailError):
    """The authenticated user may not send as this address."""


class AuthenticationFailed(MailError):
    """Wrong name or password, or a disabled account: never said which."""


class LoginThrottled(MailError):
    """After too many failures an attempt has to wait; the text says how long."""

    def __init__(self, text: str, wait_seconds: float = 0.0) -> None:
        super().__init__(text)
        self.wait_seconds = wait_seconds


class DomainExists(MailError):
    """The domain is there already."""


class DomainNotFound(MailError):
    """The domain is not one of ours."""


class AccountExists(MailError):
    """The user or alias is there already."""


class AccountNotFound(MailError):
    """There is no such user or alias."""


class AddressInvalid(MailError):
    """This is not an address, a domain name or an acceptable password."""


class MessageRefused(MailError):
    """The message itself is refused (a mail loop, forbidden content)."""


class TemporaryFailure(MailError):
    """Storage or a helper failed; the same request may work later. Nothing was accepted."""


class ModSeqTooOld(MailError):
    """Expunges that far back are forgotten; the caller compares from scratch."""
