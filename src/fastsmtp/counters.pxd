# In the order of the fields.

cdef class Counters:
    cdef public long long connections
    cdef public long long connections_total
    cdef public long long messages
    cdef public long long recipients
    cdef public long long octets
    cdef public long long rejected
    cdef public long long errors
    cdef public long long proxy_failures
    cdef public long long tls
    cdef public long long tls_failures
    cdef public long long authenticated
    cdef public long long auth_failures
