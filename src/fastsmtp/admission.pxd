from .channel cimport Channel

cdef Py_ssize_t AT_THE_GATE, ENDING, NOT_GREETED, PEER_IS_DEAF, SHAKING_HANDS

cdef class Admission(Channel):
    cdef public Py_ssize_t _auth_failures
    cdef public bint _client_unknown
    cdef public object _end_point
    cdef public object _exchange
    cdef public bint _implicit_tls
    cdef public object _peername
    cdef public object _proxy
    cdef public object _sockname
    cdef public object _tls
    cdef public object _username
    cdef public object _xclient
    cpdef _admit(self, refusal, received=*)
    cpdef _welcome(self, refusal)
