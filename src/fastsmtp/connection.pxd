from .admission cimport Admission
from .protocol.events cimport Body, Hello, MailFrom, RcptTo
from .reception cimport Reception

cdef Py_ssize_t HOOK_RUNS, OTHERS_TURN, SESSION_FULL

cdef class Conn(Admission):
    cdef public object _after_loss
    cpdef _message_answered(self)
