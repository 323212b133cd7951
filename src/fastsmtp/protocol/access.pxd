from .command cimport parse_hello
from .events cimport Hello
from .lines cimport LineProtocol

cdef class AccessProtocol(LineProtocol):
    cdef public object _capabilities
    cdef public object _offer
    cdef public object _profile
    cdef public bint _responding
    cdef public bint auth_withheld
    cdef public bint authenticated
    cdef public str hello
    cdef public str hello_verb
    cdef public bint lmtp
    cdef public str sender
    cdef public object xforward
    cpdef reset_transaction(self)
