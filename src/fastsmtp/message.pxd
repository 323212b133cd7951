cdef class DataReader:
    cdef public Py_ssize_t _buffered
    cdef public list _chunks
    cdef public object _error
    cdef public object _on_low
    cdef public object _waiter
    cdef public bint complete
    cdef public long long size
    cpdef feed_data(self, bytes data, bint last=*)
    cpdef let_go(self)

cdef class DataContext:
    cdef public bint _expired
    cdef public str _helo
    cdef public object _on_answered
    cdef public object _replies
    cdef public object _response
    cdef public object _timers
    cdef public object conn
    cdef public object mail_params
    cdef public object rcpt_params
    cdef public object recipients
    cdef public str sender
    cdef public object xforward
    cpdef close(self)
