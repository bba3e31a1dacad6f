/* Gives pyfuse3 the FUSE operation lseek (SEEK_HOLE and SEEK_DATA), which it has not.
 *
 * Loaded with RTLD_GLOBAL before pyfuse3, this library's fuse_session_new stands before libfuse's: it copies the
 * operations that pyfuse3 registers, adds lseek, and calls the next fuse_session_new.  From version 3.17 on, libfuse's header
 * makes programs call fuse_session_new_versioned instead, so both are here.
 *
 * A request for lseek is handed to a Python function as a capsule; lseek_reply() answers it, once.  One that is dropped
 * without an answer is answered with EIO, so that no caller waits for ever.
 */

#define _GNU_SOURCE
#include "native.h"

#include <dlfcn.h>
#include <errno.h>
#include <string.h>

static const char CAPSULE[] = "snapmount.fuse_request";
static PyObject *handler;
static struct fuse_lowlevel_ops operations;

static void drop_request(PyObject *capsule)
{
    if (!PyCapsule_GetContext(capsule))
        fuse_reply_err(PyCapsule_GetPointer(capsule, CAPSULE), EIO);
}

static void on_lseek(fuse_req_t request, fuse_ino_t inode, off_t offset, int whence, struct fuse_file_info *info)
{
    (void)info;
    if (!handler) {
        fuse_reply_err(request, EIO);
        return;
    }
    PyGILState_STATE gil = PyGILState_Ensure();
    PyObject *capsule = PyCapsule_New(request, CAPSULE, drop_request);
    if (!capsule) {
        fuse_reply_err(request, ENOMEM);
        PyErr_Clear();
    } else {
        PyObject *done = PyObject_CallFunction(handler, "OKLi", capsule, (unsigned long long)inode,
                                               (long long)offset, whence);
        if (!done)
            PyErr_WriteUnraisable(handler);
        Py_XDECREF(done);
        Py_DECREF(capsule);
    }
    PyGILState_Release(gil);
}

static const struct fuse_lowlevel_ops *with_lseek(const struct fuse_lowlevel_ops *given, size_t size)
{
    memset(&operations, 0, sizeof operations);
    memcpy(&operations, given, size < sizeof operations ? size : sizeof operations);
    operations.lseek = on_lseek;
    operations.write_buf = NULL; /* for it libfuse would move each request through a pipe; this view is read-only */
    return &operations;
}

struct fuse_session *session_new(struct fuse_args *, const struct fuse_lowlevel_ops *, size_t, void *)
    STANDS_BEFORE("fuse_session_new");
struct fuse_session *session_new_versioned(struct fuse_args *, const struct fuse_lowlevel_ops *, size_t, void *, void *)
    STANDS_BEFORE("fuse_session_new_versioned");

struct fuse_session *session_new(struct fuse_args *args, const struct fuse_lowlevel_ops *given, size_t size, void *user)
{
    struct fuse_session *(*next)(struct fuse_args *, const struct fuse_lowlevel_ops *, size_t, void *) =
        dlsym(RTLD_NEXT, "fuse_session_new");
    return next ? next(args, with_lseek(given, size), sizeof operations, user) : NULL;
}

struct fuse_session *session_new_versioned(struct fuse_args *args, const struct fuse_lowlevel_ops *given, size_t size,
                                           void *version, void *user)
{
    struct fuse_session *(*next)(struct fuse_args *, const struct fuse_lowlevel_ops *, size_t, void *, void *) =
        dlsym(RTLD_NEXT, "fuse_session_new_versioned");
    return next ? next(args, with_lseek(given, size), sizeof operations, version, user) : NULL;
}

PyObject *lseek_set_handler(PyObject *self, PyObject *function)
{
    (void)self;
    Py_XINCREF(function);
    Py_XSETREF(handler, function);
    Py_RETURN_NONE;
}

PyObject *lseek_reply(PyObject *self, PyObject *args)
{
    (void)self;
    PyObject *capsule;
    long long offset;
    int error;
    if (!PyArg_ParseTuple(args, "OLi", &capsule, &offset, &error))
        return NULL;
    fuse_req_t request = PyCapsule_GetPointer(capsule, CAPSULE);
    if (!request)
        return NULL;
    if (PyCapsule_GetContext(capsule)) {
        PyErr_SetString(PyExc_ValueError, "the request has been answered");
        return NULL;
    }
    if (PyCapsule_SetContext(capsule, request) < 0)
        return NULL;
    if (error)
        fuse_reply_err(request, error);
    else
        fuse_reply_lseek(request, (off_t)offset);
    Py_RETURN_NONE;
}
