/* Preloaded into a process, writes down in order what it does to the files below a directory, for power.disk to replay.

   COFFRE_POWER_ROOT: the directory. COFFRE_POWER_LOG: where the record goes. COFFRE_POWER_ACKS: the file in which the
   program writes what it acknowledges. COFFRE_POWER_KILL: the process kills itself when it has made so many entries;
   COFFRE_POWER_KILL_AT: when it has made a directory whose path ends so.

   An entry is 32 bytes (kind, descriptor, flags, length of what follows, offset, reserved), then a path or data. A call and
   its entry are made under one lock, so that the record has the order of the effects; a sync has an entry when it begins and
   one when it has ended, and others run meanwhile. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

enum kind { OPEN = 1, MKDIR, UNLINK, WRITE, TRUNCATE, TRUNCATE_PATH, SYNC_BEGIN, SYNC_END, ACK, MAPPED, UNKNOWN };
enum { FDS = 65536, NOT_OURS = 0, DATA, ACKS };

struct entry {
    uint32_t kind;
    int32_t fd;
    uint32_t flags;
    uint32_t length;
    int64_t offset;
    int64_t reserved;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static const char *root, *acks, *kill_at;
static size_t root_length;
static long entries, kill_after;
static int log_fd = -1;
static unsigned char owned[FDS];

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

__attribute__((constructor)) static void begin(void)
{
    const char *path = getenv("COFFRE_POWER_LOG"), *after = getenv("COFFRE_POWER_KILL");
    root = getenv("COFFRE_POWER_ROOT");
    acks = getenv("COFFRE_POWER_ACKS");
    kill_at = getenv("COFFRE_POWER_KILL_AT");
    if (path == NULL || root == NULL || acks == NULL)
        return;
    root_length = strlen(root);
    kill_after = after == NULL ? 0 : atol(after);
    log_fd = REAL(open64)(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (log_fd < 0)
        abort();
}

static int is_ours(const char *path)
{
    return log_fd >= 0 && path != NULL && strncmp(path, root, root_length) == 0 &&
           (path[root_length] == '/' || path[root_length] == 0);
}

static int ends_with(const char *path, const char *end)
{
    size_t length = strlen(path), wanted = strlen(end);
    return length >= wanted && strcmp(path + length - wanted, end) == 0;
}

static int owner(int fd)
{
    return log_fd >= 0 && fd >= 0 && fd < FDS ? owned[fd] : NOT_OURS;
}

static void put(const void *data, size_t length)
{
    for (const char *rest = data; length > 0;) {
        ssize_t count = REAL(write)(log_fd, rest, length);
        if (count <= 0)
            abort();
        rest += count;
        length -= (size_t)count;
    }
}

/* The lock is held. */
static void head(enum kind kind, int fd, uint32_t flags, size_t length, off64_t offset)
{
    struct entry entry = {kind, fd, flags, (uint32_t)length, offset, 0};
    put(&entry, sizeof entry);
}

static void made(void)
{
    if (++entries == kill_after)
        kill(getpid(), SIGKILL);
}

static void note(enum kind kind, int fd, uint32_t flags, const void *data, size_t length, off64_t offset)
{
    head(kind, fd, flags, length, offset);
    put(data, length);
    made();
}

static void note_path(enum kind kind, int fd, uint32_t flags, const char *path, off64_t offset)
{
    note(kind, fd, flags, path, strlen(path), offset);
}

static void note_unknown(const char *what)
{
    pthread_mutex_lock(&lock);
    note_path(UNKNOWN, -1, 0, what, 0);
    pthread_mutex_unlock(&lock);
}

/* ---------------------------------------------------------------- names */

static int open_as(int (*real)(const char *, int, ...), const char *path, int flags, mode_t mode)
{
    int ours = is_ours(path), told = log_fd >= 0 && path != NULL && strcmp(path, acks) == 0;
    if (!ours && !told)
        return real(path, flags, mode);
    pthread_mutex_lock(&lock);
    int fd = real(path, flags, mode);
    if (fd >= FDS)
        abort();
    if (fd >= 0) {
        owned[fd] = ours ? DATA : ACKS;
        if (ours)
            note_path(OPEN, fd, (uint32_t)flags, path, 0);
    }
    pthread_mutex_unlock(&lock);
    return fd;
}

#define OPENS(name)                                                                                                    \
    int name(const char *path, int flags, ...)                                                                         \
    {                                                                                                                  \
        va_list rest;                                                                                                  \
        va_start(rest, flags);                                                                                         \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0;                                        \
        va_end(rest);                                                                                                  \
        return open_as(REAL(name), path, flags, mode);                                                                 \
    }
OPENS(open)
OPENS(open64)

int close(int fd)
{
    if (owner(fd) == NOT_OURS)
        return REAL(close)(fd);
    pthread_mutex_lock(&lock);
    owned[fd] = NOT_OURS;
    int result = REAL(close)(fd);
    pthread_mutex_unlock(&lock);
    return result;
}

int mkdir(const char *path, mode_t mode)
{
    if (!is_ours(path))
        return REAL(mkdir)(path, mode);
    pthread_mutex_lock(&lock);
    int result = REAL(mkdir)(path, mode);
    if (result == 0) {
        note_path(MKDIR, -1, 0, path, 0);
        if (kill_at != NULL && ends_with(path, kill_at))
            kill(getpid(), SIGKILL);
    }
    pthread_mutex_unlock(&lock);
    return result;
}

int unlink(const char *path)
{
    if (!is_ours(path))
        return REAL(unlink)(path);
    pthread_mutex_lock(&lock);
    int result = REAL(unlink)(path);
    if (result == 0)
        note_path(UNLINK, -1, 0, path, 0);
    pthread_mutex_unlock(&lock);
    return result;
}

int rename(const char *from, const char *to)
{
    if (is_ours(from) || is_ours(to))
        note_unknown("rename");
    return REAL(rename)(from, to);
}

int link(const char *from, const char *to)
{
    if (is_ours(from) || is_ours(to))
        note_unknown("link");
    return REAL(link)(from, to);
}

/* ---------------------------------------------------------------- contents */

static ssize_t wrote(int fd, const struct iovec *parts, int count, off64_t offset, ssize_t result)
{
    if (result <= 0)
        return result;
    int flags = fcntl(fd, F_GETFL);
    size_t left = (size_t)result;
    head(owner(fd) == ACKS ? ACK : WRITE, fd, (uint32_t)flags, left, offset);
    for (int part = 0; part < count && left > 0; part++) {
        size_t length = parts[part].iov_len < left ? parts[part].iov_len : left;
        put(parts[part].iov_base, length);
        left -= length;
    }
    made();
    return result;
}

#define WRITES(signature, call, parts, count, offset)                                                                  \
    ssize_t signature                                                                                                  \
    {                                                                                                                  \
        if (owner(fd) == NOT_OURS)                                                                                     \
            return call;                                                                                               \
        pthread_mutex_lock(&lock);                                                                                     \
        off64_t at = offset;                                                                                           \
        ssize_t result = wrote(fd, parts, count, at, call);                                                            \
        pthread_mutex_unlock(&lock);                                                                                   \
        return result;                                                                                                 \
    }
#define ONE(data, size) (&(struct iovec){(void *)(data), (size)})
#define HERE (fcntl(fd, F_GETFL) & O_APPEND ? lseek64(fd, 0, SEEK_END) : lseek64(fd, 0, SEEK_CUR))

WRITES(write(int fd, const void *data, size_t size), REAL(write)(fd, data, size), ONE(data, size), 1, HERE)
WRITES(pwrite(int fd, const void *data, size_t size, off_t offset), REAL(pwrite)(fd, data, size, offset),
       ONE(data, size), 1, offset)
WRITES(pwrite64(int fd, const void *data, size_t size, off64_t offset), REAL(pwrite64)(fd, data, size, offset),
       ONE(data, size), 1, offset)
WRITES(writev(int fd, const struct iovec *parts, int count), REAL(writev)(fd, parts, count), parts, count, HERE)
WRITES(pwritev(int fd, const struct iovec *parts, int count, off_t offset),
       REAL(pwritev)(fd, parts, count, offset), parts, count, offset)
WRITES(pwritev64(int fd, const struct iovec *parts, int count, off64_t offset),
       REAL(pwritev64)(fd, parts, count, offset), parts, count, offset)
WRITES(pwritev2(int fd, const struct iovec *parts, int count, off_t offset, int flags),
       REAL(pwritev2)(fd, parts, count, offset, flags), parts, count, offset)
WRITES(pwritev64v2(int fd, const struct iovec *parts, int count, off64_t offset, int flags),
       REAL(pwritev64v2)(fd, parts, count, offset, flags), parts, count, offset)

#define CUTS(signature, ours, call, entry)                                                                             \
    int signature                                                                                                      \
    {                                                                                                                  \
        if (!(ours))                                                                                                   \
            return call;                                                                                               \
        pthread_mutex_lock(&lock);                                                                                     \
        int result = call;                                                                                             \
        if (result == 0)                                                                                               \
            entry;                                                                                                     \
        pthread_mutex_unlock(&lock);                                                                                   \
        return result;                                                                                                 \
    }
CUTS(ftruncate(int fd, off_t size), owner(fd), REAL(ftruncate)(fd, size), note(TRUNCATE, fd, 0, "", 0, size))
CUTS(ftruncate64(int fd, off64_t size), owner(fd), REAL(ftruncate64)(fd, size), note(TRUNCATE, fd, 0, "", 0, size))
CUTS(truncate(const char *path, off_t size), is_ours(path), REAL(truncate)(path, size),
     note_path(TRUNCATE_PATH, -1, 0, path, size))
CUTS(truncate64(const char *path, off64_t size), is_ours(path), REAL(truncate64)(path, size),
     note_path(TRUNCATE_PATH, -1, 0, path, size))

int fallocate64(int fd, int mode, off64_t offset, off64_t size)
{
    if (owner(fd) != NOT_OURS)
        note_unknown("fallocate");
    return REAL(fallocate64)(fd, mode, offset, size);
}

int posix_fallocate64(int fd, off64_t offset, off64_t size)
{
    if (owner(fd) != NOT_OURS)
        note_unknown("posix_fallocate");
    return REAL(posix_fallocate64)(fd, offset, size);
}

/* ---------------------------------------------------------------- syncs */

static int sync_as(int (*real)(int), int fd)
{
    if (owner(fd) != DATA)
        return real(fd);
    pthread_mutex_lock(&lock);
    note(SYNC_BEGIN, fd, 0, "", 0, 0);
    pthread_mutex_unlock(&lock);
    int result = real(fd);
    pthread_mutex_lock(&lock);
    if (result == 0)
        note(SYNC_END, fd, 0, "", 0, 0);
    pthread_mutex_unlock(&lock);
    return result;
}

int fsync(int fd) { return sync_as(REAL(fsync), fd); }
int fdatasync(int fd) { return sync_as(REAL(fdatasync), fd); }

#define MAPS(name, offset_type)                                                                                        \
    void *name(void *at, size_t size, int protection, int flags, int fd, offset_type offset)                           \
    {                                                                                                                  \
        if (owner(fd) == DATA && (protection & PROT_WRITE) && (flags & MAP_SHARED)) {                                  \
            pthread_mutex_lock(&lock);                                                                                 \
            note(MAPPED, fd, 0, "", 0, 0);                                                                             \
            pthread_mutex_unlock(&lock);                                                                               \
        }                                                                                                              \
        return REAL(name)(at, size, protection, flags, fd, offset);                                                    \
    }
MAPS(mmap, off_t)
MAPS(mmap64, off64_t)
