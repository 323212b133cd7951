# In the order of the fields.

cdef class Counters:
    cdef public Py_ssize_t connections
    cdef public Py_ssize_t connections_total
    cdef public Py_ssize_t messages
    cdef public Py_ssize_t recipients
    cdef public Py_ssize_t octets
    cdef public Py_ssize_t rejected
    cdef public Py_ssize_t errors
    cdef public Py_ssize_t proxy_failures
    cdef public Py_ssize_t tls
    cdef public Py_ssize_t tls_failures
    cdef public Py_ssize_t authenticated
    cdef public Py_ssize_t auth_failures
