from .access cimport AccessProtocol

cdef class ServerProtocol(AccessProtocol):
    cdef public object _chunks
    cdef public object _commands
    cdef public object _discard
    cdef public object _receiver
    cdef public bint _tried_recipients
    cdef public object mail_params
    cdef public bint quit
    cdef public list rcpt_params
    cdef public list recipients
    cpdef _take_chunk(self, chunks)
    cpdef _next_body(self, receiver)
    cpdef _end_message(self)
