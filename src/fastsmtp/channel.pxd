cimport cython

from .protocol.server cimport ServerProtocol
from .reception cimport Reception
from .roster cimport Roster

cdef Py_ssize_t AT_THE_GATE, ENDING, HOOK_RUNS, NOT_GREETED, OTHERS_TURN, PEER_IS_DEAF, PUNISHED, SESSION_FULL, SHAKING_HANDS
cdef Py_ssize_t BODY_HIGH_WATER, COMMANDS_PER_TURN

cdef class Channel:
    cdef public ServerProtocol _core
    cdef public double _deadline
    cdef public bint _eof
    cdef public Py_ssize_t _errors
    cdef public Py_ssize_t _holds
    cdef public object _hooks
    cdef public object _line_waiter
    cdef public object _loop
    cdef public bint _lost
    cdef public Reception _reception
    cdef public bint _reading_paused
    cdef public Roster _roster
    cdef public object _server
    cdef public object _session
    cdef public object _settle
    cdef public object _task
    cdef public object _transport
    cdef public object _turn
    @cython.locals(holds=Py_ssize_t)
    cpdef _after(self)
    cpdef _call(self, settle, hook, tuple arguments=*)
    cpdef _end(self)
    cpdef _finish(self)
    cpdef _flush(self)
    @cython.locals(holds=Py_ssize_t)
    cpdef _renew(self)
    @cython.locals(budget=Py_ssize_t)
    cpdef _run(self)
    cpdef _wake_line_waiter(self)
    cpdef _watch_reading(self)
