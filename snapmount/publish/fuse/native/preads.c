/* Reads files and block devices in threads: a read(2) of a slow or dead file system blocks, and must hold up no other.
 *
 * Threads are started as they are needed, and stay: they are the process's, not a session's.
 */

#define _GNU_SOURCE
#include "native.h"

#include <errno.h>
#include <pthread.h>
#include <sys/uio.h>
#include <unistd.h>

enum {
    MAX_THREADS = 16,
    STACK_BYTES = 128 << 10,
};

/* All under session.c's lock. */
static struct pread_job *head, **tail = &head;
static pthread_cond_t queued = PTHREAD_COND_INITIALIZER;
static unsigned thread_count, idle_count, queued_count;

static bool read_all(const struct pread_job *job)
{
    for (uint32_t got = 0; got < job->length;) {
        ssize_t count = pread(job->fd, job->into + got, job->length - got, job->offset + got);
        if (count < 0 && errno == EINTR)
            continue;
        if (count <= 0)
            return false; /* 0: the file has become shorter */
        got += count;
    }
    return true;
}

static void *work(void *unused)
{
    (void)unused;
    pthread_setname_np(pthread_self(), "snapmount-pread");
    session_lock();
    for (;;) {
        struct pread_job *job = head;
        if (!job) {
            idle_count++;
            session_wait(&queued);
            idle_count--;
            continue;
        }
        if (!(head = job->next))
            tail = &head;
        queued_count--;
        job->is_running = true;
        session_unlock();
        bool done = read_all(job);
        session_lock();
        job->is_running = false;
        reads_end_job(job, !done);
    }
    return NULL;
}

static bool start_thread(void)
{
    pthread_t thread;
    pthread_attr_t attributes;
    if (pthread_attr_init(&attributes))
        return false;
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    pthread_attr_setstacksize(&attributes, STACK_BYTES);
    bool started = session_start_thread(&thread, &attributes, work);
    pthread_attr_destroy(&attributes);
    return started;
}

/* Whether all of it is in memory, and so has been read now.  preadv2(2), RWF_NOWAIT */
bool preads_at_once(const struct pread_job *job)
{
    struct iovec into = {job->into, job->length};
    return preadv2(job->fd, &into, 1, job->offset, RWF_NOWAIT) == (ssize_t)job->length;
}

/* Let a thread do it, which calls reads_end_job().  False if there is none. */
bool preads_begin(struct pread_job *job)
{
    if (queued_count >= idle_count && thread_count < MAX_THREADS && start_thread())
        thread_count++;
    if (!thread_count)
        return false;
    job->next = NULL;
    *tail = job;
    tail = &job->next;
    queued_count++;
    pthread_cond_signal(&queued);
    return true;
}

/* Take it back, if no thread has begun it. */
void preads_drop(struct pread_job *job)
{
    for (struct pread_job **each = &head; *each; each = &(*each)->next)
        if (*each == job) {
            if (!(*each = job->next))
                tail = each;
            queued_count--;
            return;
        }
}
