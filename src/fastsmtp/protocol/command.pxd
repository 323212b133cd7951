cimport cython

from ..address cimport is_usual_domain, parse_forward_path, parse_reverse_path

cpdef parse_hello(str argument, bint strict)
@cython.locals(start=Py_ssize_t, end=Py_ssize_t)
cpdef parse_mail(str argument, known, max_message_bytes, bint strict)
@cython.locals(start=Py_ssize_t, end=Py_ssize_t)
cpdef parse_rcpt(str argument, known, bint smtputf8, bint strict)
