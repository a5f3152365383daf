"""The failures of the mail model as SMTP replies: code, enhanced code, text.

Imports: errors, wire.smtp.    RFC 5321 4.2.3, RFC 3463, RFC 4954 6.
"""

from __future__ import annotations

from mailsrv import errors
from mailsrv.wire.smtp import Reply

REPLIES: dict[type[errors.MailError], Reply] = {
    errors.RecipientUnknown: Reply(550, "5.1.1", "No such mailbox here"),  # RFC 3463 3.2
    errors.RelayDenied: Reply(550, "5.7.1", "Relaying denied: this server does not send to other servers"),
    errors.OverQuota: Reply(452, "4.2.2", "The mailbox is full"),
    errors.MessageTooLarge: Reply(552, "5.3.4", "The message is too large"),
    errors.MessageRefused: Reply(554, "5.7.1", "The message is refused"),
    errors.SenderRefused: Reply(553, "5.7.1", "You may not send as this address"),
    errors.AuthenticationFailed: Reply(535, "5.7.8", "Wrong user name or password"),
    errors.LoginThrottled: Reply(454, "4.7.0", "Too many wrong passwords; try again later"),  # RFC 4954 6
    errors.TemporaryFailure: Reply(451, "4.3.0", "Temporary failure; try again later"),
    errors.MailboxNotFound: Reply(550, "5.1.1", "No such mailbox here"),
    errors.MailboxExists: Reply(554, "5.3.0", "The mailbox exists already"),
    errors.MailboxNameInvalid: Reply(553, "5.1.3", "Not a mailbox name"),
    errors.MailboxReserved: Reply(554, "5.3.0", "Not possible with this mailbox"),
    errors.MailboxReadOnly: Reply(550, "5.2.1", "The mailbox takes no messages"),
    errors.MessageGone: Reply(554, "5.3.0", "The message is gone"),
    errors.KeywordRefused: Reply(554, "5.3.0", "The keyword is not possible"),
    errors.DomainExists: Reply(554, "5.3.0", "The domain exists already"),
    errors.DomainNotFound: Reply(550, "5.1.2", "Not a domain of this server"),
    errors.AccountExists: Reply(554, "5.3.0", "The account exists already"),
    errors.AccountNotFound: Reply(550, "5.1.1", "No such mailbox here"),
    errors.AddressInvalid: Reply(553, "5.1.3", "Not an address"),
    errors.ModSeqTooOld: Reply(451, "4.3.0", "Temporary failure; try again later"),
}


def reply_to(error: errors.MailError) -> Reply:
    return REPLIES[type(error)]
