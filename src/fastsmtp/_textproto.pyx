# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, embedsignature=False
# cython: auto_pickle=False, freethreading_compatible=True
"""The text protocol, compiled; its contract is `_textproto.pyi`.

Octets are looked at through pointers, with `memchr` and the wide scans of `_dotscan.h`.  A function that
takes `bytes` keeps a reference to it for as long as it holds a pointer into it.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF
from cpython.unicode cimport PyUnicode_DecodeASCII, PyUnicode_DecodeUTF8
from libc.stdint cimport uint8_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memchr, memcmp, memcpy

from sys import intern

from fastsmtp import limits
from fastsmtp._vocabulary import HEADER_KEYS, VERBS
from fastsmtp.errors import HeaderError, LineTooLong, ProtocolError

cdef extern from "Python.h":
    PyObject *new_bytes "PyBytes_FromStringAndSize" (const char *octets, Py_ssize_t size) except NULL
    int _PyBytes_Resize(PyObject **bytes, Py_ssize_t size) except -1
    char *octets_of "PyBytes_AS_STRING" (PyObject *bytes)
    object PyUnicode_New(Py_ssize_t size, Py_UCS4 maxchar)
    bint PyUnicode_IS_ASCII(object text)
    bint PyUnicode_CheckExact(object text)
    Py_ssize_t PyUnicode_GET_LENGTH(object text)
    uint8_t *PyUnicode_1BYTE_DATA(object text)

cdef extern from "_dotscan.h" nogil:
    enum:
        FS_BARE_CR, FS_BARE_LF, FS_NUL, FS_8BIT, FS_SLACK, FS_CONTROL, FS_EIGHT_BIT
    ctypedef struct fs_dot:
        const uint8_t *text
        size_t size
        size_t position
        size_t taken
        size_t end
        uint8_t *out
        unsigned flags
        int strip
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
    "scan_domain",
    "scan_path",
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

cdef enum:
    IN_ATOM = 1   # atext (RFC 5322 3.2.3)
    IN_LABEL = 2  # a letter, digit, hyphen or underscore
    LABEL = 63    # octets (RFC 1035 2.3.4)

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
cdef uint8_t token_upper[256]  # a token character (RFC 7230 3.2.6) in upper case, or 0
cdef uint8_t token_lower[256]  # in lower case, or 0
cdef uint8_t address_kind[256] # of IN_ATOM, IN_LABEL
cdef list words = []           # owns what the tables point to

cdef Py_ssize_t REPLY_LINE = limits.REPLY_LINE
cdef Py_ssize_t REPLY_LINES = limits.REPLY_LINES
cdef Py_ssize_t SAFE_PATH = limits.LOCAL_PART + 3


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
    for octet in b"!#$%&'*+-.^_`|~0123456789":
        token_upper[octet] = token_lower[octet] = octet
    for octet in range(26):
        token_upper[c"A" + octet] = token_upper[c"a" + octet] = c"A" + octet
        token_lower[c"A" + octet] = token_lower[c"a" + octet] = c"a" + octet
        address_kind[c"A" + octet] = address_kind[c"a" + octet] = IN_ATOM | IN_LABEL
    for octet in b"0123456789-_":
        address_kind[octet] = IN_ATOM | IN_LABEL
    for octet in b"!#$%&'*+/=?^`{|}~":
        address_kind[octet] = IN_ATOM


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
    cdef const uint8_t *p
    cdef const uint8_t *limit = octets + size
    if start >= size:  # C knows no pointer that far behind
        return -1
    p = octets + start
    while limit - p >= 2:
        p = find(p, c'\r', limit - 1)
        if p == NULL:
            return -1
        p += 1
        if p[0] == c'\n':
            return p - octets - 1
    return -1


cdef bytes owned(PyObject *raw, Py_ssize_t size):
    """`raw`, cut to `size` octets; takes the reference to it over."""
    _PyBytes_Resize(&raw, size)
    result = <bytes>raw
    Py_DECREF(result)
    return result


# ---- commands ----

def find_line(data, Py_ssize_t start=0):
    cdef Py_ssize_t end
    check("data", data, start)
    end = find_crlf(<const uint8_t *>PyBytes_AS_STRING(data), start, PyBytes_GET_SIZE(data))
    return end + 2 if end >= 0 else 0


cdef str verb_of(const uint8_t *octets, Py_ssize_t size, bint ascii):
    cdef Py_ssize_t i
    cdef uint64_t word
    if size <= 8:
        word = fs_verb_word(octets, size)
        for i in range(known_verb_count):
            if known_verbs[i].word == word and known_verbs[i].size == size:
                return <str>known_verbs[i].text
    text = octets[:size].upper()  # of bytes: ASCII letters only, as RFC 5321 2.4 has no others in a verb
    return text.decode("ascii") if ascii else text.decode("utf-8", "surrogateescape")


def scan_command(data, Py_ssize_t start=0):
    cdef const uint8_t *line
    cdef const uint8_t *limit
    cdef const uint8_t *space
    cdef Py_ssize_t end
    cdef unsigned flags
    check("data", data, start)
    line = <const uint8_t *>PyBytes_AS_STRING(data)
    end = find_crlf(line, start, PyBytes_GET_SIZE(data))
    if end < 0:
        return 0, "", "", 0
    limit = line + end
    line += start
    flags = fs_line_flags(line, limit - line)
    if flags & FS_EIGHT_BIT:
        try:
            PyUnicode_DecodeUTF8(<const char *>line, limit - line, NULL)
        except UnicodeDecodeError:
            flags |= 4  # NOT_UTF8
    space = find(line, c' ', limit)
    if space == NULL:
        space = limit
    verb = verb_of(line, space - line, not flags & FS_EIGHT_BIT)
    while space < limit and space[0] == c' ':
        space += 1
    while limit > space and (limit - 1)[0] == c' ':
        limit -= 1
    if flags & FS_EIGHT_BIT:
        return end + 2, verb, wire_text(space, limit - space), flags
    return end + 2, verb, ascii_text(space, limit - space), flags


# ---- addresses ----

cdef inline int check_text(object text, Py_ssize_t start) except -1:
    if not isinstance(text, str):
        raise TypeError(f"text must be str, not {type(text).__name__}")
    if start < 0:
        raise ValueError("start is negative")
    return 0


cdef const uint8_t *usual_domain(const uint8_t *p, const uint8_t *limit) noexcept nogil:
    """Past the domain that begins at `p`, or NULL."""
    cdef const uint8_t *label
    while True:
        label = p
        while p < limit and address_kind[p[0]] & IN_LABEL:
            p += 1
        if p == label or p - label > LABEL or label[0] == c'-' or (p - 1)[0] == c'-':
            return NULL
        if p == limit or p[0] != c'.':
            return p
        p += 1


cdef const uint8_t *usual_path(const uint8_t *p, const uint8_t *limit) noexcept nogil:
    """Past the path that begins at `p`, or NULL."""
    cdef const uint8_t *atom
    if p >= limit or p[0] != c'<':
        return NULL
    while True:
        p += 1
        atom = p
        while p < limit and address_kind[p[0]] & IN_ATOM:
            p += 1
        if p == atom or p == limit:
            return NULL
        if p[0] == c'@':
            break
        if p[0] != c'.':
            return NULL
    p = usual_domain(p + 1, limit)
    return p + 1 if p != NULL and p < limit and p[0] == c'>' else NULL


cdef inline const uint8_t *ascii_octets(object text, Py_ssize_t start, const uint8_t **limit):
    """Where `text[start:]` begins and ends, or NULL when it is empty, or the text is not ASCII."""
    cdef const uint8_t *octets
    if not PyUnicode_IS_ASCII(text) or start >= PyUnicode_GET_LENGTH(text):
        return NULL
    octets = PyUnicode_1BYTE_DATA(text)
    limit[0] = octets + PyUnicode_GET_LENGTH(text)
    return octets + start


def scan_domain(text, Py_ssize_t start=0):
    cdef const uint8_t *limit = NULL
    cdef const uint8_t *begin
    cdef const uint8_t *end
    check_text(text, start)
    begin = ascii_octets(text, start, &limit)
    end = NULL if begin == NULL else usual_domain(begin, limit)
    return 0 if end == NULL else start + (end - begin)


def scan_path(text, Py_ssize_t start=0):
    cdef const uint8_t *limit = NULL
    cdef const uint8_t *begin
    cdef const uint8_t *end
    check_text(text, start)
    begin = ascii_octets(text, start, &limit)
    if begin == NULL:
        return "", 0
    end = usual_path(begin, limit if limit - begin <= SAFE_PATH else begin + SAFE_PATH)
    if end == NULL:
        return "", 0
    return ascii_text(begin + 1, end - begin - 2), start + (end - begin)


# ---- replies ----

cdef Py_ssize_t clean_reply(const uint8_t *text, Py_ssize_t size, uint8_t *out) noexcept nogil:
    """Make valid UTF-8 fit for replies: LF for every line end, "?" for control characters, U+0080 to U+009F among them."""
    cdef uint8_t *begin = out
    cdef Py_ssize_t i = 0
    cdef uint8_t octet
    while i < size:
        octet = text[i]
        i += 1
        if octet == c'\r':
            octet = c'\n'
            if i < size and text[i] == c'\n':
                i += 1
        elif octet == 0xC2 and text[i] < 0xA0:
            octet = c'?'
            i += 1
        elif octet != c'\n' and (octet < 32 or octet == 127):
            octet = c'?'
        out[0] = octet
        out += 1
    return out - begin


cdef Py_ssize_t write_reply(
    const uint8_t *text, Py_ssize_t size, const uint8_t *prefix, Py_ssize_t prefix_size, uint8_t *out
) noexcept nogil:
    """Write clean text as reply lines, each at most REPLY_LINE octets; with out NULL only count the octets."""
    cdef Py_ssize_t room = REPLY_LINE - 2 - prefix_size
    cdef Py_ssize_t total = 0
    cdef Py_ssize_t start = 0
    cdef Py_ssize_t end, following, line_end
    cdef const uint8_t *found
    cdef bint last = False
    while not last:
        found = find(text + start, c'\n', text + size)
        line_end = found - text if found != NULL else size
        while True:
            end = line_end
            following = line_end + 1
            if line_end - start > room:
                end = start + room
                while end > start and text[end] != c' ':
                    end -= 1
                following = end + 1
                if end == start:
                    end = start + room
                    while text[end] & 0xC0 == 0x80:  # at most three steps: not within a UTF-8 character
                        end -= 1
                    following = end
            last = end == size
            if out != NULL:
                memcpy(out + total, prefix, prefix_size)
                out[total + 3] = c' ' if last else c'-'
                memcpy(out + total + prefix_size, text + start, end - start)
                out[total + prefix_size + end - start] = c'\r'
                out[total + prefix_size + end - start + 1] = c'\n'
            total += prefix_size + end - start + 2
            start = following
            if end == line_end:
                break
    return total


def encode_reply(code, enhanced, message):
    cdef uint8_t prefix[32]
    cdef Py_ssize_t prefix_size = 4
    cdef Py_ssize_t size, i, total
    cdef const uint8_t *text
    cdef uint8_t *clean
    cdef uint8_t *out
    cdef int status
    cdef PyObject *raw
    if not 200 <= code <= 599:
        raise ValueError("a reply's code is within 200..599")
    if not isinstance(enhanced, str) or not isinstance(message, str):
        raise TypeError("enhanced and message must be str")
    status = code
    prefix[0] = c'0' + status // 100
    prefix[1] = c'0' + status // 10 % 10
    prefix[2] = c'0' + status % 10
    prefix[3] = c' '
    size = PyUnicode_GET_LENGTH(enhanced)
    if size:
        if size > 11 or not PyUnicode_IS_ASCII(enhanced):
            raise ValueError("an enhanced status code is digits and dots")
        text = PyUnicode_1BYTE_DATA(enhanced)
        for i in range(size):
            if not (c'0' <= text[i] <= c'9' or text[i] == c'.'):
                raise ValueError("an enhanced status code is digits and dots")
        memcpy(prefix + 4, text, size)
        prefix[4 + size] = c' '
        prefix_size = 5 + size
    if PyUnicode_IS_ASCII(message):
        octets = None
        size = PyUnicode_GET_LENGTH(message)
        text = PyUnicode_1BYTE_DATA(message)
        if size <= REPLY_LINE - 2 - prefix_size and not fs_line_flags(text, size):
            result = PyBytes_FromStringAndSize(NULL, prefix_size + size + 2)
            out = <uint8_t *>PyBytes_AS_STRING(result)
            memcpy(out, prefix, prefix_size)
            memcpy(out + prefix_size, text, size)
            out[prefix_size + size] = c'\r'
            out[prefix_size + size + 1] = c'\n'
            return result
    else:
        octets = message.encode("utf-8", "replace")  # a lone surrogate becomes "?"
        size = PyBytes_GET_SIZE(octets)
        text = <const uint8_t *>PyBytes_AS_STRING(octets)
    clean = <uint8_t *>malloc(size + 1)
    if clean == NULL:
        raise MemoryError
    try:
        size = clean_reply(text, size, clean)
        total = write_reply(clean, size, prefix, prefix_size, NULL)
        raw = new_bytes(NULL, total)
        write_reply(clean, size, prefix, prefix_size, <uint8_t *>octets_of(raw))
        return owned(raw, total)
    finally:
        free(clean)


cdef inline int reply_code(const uint8_t *line, Py_ssize_t size, uint8_t *separator) noexcept nogil:
    """The code that a reply line begins with, and what is behind it ("\\0" for nothing); or 0."""
    cdef int i
    cdef int code = 0
    if size < 3:
        return 0
    for i in range(3):
        if not c'0' <= line[i] <= c'9':
            return 0
        code = code * 10 + line[i] - c'0'
    separator[0] = line[3] if size > 3 else 0
    if code < 100 or (size > 3 and line[3] != c' ' and line[3] != c'-'):
        return 0
    return code


def parse_response(block, Py_ssize_t start=0):
    cdef const uint8_t *octets
    cdef const uint8_t *line
    cdef const uint8_t *limit
    cdef const uint8_t *end
    cdef Py_ssize_t size
    cdef Py_ssize_t count = 0
    cdef int code = 0
    cdef int found
    cdef uint8_t separator
    cdef list message = None
    check("block", block, start)
    octets = <const uint8_t *>PyBytes_AS_STRING(block)
    limit = octets + PyBytes_GET_SIZE(block)
    if start > PyBytes_GET_SIZE(block):
        start = PyBytes_GET_SIZE(block)
    line = octets + start
    while True:
        end = find(line, c'\n', limit)
        if (end + 1 if end != NULL else limit) - line > 4 * REPLY_LINE:
            raise LineTooLong("reply line too long")
        if end == NULL:
            return 0, 0, ""
        size = end - line
        if size and line[size - 1] == c'\r':
            size -= 1
        found = reply_code(line, size, &separator)
        if code == 0:
            if found == 0:
                raise ProtocolError("not a reply line")
            code = found
            if separator != c'-':
                return end + 1 - octets, code, wire_text(line + 4, size - 4 if size > 4 else 0)
            message = [line[4:size]]
        elif found == code:
            message.append(line[4:size] if size > 4 else b"")
            if separator != c'-':
                break
        else:  # RFC 959 page 36: lines in between need no code
            message.append(line[:size])
        count += 1
        if count >= REPLY_LINES:
            raise LineTooLong("reply has too many lines")
        line = end + 1
    return end + 1 - octets, code, b"\n".join(message).decode("utf-8", "surrogateescape")


# ---- headers ----

cdef inline bint capitalize(const uint8_t *key, Py_ssize_t size, uint8_t *out) noexcept nogil:
    """Write the canonical form of `key`; false when it is no token."""
    cdef const uint8_t *table = token_upper
    cdef bint token = size > 0
    cdef Py_ssize_t i
    for i in range(size):
        out[i] = table[key[i]]
        token &= out[i] != 0
        table = &token_upper[0] if key[i] == c'-' else &token_lower[0]
    return token


cdef str canonical(const uint8_t *key, Py_ssize_t size):
    """The canonical form of `key`, or None when it is no token."""
    cdef uint8_t buffer[KEY_MAX]
    cdef size_t slot
    if size <= KEY_MAX:
        if not capitalize(key, size, buffer):
            return None
        slot = key_slot(buffer, size)
        while known_keys[slot].text != NULL:
            if known_keys[slot].size == size and memcmp(known_keys[slot].octets, buffer, size) == 0:
                return <str>known_keys[slot].text
            slot = (slot + 1) & (KEYS_SLOTS - 1)
        return ascii_text(buffer, size)
    octets = PyBytes_FromStringAndSize(NULL, size)
    if not capitalize(key, size, <uint8_t *>PyBytes_AS_STRING(octets)):
        return None
    return octets.decode("ascii")


def canonical_mime_header_key(key):
    if not isinstance(key, str):
        raise TypeError(f"key must be str, not {type(key).__name__}")
    if not PyUnicode_IS_ASCII(key):
        return key
    result = canonical(PyUnicode_1BYTE_DATA(key), PyUnicode_GET_LENGTH(key))
    return key if result is None else result


cdef inline bint has_control(const uint8_t *text, Py_ssize_t size) noexcept nogil:
    """Whether there is a control character other than TAB."""
    cdef Py_ssize_t i
    for i in range(size):
        if (text[i] < 32 and text[i] != c'\t') or text[i] == 127:
            return True
    return False


cdef str unfolded(const uint8_t *text, const uint8_t *limit):
    """The value of several lines: each without surrounding white space, joined by one space; empty ones are left out."""
    cdef uint8_t buffer[1024]
    cdef uint8_t *out = buffer
    cdef Py_ssize_t size = 0
    cdef const uint8_t *end
    cdef const uint8_t *following
    if limit - text > <Py_ssize_t>sizeof(buffer):
        out = <uint8_t *>malloc(limit - text)
        if out == NULL:
            raise MemoryError
    try:
        while text < limit:
            end = find(text, c'\n', limit)
            following = limit if end == NULL else end + 1
            if end == NULL:
                end = limit
            elif end > text and (end - 1)[0] == c'\r':
                end -= 1
            while text < end and (text[0] == c' ' or text[0] == c'\t'):
                text += 1
            while end > text and ((end - 1)[0] == c' ' or (end - 1)[0] == c'\t'):
                end -= 1
            if text < end:
                if size:
                    out[size] = c' '
                    size += 1
                memcpy(out + size, text, end - text)
                size += end - text
            text = following
        return wire_text(out, size)
    finally:
        if out != buffer:
            free(out)


def parse_header_block(block, Py_ssize_t start=0, Py_ssize_t max_fields=1000, Py_ssize_t max_bytes=1048576):
    cdef const uint8_t *first
    cdef const uint8_t *line
    cdef const uint8_t *limit
    cdef const uint8_t *end
    cdef const uint8_t *following
    cdef const uint8_t *text
    cdef const uint8_t *colon
    cdef const uint8_t *value = NULL      # of the field that is read
    cdef const uint8_t *value_end = NULL
    cdef bint folded = False
    cdef Py_ssize_t count = 0
    cdef bint blank = False
    cdef dict fields = {}
    cdef list values = None
    check("block", block, start)
    line = <const uint8_t *>PyBytes_AS_STRING(block)
    limit = line + PyBytes_GET_SIZE(block)
    first = line = line + min(start, PyBytes_GET_SIZE(block))
    while line < limit:
        end = find(line, c'\n', limit)
        if end != NULL:
            following = end + 1
            if end > line and (end - 1)[0] == c'\r':
                end -= 1
        else:
            following = end = limit
        if following - first > max_bytes:
            raise HeaderError("header block too large")
        text = line
        line = following
        if text == end:
            blank = True
            break
        if text[0] == c' ' or text[0] == c'\t':
            if count == 0:
                raise HeaderError("header block begins with white space")
            colon = NULL
        else:
            if count >= max_fields:
                raise HeaderError("too many header fields")
            colon = find(text, c':', end)
            if colon == NULL:
                raise HeaderError("header line without a colon")
            key = canonical(text, colon - text)
            if key is None:
                raise HeaderError("header key is no token")
            if count:
                values.append(unfolded(value, value_end) if folded else wire_text(value, value_end - value))
            count += 1
            values = fields.get(key)
            if values is None:
                values = []
                fields[key] = values
            text = colon + 1
        while text < end and (text[0] == c' ' or text[0] == c'\t'):
            text += 1
        while end > text and ((end - 1)[0] == c' ' or (end - 1)[0] == c'\t'):
            end -= 1
        if fs_line_flags(text, end - text) & FS_CONTROL and has_control(text, end - text):
            raise HeaderError("control character in a header value")
        if colon != NULL:
            value = text
            folded = False
        else:
            folded = True
        value_end = end
    if count:
        values.append(unfolded(value, value_end) if folded else wire_text(value, value_end - value))
    return (line if blank else limit) - first + min(start, PyBytes_GET_SIZE(block)), fields


# ---- dot-encoding ----

cdef bytes encode_text(chunk, bint *at_line, bint *after_cr, bint finish):
    """Encode `chunk`; with `finish`, the missing line end and the end of data behind it."""
    cdef const uint8_t *text = <const uint8_t *>PyBytes_AS_STRING(chunk)
    cdef Py_ssize_t size = PyBytes_GET_SIZE(chunk)
    cdef const uint8_t *limit = text + size
    cdef const uint8_t *taken = text
    cdef const uint8_t *lf = text
    cdef bint dot = size > 0 and at_line[0] and text[0] == c'.'
    cdef bint bare = size > 0 and not after_cr[0] and text[0] == c'\n'
    cdef Py_ssize_t extra = dot
    cdef uint8_t *out
    cdef PyObject *raw
    while lf < limit:
        lf = find(lf, c'\n', limit)
        if lf == NULL:
            break
        extra += bare if lf == text else (lf - 1)[0] != c'\r'
        lf += 1
        extra += lf < limit and lf[0] == c'.'
    if size:
        at_line[0] = (limit - 1)[0] == c'\n'
        after_cr[0] = (limit - 1)[0] == c'\r'
    if not extra and not finish:
        return <bytes>chunk
    raw = new_bytes(NULL, size + extra + 5)
    out = <uint8_t *>octets_of(raw)
    if dot:
        out[0] = c'.'
        out += 1
    lf = text
    while lf < limit:
        lf = find(lf, c'\n', limit)
        if lf == NULL:
            break
        if bare if lf == text else (lf - 1)[0] != c'\r':
            memcpy(out, taken, lf - taken)
            out += lf - taken
            out[0] = c'\r'
            out += 1
            taken = lf
        lf += 1
        if lf < limit and lf[0] == c'.':
            memcpy(out, taken, lf - taken)
            out += lf - taken
            out[0] = c'.'
            out += 1
            taken = lf
    memcpy(out, taken, limit - taken)
    out += limit - taken
    if finish:
        if not at_line[0]:
            memcpy(out, b"\r\n", 2)
            out += 2
        memcpy(out, b".\r\n", 3)
        out += 3
    return owned(raw, out - <uint8_t *>octets_of(raw))


def encode_dot(text):
    cdef bint at_line = True
    cdef bint after_cr = False
    check("text", text, 0)
    return encode_text(text, &at_line, &after_cr, True)


@cython.final
cdef class DotEncoder:
    cdef bint at_line
    cdef bint after_cr

    def __cinit__(self):
        self.at_line = True
        self.after_cr = False

    def feed(self, chunk):
        check("chunk", chunk, 0)
        return encode_text(chunk, &self.at_line, &self.after_cr, False)

    def finish(self):
        end = b".\r\n" if self.at_line else b"\r\n.\r\n"
        self.at_line = True
        self.after_cr = False
        return end


cdef enum Held:
    NOTHING
    CR      # it may be half of a CR LF
    DOT     # began a line: it may be the end, or be stuffed
    DOT_CR  # likewise


@cython.final
cdef class DotDecoder:
    cdef readonly bint keep_crlf
    cdef readonly bint ended
    cdef readonly unsigned long long size
    cdef unsigned flags
    cdef Held held
    cdef bint at_line  # what comes next begins a line

    def __init__(self, keep_crlf=False):
        self.keep_crlf = bool(keep_crlf)
        self.ended = False
        self.size = 0
        self.flags = 0
        self.held = NOTHING
        self.at_line = True

    @property
    def bare_cr(self):
        return self.flags & FS_BARE_CR != 0

    @property
    def bare_lf(self):
        return self.flags & FS_BARE_LF != 0

    @property
    def has_nul(self):
        return self.flags & FS_NUL != 0

    @property
    def has_8bit(self):
        return self.flags & FS_8BIT != 0

    def feed(self, chunk, Py_ssize_t start=0):
        cdef fs_dot dot
        cdef uint8_t head[4]
        cdef Py_ssize_t head_size = 0
        cdef const uint8_t *text
        cdef Py_ssize_t size, total
        cdef PyObject *raw
        check("chunk", chunk, start)
        if self.ended:
            raise ValueError("the end of data has been seen")
        size = PyBytes_GET_SIZE(chunk)
        if start >= size:
            return b"", 0
        text = <const uint8_t *>PyBytes_AS_STRING(chunk)
        if self.held != NOTHING or (self.at_line and text[start] == c'.'):
            start = self.resolve(text, start, size, head, &head_size)
            if self.ended or start == size:
                self.size += head_size
                return PyBytes_FromStringAndSize(<char *>head, head_size), start if self.ended else 0
        text += start
        size -= start

        # What the end of the chunk leaves open is held back; no other octet is.
        if text[size - 1] == c'\r':
            if size >= 4 and text[size - 2] == c'.' and text[size - 3] == c'\n' and text[size - 4] == c'\r':
                self.held = DOT_CR
                size -= 2
            else:
                self.held = CR
                size -= 1
        elif size >= 3 and text[size - 1] == c'.' and text[size - 2] == c'\n' and text[size - 3] == c'\r':
            self.held = DOT
            size -= 1

        dot.text = text
        dot.size = size
        dot.position = dot.taken = dot.end = 0
        dot.out = NULL
        dot.flags = self.flags
        dot.strip = not self.keep_crlf
        if fs_dot_decode(&dot):
            total = head_size + <Py_ssize_t>dot.taken
            if total == PyBytes_GET_SIZE(chunk) and not head_size:
                payload = <bytes>chunk
            else:
                payload = PyBytes_FromStringAndSize(NULL, total)
                memcpy(PyBytes_AS_STRING(payload), head, head_size)
                memcpy(PyBytes_AS_STRING(payload) + head_size, text, dot.taken)
        else:
            raw = new_bytes(NULL, head_size + size + FS_SLACK)
            memcpy(octets_of(raw), head, head_size)
            dot.out = <uint8_t *>octets_of(raw) + head_size
            fs_dot_decode(&dot)
            total = dot.out - <uint8_t *>octets_of(raw)
            payload = owned(raw, total)
        self.size += total
        if dot.end:
            self.flags = dot.flags
            self.held = NOTHING
            self.ended = True
            return payload, start + <Py_ssize_t>dot.end
        if self.held == CR and size and text[size - 1] == c'\r':
            dot.flags |= FS_BARE_CR
        self.flags = dot.flags
        self.at_line = size >= 2 and text[size - 2] == c'\r' and text[size - 1] == c'\n'
        return payload, 0

    cdef Py_ssize_t resolve(
        self, const uint8_t *text, Py_ssize_t start, Py_ssize_t size, uint8_t *head, Py_ssize_t *head_size
    ) noexcept:
        """Settle what was held, and a dot that begins the chunk: payload goes to `head`, the next index is returned."""
        cdef Held held = self.held
        if held == CR:
            if text[start] == c'\n':
                if self.keep_crlf:
                    head[0] = c'\r'
                    head_size[0] = 1
                head[head_size[0]] = c'\n'
                head_size[0] += 1
                start += 1
                self.at_line = True
            else:
                head[0] = c'\r'
                head_size[0] = 1
                self.flags |= FS_BARE_CR
                self.at_line = False
            held = NOTHING
        if held == NOTHING and self.at_line and start < size and text[start] == c'.':
            held = DOT
            start += 1
        if held == DOT and start < size:
            self.at_line = False
            held = NOTHING
            if text[start] == c'\r':
                held = DOT_CR
                start += 1
        if held == DOT_CR and start < size:
            self.at_line = False
            held = NOTHING
            if text[start] == c'\n':
                self.ended = True
                start += 1
            else:
                head[head_size[0]] = c'\r'
                head_size[0] += 1
                self.flags |= FS_BARE_CR
        self.held = held
        return start
