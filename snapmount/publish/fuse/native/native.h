/* What the parts of the extension have in common.
 *
 * lseek.c    the FUSE operation that pyfuse3 has not
 * session.c  receives all requests in a thread; those that reads.c does not answer go to pyfuse3
 * reads.c    answers reads of disks from their NBD connections or files, and seeks from their extents
 * preads.c   reads files in threads
 */

#ifndef SNAPMOUNT_NATIVE_H
#define SNAPMOUNT_NATIVE_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#define FUSE_USE_VERSION 34
#include <fuse_lowlevel.h>
#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* A function that is found by this name, before libfuse's; its header declares (or defines) one of this name too. */
#define STANDS_BEFORE(name) __asm__(name) __attribute__((visibility("default")))

/* For Python, see extension.py. */
PyObject *lseek_set_handler(PyObject *self, PyObject *function);
PyObject *lseek_reply(PyObject *self, PyObject *args);
PyObject *reads_add(PyObject *self, PyObject *args);
PyObject *reads_add_file(PyObject *self, PyObject *args);
PyObject *reads_drop(PyObject *self, PyObject *args);
PyObject *session_cut(PyObject *self, PyObject *args);
PyObject *session_stop(PyObject *self, PyObject *args);

/* Of session.c, for reads.c and preads.c. */
bool session_watch(int fd, void *source);
void session_unwatch(int fd);
void session_answer(uint64_t unique, int error, const void *data, size_t length);
void session_hand_over(const void *request, size_t size);
void session_lock(void);
void session_unlock(void);
void session_wait(pthread_cond_t *condition);
bool session_start_thread(pthread_t *thread, const pthread_attr_t *attributes, void *(*run)(void *));

/* Of reads.c, for session.c, which holds the lock. */
struct connection;
bool reads_begin(const char *request, size_t size);
bool reads_seek(const char *request, size_t size);
bool reads_has(uint64_t unique);
void reads_take(struct connection *connection);
bool reads_check_deadlines(void);
void reads_cut(void);
void reads_discard(void);

/* A read of a file. */
struct pread_job {
    struct pread_job *next;
    int fd;
    uint64_t offset;
    char *into;
    uint32_t length;
    bool is_running;
};

/* Of preads.c, for reads.c, which holds the lock; and the other way round. */
bool preads_at_once(const struct pread_job *job);
bool preads_begin(struct pread_job *job);
void preads_drop(struct pread_job *job);
void reads_end_job(struct pread_job *job, bool failed);

#endif
