/* Answers reads of disks from NBD connections or from a file, and seeks from the extents.
 *
 * What meets anything out of the ordinary, an error, a connection that ends, no room, is handed over to Python, which
 * tries it again and says what is wrong.
 *
 * A file has one `connection`, its descriptor, which nothing waits for: preads.c reads it.
 *
 * Sources: fuse(4) and <linux/fuse.h> for requests; the NBD protocol, "Request message" and "Simple reply message",
 * https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md
 */

#define _GNU_SOURCE
#include "native.h"

#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum {
    MAX_FILES = 256,
    MAX_CONNECTIONS = 8,     /* of a file */
    MAX_REQUESTS = 32,       /* at once; each has a buffer of MAX_READ bytes, used as far as it was ever needed */
    MAX_READ = 1 << 20,      /* FUSE asks for no more at once */
    PART_BYTES = 256 << 10,  /* larger reads are split over the connections */
    HOLE_BYTES = 64 << 10,   /* smaller holes between data are read along with it */
    MAX_PARTS = MAX_READ / HOLE_BYTES + MAX_READ / PART_BYTES, /* of one request */
    PLACES = MAX_REQUESTS * MAX_PARTS, /* of parts */
    EXTENT_ZERO = 2,         /* NBD_STATE_ZERO */
};
#define NBD_REQUEST_MAGIC 0x25609513u
#define NBD_SIMPLE_REPLY_MAGIC 0x67446698u

struct nbd_request {
    uint32_t magic;
    uint16_t flags, type;
    uint64_t cookie, offset;
    uint32_t length;
} __attribute__((packed));

struct nbd_reply {
    uint32_t magic, error;
    uint64_t cookie;
} __attribute__((packed));

struct connection {
    int fd; /* -1: closed */
    struct file *file;
    unsigned parts; /* that are asked for */
    struct nbd_reply reply;
    struct part *part; /* whose data comes now, once the reply's header is whole */
    size_t got;        /* bytes of the header, or then of the data */
};

struct file {
    uint64_t inode, size;
    int64_t deadline_ns; /* for each read, from its arrival on */
    Py_buffer starts, flags; /* of its extents (core/extents.py) */
    unsigned connection_count;
    bool usable, is_local; /* a file of this host, with no NBD connections */
    uint64_t local_bytes;  /* of that file: what the disk has beyond is zero */
    /* Of a file that is not the disk byte for byte: where the disk's clusters begin in it, their size (else 0), and of
     * each run of them the first one and its rank.  What stands before them is Python's. */
    uint64_t placed_from, cluster_bytes;
    Py_buffer firsts, ranks;
    struct connection connections[MAX_CONNECTIONS];
};

struct part {
    struct request *request;
    struct connection *connection; /* NULL once it is done */
    char *data;
    uint64_t offset; /* on the disk */
    uint32_t length;
    struct pread_job job; /* of a local file */
};

struct request {
    uint64_t number; /* its own: an answer that comes twice is not taken for that to a later request */
    unsigned parts_left; /* 0: this place is free */
    bool failed, answered;
    uint64_t unique;
    int64_t deadline_ns; /* CLOCK_MONOTONIC */
    uint32_t length;
    size_t raw_size;
    char raw[sizeof(struct fuse_in_header) + sizeof(struct fuse_read_in)]; /* as it came, for pyfuse3 */
    char *buffer;
    struct part parts[MAX_PARTS];
};

static struct file *files[MAX_FILES];
static unsigned file_count;
static struct request requests[MAX_REQUESTS];
static uint64_t last_number;
static bool cut_off;

static int64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * INT64_C(1000000000) + now.tv_nsec;
}

static void answer(struct request *request)
{
    if (request->answered)
        return;
    request->answered = true;
    if (!request->failed)
        session_answer(request->unique, 0, request->buffer, request->length);
    else if (cut_off)
        session_answer(request->unique, EIO, NULL, 0);
    else
        session_hand_over(request->raw, request->raw_size);
}

static void finish_part(struct part *part, bool failed)
{
    struct request *request = part->request;
    part->connection->parts--;
    part->connection = NULL;
    request->failed |= failed;
    if (!--request->parts_left)
        answer(request);
}

static void close_connection(struct connection *connection)
{
    close(connection->fd);
    connection->fd = -1;
}

/* What no thread has begun will not be; who waits for what one has begun is told now, and its place stays taken. */
static void give_up_local(struct file *file)
{
    for (unsigned i = 0; i < MAX_REQUESTS; i++) {
        struct request *request = &requests[i];
        bool is_concerned = false;
        for (unsigned j = 0; request->parts_left && j < MAX_PARTS; j++) {
            struct part *part = &request->parts[j];
            if (!part->connection || part->connection->file != file)
                continue;
            request->failed = is_concerned = true;
            preads_drop(&part->job);
            if (!part->job.is_running)
                finish_part(part, true);
        }
        if (is_concerned)
            answer(request);
    }
    if (!file->connections[0].parts)
        close_connection(&file->connections[0]);
}

/* A thread has ended a read. */
void reads_end_job(struct pread_job *job, bool failed)
{
    struct part *part = (struct part *)((char *)job - offsetof(struct part, job));
    struct connection *connection = part->connection;
    finish_part(part, failed);
    if (!connection->file->usable && !connection->parts)
        close_connection(connection);
}

/* From now on Python reads this file: also its holes, which are known to be zeros only while the snapshot lives. */
static void give_up(struct file *file)
{
    if (!file->usable)
        return;
    file->usable = false;
    if (file->is_local) {
        give_up_local(file);
        return;
    }
    for (unsigned i = 0; i < file->connection_count; i++) {
        session_unwatch(file->connections[i].fd); /* closing it does not, since Python has it too */
        close_connection(&file->connections[i]);
    }
    for (unsigned i = 0; i < MAX_REQUESTS; i++)
        for (unsigned j = 0; requests[i].parts_left && j < MAX_PARTS; j++)
            if (requests[i].parts[j].connection && requests[i].parts[j].connection->file == file)
                finish_part(&requests[i].parts[j], true);
}

/* What is asked for fits into the socket's buffer; where it does not, as when QEMU hangs, the file is given up. */
static bool ask(struct part *part)
{
    uint64_t place = (part->request - requests) * MAX_PARTS + (part - part->request->parts);
    struct nbd_request message = {
        .magic = htobe32(NBD_REQUEST_MAGIC),
        .cookie = part->request->number * PLACES + place,
        .offset = htobe64(part->offset),
        .length = htobe32(part->length),
    };
    return send(part->connection->fd, &message, sizeof message, MSG_DONTWAIT | MSG_NOSIGNAL) == sizeof message;
}

static struct connection *least_busy(struct file *file)
{
    struct connection *best = &file->connections[0];
    for (unsigned i = 1; i < file->connection_count; i++)
        if (file->connections[i].parts < best->parts)
            best = &file->connections[i];
    return best;
}

static struct part *part_of_reply(struct connection *connection)
{
    uint64_t place = connection->reply.cookie % PLACES, number = connection->reply.cookie / PLACES;
    struct request *request = &requests[place / MAX_PARTS];
    struct part *part = &request->parts[place % MAX_PARTS];
    if (be32toh(connection->reply.magic) != NBD_SIMPLE_REPLY_MAGIC || request->number != number)
        return NULL;
    return part->connection == connection ? part : NULL;
}

/* Receive what has come.  False where the connection has ended, or makes no sense. */
static bool receive(struct connection *connection)
{
    for (;;) {
        struct part *part = connection->part;
        char *into = part ? part->data : (char *)&connection->reply;
        size_t length = part ? part->length : sizeof connection->reply;
        ssize_t count = recv(connection->fd, into + connection->got, length - connection->got, MSG_DONTWAIT);
        if (count < 0 && errno == EINTR)
            continue;
        if (count <= 0)
            return count < 0 && errno == EAGAIN;
        connection->got += count;
        if (connection->got < length)
            continue;
        connection->got = 0;
        connection->part = NULL;
        if (part) {
            finish_part(part, false);
        } else if (!(part = part_of_reply(connection))) {
            return false;
        } else if (connection->reply.error) {
            finish_part(part, true);
        } else {
            connection->part = part;
        }
        if (!connection->parts)
            return true; /* nothing more can come */
    }
}

static struct file *file_of(uint64_t inode)
{
    for (unsigned i = 0; i < file_count; i++)
        if (files[i]->inode == inode && files[i]->usable)
            return files[i];
    return NULL;
}

static struct request *free_request(void)
{
    for (unsigned i = 0; i < MAX_REQUESTS; i++)
        if (!requests[i].parts_left) {
            if (!requests[i].buffer)
                requests[i].buffer = malloc(MAX_READ);
            return requests[i].buffer ? &requests[i] : NULL;
        }
    return NULL;
}

/* The last of them that is not greater than the value; the first one is not. */
static size_t last_up_to(const uint64_t *starts, size_t count, uint64_t value)
{
    size_t low = 0, high = count;
    while (high - low > 1) {
        size_t middle = low + (high - low) / 2;
        if (starts[middle] <= value)
            low = middle;
        else
            high = middle;
    }
    return low;
}

static size_t extent_at(const struct file *file, uint64_t offset)
{
    return last_up_to(file->starts.buf, file->flags.len, offset);
}

/* Where on the disk that offset of the file is, and how many bytes from there on follow each other in both. */
static uint64_t disk_offset(const struct file *file, uint64_t offset, uint64_t *together)
{
    const uint64_t *firsts = file->firsts.buf, *ranks = file->ranks.buf;
    size_t count = file->ranks.len / sizeof *ranks;
    *together = UINT64_MAX;
    if (!file->cluster_bytes)
        return offset;
    offset -= file->placed_from;
    size_t run = last_up_to(ranks, count, offset / file->cluster_bytes);
    if (run + 1 < count)
        *together = ranks[run + 1] * file->cluster_bytes - offset;
    return offset + (firsts[run] - ranks[run]) * file->cluster_bytes;
}

/* Where the extents from `offset` on stop being zero, or data; `end` at the latest.  `extent` is that of the offset. */
static uint64_t run_end(const struct file *file, size_t *extent, uint64_t offset, uint64_t end, bool zero)
{
    const uint64_t *starts = file->starts.buf;
    const uint8_t *flags = file->flags.buf;
    while (offset < end && !(flags[*extent] & EXTENT_ZERO) == !zero) {
        uint64_t extent_end = *extent + 1 < (size_t)file->flags.len ? starts[*extent + 1] : file->size;
        offset = extent_end < end ? extent_end : end;
        *extent += offset == extent_end;
    }
    return offset;
}

/* Where the data from `offset` on ends.  Holes between data that are too small to be worth a request are read along. */
static uint64_t data_end(const struct file *file, size_t *extent, uint64_t offset, uint64_t end)
{
    for (;;) {
        offset = run_end(file, extent, offset, end, false);
        size_t next = *extent;
        uint64_t hole_end = run_end(file, &next, offset, end, true);
        if (hole_end == end || hole_end - offset >= HOLE_BYTES)
            return offset;
        offset = hole_end;
        *extent = next;
    }
}

/* Take a request apart, and find its file; NULL where it is not of the body's size, or Python's. */
static struct file *unpack(const char *raw, size_t size, struct fuse_in_header *header, void *body, size_t body_size)
{
    if (size != sizeof *header + body_size)
        return NULL;
    memcpy(header, raw, sizeof *header);
    memcpy(body, raw + sizeof *header, body_size);
    return file_of(header->nodeid);
}

/* SEEK_DATA and SEEK_HOLE, lseek(2).  False where Python shall answer. */
bool reads_seek(const char *raw, size_t size)
{
    struct fuse_in_header header;
    struct fuse_lseek_in seek;
    struct file *file = unpack(raw, size, &header, &seek, sizeof seek);
    if (!file || (seek.whence != SEEK_DATA && seek.whence != SEEK_HOLE) || seek.offset >= file->size)
        return false;
    bool for_data = seek.whence == SEEK_DATA;
    size_t extent = extent_at(file, seek.offset);
    struct fuse_lseek_out found = {.offset = run_end(file, &extent, seek.offset, file->size, for_data)};
    if (for_data && found.offset == file->size)
        session_answer(header.unique, ENXIO, NULL, 0);
    else /* there is a hole at the end of every file */
        session_answer(header.unique, 0, &found, sizeof found);
    return true;
}

/* Divide [offset, end) into parts to ask for, and fill in what is zero; how many parts, or more than MAX_PARTS. */
static unsigned divide(struct request *request, const struct file *file, uint64_t offset, uint64_t end)
{
    size_t extent = extent_at(file, offset);
    char *data = request->buffer;
    unsigned count = 0;
    while (offset < end) {
        uint64_t stop = run_end(file, &extent, offset, end, true);
        memset(data, 0, stop - offset);
        data += stop - offset;
        offset = stop;
        stop = data_end(file, &extent, offset, end);
        while (offset < stop) {
            uint64_t together, on_disk = disk_offset(file, offset, &together);
            uint32_t size = stop - offset < PART_BYTES ? stop - offset : PART_BYTES;
            if (together < size)
                size = together;
            if (count == MAX_PARTS)
                return MAX_PARTS + 1;
            request->parts[count++] =
                (struct part){.request = request, .data = data, .offset = on_disk, .length = size};
            data += size;
            offset += size;
        }
    }
    request->length = data - request->buffer;
    return count;
}

/* Read a part of a local file; what lies beyond its end is zero.  False if it cannot be begun. */
static bool read_local(struct part *part)
{
    const struct file *file = part->connection->file;
    uint64_t left = part->offset < file->local_bytes ? file->local_bytes - part->offset : 0;
    uint32_t length = part->length < left ? part->length : left;
    memset(part->data + length, 0, part->length - length);
    part->job = (struct pread_job){
        .fd = part->connection->fd, .offset = part->offset, .into = part->data, .length = length,
    };
    if (preads_at_once(&part->job)) {
        finish_part(part, false);
        return true;
    }
    return preads_begin(&part->job);
}

/* Begin to answer a read.  False where Python shall. */
bool reads_begin(const char *raw, size_t size)
{
    struct fuse_in_header header;
    struct fuse_read_in read;
    struct file *file = unpack(raw, size, &header, &read, sizeof read);
    if (!file || read.size > MAX_READ || (file->cluster_bytes && read.offset < file->placed_from))
        return false;
    if (read.offset >= file->size) {
        session_answer(header.unique, 0, NULL, 0);
        return true;
    }
    struct request *request = free_request();
    if (!request)
        return false;
    uint64_t left = file->size - read.offset;
    unsigned count = divide(request, file, read.offset, read.offset + (read.size < left ? read.size : left));
    if (count > MAX_PARTS)
        return false;
    if (!count) {
        session_answer(header.unique, 0, request->buffer, request->length);
        return true;
    }
    request->number = ++last_number;
    request->failed = request->answered = false;
    request->unique = header.unique;
    request->deadline_ns = now_ns() + file->deadline_ns;
    request->raw_size = size;
    memcpy(request->raw, raw, size);
    request->parts_left = count;
    bool asked = true;
    for (unsigned i = 0; i < count; i++) {
        struct part *part = &request->parts[i];
        part->connection = least_busy(file);
        part->connection->parts++;
    }
    for (unsigned i = 0; i < count && asked; i++) {
        struct part *part = &request->parts[i];
        asked = file->is_local ? read_local(part) : ask(part);
    }
    if (!asked)
        give_up(file);
    return true;
}

/* The connection can be read. */
void reads_take(struct connection *connection)
{
    if (connection->fd >= 0 && !receive(connection))
        give_up(connection->file);
}

/* Whether that request is under way. */
bool reads_has(uint64_t unique)
{
    for (unsigned i = 0; i < MAX_REQUESTS; i++)
        if (requests[i].parts_left && requests[i].unique == unique)
            return true;
    return false;
}

/* A local file that does not answer must not take up all threads: from now on Python reads it. */
static void give_up_stalled(const struct request *request)
{
    for (unsigned i = 0; request->parts_left && i < MAX_PARTS; i++) {
        const struct connection *connection = request->parts[i].connection;
        if (connection && connection->file->is_local) {
            give_up(connection->file);
            return;
        }
    }
}

/* Reads whose time is over get EIO.  Their places stay taken until the data comes or the connection ends.  True where
 * others still wait. */
bool reads_check_deadlines(void)
{
    bool waiting = false;
    int64_t now = now_ns();
    for (unsigned i = 0; i < MAX_REQUESTS; i++) {
        struct request *request = &requests[i];
        if (!request->parts_left || request->answered)
            continue;
        if (request->deadline_ns > now) {
            waiting = true;
            continue;
        }
        request->answered = true;
        session_answer(request->unique, EIO, NULL, 0);
        dprintf(STDERR_FILENO, "no answer to a read of %u bytes by its deadline\n", request->length);
        give_up_stalled(request);
    }
    return waiting;
}

/* Let all reads under way fail with EIO; further ones are Python's. */
void reads_cut(void)
{
    cut_off = true;
    for (unsigned i = 0; i < file_count; i++)
        give_up(files[i]);
}

static void discard(struct file *file)
{
    PyBuffer_Release(&file->starts);
    PyBuffer_Release(&file->flags);
    PyBuffer_Release(&file->firsts); /* does nothing where there is none */
    PyBuffer_Release(&file->ranks);
    free(file);
}

/* A file of which all but the connections is known; NULL, with a Python exception, where it makes no sense. */
static struct file *new_file(unsigned long long inode, unsigned long long size, Py_buffer starts, Py_buffer flags,
                             Py_ssize_t connections, double deadline_s)
{
    struct file *file = calloc(1, sizeof *file);
    if (!file) {
        PyBuffer_Release(&starts);
        PyBuffer_Release(&flags);
        PyErr_NoMemory();
        return NULL;
    }
    *file = (struct file){.inode = inode, .size = size, .starts = starts, .flags = flags, .usable = true,
                          .connection_count = connections, .deadline_ns = deadline_s * 1e9};
    if (starts.len != flags.len * (Py_ssize_t)sizeof(uint64_t) || !flags.len || !connections ||
        connections > MAX_CONNECTIONS) {
        PyErr_SetString(PyExc_ValueError, "the extents or the sockets make no sense");
    } else if (file_count == MAX_FILES) {
        PyErr_SetString(PyExc_OSError, "there are too many disks");
    } else {
        return file;
    }
    discard(file);
    return NULL;
}

/* Note where the disk's clusters lie in the file; None: it is the disk byte for byte.  Else NULL, with a Python
 * exception, and the file is no more. */
static struct file *placed(struct file *file, PyObject *placement)
{
    unsigned long long from, cluster_bytes;
    if (!file || placement == Py_None)
        return file;
    if (!PyArg_ParseTuple(placement, "KKy*y*", &from, &cluster_bytes, &file->firsts, &file->ranks)) {
        discard(file);
        return NULL;
    }
    file->placed_from = from;
    file->cluster_bytes = cluster_bytes;
    if (cluster_bytes && file->firsts.len == file->ranks.len && (file->ranks.len || file->size <= from))
        return file;
    PyErr_SetString(PyExc_ValueError, "the runs of clusters make no sense");
    discard(file);
    return NULL;
}

static void add_connection(struct file *file, unsigned number, long fd)
{
    file->connections[number] = (struct connection){.fd = fcntl(fd, F_DUPFD_CLOEXEC, 0), .file = file};
}

static PyObject *add(struct file *file)
{
    Py_BEGIN_ALLOW_THREADS;
    session_lock();
    files[file_count++] = file;
    for (unsigned i = 0; !file->is_local && i < file->connection_count && file->usable; i++)
        if (!session_watch(file->connections[i].fd, &file->connections[i]))
            give_up(file);
    session_unlock();
    Py_END_ALLOW_THREADS;
    Py_RETURN_NONE;
}

PyObject *reads_add(PyObject *self, PyObject *args)
{
    (void)self;
    PyObject *placement, *sockets;
    double deadline_s;
    unsigned long long inode, size;
    Py_buffer starts, flags;
    if (!PyArg_ParseTuple(args, "KKy*y*OO!d", &inode, &size, &starts, &flags, &placement, &PyTuple_Type, &sockets,
                          &deadline_s))
        return NULL;
    struct file *file = placed(new_file(inode, size, starts, flags, PyTuple_GET_SIZE(sockets), deadline_s), placement);
    if (!file)
        return NULL;
    for (unsigned i = 0; i < file->connection_count; i++)
        add_connection(file, i, PyLong_AsLong(PyTuple_GET_ITEM(sockets, i)));
    return add(file);
}

PyObject *reads_add_file(PyObject *self, PyObject *args)
{
    (void)self;
    int fd;
    PyObject *placement;
    double deadline_s;
    unsigned long long inode, size, local_bytes;
    Py_buffer starts, flags;
    if (!PyArg_ParseTuple(args, "KKy*y*OiKd", &inode, &size, &starts, &flags, &placement, &fd, &local_bytes,
                          &deadline_s))
        return NULL;
    struct file *file = placed(new_file(inode, size, starts, flags, 1, deadline_s), placement);
    if (!file)
        return NULL;
    file->is_local = true;
    file->local_bytes = local_bytes;
    add_connection(file, 0, fd);
    return add(file);
}

/* Leave further reads of a file to Python; those under way too. */
PyObject *reads_drop(PyObject *self, PyObject *args)
{
    (void)self;
    unsigned long long inode;
    if (!PyArg_ParseTuple(args, "K", &inode))
        return NULL;
    Py_BEGIN_ALLOW_THREADS;
    session_lock();
    struct file *file = file_of(inode);
    if (file)
        give_up(file);
    session_unlock();
    Py_END_ALLOW_THREADS;
    Py_RETURN_NONE;
}

/* Forget all files; the thread has ended.  One that a thread still reads stays in memory. */
void reads_discard(void)
{
    session_lock();
    for (; file_count; file_count--) {
        struct file *file = files[file_count - 1];
        if (!file->is_local || !file->connections[0].parts)
            discard(file);
    }
    cut_off = false;
    session_unlock();
}
