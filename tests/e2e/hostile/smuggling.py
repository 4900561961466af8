"""Requests whose end, or whose very shape, two readers could see differently. Each hides a second one, for /smuggled.

After aiohttp's threat model, HAProxy's regression tests and the published attacks (CL.TE, TE.CL, TE.TE, CL.0, obs-fold,
bare LF, chunk extensions, and so on).
"""

from __future__ import annotations

HIDDEN = b"GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n"
JSON = b'{"text": ""}'
BODY = JSON + HIDDEN
EMPTY = b"0\r\n\r\n" + HIDDEN  # the last chunk, and what should not be read after it
START = b"POST /v1/tts HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"


def _length(value: bytes, body: bytes = BODY) -> bytes:
    return START + b"Content-Length: " + value + b"\r\n\r\n" + body


def _headers(lines: bytes, body: bytes = EMPTY) -> bytes:
    return START + lines + b"\r\n\r\n" + body


def _chunked(body: bytes, line: bytes = b"Transfer-Encoding: chunked") -> bytes:
    return _headers(line, body)


CL_TE = b"Content-Length: %d\r\nTransfer-Encoding: chunked" % (len(HIDDEN) + 5)

CASES: dict[str, bytes] = {
    # Two lengths, or a length and chunks.
    "length and chunks": _headers(CL_TE),
    "chunks and length": _headers(b"Transfer-Encoding: chunked\r\nContent-Length: 5"),
    "length 0 and chunks": _headers(b"Content-Length: 0\r\nTransfer-Encoding: chunked"),
    "two lengths": _headers(b"Content-Length: 12\r\nContent-Length: 50", BODY),
    "two lengths, shorter last": _headers(b"Content-Length: 50\r\nContent-Length: 12", BODY),
    "the same length twice": _headers(b"Content-Length: 12\r\nContent-Length: 12", BODY),
    "two lengths in one line": _length(b"12, 12"),
    "two different lengths in one line": _length(b"12, 50"),
    "length in two spellings": _headers(b"Content-Length: 12\r\ncontent-LENGTH: 50", BODY),
    # Lengths that are none.
    "length with a plus": _length(b"+12"),
    "length with a minus": _length(b"-12"),
    "length minus zero": _length(b"-0"),
    "length in hexadecimal": _length(b"0xc"),
    "length with an underscore": _length(b"1_2"),
    "length with a point": _length(b"12.0"),
    "length in exponents": _length(b"1e1"),
    "length with a blank inside": _length(b"1 2"),
    "length with a comma": _length(b"12,"),
    "length with a semicolon": _length(b"12;"),
    "length in quotes": _length(b'"12"'),
    "no length": _length(b""),
    "length of a word": _length(b"twelve"),
    "length in Arabic digits": _length("١٢".encode()),
    "length with a NUL": _length(b"12\x00"),
    "length with a vertical tab": _length(b"\x0b12"),
    "length beyond 64 bits": _length(b"18446744073709551628"),
    "length of 400 digits": _length(b"9" * 400),
    # Chunked, or nearly.
    "encoding xchunked": _chunked(EMPTY, b"Transfer-Encoding: xchunked"),
    "encoding chunkedx": _chunked(EMPTY, b"Transfer-Encoding: chunkedx"),
    "encoding identity": _chunked(EMPTY, b"Transfer-Encoding: identity"),
    "encoding chunked, identity": _chunked(EMPTY, b"Transfer-Encoding: chunked, identity"),
    "encoding identity, chunked": _chunked(EMPTY, b"Transfer-Encoding: identity, chunked"),
    "encoding chunked twice": _chunked(EMPTY, b"Transfer-Encoding: chunked, chunked"),
    "two encodings": _chunked(EMPTY, b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity"),
    "two encodings, chunked last": _chunked(EMPTY, b"Transfer-Encoding: identity\r\nTransfer-Encoding: chunked"),
    "encoding in quotes": _chunked(EMPTY, b'Transfer-Encoding: "chunked"'),
    "encoding with a vertical tab": _chunked(EMPTY, b"Transfer-Encoding: \x0bchunked"),
    "encoding with a NUL": _chunked(EMPTY, b"Transfer-Encoding: chunked\x00"),
    "encoding with a parameter": _chunked(EMPTY, b"Transfer-Encoding: chunked;q=1"),
    "no encoding": _chunked(EMPTY, b"Transfer-Encoding:"),
    "encoding with a blank before the colon": _chunked(EMPTY, b"Transfer-Encoding : chunked"),
    "encoding with a tab before the colon": _chunked(EMPTY, b"Transfer-Encoding\t: chunked"),
    "encoding on a folded line": _chunked(EMPTY, b"Transfer-Encoding:\r\n chunked"),
    "encoding folded into another header": _chunked(
        EMPTY, b"X-A: b\r\n Transfer-Encoding: chunked\r\nContent-Length: 40"
    ),
    "encoding after a bare LF": _chunked(EMPTY, b"X-A: b\nTransfer-Encoding: chunked\r\nContent-Length: 40"),
    "encoding after a bare CR": _chunked(EMPTY, b"X-A: b\rTransfer-Encoding: chunked\r\nContent-Length: 40"),
    "chunks in HTTP/1.0": (START + CL_TE + b"\r\n\r\n0\r\n\r\n" + HIDDEN).replace(b"HTTP/1.1", b"HTTP/1.0", 1),
    # Chunks whose size is read differently.
    "chunk size with a plus": _chunked(b"+c\r\n" + JSON + b"\r\n0\r\n\r\n" + HIDDEN),
    "chunk size with a minus": _chunked(b"-c\r\n" + JSON + b"\r\n0\r\n\r\n" + HIDDEN),
    "chunk size with 0x": _chunked(b"0xc\r\n" + JSON + b"\r\n0\r\n\r\n" + HIDDEN),
    "chunk size with an underscore": _chunked(b"0_c\r\n" + JSON + b"\r\n0\r\n\r\n" + HIDDEN),
    "chunk size with a leading blank": _chunked(b" c\r\n" + JSON + b"\r\n0\r\n\r\n" + HIDDEN),
    "chunk size of nothing": _chunked(b"\r\n" + JSON + b"\r\n0\r\n\r\n" + HIDDEN),
    "chunk size of no digits": _chunked(b"xyz\r\n" + JSON + b"\r\n0\r\n\r\n" + HIDDEN),
    "chunk size beyond 64 bits": _chunked(b"1000000000000000c\r\n" + JSON + b"\r\n0\r\n\r\n" + HIDDEN),
    "chunk size that wraps to zero": _chunked(b"10000000000000000\r\n" + HIDDEN),
    "chunk size ended by a bare LF": _chunked(b"c\n" + JSON + b"\r\n0\r\n\r\n" + HIDDEN),
    "chunk size ended by a bare CR": _chunked(b"c\r" + JSON + b"\r\n0\r\n\r\n" + HIDDEN),
    "chunk ended by a bare LF": _chunked(b"c\r\n" + JSON + b"\n0\r\n\r\n" + HIDDEN),
    "chunk longer than it says": _chunked(b"5\r\n" + JSON + b"\r\n0\r\n\r\n" + HIDDEN),
    "chunk extension with a bare LF": _chunked(b"c;a\nb\r\n" + JSON + b"\r\n0\r\n\r\n" + HIDDEN),
    "chunk extension with a bare CR": _chunked(b"c;a\rb\r\n" + JSON + b"\r\n0\r\n\r\n" + HIDDEN),
    "chunk extension with a NUL": _chunked(b"c;a\x00b\r\n" + JSON + b"\r\n0\r\n\r\n" + HIDDEN),
    "last chunk ended by a bare LF": _chunked(b"c\r\n" + JSON + b"\r\n0\n\n" + HIDDEN),
    "trailer with a bare CR": _chunked(b"c\r\n" + JSON + b"\r\n0\r\nX: a\rb\r\n\r\n" + HIDDEN),
    "trailer with a length": _chunked(b"c\r\n" + JSON + b"\r\n0\r\nContent-Length : 50\r\n\r\n" + HIDDEN),
    # Heads that are none.
    "header with a blank before the colon": _headers(b"Content-Length : 12", BODY),
    "header without a colon": _headers(b"Content-Length 12", BODY),
    "header without a name": _headers(b": 12\r\nContent-Length: 12", BODY),
    "header name with a NUL": _headers(b"X\x00: 1\r\nContent-Length: 12", BODY),
    "header name in brackets": _headers(b"X(a): 1\r\nContent-Length: 12", BODY),
    "header name beyond ASCII": _headers(b"X\xc3\xa9: 1\r\nContent-Length: 12", BODY),
    "header value with a NUL": _headers(b"X: a\x00b\r\nContent-Length: 12", BODY),
    "header value with a bare CR": _headers(b"X: a\rb\r\nContent-Length: 12", BODY),
    "a folded header": _headers(b"X: a\r\n b\r\nContent-Length: 12", BODY),
    "first header begins with a blank": START.replace(b"Host", b" Host")
    + b"Content-Length: 12\r\n\r\n"
    + JSON
    + HIDDEN,
    "two hosts": _headers(b"Host: evil\r\nContent-Length: 12", BODY),
    "no host": _length(b"12", BODY).replace(b"Host: x\r\n", b"", 1),
    # Request lines that are none.
    "method in lower case": b"get /livez HTTP/1.1\r\nHost: x\r\n\r\n" + HIDDEN,
    "method that is none": b"GE(T /livez HTTP/1.1\r\nHost: x\r\n\r\n" + HIDDEN,
    "no version": b"GET /livez\r\nHost: x\r\n\r\n" + HIDDEN,
    "version 1.10": b"GET /livez HTTP/1.10\r\nHost: x\r\n\r\n" + HIDDEN,
    "version 11": b"GET /livez HTTP/11\r\nHost: x\r\n\r\n" + HIDDEN,
    "version 2.0": b"GET /livez HTTP/2.0\r\nHost: x\r\n\r\n" + HIDDEN,
    "version 9.9": b"GET /livez HTTP/9.9\r\nHost: x\r\n\r\n" + HIDDEN,
    "another protocol": b"GET /livez ICY/1.1\r\nHost: x\r\n\r\n" + HIDDEN,
    "a NUL in the path": b"GET /livez\x00 HTTP/1.1\r\nHost: x\r\n\r\n" + HIDDEN,
    "a bare CR in the path": b"GET /livez\r HTTP/1.1\r\nHost: x\r\n\r\n" + HIDDEN,
    "a blank in the path": b"GET /livez /x HTTP/1.1\r\nHost: x\r\n\r\n" + HIDDEN,
    "HTTP/2's preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + HIDDEN,
    "a line that is too long": b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n" + HIDDEN,
    "a header that is too long": b"GET /livez HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 70_000 + b"\r\n\r\n" + HIDDEN,
    "headers without number": b"GET /livez HTTP/1.1\r\nHost: x\r\n" + b"X: a\r\n" * 5_000 + b"\r\n" + HIDDEN,
}
