/* Receives the requests of a FUSE session in a thread of its own, so that reads are answered past Python.
 *
 * This library is loaded before pyfuse3, with RTLD_GLOBAL: its fuse_session_fd and fuse_session_receive_buf stand before
 * libfuse's.  What reads.c does not answer goes through a queue to pyfuse3, which takes it for the kernel's.
 */

#define _GNU_SOURCE
#include "native.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/uio.h>
#include <unistd.h>

enum {
    CHECK_MS = 500,    /* how late a deadline may be noticed */
    MOST_AT_ONCE = 32, /* requests, before the connections have their turn */
};

struct queued {
    struct queued *next;
    size_t size;
    void *data;
};

/* The session, and the queue to pyfuse3.  One session at a time: session_stop() makes room for the next. */
static struct fuse_session *session;
static int fuse_fd = -1, queue_fd = -1, wake_fd = -1, poll_fd = -1;
static pthread_t thread;
static atomic_bool stopping, ended;
static pthread_mutex_t queue_lock = PTHREAD_MUTEX_INITIALIZER;
static struct queued *queue_head, **queue_tail = &queue_head;
static struct fuse_buf buffer; /* of the thread */

/* Held by the thread but while it waits: all that reads.c knows is under it. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static int (*next_fd)(struct fuse_session *);
static int (*next_receive)(struct fuse_session *, struct fuse_buf *);

static void wake(int fd)
{
    uint64_t one = 1;
    while (write(fd, &one, sizeof one) < 0 && errno == EINTR)
        ;
}

/* Leave a request to pyfuse3. */
void session_hand_over(const void *data, size_t size)
{
    struct queued *item = malloc(sizeof *item);
    void *copy = malloc(size);
    if (!item || !copy)
        abort(); /* the request would never be answered; the kernel ends the mount with the process */
    *item = (struct queued){.size = size, .data = memcpy(copy, data, size)};
    pthread_mutex_lock(&queue_lock);
    *queue_tail = item;
    queue_tail = &item->next;
    pthread_mutex_unlock(&queue_lock);
    wake(queue_fd);
}

void session_answer(uint64_t unique, int error, const void *data, size_t length)
{
    struct fuse_out_header header = {.len = sizeof header + length, .error = -error, .unique = unique};
    struct iovec parts[] = {{&header, sizeof header}, {(void *)data, length}};
    while (writev(fuse_fd, parts, length ? 2 : 1) < 0 && errno == EINTR)
        ; /* any other error: the request is no more, and nobody waits for the answer */
}

void session_lock(void)
{
    pthread_mutex_lock(&lock);
}

void session_unlock(void)
{
    pthread_mutex_unlock(&lock);
}

void session_wait(pthread_cond_t *condition)
{
    pthread_cond_wait(condition, &lock);
}

/* Signals are for Python's thread. */
bool session_start_thread(pthread_t *started, const pthread_attr_t *attributes, void *(*run)(void *))
{
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    bool is_started = pthread_create(started, attributes, run, NULL) == 0;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return is_started;
}

bool session_watch(int fd, void *source)
{
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = source};
    return epoll_ctl(poll_fd, EPOLL_CTL_ADD, fd, &event) == 0;
}

void session_unwatch(int fd)
{
    epoll_ctl(poll_fd, EPOLL_CTL_DEL, fd, NULL);
}

/* Do what there is to do here for a request.  False where it is pyfuse3's. */
static bool settle(const char *request, size_t size)
{
    const struct fuse_in_header *header = (const void *)request;
    const struct fuse_interrupt_in *interrupt = (const void *)(header + 1);
    if (header->opcode == FUSE_READ)
        return reads_begin(request, size);
    if (header->opcode == FUSE_LSEEK)
        return reads_seek(request, size);
    /* a read that is under way goes on; pyfuse3 does not know of it */
    return header->opcode == FUSE_INTERRUPT && size == sizeof *header + sizeof *interrupt &&
           reads_has(interrupt->unique);
}

static void receive(void)
{
    for (int i = 0; i < MOST_AT_ONCE; i++) {
        buffer.flags = 0;
        int size = next_receive(session, &buffer);
        if (size == -EINTR || size == -EAGAIN)
            return;
        /* libfuse has left a large request in a pipe of this thread; there is memory since FUSE_INIT, which is small */
        if (size > 0 && buffer.flags & FUSE_BUF_IS_FD)
            size = read(buffer.fd, buffer.mem, size);
        if (size <= 0) { /* unmounted; libfuse has noted that the session has ended */
            ended = true;
            wake(queue_fd);
            return;
        }
        if (!settle(buffer.mem, size))
            session_hand_over(buffer.mem, size);
    }
}

static void *serve(void *unused)
{
    (void)unused;
    pthread_setname_np(pthread_self(), "snapmount-reads");
    fcntl(fuse_fd, F_SETFL, fcntl(fuse_fd, F_GETFL) | O_NONBLOCK);
    struct epoll_event events[16];
    pthread_mutex_lock(&lock);
    while (!stopping && !ended) {
        int timeout_ms = reads_check_deadlines() ? CHECK_MS : -1;
        pthread_mutex_unlock(&lock);
        int count = epoll_wait(poll_fd, events, sizeof events / sizeof *events, timeout_ms);
        pthread_mutex_lock(&lock);
        for (int i = 0; i < count; i++) {
            void *source = events[i].data.ptr;
            if (source == &fuse_fd)
                receive();
            else if (source != &wake_fd)
                reads_take(source);
        }
    }
    pthread_mutex_unlock(&lock);
    return NULL;
}

/* -- what pyfuse3 calls in libfuse's place ------------------------------------------------------------------------- */

static void close_all(void)
{
    int *const opened[] = {&queue_fd, &wake_fd, &poll_fd};
    for (size_t i = 0; i < sizeof opened / sizeof *opened; i++) {
        if (*opened[i] >= 0)
            close(*opened[i]);
        *opened[i] = -1;
    }
}

/* The session will be closed: one that is made later, perhaps at the same address, is another. */
static void forget_session(void)
{
    close_all();
    while (queue_head) {
        struct queued *item = queue_head;
        queue_head = item->next;
        free(item->data);
        free(item);
    }
    queue_tail = &queue_head;
    free(buffer.mem);
    buffer = (struct fuse_buf){.size = 0};
    stopping = ended = false;
    session = NULL;
}

static bool start(void)
{
    fuse_fd = next_fd(session);
    queue_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK | EFD_SEMAPHORE);
    wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    poll_fd = epoll_create1(EPOLL_CLOEXEC);
    if (queue_fd < 0 || wake_fd < 0 || poll_fd < 0 || !session_watch(fuse_fd, &fuse_fd) ||
        !session_watch(wake_fd, &wake_fd))
        return false;
    return session_start_thread(&thread, NULL, serve);
}

int our_fd(struct fuse_session *) STANDS_BEFORE("fuse_session_fd");
int our_receive_buf(struct fuse_session *, struct fuse_buf *) STANDS_BEFORE("fuse_session_receive_buf");

int our_fd(struct fuse_session *asked)
{
    if (!next_fd)
        next_fd = dlsym(RTLD_NEXT, "fuse_session_fd");
    if (!next_receive)
        next_receive = dlsym(RTLD_NEXT, "fuse_session_receive_buf");
    if (!session) {
        session = asked;
        if (!start())
            forget_session(); /* pyfuse3 receives all itself */
    }
    return asked == session ? queue_fd : next_fd(asked);
}

int our_receive_buf(struct fuse_session *asked, struct fuse_buf *buffer)
{
    uint64_t count;
    if (asked != session)
        return next_receive(asked, buffer);
    if (ended)
        return 0;
    if (read(queue_fd, &count, sizeof count) < 0)
        return -EINTR; /* another task was faster: pyfuse3 waits again */
    pthread_mutex_lock(&queue_lock);
    struct queued *item = queue_head;
    if (item && !(queue_head = item->next))
        queue_tail = &queue_head;
    pthread_mutex_unlock(&queue_lock);
    if (!item)
        return -EINTR;
    free(buffer->mem);
    *buffer = (struct fuse_buf){.mem = item->data, .size = item->size};
    free(item);
    return buffer->size;
}

/* -- for Python ---------------------------------------------------------------------------------------------------- */

PyObject *session_cut(PyObject *self, PyObject *args)
{
    (void)self, (void)args;
    Py_BEGIN_ALLOW_THREADS;
    session_lock();
    reads_cut();
    session_unlock();
    Py_END_ALLOW_THREADS;
    Py_RETURN_NONE;
}

PyObject *session_stop(PyObject *self, PyObject *args)
{
    if (!session)
        Py_RETURN_NONE;
    Py_XDECREF(session_cut(self, args));
    Py_BEGIN_ALLOW_THREADS;
    stopping = true;
    wake(wake_fd);
    pthread_join(thread, NULL);
    Py_END_ALLOW_THREADS;
    reads_discard();
    forget_session();
    Py_RETURN_NONE;
}
