from .counters cimport Counters

cdef class Roster:
    cdef public Counters _counters
    cdef public object _empty
    cdef public object _logger
    cdef public object _loop
    cdef public object _most
    cdef public object _most_per_address
    cdef public object observer
    cdef public dict _per_address
    cdef public object _rate
    cdef public double _tick
    cdef public object _ticker
    cdef public bint by_address
    cdef public dict conns
    cdef public double now
    cdef public double read_timeout
    cdef public bint stopping
    cpdef admit(self, conn, address)
    cpdef attach(self, conn)
    cpdef count_message(self, Py_ssize_t accepted, long long octets)
    cpdef detach(self, conn)
