/* The Python module; extension.py describes its functions. */

#include "native.h"

static PyMethodDef methods[] = {
    {"set_seek_handler", lseek_set_handler, METH_O, "call f(request, inode, offset, whence) for each lseek"},
    {"reply_seek", lseek_reply, METH_VARARGS, "(request, offset, errno): answer with the offset, or errno where not 0"},
    {"add_disk", reads_add, METH_VARARGS, "(inode, size, starts, flags, placed, sockets, deadline_s): answer its reads"},
    {"add_file", reads_add_file, METH_VARARGS,
     "(inode, size, starts, flags, placed, descriptor, file_bytes, deadline_s): answer its reads"},
    {"drop", reads_drop, METH_VARARGS, "(inode): leave its reads to pyfuse3 from now on"},
    {"cut", session_cut, METH_NOARGS, "let all reads under way fail with EIO, and leave further ones to pyfuse3"},
    {"stop", session_stop, METH_NOARGS, "end the thread, before the session is closed"},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "_native", NULL, -1, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__native(void)
{
    return PyModule_Create(&module);
}
