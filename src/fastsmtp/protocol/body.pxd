cimport cython

cdef class DataReceiver:
    cdef public object _bare
    cdef public object _decoder
    cdef public bint _eight_bit_ok
    cdef public object _limit
    cdef public object _lines
    cdef public bint ended
    cdef public object refusal
    @cython.locals(end=Py_ssize_t)
    cpdef receive(self, bytes data, Py_ssize_t start)
