cpdef parse_forward_path(str text, Py_ssize_t start=*)
cpdef parse_reverse_path(str text, Py_ssize_t start=*)
