cimport cython

cdef class LineProtocol:
    cdef public bytes _buffer
    cdef public object _event
    cdef public object _options
    cdef public list _out
    cdef public Py_ssize_t _pos
    cdef public object _settle
    cdef public Py_ssize_t _skipped
    cdef public bint closing
    cdef public Py_ssize_t errors
    cdef public bint must_flush
    cdef public object trace
    @cython.locals(wire=bytes)
    cpdef _say(self, reply)
    cpdef data_to_send(self)
    cpdef receive_data(self, bytes data)
    cpdef reply(self, reply=*)
    cpdef say(self, reply)
    cpdef _close(self)
    cpdef _refuse(self, reply)
    cpdef _wait(self, event, settle)
