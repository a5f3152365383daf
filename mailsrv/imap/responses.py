"""The failures of the mail model in IMAP's words: NO, a response code where there is one, a sentence.

Imports: errors.    RFC 3501 7.1, RFC 5530 (response codes), RFC 7889 (TOOBIG), RFC 9208 (OVERQUOTA).
"""

from __future__ import annotations

from mailsrv import errors

CODES: dict[type[errors.MailError], str] = {
    errors.MailboxNotFound: "NONEXISTENT",
    errors.MailboxExists: "ALREADYEXISTS",
    errors.MailboxNameInvalid: "CANNOT",
    errors.MailboxReserved: "CANNOT",
    errors.MailboxReadOnly: "NOPERM",
    errors.MessageGone: "EXPUNGEISSUED",
    errors.KeywordRefused: "LIMIT",
    errors.MessageTooLarge: "TOOBIG",
    errors.OverQuota: "OVERQUOTA",
    errors.RecipientUnknown: "CANNOT",
    errors.RelayDenied: "CANNOT",
    errors.SenderRefused: "NOPERM",
    errors.AuthenticationFailed: "AUTHENTICATIONFAILED",
    errors.LoginThrottled: "UNAVAILABLE",  # not AUTHENTICATIONFAILED: the password may well be right
    errors.DomainExists: "ALREADYEXISTS",
    errors.DomainNotFound: "NONEXISTENT",
    errors.AccountExists: "ALREADYEXISTS",
    errors.AccountNotFound: "NONEXISTENT",
    errors.AddressInvalid: "CANNOT",
    errors.MessageRefused: "CANNOT",
    errors.TemporaryFailure: "UNAVAILABLE",
    errors.ModSeqTooOld: "SERVERBUG",
}


def refusal(error: errors.MailError, code: str | None = None) -> str:
    """`[CODE] Sentence` for a NO."""
    text = "".join(char if " " <= char <= "~" else "?" for char in str(error))[:200]
    return f"[{code or CODES[type(error)]}] {text or type(error).__name__}"
