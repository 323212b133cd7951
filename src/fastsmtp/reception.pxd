cimport cython

from .message cimport DataContext, DataReader
from .protocol.events cimport Body
from .protocol.server cimport ServerProtocol
from .roster cimport Roster

cdef Py_ssize_t BODY_HIGH_WATER

cdef class Reception:
    cdef public object _conn
    cdef public DataContext _context
    cdef public ServerProtocol _core
    cdef public object _hooks
    cdef public DataReader _reader
    cdef public bint _refused
    cdef public object _reply
    cdef public object _resume
    cdef public Roster _roster
    cdef public object _session
    cdef public object _task
    cdef public bint answered
    cdef public bint lost
    cdef public bint stalled
    @cython.locals(accepted=Py_ssize_t)
    cpdef _answer(self)
    cpdef _over(self, reply)
    cpdef _start(self, loop, DataReader reader)
    cpdef receive(self, loop, Body event)
