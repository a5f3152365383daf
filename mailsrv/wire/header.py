"""Header fields of a message: splitting, unfolding, encoded words, addresses, dates, parameters.

Every function takes any bytes and gives a value: mail is what other people's programs wrote. Time is linear in the
input: the regular expressions use possessive quantifiers only and never look at the same octets again.

Imports: wire.pieces.    RFC 5322 2.2, 3.4, 4 (fields, addresses, obsolete forms), RFC 2047, RFC 2231,
RFC 2045 5.1 (parameters).
"""

from __future__ import annotations

import re
from base64 import b64encode
from binascii import a2b_qp
from collections.abc import Iterable
from datetime import date
from encodings.aliases import aliases
from functools import lru_cache

from mailsrv.wire.pieces import PIECE, cut, decode, decode_all, decode_base64

HEADER_LIMIT = 1 << 20  # octets of one header block that are looked at
FIELD_LIMIT = 1 << 16  # octets of one field that are looked at
REPEAT_LIMIT = 1000  # fields of one name that are looked at

Fields = dict[bytes, list[bytes]]  # name in lower case -> raw values (folding kept) in their order

# A field is a line and the lines after it that begin with white space; one without a name is skipped as junk.
_FIELD = re.compile(rb"([!-9;-~]++)[ \t]*+:([^\n]*+(?:\n[ \t][^\n]*+)*+)\n?+|[^\n]++(?:\n[ \t][^\n]*+)*+\n?+|\n")


def parse_fields(header: bytes) -> Fields:
    """The fields of a header block by name. What is beyond the limits, and lines without a name, are left out."""
    fields: Fields = {}
    if len(header) <= PIECE:
        found: Iterable[tuple[bytes, bytes]] = _FIELD.findall(header)
    else:  # one by one, so that others have their turn
        found = ((match[1] or b"", match[2] or b"") for match in _FIELD.finditer(header[:HEADER_LIMIT]))
    for name, value in found:
        if name:
            name = name.lower()
            values = fields.get(name)
            if values is None:
                fields[name] = [value]
            elif len(values) < REPEAT_LIMIT:
                values.append(value)
    return fields


def unfold(value: bytes) -> bytes:
    """The value of a field on one line, without NUL and surrounding white space, at most `FIELD_LIMIT` octets of it."""
    if len(value) > FIELD_LIMIT:
        value = value[:FIELD_LIMIT]
    if b"\n" in value:
        value = value.replace(b"\r\n", b"").replace(b"\n", b"")
    if b"\0" in value:
        value = value.replace(b"\0", b"")
    return value.strip(b" \t\r")


def first(fields: Fields, name: bytes) -> bytes | None:
    """The first field called `name` (lower case), unfolded; None without one."""
    values = fields.get(name)
    return unfold(values[0]) if values else None


# --- charsets -------------------------------------------------------------------------------------------------------

# Only charsets known beforehand are looked up: Python imports a module, and remembers for ever, per name asked for.
# Left out are codecs that are no charset of mail; punycode and idna also take quadratic time.
_NOT_CHARSETS = {"base64_codec", "bz2_codec", "hex_codec", "quopri_codec", "rot_13", "uu_codec", "zlib_codec"}
_NOT_CHARSETS |= {"mbcs", "punycode", "idna", "undefined", "unicode_escape", "raw_unicode_escape"}
_CHARSETS = {name: codec for name, codec in aliases.items() if codec not in _NOT_CHARSETS}
_CHARSETS |= {codec: codec for codec in _CHARSETS.values()}
_CHARSETS |= {"x_sjis": "shift_jis", "x_gbk": "gbk", "iso_8859_8_i": "iso8859_8", "iso_8859_8_e": "iso8859_8"}
_CHARSETS |= {"unicode_1_1_utf_7": "utf_7", "cp_850": "cp850", "x_mac_roman": "mac_roman", "windows_874": "cp874"}
_CHARSETS |= {"ks_c_5601_1987": "cp949", "x_windows_949": "cp949", "cp874": "cp874", "koi8_u": "koi8_u"}
# Charsets whose ASCII octets are ASCII characters: most mail is, and is decoded without asking the codec.
_SURROGATES = re.compile("[\ud800-\udfff]")
_PLAIN = {"", "us-ascii", "utf-8", "iso-8859-1", "iso-8859-15", "windows-1252"}


def decode_guess(data: bytes) -> str:
    """Text of unknown charset: UTF-8 if it is that, else Latin-1, which takes every octet."""
    try:
        return decode(data, "utf-8")
    except UnicodeDecodeError:
        return decode(data, "latin-1")


def decode_charset(data: bytes, charset: str) -> str:
    """Text in `charset` as its sender named it; what is unknown or wrong is guessed, never refused."""
    if len(data) <= PIECE:
        return "".join(decode_charset_all([data], charset))
    return "".join(decode_charset_all(cut(data, 0, len(data)), charset))


def decode_charset_all(data: list[bytes], charset: str) -> list[str]:
    """The same of pieces that belong together, in pieces."""
    charset = charset.strip(" \t\"'").lower()
    if charset in _PLAIN and all(one.isascii() for one in data):
        return [one.decode("ascii") for one in data]
    codec = _CHARSETS.get(re.sub("[-. :]+", "_", charset[:64]))
    if codec is None or codec == "ascii":
        return _guess_all(data)
    try:
        texts = decode_all(data, codec, "replace")
    except (UnicodeError, LookupError, ValueError):  # codecs that know no "replace" for some input
        return _guess_all(data)
    # Python's UTF-7 gives halves of surrogate pairs as they stand: no text, and the index takes text only.
    return [_SURROGATES.sub("\ufffd", text) for text in texts] if codec == "utf_7" else texts


def _guess_all(data: list[bytes]) -> list[str]:
    try:
        return decode_all(data, "utf-8")
    except UnicodeDecodeError:
        return decode_all(data, "latin-1")


# --- encoded words --------------------------------------------------------------------------------------------------

# White space inside is not allowed (RFC 2047 2) and yet common with Q.
_WORD = re.compile(rb"=\?([!->@-~]{1,64}+)\?([BbQq])\?([^?\r\n]*+)\?=")


def decode_words(value: bytes) -> str:
    """Text of an unfolded field: encoded words decoded, raw 8-bit guessed. RFC 2047 6.

    Neighbours in one charset are decoded together: many senders cut a character in two.
    """
    if b"=?" not in value:
        return value.decode("ascii") if value.isascii() else decode_guess(value)
    text: list[str] = []
    position = 0
    charset, data = "", bytearray()
    for word in _WORD.finditer(value):
        gap = value[position : word.start()]
        position = word.end()
        name = word[1].decode("ascii").lower().partition("*")[0]  # RFC 2231 5 puts a language after "*"
        octets = decode_base64(word[3]) if word[2] in b"Bb" else a2b_qp(word[3], header=True)
        if charset and (not gap or gap.isspace()):  # space between encoded words is not part of the text
            if name == charset:
                data += octets
                continue
            text.append(decode_charset(bytes(data), charset))
        else:
            if charset:
                text.append(decode_charset(bytes(data), charset))
            text.append(decode_guess(gap))
        charset, data = name, bytearray(octets)
    if charset:
        text.append(decode_charset(bytes(data), charset))
    text.append(decode_guess(value[position:]))
    return "".join(text)


def decode_field(value: bytes) -> str:
    """Text of a raw field value for searching: unfolded, decoded, tabs as spaces."""
    return decode_words(unfold(value)).replace("\t", " ")


def _encode_run(data: bytes) -> bytes:
    try:
        text, charset = data.decode(), "utf-8"
    except UnicodeDecodeError:
        text, charset = data.decode("latin-1"), "iso-8859-1"
    words = []
    for start in range(0, len(text), 11):  # 11 characters are at most 44 octets, so a word stays below 75
        words.append(b"=?%s?b?%s?=" % (charset.encode(), b64encode(text[start : start + 11].encode(charset))))
    return b" ".join(words)


def encode_8bit(value: bytes) -> bytes:
    """`value` in 7 bits: each run of words with raw 8-bit octets becomes encoded words (UTF-8, or else Latin-1)."""
    if value.isascii():
        return value
    out: list[bytes] = []
    run: list[bytes] = []
    gap: list[bytes] = []  # empty words behind the run: of it, if it goes on behind them
    for word in value.split(b" "):
        if not word.isascii():
            # Between encoded words only encoded space counts.
            run += gap if run else _space_after_encoded_word(out)
            run.append(word)
            gap = []
        elif run and not word:
            gap.append(word)
        else:
            if run:
                if word.startswith(b"=?"):
                    run += [*gap, b""]
                    gap = []
                out += [_encode_run(b" ".join(run)), *gap]
                run, gap = [], []
            out.append(word)
    if run:
        out += [_encode_run(b" ".join(run)), *gap]
    return b" ".join(out)


def _space_after_encoded_word(out: list[bytes]) -> list[bytes]:
    """Takes the empty words off the end of `out`, where an encoded word is before them, and one more for its space."""
    end = len(out)
    while end and not out[end - 1]:
        end -= 1
    if not end or not out[end - 1].endswith(b"?="):
        return []
    taken = [*out[end:], b""]
    del out[end:]
    return taken


# --- dates ----------------------------------------------------------------------------------------------------------

_MONTHS = {name: number for number, name in enumerate(b"jan feb mar apr may jun jul aug sep oct nov dec".split(), 1)}
_DATE = re.compile(
    rb"(?:[A-Za-z]++\.?+[ \t]*+,?+[ \t]*+)?+([0-9]{1,2}+)[ \t-]++([A-Za-z]{3})[A-Za-z]*+[ \t,.-]++([0-9]{2,4}+)"
)
_ASCTIME = re.compile(
    rb"(?:[A-Za-z]{3,9}+,?+[ \t]++(?=[A-Za-z]))?+([A-Za-z]{3})[A-Za-z]*+[ \t]++([0-9]{1,2}+),?+"
    rb"(?:[ \t]++[0-9]{1,2}+(?::[0-9]++)++)?+(?:[ \t]++[A-Z]{3,4}+)?+[ \t]++([0-9]{4})"
)
_ISO = re.compile(rb"([0-9]{4})-([0-9]{2})-([0-9]{2})")


@lru_cache(256)
def _ordinal(year: int, month: int, day: int) -> int:
    try:
        return date(year, month, day).toordinal()
    except ValueError:
        return 0


def day_number(value: bytes) -> int:
    """Day number (`date.toordinal()`) of an unfolded Date field as written there, zone ignored; 0 if it names none.

    Also takes two-digit years (RFC 5322 4.3), the form of asctime() and ISO 8601, which broken senders use.
    """
    text = value[:200]
    if b"(" in text[:30]:
        text = strip_comments(text).strip()
    found = _DATE.match(text)
    if found:
        day, month, year = found[1], _MONTHS.get(found[2].lower(), 0), int(found[3])
        if len(found[3]) < 4:
            year += 2000 if len(found[3]) == 2 and year < 50 else 1900
        return _ordinal(year, month, int(day))
    found = _ASCTIME.match(text)
    if found:
        return _ordinal(int(found[3]), _MONTHS.get(found[1].lower(), 0), int(found[2]))
    found = _ISO.match(text)
    return _ordinal(int(found[1]), int(found[2]), int(found[3])) if found else 0


# --- comments and parameters ----------------------------------------------------------------------------------------

_COMMENT_TOKEN = re.compile(rb'"(?:[^"\\]++|\\.)*+"?+|[()]|\\.|[^"()\\]++|\\', re.DOTALL)
_COMMENT_INSIDE = re.compile(rb"[()]|\\.|[^()\\]++|\\", re.DOTALL)
_PAIR = re.compile(rb"\\(.)", re.DOTALL)


def strip_comments(value: bytes) -> bytes:
    """`value` with each comment replaced by a space (RFC 5322 3.2.2); quoted strings are left alone."""
    if b"(" not in value:
        return value
    out: list[bytes] = []
    position = 0
    while found := _COMMENT_TOKEN.match(value, position):
        position = found.end()
        if found[0] == b"(":
            position = _comment_end(value, position)
            out.append(b" ")
        else:
            out.append(found[0])
    return b"".join(out)


def _comment_end(value: bytes, position: int) -> int:
    """Where the comment ends whose "(" is before `position`; the end of `value` if it is never closed."""
    depth = 1
    while found := _COMMENT_INSIDE.match(value, position):
        position = found.end()
        if found[0] == b"(":
            depth += 1
        elif found[0] == b")":
            depth -= 1
            if not depth:
                break
    return position


_MAIN = re.compile(rb"[^;]*+")
_PARAMETER_GAP = re.compile(rb"[\s;]*+")
_PARAMETER = re.compile(rb'([^\s=;()"]++)\s*+=\s*+(?:"((?:[^"\\]++|\\.)*+)"?+|([^;]*+))', re.DOTALL)
_SECTION = re.compile(rb"([^*]++)\*([0-9]{1,4}+)(\*?+)")
Parameters = tuple[tuple[bytes, bytes], ...]


def parse_parameters(value: bytes) -> tuple[bytes, Parameters]:
    """An unfolded Content-Type or Content-Disposition: what stands before ";", and the (name, value) pairs.

    Names are in lower case; continuations are put together (RFC 2231 3), charset and percent encoding kept as written,
    which leaves the name with its "*".
    """
    if len(value) <= 100:  # the few usual values come again and again
        return _parse_short(value)
    return _parse_parameters(value)


def _parse_parameters(value: bytes) -> tuple[bytes, Parameters]:
    position = value.find(b";")
    if 0 <= value.find(b"(") < position:  # a comment there may hold a ";"
        value = strip_comments(value)
        position = value.find(b";")
    if position < 0:
        return strip_comments(value).strip(), ()
    main = strip_comments(value[:position]).strip()
    parameters: list[tuple[bytes, bytes]] = []
    extended = False
    while position >= 0:
        position = _PARAMETER_GAP.match(value, position).end()  # type: ignore[union-attr]  # matches always
        if value.startswith(b"(", position):
            position = _comment_end(value, position + 1)
            continue
        found = _PARAMETER.match(value, position)
        if found is None:
            position = value.find(b";", position)
            continue
        name, quoted, text = found.groups()
        name = name.lower()
        if quoted is not None:
            text = _PAIR.sub(rb"\1", quoted) if b"\\" in quoted else quoted
        elif name not in (b"name", b"filename"):  # whose spaces and parentheses are often left unquoted
            text = (text.partition(b"(")[0].split(None, 1) or [b""])[0]
        else:
            text = text.rstrip()
        parameters.append((name, text))
        extended = extended or b"*" in name
        position = value.find(b";", found.end())
    return main, tuple(_join_sections(parameters) if extended else parameters)


_parse_short = lru_cache(1024)(_parse_parameters)


def _join_sections(parameters: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Puts `name*0`, `name*1*`, … together (RFC 2231 3, 4.1); IMAP servers do that for their clients (RFC 2231 6)."""
    sections: dict[bytes, dict[int, tuple[bool, bytes]]] = {}
    for name, value in parameters:
        if found := _SECTION.fullmatch(name):
            sections.setdefault(found[1], {}).setdefault(int(found[2]), (found[3] == b"*", value))
    joined: list[tuple[bytes, bytes]] = []
    for name, value in parameters:
        found = _SECTION.fullmatch(name)
        if found is None:
            joined.append((name, value))
        elif found[1] not in sections:
            pass  # went out with the first one of its name
        elif 0 not in sections[found[1]]:
            joined.append((name, value))
        else:
            parts = sections.pop(found[1])
            count = next(number for number in range(len(parts) + 1) if number not in parts)
            used = [parts[number] for number in range(count)]
            if any(encoded for encoded, _ in used):
                # Sections without "*" are literal text among percent-encoded ones: they are encoded to match.
                text = b"".join(part if encoded else _percent(part) for encoded, part in used)
                joined.append((found[1] + b"*", text if used[0][0] else b"''" + text))
            else:
                joined.append((found[1], b"".join(part for _, part in used)))
    return joined


_TO_PERCENT = re.compile(rb"[^A-Za-z0-9!#$&+.^_`{|}~-]")
_FROM_PERCENT = re.compile(rb"%([0-9A-Fa-f]{2})")


def _percent(value: bytes) -> bytes:
    return _TO_PERCENT.sub(lambda found: b"%%%02X" % ord(found[0]), value)


def parameter_text(parameters: Parameters, name: bytes) -> str | None:
    """The text of a parameter: RFC 2231 decoded, or the RFC 2047 words that many senders put there instead."""
    for given, value in parameters:
        if given == name + b"*":
            parts = value.split(b"'", 2)
            data = _FROM_PERCENT.sub(lambda found: bytes((int(found[1], 16),)), parts[-1])
            return decode_charset(data, parts[0].decode("latin-1")) if len(parts) == 3 else decode_guess(data)
        if given == name:
            return decode_words(value)
    return None
