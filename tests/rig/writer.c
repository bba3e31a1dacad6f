/* The guest's program: writes sequence-stamped sectors at random places, one at a time.
 *
 *   writer SEED PAUSE DEVICE...
 *
 * with so many microseconds between two writes.
 *
 * Write number N (1, 2, ...) goes to a device and sector that follow from SEED and N alone, so that whoever
 * reads the disks can replay the sequence (tests/rig/prefix.py is the other half).  A write begins only when the one
 * before it has completed: a true point-in-time view holds exactly the writes 1..S for some S.
 *
 * Layout of a sector, little endian: "SNAPSEQ1", seed, N, device index, sector number, then N over and over.
 *
 * Ten times a second a line on stdout: seq=N longest_us=LONGEST-WRITE-SINCE-THE-LAST-LINE errors=E
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

enum { SECTOR = 512, MAX_DEVICES = 8 };

/* splitmix64 (Steele, Lea, Flood 2014): the N-th output without a state to carry along */
static uint64_t mix(uint64_t seed, uint64_t n)
{
    uint64_t z = seed + n * UINT64_C(0x9E3779B97F4A7C15);
    z = (z ^ (z >> 30)) * UINT64_C(0xBF58476D1CE4E5B9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94D049BB133111EB);
    return z ^ (z >> 31);
}

static uint64_t now_us(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000 + t.tv_nsec / 1000;
}

int main(int argc, char **argv)
{
    if (argc < 4 || argc - 3 > MAX_DEVICES)
        return fprintf(stderr, "usage: writer SEED PAUSE DEVICE...\n"), 2;
    uint64_t seed = strtoull(argv[1], NULL, 0);
    useconds_t pause = strtoul(argv[2], NULL, 0);
    char **names = argv + 3;
    int devices = argc - 3, fd[MAX_DEVICES];
    uint64_t sectors[MAX_DEVICES];
    for (int i = 0; i < devices; i++) {
        uint64_t size;
        fd[i] = open(names[i], O_RDWR | O_DIRECT);
        if (fd[i] < 0 || ioctl(fd[i], BLKGETSIZE64, &size) < 0)
            return perror(names[i]), 1;
        sectors[i] = size / SECTOR;
    }
    uint64_t *sector;
    if (posix_memalign((void **)&sector, 4096, SECTOR))
        return 1;

    uint64_t longest = 0, errors = 0, last_line = now_us();
    for (uint64_t n = 1;; n++) {
        uint64_t r = mix(seed, n);
        int device = r % devices;
        uint64_t where = (r / devices) % sectors[device];
        memcpy(sector, "SNAPSEQ1", 8);
        sector[1] = seed;
        sector[2] = n;
        sector[3] = device;
        sector[4] = where;
        for (int i = 5; i < SECTOR / 8; i++)
            sector[i] = n;
        uint64_t start = now_us();
        while (pwrite(fd[device], sector, SECTOR, where * SECTOR) != SECTOR) {
            errors++;
            printf("error: write %llu to %s: %s\n", (unsigned long long)n, names[device], strerror(errno));
            fflush(stdout);
            usleep(100000);
        }
        uint64_t end = now_us();
        if (end - start > longest)
            longest = end - start;
        if (end - last_line > 100000) {
            printf("seq=%llu longest_us=%llu errors=%llu\n", (unsigned long long)n,
                   (unsigned long long)longest, (unsigned long long)errors);
            fflush(stdout);
            last_line = end;
            longest = 0;
        }
        if (pause)
            usleep(pause);
    }
}
