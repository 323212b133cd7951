cpdef bint is_usual_domain(str text, bint underscores=*)
cpdef parse_forward_path(str text, Py_ssize_t start=*)
cpdef parse_reverse_path(str text, Py_ssize_t start=*)
