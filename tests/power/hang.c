// Preloaded: while the file $HANG exists, whoever writes LMDB's meta page (which is opened to be synced with each write)
// waits after the bytes are in the page cache, as on a disk that does not answer. $HANG.reached says that one waits.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

typedef ssize_t (*writer)(int, const void *, size_t, off_t);

static ssize_t written(writer real, int fd, const void *bytes, size_t size, off_t offset)
{
    ssize_t done = real(fd, bytes, size, offset);
    const char *hang = getenv("HANG");
    char reached[4096];
    int flags = fcntl(fd, F_GETFL);
    if (size >= 4096 || hang == NULL || flags < 0 || !(flags & O_DSYNC) || access(hang, F_OK) != 0)
        return done;
    snprintf(reached, sizeof reached, "%s.reached", hang);
    close(open(reached, O_CREAT | O_WRONLY, 0600));
    while (access(hang, F_OK) == 0)
        usleep(1000);
    return done;
}

ssize_t pwrite(int fd, const void *bytes, size_t size, off_t offset)
{
    return written((writer)dlsym(RTLD_NEXT, "pwrite"), fd, bytes, size, offset);
}

ssize_t pwrite64(int fd, const void *bytes, size_t size, off_t offset)
{
    return written((writer)dlsym(RTLD_NEXT, "pwrite64"), fd, bytes, size, offset);
}
