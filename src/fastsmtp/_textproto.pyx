# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, embedsignature=False
# cython: freethreading_compatible=True
"""The text protocol, compiled; its contract is `_textproto.pyi`.

Octets are looked at through pointers, with `memchr` and the wide scans of `_dotscan.h`.  A function that
takes `bytes` keeps a reference to it for as long as it holds a pointer into it.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.object cimport PyObject
from cpython.ref cimport Py_INCREF
from cpython.unicode cimport PyUnicode_DecodeASCII, PyUnicode_DecodeUTF8
from libc.stdint cimport uint8_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memchr, memcmp, memcpy

from sys import intern

from fastsmtp import limits
from fastsmtp._vocabulary import HEADER_KEYS, VERBS
from fastsmtp.errors import HeaderError, LineTooLong, ProtocolError

cdef extern from "Python.h":
    int _PyBytes_Resize(PyObject **bytes, Py_ssize_t size) except -1
    object PyUnicode_New(Py_ssize_t size, Py_UCS4 maxchar)
    bint PyUnicode_IS_ASCII(object text)
    bint PyUnicode_CheckExact(object text)
    Py_ssize_t PyUnicode_GET_LENGTH(object text)
    uint8_t *PyUnicode_1BYTE_DATA(object text)

cdef extern from "_dotscan.h" nogil:
    enum:
        FS_BARE_CR, FS_BARE_LF, FS_NUL, FS_8BIT, FS_SLACK, FS_BLOCK, FS_CONTROL, FS_EIGHT_BIT
    ctypedef struct fs_dot:
        const uint8_t *text
        size_t size
        size_t position
        size_t taken
        size_t end
        uint8_t *out
        unsigned flags
        int strip
    void fs_dot_skip(fs_dot *dot)
    int fs_dot_decode(fs_dot *dot)
    unsigned fs_line_flags(const uint8_t *p, size_t count)
    uint64_t fs_verb_word(const uint8_t *p, size_t count)

__all__ = [
    "CONTROL",
    "EIGHT_BIT",
    "IMPLEMENTATION",
    "NOT_UTF8",
    "DotDecoder",
    "DotEncoder",
    "canonical_mime_header_key",
    "encode_dot",
    "encode_reply",
    "find_line",
    "parse_header_block",
    "parse_response",
    "scan_command",
]

IMPLEMENTATION = "cython"

CONTROL = 1
EIGHT_BIT = 2
NOT_UTF8 = 4


# ---- words that are known: small tables, filled once ----

cdef enum:
    VERBS_MAX = 32
    KEYS_SLOTS = 512  # a power of two, several times the number of keys
    KEY_MAX = 32      # octets of the longest key in the table

cdef struct Verb:
    uint64_t word
    Py_ssize_t size
    PyObject *text

cdef struct Key:
    const uint8_t *octets
    Py_ssize_t size
    PyObject *text

cdef Verb known_verbs[VERBS_MAX]
cdef Py_ssize_t known_verb_count = 0
cdef Key known_keys[KEYS_SLOTS]
cdef uint8_t token_class[256]  # 0: no token character (RFC 5322 2.2, RFC 7230 3.2.6), 1: one, 2: upper case, 3: lower case
cdef list words = []           # owns what the tables point to

cdef Py_ssize_t REPLY_LINE = limits.REPLY_LINE
cdef Py_ssize_t REPLY_LINES = limits.REPLY_LINES


cdef inline size_t key_slot(const uint8_t *octets, Py_ssize_t size) noexcept nogil:
    """Where a canonical key of one octet at least belongs; first, middle, last and length tell most of them apart."""
    return (octets[0] * 7 + octets[size >> 1] * 31 + octets[size - 1] * 101 + size * 13) & (KEYS_SLOTS - 1)


cdef _fill_tables():
    global known_verb_count
    cdef Py_ssize_t size
    cdef size_t slot
    cdef int octet
    for verb in VERBS:
        verb = intern(verb)
        octets = verb.encode()
        words.append(verb)
        size = len(octets)
        if size > 8 or known_verb_count == VERBS_MAX:
            raise ValueError("the table of verbs is too small")
        known_verbs[known_verb_count].word = fs_verb_word(<const uint8_t *>PyBytes_AS_STRING(octets), size)
        known_verbs[known_verb_count].size = size
        known_verbs[known_verb_count].text = <PyObject *>verb
        known_verb_count += 1
    if len(HEADER_KEYS) > KEYS_SLOTS // 2:
        raise ValueError("the table of header keys is too small")
    for key in HEADER_KEYS:
        key = intern(key)
        words.append(key)
        size = len(key)
        if size > KEY_MAX or not key.isascii():
            raise ValueError("a known header key is too long")
        slot = key_slot(PyUnicode_1BYTE_DATA(key), size)
        while known_keys[slot].text != NULL:
            slot = (slot + 1) & (KEYS_SLOTS - 1)
        known_keys[slot].octets = PyUnicode_1BYTE_DATA(key)
        known_keys[slot].size = size
        known_keys[slot].text = <PyObject *>key
    for octet in range(256):
        token_class[octet] = 0
    for octet in b"!#$%&'*+-.^_`|~0123456789":
        token_class[octet] = 1
    for octet in range(26):
        token_class[b"A"[0] + octet] = 2
        token_class[b"a"[0] + octet] = 3


_fill_tables()


# ---- arguments and text ----

cdef int refuse(str name, object data, Py_ssize_t start) except -1:
    if not isinstance(data, bytes):
        raise TypeError(f"{name} must be bytes, not {type(data).__name__}")
    raise ValueError("start is negative")


cdef inline int check(str name, object data, Py_ssize_t start) except -1:
    if not isinstance(data, bytes) or start < 0:
        return refuse(name, data, start)
    return 0


cdef inline str ascii_text(const uint8_t *octets, Py_ssize_t size):
    return PyUnicode_DecodeASCII(<const char *>octets, size, NULL)


cdef inline str wire_text(const uint8_t *octets, Py_ssize_t size):
    return PyUnicode_DecodeUTF8(<const char *>octets, size, b"surrogateescape")


cdef inline const uint8_t *find(const uint8_t *octets, int octet, const uint8_t *limit) noexcept nogil:
    """The first `octet` before `limit`, or NULL."""
    return <const uint8_t *>memchr(octets, octet, limit - octets)


cdef inline Py_ssize_t find_crlf(const uint8_t *octets, Py_ssize_t start, Py_ssize_t size) noexcept nogil:
    """Index of the next CR LF, or -1."""
    cdef const uint8_t *p = octets + start
    cdef const uint8_t *limit = octets + size
    while limit - p >= 2:
        p = find(p, c'\r', limit - 1)
        if p == NULL:
            return -1
        p += 1
        if p[0] == c'\n':
            return p - octets - 1
    return -1


# ---- commands ----

def find_line(data, Py_ssize_t start=0):
    check("data", data, start)
    return find_crlf(<const uint8_t *>PyBytes_AS_STRING(data), start, PyBytes_GET_SIZE(data)) + 2 or 0
