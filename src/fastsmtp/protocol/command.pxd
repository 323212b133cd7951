from ..address cimport parse_forward_path, parse_reverse_path

cpdef parse_hello(str argument, bint strict)
cpdef parse_mail(str argument, known, max_message_bytes, bint strict)
cpdef parse_rcpt(str argument, known, bint smtputf8, bint strict)
