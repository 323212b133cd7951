cimport cython

from .access cimport AccessProtocol
from .command cimport parse_mail, parse_rcpt
from .events cimport Body, MailFrom, RcptTo

cdef Py_ssize_t COMMAND_LINE, CONTROL, NOT_UTF8

cdef class ServerProfile:
    cdef public object _cache
    cdef public object _ehlo
    cdef public object _extended
    cdef public dict _replies
    cdef public bint alike
    cdef public object basic
    cdef public dict commands
    cdef public object greeting
    cdef public object hello
    cdef public object help
    cdef public object offer
    cdef public object options
    cdef public dict plaintext_commands

cdef class ServerProtocol(AccessProtocol):
    cdef public object _chunks
    cdef public dict _commands
    cdef public object _discard
    cdef public object _receiver
    cdef public bint _tried_recipients
    cdef public object mail_params
    cdef public bint quit
    cdef public list rcpt_params
    cdef public list recipients
    cpdef greet(self, reply=*)
    @cython.locals(pos=Py_ssize_t, buffer=bytes, end=Py_ssize_t, flags=Py_ssize_t)
    cpdef next_event(self)
    cpdef _take_chunk(self, chunks)
    @cython.locals(start=Py_ssize_t)
    cpdef _next_body(self, receiver)
    cpdef _end_message(self)
