# In the order of the fields: it is the order of their arguments.

cdef class Hello:
    cdef public str verb
    cdef public str name
    cdef public bint again

cdef class MailFrom:
    cdef public str sender
    cdef public object params

cdef class RcptTo:
    cdef public str recipient
    cdef public object params

cdef class Body:
    cdef public bytes payload
    cdef public bint ended
    cdef public object refusal
    cdef public Py_ssize_t octets
