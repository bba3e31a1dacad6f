/* Loaded into QEMU (LD_PRELOAD): writes to scratch files of snapshots fail, with the errno that the file CONTROL holds.
 *
 * So a file system can refuse them while it has room, or for any other reason.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

static int refusal(int fd)
{
    char link[64], path[4096], text[16] = "";
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0)
        return 0;
    path[length] = 0;
    if (!strstr(path, "/snapmount-") || !strstr(path, ".qcow2"))
        return 0;
    int control = open(CONTROL, O_RDONLY | O_CLOEXEC);
    if (control < 0)
        return 0;
    length = read(control, text, sizeof text - 1);
    close(control);
    return length > 0 ? atoi(text) : 0;
}

#define REFUSING(name, declared, given) \
    ssize_t name declared \
    { \
        static ssize_t (*real) declared; \
        if (!real) \
            real = (ssize_t (*) declared)dlsym(RTLD_NEXT, #name); \
        int number = refusal(fd); \
        if (number) \
            return errno = number, -1; \
        return real given; \
    }

REFUSING(pwrite, (int fd, const void *from, size_t length, off_t at), (fd, from, length, at))
REFUSING(pwrite64, (int fd, const void *from, size_t length, off64_t at), (fd, from, length, at))
REFUSING(pwritev, (int fd, const struct iovec *from, int count, off_t at), (fd, from, count, at))
REFUSING(pwritev64, (int fd, const struct iovec *from, int count, off64_t at), (fd, from, count, at))
