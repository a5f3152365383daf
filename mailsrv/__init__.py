"""mailsrv: SMTP in, IMAP with instant push, plain Maildir on disk."""

__version__ = "0.1.0"
